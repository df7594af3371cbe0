"""The words between core and daemon: what happened (events) and what to do about it (commands). Values only."""

from __future__ import annotations

from typing import Any, TypeAlias

from msgspec import Struct

from scraper_supervisor.core.config.settings import GroupSettings, Settings
from scraper_supervisor.core.formats.event_names import Component, EventName, Severity
from scraper_supervisor.core.formats.event_payloads import EventPayload
from scraper_supervisor.core.measurements import Sample
from scraper_supervisor.core.ops.all_ops import Answer, Op
from scraper_worker.jsonrpc import RpcError
from scraper_worker.protocol import FromWorker, ToWorker

# ---- events: what happened ------------------------------------------------------------------------------------------


class Said(Struct, frozen=True):
    """A worker's connection sent a message. `call` is None for a notification.

    `ancestry`: PIDs of a process and of its parents, nearest first. On hello the peer's by SO_PEERCRED, on
    browser.started the browser's, and empty where there is no such process; else unset.
    """

    conn: int
    call: int | None
    message: FromWorker
    ancestry: tuple[int, ...] = ()


class Heard(Struct, frozen=True):
    """A worker's connection sent a line that said nothing to us: no JSON, no method that there is, no good params."""

    conn: int


class Replied(Struct, frozen=True):
    """A worker answered our own request `call`; `error` is None if it went well."""

    conn: int
    call: int
    error: RpcError | None


class Disconnected(Struct, frozen=True):
    """A worker's connection is closed."""

    conn: int


class Spawned(Struct, frozen=True):
    """A process runs."""

    worker: str
    incarnation: int
    pid: int
    token: str


class SpawnFailed(Struct, frozen=True):
    """No process could be started; `errno` is 0 where the system gave none.

    `is_set_up` says that the group's program or folder is not there, or is no program.
    """

    worker: str
    incarnation: int
    message: str
    errno: int = 0
    is_set_up: bool = False


class Exited(Struct, frozen=True):
    """A process ended, by `code` or by `signal`; `last_line` is the last one that it printed to stderr."""

    worker: str
    incarnation: int
    code: int | None
    signal: int | None
    last_line: str | None = None


class StackTold(Struct, frozen=True):
    """Where the main thread of a worker stands that is about to be killed, innermost call last; empty if unknown."""

    worker: str
    incarnation: int
    lines: tuple[str, ...]


class TreeEnded(Struct, frozen=True):
    """Nothing is left of an incarnation; `killed` processes had outlived it."""

    worker: str
    incarnation: int
    killed: int


class Sampled(Struct, frozen=True):
    """One pass over all workers' trees and the host. None is unknown."""

    samples: tuple[Sample, ...]
    memory_percent: float | None
    disk_free: int | None


class Persisted(Struct, frozen=True):
    """An operation is durable, or a read answered."""

    op: Op
    answer: Answer


class PersistFailed(Struct, frozen=True):
    """An operation left no trace."""

    op: Op
    errno: int
    message: str


class StoreFaulted(Struct, frozen=True):
    """The ledger was found unwell; `errno` is the system's."""

    errno: int
    message: str


class ItemsChanged(Struct, frozen=True):
    """Items of the group's run are otherwise in the ledger than memory has them: it is to be read again."""

    group: str


class LeasesLost(Struct, frozen=True):
    """What these claims hold may be another supervisor's by now."""

    group: str
    claims: tuple[int, ...]


News: TypeAlias = StoreFaulted | ItemsChanged | LeasesLost


class StoreTold(Struct, frozen=True):
    """The store has news for which nobody asked. A ledger that nobody shares has no news but faults."""

    news: News


class Due(Struct, frozen=True):
    """The time of `Fleet.next_deadline()` came; early, late or twice does no harm."""


class Asked(Struct, frozen=True):
    """An operator's request on the control socket."""

    request: int
    method: str
    names: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    fresh: bool = False
    failed: bool = False
    parked: bool = False
    wait: bool = True
    generation: int | None = None
    slot: str | None = None
    text: str = ""
    token: int | None = None  # of an import, as its begin was answered
    uid: int = 0  # the operator's user number, by SO_PEERCRED


class Withdrawn(Struct, frozen=True):
    """An operator's connection is gone: its request needs no answer any more."""

    request: int


class Reconfigured(Struct, frozen=True):
    """A new configuration, already validated and allowed by `reload_plan.plan`."""

    settings: Settings


class Terminated(Struct, frozen=True):
    """SIGTERM, SIGINT or `stop`: drain; `at_once` ends without waiting for items."""

    reason: str
    at_once: bool = False


class Stalled(Struct, frozen=True):
    """The loop did not run from `since`, in monotonic seconds, until now: that time counts for nobody."""

    since: float


Event: TypeAlias = (
    Said
    | Heard
    | Replied
    | Disconnected
    | Spawned
    | SpawnFailed
    | Exited
    | StackTold
    | TreeEnded
    | Sampled
    | Persisted
    | PersistFailed
    | StoreTold
    | Due
    | Asked
    | Withdrawn
    | Reconfigured
    | Terminated
    | Stalled
)

# ---- commands: what to do -------------------------------------------------------------------------------------------


class Spawn(Struct, frozen=True):
    """Start a worker's process. Answered by Spawned or SpawnFailed."""

    worker: str
    incarnation: int
    group: GroupSettings


class Signal(Struct, frozen=True):
    """Send a signal to the worker's PID alone."""

    worker: str
    incarnation: int
    signum: int


class KillTree(Struct, frozen=True):
    """SIGKILL the worker and everything below it, and remove what it left. Answered by TreeEnded.

    Also the clean-up after a worker's own end: `browsers` are the PIDs that it reported. With `ask`, it is asked before
    where it stands, answered by StackTold.
    """

    worker: str
    incarnation: int
    browsers: tuple[int, ...]
    ask: bool = False


class KillBrowser(Struct, frozen=True):
    """SIGKILL one browser of a worker, all its processes."""

    worker: str
    incarnation: int
    pid: int


class Watch(Struct, frozen=True):
    """Sample this worker's tree from now on, or what it consists of changed, or its limits did.

    Args:
        worker: its name.
        incarnation: which start of it.
        pid: its process.
        browsers: (id, main PID) of each.
        browser_limit: bytes near which a browser's memory is measured each round; None for no limit.
        worker_limit: likewise, of the worker without its browsers.
    """

    worker: str
    incarnation: int
    pid: int
    browsers: tuple[tuple[str, int], ...] = ()
    browser_limit: int | None = None
    worker_limit: int | None = None


class Unwatch(Struct, frozen=True):
    """Sample this worker no longer."""

    worker: str


class Reply(Struct, frozen=True):
    """Answer a worker's call."""

    conn: int
    call: int
    result: Any


class Refuse(Struct, frozen=True):
    """Answer a worker's call with an error, and close the connection if asked."""

    conn: int
    call: int
    error: RpcError
    close: bool = False


class Tell(Struct, frozen=True):
    """Send a worker a notification, or a request if `call` is given (answered by Replied)."""

    conn: int
    message: ToWorker
    call: int | None = None


class Introduced(Struct, frozen=True):
    """The connection said a good hello: the limit of its lines is lifted."""

    conn: int


class HangUp(Struct, frozen=True):
    """Close a worker's connection, after what was sent."""

    conn: int


class Persist(Struct, frozen=True):
    """Have the store carry out an operation. Answered by Persisted or PersistFailed."""

    op: Op


class Publish(Struct, frozen=True):
    """Write an event to the event log and the log; what it is called its data say."""

    data: EventPayload
    severity: Severity
    correlation_id: str
    worker: str | None = None
    group: str | None = None

    @property
    def event(self) -> EventName:
        """Its name in the event log."""
        return self.data.EVENT

    @property
    def component(self) -> Component:
        """The part of the supervisor that it is about."""
        return self.data.COMPONENT


class Answered(Struct, frozen=True):
    """Answer an operator's request."""

    request: int
    ok: bool
    document: Any


class Leave(Struct, frozen=True):
    """Everything is at its end: the daemon exits with `code`."""

    code: int
    reason: str


Command: TypeAlias = (
    Spawn
    | Signal
    | KillTree
    | KillBrowser
    | Watch
    | Unwatch
    | Reply
    | Refuse
    | Tell
    | Introduced
    | HangUp
    | Persist
    | Publish
    | Answered
    | Leave
)
