"""One worker's life: the table of its phases, and the one clock that runs in each of them.

The table is the truth; `docs/states.md` is drawn from it. What a phase means for items, browsers or the group is not
known here: the rooms read `phase`, `after` and `reason`. Nobody else sets a life's clock.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from msgspec import Struct

from scraper_supervisor.core.events import Command, KillTree, Signal, Spawn
from scraper_supervisor.core.states.table import STAYS, Table, table

if TYPE_CHECKING:
    from scraper_supervisor.core.config.settings import GroupSettings

SIGTERM: Final = 15
TERM_GRACE: Final = 5.0  # seconds between SIGTERM after a drain in vain and SIGKILL to the whole tree
USELESS_GRACE: Final = 1.0  # seconds, the same, of a worker that holds nothing since it was never welcomed


class Phase(Enum):
    """Where a worker stands."""

    STOPPED = "stopped"
    SPAWNING = "spawning"
    STARTING = "starting"  # spawned, not yet introduced
    RUNNING = "running"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    COMPLETED = "completed"
    FAILED = "failed"

    __hash__ = object.__hash__  # an Enum's own hashes the name in Python, at each look into a set

    @property
    def public(self) -> str:
        """The state's name in `status`, which does not tell a worker without a process from one before its hello."""
        return "starting" if self is Phase.SPAWNING else self.value


class Trigger(Enum):
    """What can happen to a worker."""

    START = "start"  # it is wanted
    SPAWNED = "spawned"  # a process runs that owes a hello
    SPAWNED_PLAIN = "spawned plain"  # a process runs that owes nothing
    HELLO = "hello"
    DRAIN = "drain"  # finish what is in hand
    TERMINATE = "terminate"  # SIGTERM now
    KILL = "kill"
    GONE_WAIT = "gone, wait"  # it died, or was not born; another try after a delay
    GONE_STOP = "gone, stop"
    GONE_DONE = "gone, done"
    GONE_FAIL = "gone, fail"


Gone: TypeAlias = Literal["wait", "stop", "done", "fail"]
_GONE: Final[dict[Gone, Trigger]] = {
    "wait": Trigger.GONE_WAIT,
    "stop": Trigger.GONE_STOP,
    "done": Trigger.GONE_DONE,
    "fail": Trigger.GONE_FAIL,
}

_STOPPED, _SPAWNING, _STARTING, _RUNNING = Phase.STOPPED, Phase.SPAWNING, Phase.STARTING, Phase.RUNNING
_DRAINING, _STOPPING, _BACKOFF, _FAILED, _DONE = (
    Phase.DRAINING, Phase.STOPPING, Phase.BACKOFF, Phase.FAILED, Phase.COMPLETED,
)  # fmt: skip
TABLE: Final[Table[Phase, Trigger]] = table(
    Trigger,
    (_STOPPED, _SPAWNING, _STARTING, _RUNNING, _DRAINING, _STOPPING, _BACKOFF, _DONE, _FAILED),
    {
        Trigger.START: (_SPAWNING, STAYS, STAYS, STAYS, STAYS, STAYS, _SPAWNING, _SPAWNING, _SPAWNING),
        Trigger.SPAWNED: (STAYS, _STARTING, STAYS, STAYS, STAYS, STAYS, STAYS, STAYS, STAYS),
        Trigger.SPAWNED_PLAIN: (STAYS, _RUNNING, STAYS, STAYS, STAYS, STAYS, STAYS, STAYS, STAYS),
        Trigger.HELLO: (STAYS, STAYS, _RUNNING, STAYS, STAYS, STAYS, STAYS, STAYS, STAYS),
        Trigger.DRAIN: (STAYS, STAYS, _STOPPING, _DRAINING, STAYS, STAYS, _STOPPED, _STOPPED, _STOPPED),
        Trigger.TERMINATE: (STAYS, STAYS, _STOPPING, _STOPPING, _STOPPING, STAYS, _STOPPED, STAYS, STAYS),
        Trigger.KILL: (STAYS, STAYS, _STOPPING, _STOPPING, _STOPPING, STAYS, _STOPPED, STAYS, STAYS),
        Trigger.GONE_WAIT: (_BACKOFF, _BACKOFF, _BACKOFF, _BACKOFF, _BACKOFF, _BACKOFF, STAYS, _BACKOFF, STAYS),
        Trigger.GONE_STOP: (STAYS, _STOPPED, _STOPPED, _STOPPED, _STOPPED, _STOPPED, STAYS, STAYS, STAYS),
        Trigger.GONE_DONE: (STAYS, _DONE, _DONE, _DONE, _DONE, _DONE, STAYS, STAYS, STAYS),
        Trigger.GONE_FAIL: (_FAILED, _FAILED, _FAILED, _FAILED, _FAILED, _FAILED, _FAILED, _FAILED, STAYS),
    },
)
ALIVE: Final = frozenset({_STARTING, _RUNNING, _DRAINING, _STOPPING})  # there is a process
UP: Final = ALIVE | {_SPAWNING}  # there is one, or there will be


class Clock(Struct, frozen=True):
    """What runs out for a worker. `since` is monotonic seconds, `span` seconds.

    `what` names what is waited for: its "hello" (start_timeout); the "end" of its items, or of its process after its
    goodbye or a SIGTERM in the place of a drain (stop_timeout); its next "start" (restart_policy). A "fixed" span is
    told by no setting.
    """

    what: Literal["hello", "end", "fixed", "start"]
    since: float
    span: float

    @property
    def deadline(self) -> float:
        """When it runs out, in monotonic seconds."""
        return self.since + self.span


class Life:
    """A worker's phase, process and clock.

    `after` says what shall become of the worker when its process ends: "decide" (nobody ordered it: the restart policy
    does), "restart" or "stop". `reason` is the sentence that goes with an order or a kill.
    """

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.phase = Phase.STOPPED
        self.incarnation = 0
        self.pid: int | None = None
        self.token: str | None = None
        self.started: float | None = None
        self.introduced = False
        self.clock: Clock | None = None
        self.after: Literal["decide", "restart", "stop"] = "decide"
        self.reason: str | None = None
        self.killed = False

    def _go(self, trigger: Trigger) -> bool:
        """Follow the table; whether the phase changed."""
        before, self.phase = self.phase, TABLE[self.phase, trigger]
        return self.phase is not before

    @property
    def alive(self) -> bool:
        """True if there is a process."""
        return self.phase in ALIVE

    @property
    def up(self) -> bool:
        """True if there is a process or one is being started."""
        return self.phase in UP

    # ---- what happens to it

    def start(self, group: GroupSettings) -> list[Command]:
        """Start a new incarnation, unless there is one."""
        if not self._go(Trigger.START):
            return []
        self.incarnation += 1
        self.pid = self.token = self.started = self.clock = self.reason = None
        self.introduced = self.killed = False
        self.after = "decide"
        return [Spawn(self.worker, self.incarnation, group)]

    def spawned(self, pid: int, token: str, group: GroupSettings, now: float) -> list[Command]:
        """The process runs; an order to stop that came meanwhile is obeyed now."""
        plain = group.entrypoint is None
        if not self._go(Trigger.SPAWNED_PLAIN if plain else Trigger.SPAWNED):
            return []
        self.pid, self.token, self.started = pid, token, now
        self.clock = None if plain else Clock("hello", now, group.start_timeout)
        if self.after != "decide":
            return self._terminate(Clock("end", now, group.stop_timeout))
        return []

    def hello(self) -> bool:
        """The worker is introduced; whether it just became running."""
        self.introduced = True
        came_up = self._go(Trigger.HELLO)
        if came_up:
            self.clock = None
        return came_up

    def drain(
        self, reason: str, after: Literal["restart", "stop"], group: GroupSettings, now: float
    ) -> tuple[list[Command], bool]:
        """Order a graceful end.

        Returns:
            What to do, and whether the worker is to be told to drain (it is introduced and was running).
        """
        if self.after != "stop":  # an order to stop is never softened to a restart
            self.after, self.reason = after, reason
        if self.phase in (Phase.RUNNING, Phase.STARTING) and not self.introduced:
            return self._terminate(Clock("end", now, group.stop_timeout)), False
        changed = self._go(Trigger.DRAIN)
        if changed and self.phase is Phase.DRAINING:
            self.clock = Clock("end", now, group.stop_timeout)
            return [], True
        if changed:
            self.clock = None
        return [], False

    def terminate(self, now: float) -> list[Command]:
        """SIGTERM to the PID alone; SIGKILL to the tree follows after TERM_GRACE."""
        return self._terminate(Clock("fixed", now, TERM_GRACE))

    def give_up(self, now: float) -> list[Command]:
        """End a process that can't be of use: SIGTERM, and SIGKILL to the tree after USELESS_GRACE."""
        return self._terminate(Clock("fixed", now, USELESS_GRACE))

    def kill(self, reason: str, browsers: tuple[int, ...], *, ask: bool = False) -> list[Command]:
        """SIGKILL the whole tree; unless an end was ordered before, this is a death. `ask` first where it stands."""
        if not self.alive or self.killed:
            return []
        self._go(Trigger.KILL)
        self.clock, self.killed = None, True
        if self.after == "decide":
            self.reason = reason
        return [KillTree(self.worker, self.incarnation, browsers, ask)]

    def gone(self, what: Gone, next_start: Clock | None = None) -> None:
        """The process has ended (or was not born), and this comes of it; with "wait", another starts in time."""
        if self._go(_GONE[what]):  # else the word is stale
            self.pid = self.token = None
            self.clock = next_start

    def wanted_again(self) -> None:
        """An order to stop that is being obeyed becomes one to restart."""
        if self.up and self.after == "stop":
            self.after = "restart"

    def stop_waiting(self) -> None:
        """A worker in backoff is not started again by its clock, but by whoever wants it."""
        self.terminate(0.0)

    # ---- its clock

    @property
    def deadline(self) -> float | None:
        """When its clock runs out, in monotonic seconds."""
        return None if self.clock is None else self.clock.deadline

    def take_due(self, now: float) -> bool:
        """Take the clock away if it has run out, and tell whether it had: what follows may set another."""
        due = self.clock is not None and now >= self.clock.deadline
        if due:
            self.clock = None
        return due

    def said_goodbye(self, group: GroupSettings, now: float) -> None:
        """Its process owes us an end, unless a clock for that runs already."""
        if self.clock is None:
            self.clock = Clock("end", now, group.stop_timeout)

    def hello_was_refused(self, group: GroupSettings, now: float) -> None:
        """Its checkpoint can't be read, for which it is not to blame: it has start_timeout anew."""
        if self.phase is Phase.STARTING and self.clock is not None:
            self.clock = Clock("hello", now, group.start_timeout)

    def start_soon(self, now: float) -> None:
        """A worker in backoff waits no longer."""
        if self.phase is Phase.BACKOFF:
            self.clock = Clock("start", now, 0.0)

    def stood_still(self, since: float, now: float) -> None:
        """No hello could be answered from `since` to `now`; it may have been started after that."""
        if self.phase is Phase.STARTING and self.clock is not None and self.started is not None:
            still = max(0.0, now - max(since, self.started))
            self.clock = Clock(self.clock.what, self.clock.since + still, self.clock.span)

    def paused(self, since: float, now: float) -> None:
        """We did not run from `since` to `now`: what its process owes us, it owes that much later."""
        if self.clock is not None and self.alive:
            still = max(0.0, now - max(since, self.clock.since))
            self.clock = Clock(self.clock.what, self.clock.since + still, self.clock.span)

    def reconfigured(self, group: GroupSettings, backoff: float) -> bool:
        """Compute the clock that runs anew; `backoff` is the wait before its next start under the new policy.

        Returns:
            Whether it runs out at another time than before.
        """
        if self.clock is None:
            return False
        spans = {"hello": group.start_timeout, "end": group.stop_timeout, "start": backoff}
        before, what = self.clock, self.clock.what
        self.clock = Clock(what, before.since, spans.get(what, before.span))
        return self.clock != before

    # ---- inside

    def _terminate(self, clock: Clock) -> list[Command]:
        if not self._go(Trigger.TERMINATE):
            return []
        if self.phase is not Phase.STOPPING:
            self.clock = None
            return []
        self.clock = clock
        return [Signal(self.worker, self.incarnation, SIGTERM)]
