"""One worker's life: a total table of phases and triggers, and the deadlines that go with them.

The table is the truth; `docs/worker-states.md` is drawn from it. What a phase means for items, browsers or the group is
not known here: the fleet reads `phase`, `after` and `reason`.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

from scraper_supervisor.core.events import Command, KillTree, Signal, Spawn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scraper_supervisor.core.settings import GroupSettings

SIGTERM: Final = 15
TERM_GRACE: Final = 5.0  # seconds between SIGTERM after a drain in vain and SIGKILL to the whole tree


class Phase(Enum):
    """Where a worker stands; the values are the public states of `status`."""

    STOPPED = "stopped"
    SPAWNING = "starting"
    STARTING = "starting "  # spawned, not yet introduced; an enum's values must differ, `public` trims
    RUNNING = "running"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    COMPLETED = "completed"
    FAILED = "failed"

    __hash__ = object.__hash__  # an Enum's own hashes the name in Python, at each look into a set

    @property
    def public(self) -> str:
        """The state's name in `status`."""
        return self.value.strip()


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


_P, _T = Phase, Trigger
_DOWN: Final = {_T.START: _P.SPAWNING}
_GONE: Final = {
    _T.GONE_WAIT: _P.BACKOFF,
    _T.GONE_STOP: _P.STOPPED,
    _T.GONE_DONE: _P.COMPLETED,
    _T.GONE_FAIL: _P.FAILED,
}
# What is not named here leaves the phase as it is: a stale word, or one that is already being obeyed.
_CHANGES: Final[dict[Phase, dict[Trigger, Phase]]] = {
    _P.STOPPED: _DOWN | {_T.GONE_WAIT: _P.BACKOFF, _T.GONE_FAIL: _P.FAILED},
    _P.COMPLETED: _DOWN | {_T.DRAIN: _P.STOPPED, _T.GONE_WAIT: _P.BACKOFF, _T.GONE_FAIL: _P.FAILED},
    _P.FAILED: _DOWN | {_T.DRAIN: _P.STOPPED},
    _P.BACKOFF: _DOWN | {_T.DRAIN: _P.STOPPED, _T.TERMINATE: _P.STOPPED, _T.KILL: _P.STOPPED, _T.GONE_FAIL: _P.FAILED},
    _P.SPAWNING: {_T.SPAWNED: _P.STARTING, _T.SPAWNED_PLAIN: _P.RUNNING, **_GONE},
    _P.STARTING: {
        _T.HELLO: _P.RUNNING,
        _T.DRAIN: _P.STOPPING,
        _T.TERMINATE: _P.STOPPING,
        _T.KILL: _P.STOPPING,
        **_GONE,
    },
    _P.RUNNING: {_T.DRAIN: _P.DRAINING, _T.TERMINATE: _P.STOPPING, _T.KILL: _P.STOPPING, **_GONE},
    _P.DRAINING: {_T.TERMINATE: _P.STOPPING, _T.KILL: _P.STOPPING, **_GONE},
    _P.STOPPING: _GONE,
}
TABLE: Final[Mapping[tuple[Phase, Trigger], Phase]] = {
    (phase, trigger): _CHANGES[phase].get(trigger, phase) for phase in Phase for trigger in Trigger
}
ALIVE: Final = frozenset({_P.STARTING, _P.RUNNING, _P.DRAINING, _P.STOPPING})  # there is a process
UP: Final = ALIVE | {_P.SPAWNING}  # there is one, or there will be


class Life:
    """A worker's phase, process and deadlines.

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
        self.deadline: float | None = None
        self.after: Literal["decide", "restart", "stop"] = "decide"
        self.reason: str | None = None
        self.killed = False

    def _go(self, trigger: Trigger) -> bool:
        """Follow the table; whether the phase changed."""
        before, self.phase = self.phase, TABLE[self.phase, trigger]
        return self.phase is not before

    @property
    def alive(self) -> bool:
        """Whether there is a process."""
        return self.phase in ALIVE

    @property
    def up(self) -> bool:
        """Whether there is a process or one is being started."""
        return self.phase in UP

    def start(self, group: GroupSettings) -> list[Command]:
        """Start a new incarnation, unless there is one."""
        if not self._go(Trigger.START):
            return []
        self.incarnation += 1
        self.pid = self.token = self.started = self.deadline = self.reason = None
        self.introduced = self.killed = False
        self.after = "decide"
        return [Spawn(self.worker, self.incarnation, group)]

    def spawned(self, pid: int, token: str, group: GroupSettings, now: float) -> list[Command]:
        """The process runs; an order to stop that came meanwhile is obeyed now."""
        plain = group.entrypoint is None
        if not self._go(Trigger.SPAWNED_PLAIN if plain else Trigger.SPAWNED):
            return []
        self.pid, self.token, self.started = pid, token, now
        self.deadline = None if plain else now + group.start_timeout
        if self.after != "decide":
            return self.terminate(group.stop_timeout, now)
        return []

    def hello(self) -> bool:
        """The worker is introduced; whether it just became running."""
        self.introduced = True
        came_up = self._go(Trigger.HELLO)
        if came_up:
            self.deadline = None
        return came_up

    def drain(
        self, reason: str, after: Literal["restart", "stop"], stop_timeout: float, now: float
    ) -> tuple[list[Command], bool]:
        """Order a graceful end.

        Returns:
            What to do, and whether the worker is to be told to drain (it is introduced and was running).
        """
        if self.after != "stop":  # an order to stop is never softened to a restart
            self.after, self.reason = after, reason
        if self.phase in (Phase.RUNNING, Phase.STARTING) and not self.introduced:
            return self.terminate(stop_timeout, now), False
        changed = self._go(Trigger.DRAIN)
        if changed and self.phase is Phase.DRAINING:
            self.deadline = now + stop_timeout
            return [], True
        if changed:
            self.deadline = None
        return [], False

    def terminate(self, grace: float, now: float) -> list[Command]:
        """SIGTERM to the PID alone; SIGKILL to the tree follows after `grace` seconds."""
        if not self._go(Trigger.TERMINATE):
            return []
        if self.phase is not Phase.STOPPING:
            self.deadline = None
            return []
        self.deadline = now + grace
        return [Signal(self.worker, self.incarnation, SIGTERM)]

    def kill(self, reason: str, browsers: tuple[int, ...]) -> list[Command]:
        """SIGKILL the whole tree; unless an end was ordered before, this is a death."""
        if not self.alive or self.killed:
            return []
        self._go(Trigger.KILL)
        self.deadline, self.killed = None, True
        if self.after == "decide":
            self.reason = reason
        return [KillTree(self.worker, self.incarnation, browsers)]

    def gone(self, what: Literal["wait", "stop", "done", "fail"], until: float | None = None) -> None:
        """The process has ended (or was not born), and this comes of it; with "wait", another starts at `until`."""
        if self._go(Trigger(f"gone, {what}")):  # else the word is stale
            self.pid = self.token = None
            self.deadline = until

    def give_up(self) -> None:
        """No further try."""
        self.gone("fail")
