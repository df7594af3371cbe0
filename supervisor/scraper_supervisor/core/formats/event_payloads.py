"""What each event tells: one Struct an event, whose fields are the keys of `data` in the event log, in this order.

The contract fixes names and many of the fields; readers ignore keys that they do not know, so that a field may be added
and none renamed or given another meaning. None, null in the log, says that something is unknown or does not apply.
Durations are seconds, sizes bytes. `docs/events.md` is drawn from here by `scripts/draw_events.py`.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

from scraper_supervisor.core.config.parser import Problem
from scraper_supervisor.core.formats.event_names import EventName, Payload
from scraper_supervisor.core.formats.worker_payloads import (
    BrowserRestarted,
    CheckpointCorrupted,
    CheckpointCreated,
    CheckpointDeleted,
    CheckpointLoaded,
    CleanupInitiated,
    LeakForecast,
    ThresholdBreached,
    ThresholdRecovered,
    WorkerAdopted,
    WorkerBackoff,
    WorkerCompleted,
    WorkerExited,
    WorkerFailed,
    WorkerHung,
    WorkerReady,
    WorkerStarted,
)
from scraper_worker.protocol import Failure

ScopeKind: TypeAlias = Literal["target", "group", "global"]

# ---- items -----------------------------------------------------------------------------------------------------------


class ItemFinished(Payload, frozen=True):
    """An attempt at an item was recorded; debug where it is done.

    Attributes:
        key: the item's.
        attempt: 1 + the attempts charged before this one.
        outcome: of this attempt; "failed" is for good.
        target: the host that the attempt reported, else the item's.
        seconds: how long the attempt took.
        failure: as the worker told it; null where it is done.
    """

    EVENT = "item_finished"
    COMPONENT = "queue"
    key: str
    attempt: int
    outcome: Literal["done", "retry", "failed"]
    target: str | None
    seconds: float | None
    failure: Failure | None


class _Judged(Payload, frozen=True):
    """A failed attempt was judged.

    Attributes:
        key: the item's.
        delay: seconds until the next attempt; null where there is none, or no time for it yet.
        reason: a sentence with its figures.
    """

    COMPONENT = "queue"
    key: str
    delay: float | None
    reason: str


class RetryAttempted(_Judged, frozen=True):
    """An item failed and will be tried again."""

    EVENT = "retry_attempted"


class RetryExhausted(_Judged, frozen=True):
    """An item failed for good: it has no attempts left."""

    EVENT = "retry_exhausted"
    SEVERITY = "warning"


class PermanentFailure(_Judged, frozen=True):
    """An item failed for good: its failure is one that trying again does not help."""

    EVENT = "permanent_failure"
    SEVERITY = "warning"


class RetrySucceeded(Payload, frozen=True):
    """An item that had failed before is done.

    Attributes:
        key: the item's.
        attempt: the one that succeeded.
    """

    EVENT = "retry_succeeded"
    COMPONENT = "queue"
    key: str
    attempt: int


class FailurePatternDetected(Payload, frozen=True):
    """A worker reported a failure outside any item (a login, a feed), or something that it said was refused.

    Attributes:
        failure: as the worker told it; or which offers were left out and why, or which process it called its browser
            that is none of its own.
        target: the host that it talked to; null of what was refused.
    """

    EVENT = "failure_pattern_detected"
    COMPONENT = "sessions"
    SEVERITY = "warning"
    failure: Failure
    target: str | None


# ---- holds and aborts ------------------------------------------------------------------------------------------------


class ScopePayload(Payload, frozen=True):
    """Something was decided about a scope.

    Attributes:
        scope: a target in a group, a group, or everything.
        key: the target's host, the group's name, or "" for everything.
        group: the target's or the scope's own; null for a target in all groups and for everything.
        items: votes that were looked at.
        failures: how many of them failed.
        rate: failures as a share of the items; null where no votes were looked at.
        limit: failure_limit, a share.
        reason: a sentence with its figures.
        next_probe_at: when the next item is let through, RFC 3339 UTC; null where none will be.
    """

    COMPONENT = "abort"
    scope: ScopeKind
    key: str
    group: str | None
    items: int
    failures: int
    rate: float | None
    limit: float
    reason: str
    next_probe_at: str | None


class HoldStarted(ScopePayload, frozen=True):
    """Nothing of a scope is handed out any more but probes."""

    EVENT = "hold_started"
    SEVERITY = "warning"


class HoldEnded(ScopePayload, frozen=True):
    """A scope goes on."""

    EVENT = "hold_ended"


class AbortEvaluated(ScopePayload, frozen=True):
    """A scope came under suspicion, a warning, or out of it.

    Attributes:
        action: which of these.
    """

    EVENT = "abort_evaluated"
    action: Literal["suspected", "cleared"]


class AbortTriggered(ScopePayload, frozen=True):
    """A scope is aborted."""

    EVENT = "abort_triggered"
    SEVERITY = "critical"


class AbortExecuted(ScopePayload, frozen=True):
    """The abort of a scope was carried out: its workers are being drained.

    Attributes:
        groups: whose workers they are.
    """

    EVENT = "abort_executed"
    SEVERITY = "critical"
    groups: tuple[str, ...]


# ---- configuration, storage, operators, the supervisor itself --------------------------------------------------------


class ConfigReloaded(Payload, frozen=True):
    """Another configuration is in force.

    Attributes:
        summary: what differs, in a sentence.
    """

    EVENT = "config_reloaded"
    COMPONENT = "config"
    summary: str


class ConfigRejected(Payload, frozen=True):
    """The configuration that was to be loaded is not valid; the one before stays in force.

    Attributes:
        problems: all that is wrong, each with the key's path and a sentence.
    """

    EVENT = "config_rejected"
    COMPONENT = "config"
    SEVERITY = "error"
    problems: tuple[Problem, ...]


class StorageDegraded(Payload, frozen=True):
    """The store refuses, has little room, or lacks what was acknowledged; or the runtime folder was removed in use.

    Attributes:
        reason: a sentence with its figures.
        errno: the system's number of the error; null where it gave none.
    """

    EVENT = "storage_degraded"
    COMPONENT = "storage"
    SEVERITY = "critical"
    reason: str
    errno: int | None = None


class StorageRecovered(Payload, frozen=True):
    """No place of the store is in trouble any more; or the runtime folder is there again (in one incident with that).

    Attributes:
        seconds: from the first trouble until now.
    """

    EVENT = "storage_recovered"
    COMPONENT = "storage"
    seconds: float


class OperatorActed(Payload, frozen=True):
    """An operator gave an order.

    Attributes:
        command: which, as it is typed.
        names: of groups, workers or whatever it concerns; none for everything.
        uid: the operator's user number.
        options: what else the command was given.
        keys: of items, the first 10 that it names.
        count: how many items it names; null where it names none.
    """

    EVENT = "operator_acted"
    COMPONENT = "operators"
    command: str
    names: tuple[str, ...]
    uid: int
    options: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    count: int | None = None


class SupervisorStarted(Payload, frozen=True):
    """The supervisor serves.

    Attributes:
        pid: its process's.
        version: its own.
        config: the path of the configuration file; null without one.
        predecessors_ended: workers of an earlier supervisor that had left processes, which were ended.
    """

    EVENT = "supervisor_started"
    COMPONENT = "supervisor"
    pid: int
    version: str
    config: str | None
    predecessors_ended: tuple[str, ...]


class SupervisorStopped(Payload, frozen=True):
    """The supervisor is at its end.

    Attributes:
        code: what it exits with.
        reason: why.
    """

    EVENT = "supervisor_stopped"
    COMPONENT = "supervisor"
    code: int
    reason: str


EventPayload: TypeAlias = (
    ItemFinished
    | RetryAttempted
    | RetryExhausted
    | PermanentFailure
    | RetrySucceeded
    | FailurePatternDetected
    | CheckpointCreated
    | CheckpointLoaded
    | CheckpointCorrupted
    | CheckpointDeleted
    | HoldStarted
    | HoldEnded
    | AbortEvaluated
    | AbortTriggered
    | AbortExecuted
    | ConfigReloaded
    | ConfigRejected
    | StorageDegraded
    | StorageRecovered
    | OperatorActed
    | SupervisorStarted
    | SupervisorStopped
    | WorkerStarted
    | WorkerAdopted
    | WorkerReady
    | WorkerExited
    | WorkerBackoff
    | WorkerFailed
    | WorkerCompleted
    | WorkerHung
    | ThresholdBreached
    | ThresholdRecovered
    | LeakForecast
    | CleanupInitiated
    | BrowserRestarted
)
PAYLOADS: Final[dict[EventName, type[EventPayload]]] = {one.EVENT: one for one in get_args(EventPayload)}
UNPUBLISHED: Final[dict[EventName, str]] = {
    "hold_started": "a scope under suspicion is not held, and sends no probes",
    "hold_ended": "a scope under suspicion is not held, and sends no probes",
    "worker_adopted": "workers of an earlier supervisor are ended",
    "leak_forecast": "a browser's growth is not forecast",
}  # not by this version yet, and why
