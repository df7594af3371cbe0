"""What events of workers, their browsers, limits and states tell; see `event_payloads`."""

from __future__ import annotations

from typing import Literal, TypeAlias

from scraper_supervisor.core.formats.event_names import Payload

ResourceKey: TypeAlias = Literal[
    "browser_memory",
    "browser_memory_max",
    "browser_lifetime",
    "browser_pages",
    "cpu_percent",
    "host_memory_percent",
    "leak_forecast",
]  # of [resources]: those for which a browser is replaced
BrowserCause: TypeAlias = ResourceKey | Literal["crash", "hang", "operator"]


# ---- workers ---------------------------------------------------------------------------------------------------------


class WorkerStarted(Payload, frozen=True):
    """A worker's process runs.

    Attributes:
        pid: the process's.
        incarnation: which of the worker's starts it is.
    """

    EVENT = "worker_started"
    COMPONENT = "workers"
    pid: int
    incarnation: int


class WorkerAdopted(Payload, frozen=True):
    """A worker that an earlier supervisor had started goes on under this one.

    Attributes:
        pid: the process's.
        incarnation: which of the worker's starts it is.
    """

    EVENT = "worker_adopted"
    COMPONENT = "workers"
    pid: int
    incarnation: int


class WorkerReady(Payload, frozen=True):
    """A worker said hello.

    Attributes:
        incarnation: which of the worker's starts it is.
    """

    EVENT = "worker_ready"
    COMPONENT = "workers"
    incarnation: int


class WorkerExited(Payload, frozen=True):
    """A worker's process ended; a warning where that is a death.

    Attributes:
        incarnation: which of the worker's starts it was.
        code: what it exited with; null when a signal killed it, or unknown.
        signal: the number of the signal that killed it; null when none did, or unknown.
        ordered: the supervisor had ordered it to end.
        reason: why it was ordered to end or killed; null where it was not.
        charged: the key of the item that is charged an attempt for the death.
        lines: the last 20 that it printed, oldest first; null while this is not known to those who tell of the end.
        oom: the kernel killed it for want of memory; null when unknown.
        died: it counts as a death: nobody ordered the end, and it did not end well.
    """

    EVENT = "worker_exited"
    COMPONENT = "workers"
    incarnation: int
    code: int | None
    signal: int | None
    ordered: bool
    reason: str | None
    charged: str | None
    lines: tuple[str, ...] | None = None
    oom: bool | None = None
    died: bool = False


class WorkerBackoff(Payload, frozen=True):
    """A worker is down and is started again after a while.

    Attributes:
        delay: seconds until then.
        reason: a sentence with its figures.
    """

    EVENT = "worker_backoff"
    COMPONENT = "workers"
    SEVERITY = "warning"
    delay: float
    reason: str


class WorkerFailed(Payload, frozen=True):
    """A worker is given up until it is started by an operator; critical where that is not for its restarts.

    Attributes:
        reason: a sentence with its figures.
    """

    EVENT = "worker_failed"
    COMPONENT = "workers"
    SEVERITY = "error"
    reason: str


class WorkerCompleted(Payload, frozen=True):
    """A worker ended well."""

    EVENT = "worker_completed"
    COMPONENT = "workers"


class WorkerHung(Payload, frozen=True):
    """A worker is killed for what it does not do.

    Attributes:
        reason: a sentence with its figures.
        blocked: where its main thread stood then, as the lines of a traceback, innermost call last; null where it
            does not tell, as a worker without the SDK.
    """

    EVENT = "worker_hung"
    COMPONENT = "workers"
    SEVERITY = "warning"
    reason: str
    blocked: tuple[str, ...] | None = None


# ---- browsers and limits ---------------------------------------------------------------------------------------------


class ThresholdBreached(Payload, frozen=True):
    """A limit is broken: by the head's worker, or without one by the host.

    Attributes:
        what: the limit's key in `[resources]`.
        limit: what is configured; bytes, percent, as `what` is.
        value: what was measured, in the same unit.
        browser: whose value it is; null where it is the worker's own or the host's.
    """

    EVENT = "threshold_breached"
    COMPONENT = "resources"
    SEVERITY = "warning"
    what: str
    limit: float
    value: float
    browser: str | None


class ThresholdRecovered(Payload, frozen=True):
    """A limit that was broken is kept again.

    Attributes:
        what: the limit's key in `[resources]`.
        limit: what is configured; null where it was switched off.
        value: what was measured, in the same unit; null where what broke the limit is gone.
        browser: whose value it is; null where it is the worker's own or the host's.
    """

    EVENT = "threshold_recovered"
    COMPONENT = "resources"
    what: str
    limit: float | None
    value: float | None
    browser: str | None


class LeakForecast(Payload, frozen=True):
    """A browser grows, will soon reach `browser_memory`, and is replaced before.

    Attributes:
        browser: which one.
        value: its memory now, bytes.
        limit: browser_memory, bytes.
        seconds: how long it would take to get there.
    """

    EVENT = "leak_forecast"
    COMPONENT = "resources"
    browser: str
    value: int
    limit: int
    seconds: float


class CleanupInitiated(Payload, frozen=True):
    """A browser is to be replaced, or something is killed: then it is a warning.

    Attributes:
        browser: which one; null where it is about what a worker's process left behind.
        reason: a sentence with its figures.
        killed: how many processes were killed; of a browser its main one alone counts. 0 where none was.
        incarnation: of the worker that left processes behind.
        cleaned: the name of that worker, which may be gone.
    """

    EVENT = "cleanup_initiated"
    COMPONENT = "resources"
    browser: str | None = None
    reason: str | None = None
    killed: int = 0
    incarnation: int | None = None
    cleaned: str | None = None


class BrowserRestarted(Payload, frozen=True):
    """A browser was replaced.

    Attributes:
        browser: the one that was replaced.
        cause: the key in `[resources]` for which it was replaced, or what else was the matter.
        how: its worker was asked to, or the browser was killed; null where it went by itself.
        seconds: from the asking, or from the loss, to the new browser; null where the worker was not asked in time.
    """

    EVENT = "browser_restarted"
    COMPONENT = "resources"
    browser: str
    cause: BrowserCause
    how: Literal["asked", "killed"] | None
    seconds: float | None


# ---- checkpoints -----------------------------------------------------------------------------------------------------


class CheckpointCreated(Payload, frozen=True):
    """A worker's state was written as a new generation.

    Attributes:
        generation: its number.
        bytes: the file's size.
        seconds: how long it took.
        checkpoint_of: the name of the worker, which may be gone.
        slot: which of its slots; null for its main state.
    """

    EVENT = "checkpoint_created"
    COMPONENT = "checkpoints"
    SEVERITY = "debug"
    generation: int
    bytes: int
    seconds: float
    checkpoint_of: str
    slot: str | None = None


class CheckpointLoaded(Payload, frozen=True):
    """A worker was given a state.

    Attributes:
        generation: its number.
        schema: its name and version, as the worker saved it.
        saved_at: when it was saved, RFC 3339 UTC.
        slot: from which slot; null for its main state.
    """

    EVENT = "checkpoint_loaded"
    COMPONENT = "checkpoints"
    generation: int
    schema: str
    saved_at: str
    slot: str | None = None


class CheckpointCorrupted(Payload, frozen=True):
    """A checkpoint was found damaged and moved to `corrupt/` beside it.

    Attributes:
        path: where it was found.
        reason: what is wrong with it.
    """

    EVENT = "checkpoint_corrupted"
    COMPONENT = "checkpoints"
    SEVERITY = "error"
    path: str
    reason: str


class CheckpointDeleted(Payload, frozen=True):
    """Generations were removed.

    Attributes:
        generations: their numbers.
        reason: why.
        slot: of which slot; null for the main state.
    """

    EVENT = "checkpoint_deleted"
    COMPONENT = "checkpoints"
    SEVERITY = "debug"
    generations: tuple[int, ...]
    reason: str
    slot: str | None = None
