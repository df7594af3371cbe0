"""Restarts of a group's workers one by one: each when the one before is back, and none after one that is not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from scraper_supervisor.core.config.units import format_duration
from scraper_supervisor.core.fleet_state import Roll
from scraper_supervisor.core.states.worker_life import Phase
from scraper_supervisor.core.workers.readiness import STEADY, shows_itself
from scraper_supervisor.core.workers.standstill import later

if TYPE_CHECKING:
    from scraper_supervisor.core.fleet_state import FleetState, Group, Worker
    from scraper_supervisor.core.workers.lifecycle import Lifecycle


class Rolling:
    """Carries them out."""

    def __init__(self, state: FleetState, lifecycle: Lifecycle) -> None:
        self._state = state
        self._lifecycle = lifecycle
        self._looked = -math.inf  # monotonic seconds

    def step(self, group: Group, now: float) -> None:
        """Restart the next worker, when the one before is back; give the rest up where it is not to come back."""
        self._looked = now
        while (roll := group.roll) is not None:
            if roll.current is not None:
                if not self._is_back(group, roll, now):
                    return
                continue  # perhaps there is no restart any more
            if not roll.left:
                group.roll = None
                return
            worker = self._state.workers.get(roll.left[0])
            if worker is not None and worker.life.up and worker.life.after == "decide":
                if self._others_settle(group, worker):
                    return
                roll.current, roll.incarnation = worker.name, worker.life.incarnation
                roll.since = roll.spawning = None
                self._lifecycle.drain(worker, roll.reason, "restart", now)
            roll.left.pop(0)

    def next_deadline(self) -> float | None:
        """When a worker is to be back, or may have shown that it is.

        What is past was looked at: such a worker is on its way down again, and is heard of when it is there.
        """
        times = []
        for group in self._state.groups.values():
            roll = group.roll
            if roll is not None and roll.since is not None and roll.current is not None:
                worker = self._state.workers.get(roll.current)
                since = worker.current.up_since if worker is not None else None
                times.append(roll.since + group.settings.start_timeout if since is None else since + STEADY)
        return min((time for time in times if time > self._looked), default=None)

    def _is_back(self, group: Group, roll: Roll, now: float) -> bool:
        """True if the worker that was restarted is up, or gone for good; then it is no longer waited for."""
        worker = self._state.workers.get(roll.current or "")
        if worker is None or worker.life.phase in (Phase.STOPPED, Phase.COMPLETED):
            roll.current = None
            return True
        if worker.life.phase is Phase.FAILED:
            self._give_up(group, worker)
            return True
        if worker.life.incarnation == roll.incarnation:
            return False  # what is in its hands is finished first
        roll.since = now if roll.since is None else roll.since
        if worker.life.phase is Phase.SPAWNING:  # there is no process yet that could be late
            roll.spawning = now if roll.spawning is None else roll.spawning
            return False
        if roll.spawning is not None:
            roll.since, roll.spawning = later(roll.since, roll.spawning, now), None
        if shows_itself(self._state, worker, now):
            roll.current = None
            return True
        if now >= roll.since + group.settings.start_timeout and worker.current.up_since is None:
            was = f": {worker.last_failure.message}" if worker.last_failure is not None else ""
            limit = format_duration(group.settings.start_timeout)
            self._lifecycle.fail(worker, f"not up within start_timeout ({limit}) after a restart{was}", now)
            self._give_up(group, worker)
            return True
        return False

    def _give_up(self, group: Group, worker: Worker) -> None:
        failure = worker.last_failure.message if worker.last_failure is not None else "failed"
        left = [name for name in (group.roll.left if group.roll is not None else []) if name in self._state.workers]
        rest = f"; {', '.join(left)} stay as they are" if left else ""
        group.roll_failed, group.roll = f"{worker.name}: {failure}{rest}", None

    def _others_settle(self, group: Group, worker: Worker) -> bool:
        """True while another worker is on its way up or down: there shall be as many at work as can be."""
        others = (one for one in self._state.members(group) if one is not worker and one.life.up)
        return any(
            one.life.phase is not Phase.RUNNING or (group.settings.entrypoint is not None and not one.life.introduced)
            for one in others
        )


def begin(state: FleetState, group: Group, names: list[str], reason: str) -> None:
    """Have workers of a group restarted one by one, also those that an earlier restart has not come to."""
    waiting = group.roll.left if group.roll is not None else []
    current = group.roll.current if group.roll is not None else None
    left = list(dict.fromkeys([*waiting, *names]))
    if group.roll is None:
        group.roll = Roll(left, reason)
    else:  # whoever is on its way back already began before this order
        again = [current] if current in names and current not in left else []
        group.roll.left, group.roll.reason = [*left, *again], reason
    group.roll_failed = None
    state.concluded = True  # what comes of it is no longer what came of the start
