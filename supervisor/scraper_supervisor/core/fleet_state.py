"""What the fleet knows: its groups, workers, connections and the state of its storage.

Only data, and the few words that need to know where a worker is; the rules are in the rooms that share this state.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal

from msgspec import Raw, Struct, field

from scraper_supervisor.core.config.settings import GroupSettings, RetrySettings, Settings
from scraper_supervisor.core.events import KillTree, Said, Tell
from scraper_supervisor.core.formats.worker_payloads import BrowserCause
from scraper_supervisor.core.measurements import Sample
from scraper_supervisor.core.ops.run_ops import RunImage, RunState
from scraper_supervisor.core.ops.state_ops import LoadState, SaveState
from scraper_supervisor.core.outbox import Outbox
from scraper_supervisor.core.policy.restart import RestartHistory
from scraper_supervisor.core.queue.queue import Queue
from scraper_supervisor.core.queue.targets import Targets
from scraper_supervisor.core.states.group import GROUP_TABLE, GroupState, GroupTrigger
from scraper_supervisor.core.states.supervisor import SUPERVISOR_TABLE, SupervisorState, SupervisorTrigger
from scraper_supervisor.core.states.worker_life import Life
from scraper_worker.protocol import Failure

if TYPE_CHECKING:
    from scraper_supervisor.core.formats.event_names import Severity
    from scraper_supervisor.core.formats.event_payloads import EventPayload
    from scraper_worker.protocol import ToWorker

Mode = Literal["continue", "next", "fresh"]
Intent = Literal["paused", "drained", "stopped"]  # what an operator wants of a group or worker

RATE_KEPT = 5000  # items done that are remembered for a group's rate


class Browser(Struct):
    """A browser as its worker reported it. Times are monotonic seconds."""

    id: str
    pid: int
    driver_pid: int | None
    engine: str
    version: str
    started: float
    pages: int | None = None


class Recycle(Struct):
    """A browser's replacement, from the wish to the new browser.

    `how` is what became of the old one. `asked` is when the worker was told. `since` is from when recycle_deadline
    runs: its hands were empty, or its browser was killed, since the deadline had passed. Times are monotonic seconds.
    """

    browser: str
    reason: str
    cause: BrowserCause
    incident: str
    how: Literal["asked", "killed"] = "asked"
    asked: float | None = None
    since: float | None = None
    call: int | None = None
    killed: bool = False


class LostBrowser(Struct, frozen=True):
    """A browser that crashed or was killed, and is not replaced yet.

    `killed` says that we did it. `since` is when it was killed or its loss was told, in monotonic seconds; `incident`
    is the correlation id.
    """

    browser: str
    cause: BrowserCause
    killed: bool
    since: float
    incident: str


class Incarnation(Struct):
    """What belongs to one process of a worker: a new one takes its place whole at each start and each end.

    Times are monotonic seconds.
    """

    conn: int | None = None
    away_since: float | None = None  # when its connection was closed
    heard: float | None = None
    beats: bool = False  # a heartbeat came: from now on, silence is a hang
    silence: float | None = None  # seconds that it may be silent, if a reload changed its heartbeats since its hello
    goodbye: Literal["complete", "drained"] | None = None
    goodbye_call: tuple[int, int] | None = None  # (conn, call) of a goodbye that is not answered yet
    more: bool = False  # its last offer said that others follow
    quiet_since: float | None = None  # since when it sent nothing but heartbeats
    browsers: dict[str, Browser] = {}
    killed_browsers: dict[str, LostBrowser] = {}  # by us; their worker has not told of it yet
    lost_browser: LostBrowser | None = None
    recycle: Recycle | None = None
    incidents: dict[str | None, str] = {}  # correlation ids: of a browser from its first breach on, of its own limits
    limit: str | None = None  # over a soft limit of its own: to be restarted when its hands are empty
    hung: str | None = None  # why it is killed as hung, while it is asked where it stands
    killed_for: Failure | None = None  # what a death by our own hand is charged as
    given_up: bool = False  # failed for good while its process still runs
    sample: Sample | None = None
    up_since: float | None = None  # its hello, or of a command its spawn; monotonic seconds

    @property
    def browser_pids(self) -> tuple[int, ...]:
        """The main PIDs of its browsers."""
        return tuple(browser.pid for browser in self.browsers.values())


class Worker(Struct):
    """One worker: who it is, what its present process told, and what is known over all its processes."""

    name: str
    group: str
    index: int
    life: Life
    current: Incarnation = field(default_factory=Incarnation)
    history: RestartHistory = RestartHistory()
    incident: str | None = None  # the correlation id from a detection to the recovery
    restarts: int = 0
    recycles: int = 0  # browsers that it replaced because it was asked to
    browser_kills: int = 0  # by us
    browser_crashes: int = 0
    done: int = 0
    failed: int = 0
    paused: bool = False
    leaving: bool = False  # removed from the configuration: forgotten when it is down
    unusable: bool = False  # its last process said that its own set-up is wrong
    last_failure: Failure | None = None
    saved: tuple[int, str] | None = None  # generation, saved_at
    state: tuple[str, Raw] | None = None  # schema, the latest state if it is small
    state_ended: int = 0  # items ended in the group when it was written


class Roll(Struct):
    """A restart one by one: the workers still to come, and the one that is waited for. Times are monotonic seconds."""

    left: list[str]
    reason: str
    current: str | None = None
    incarnation: int = 0  # of `current`, before
    since: float | None = None  # when its new process was wanted
    spawning: float | None = None  # since when that is being started: until it is there, its time does not run


class Install(Struct):
    """The imported states of a run that are to become checkpoints before the run is opened; the first is at work.

    `opening` is what the group waits for: it waits for something else once it begins afresh. `failed` says that the
    store refused a step, after which all begins anew when it works again.
    """

    image: RunImage
    owed: list[str]
    opening: int
    failed: bool = False


class Group(Struct):
    """One group: its settings, queue and workers' names."""

    name: str
    settings: GroupSettings
    queue: Queue
    state: GroupState = GroupState.OPENING  # written by `go` alone
    workers: list[str] = []
    mode: Mode = "continue"
    completing: bool = False  # its last item ended, so far as memory knows, and the ledger is asked
    repeat_since: float | None = None  # when the pause before a repeat began, monotonic seconds
    opening: int = 0  # ticket of the OpenRun that is waited for
    intent: Intent | None = None
    leaving: bool = False
    roll: Roll | None = None  # a restart of its workers one by one
    roll_failed: str | None = None  # why the last one was given up, in a sentence
    done_at: deque[float] = field(default_factory=lambda: deque(maxlen=RATE_KEPT))  # when the latest items were done
    failed_reason: str | None = None
    parks: bool = False  # it was aborted by itself: what is open is set aside once no worker holds an item
    install: Install | None = None
    run_state: RunState = "running"  # of its run, as the ledger has it or was last asked to have it

    def go(self, trigger: GroupTrigger) -> None:
        """Follow the table."""
        self.state = GROUP_TABLE[self.state, trigger]

    @property
    def repeat_at(self) -> float | None:
        """When the next run is to begin, in monotonic seconds."""
        return None if self.repeat_since is None else self.repeat_since + self.settings.repeat_delay


class Handshake(Struct):
    """A hello that waits for its worker's process to be known, or its checkpoint to be read."""

    said: Said
    worker: str
    incarnation: int


class Trouble(Struct):
    """A place of the store that refuses: the ledger, or a worker's folder. Times are monotonic seconds.

    `since` is from when the clocks of whom it holds stand still; `room` are the bytes that the next probe asks for, and
    `probe` is the ticket of the one under way.
    """

    reason: str
    since: float
    probe_at: float | None
    room: int = 0
    probe: int | None = None
    read: LoadState | None = None  # what could not be read, where that is the trouble
    slot: str | None = None  # where in the worker's folder something was refused last


class Storage(Struct):
    """How the disk does: `ledger` holds everybody, a worker's own folder that worker alone.

    What goes wrong while something else is wrong belongs to the same incident.
    """

    ledger: Trouble | None = None
    folders: dict[str, Trouble] = {}
    incident: str = ""
    since: float = 0.0  # monotonic seconds, of the incident
    low: bool = False  # below disk_free: nothing is handed out


class FleetState(Struct):
    """Everything the rooms share."""

    settings: Settings
    boot: str  # a random word of this daemon's life: seed of jitter, prefix of correlation ids
    outbox: Outbox
    targets: Targets
    once: bool = False
    phase: SupervisorState = SupervisorState.STARTING  # written by `go` alone
    groups: dict[str, Group] = {}
    workers: dict[str, Worker] = {}
    conns: dict[int, tuple[str, int]] = {}  # introduced connections → (worker, incarnation)
    storage: Storage = field(default_factory=Storage)
    intents: dict[str, Intent] = {}
    found: frozenset[str] = frozenset()  # whom operators had paused, drained or stopped before this daemon began
    memory_percent: float | None = None
    disk_free: int | None = None
    trees: set[tuple[str, int]] = set()  # (worker, incarnation) of which something may be left
    concluded: bool = False  # since the start an item ended for good, or an operator ordered another start
    retries: int = 0  # attempts that failed and were tried again, in this daemon's life
    at_once: bool = False  # the end waits for no item any more
    left: bool = False

    def go(self, trigger: SupervisorTrigger) -> None:
        """Follow the table."""
        self.phase = SUPERVISOR_TABLE[self.phase, trigger]

    def retry_settings(self, group: GroupSettings) -> RetrySettings:
        """The group's retry policy."""
        return self.settings.retry[group.retry]

    def end_tree(self, worker: Worker) -> None:
        """Have whatever is left of the worker's incarnation killed and cleared away."""
        incarnation = worker.life.incarnation
        self.trees.add((worker.name, incarnation))
        self.outbox.commands.append(KillTree(worker.name, incarnation, worker.current.browser_pids))

    def tell(self, worker: Worker, message: ToWorker, call: int | None = None) -> None:
        """Send a worker something, if it is connected."""
        if worker.current.conn is not None:
            self.outbox.commands.append(Tell(worker.current.conn, message, call))

    def publish(
        self,
        data: EventPayload,
        severity: Severity | None = None,
        *,
        worker: Worker | None = None,
        group: str | None = None,
        incident: str | None = None,
    ) -> None:
        """Put an event out, of its usual severity or this one.

        Its correlation id is the incident's, the worker's, or a new one.
        """
        incident = incident or (worker.incident if worker is not None else None)
        name, group = (worker.name, worker.group) if worker is not None else (None, group)
        self.outbox.publish(data, severity, incident=incident, worker=name, group=group)

    def members(self, group: Group) -> list[Worker]:
        """The group's workers, by index."""
        return [self.workers[name] for name in group.workers]

    def saving(self) -> bool:
        """True if a worker's state is on its way to the disk."""
        return any(isinstance(one.op, SaveState) for one in self.outbox.pending.values())

    def awaits_state(self, worker: str) -> bool:
        """True if a group is not opened before an imported state is in this worker's folder."""
        return any(
            group.install is not None
            and group.install.owed[:1] == [worker]
            and group.state is GroupState.OPENING
            and group.opening == group.install.opening
            for group in self.groups.values()
        )

    def clocks_run(self, worker: str | None = None) -> bool:
        """True if items can end: while the store refuses, workers are not to blame for what takes its time."""
        return self.storage.ledger is None and worker not in self.storage.folders
