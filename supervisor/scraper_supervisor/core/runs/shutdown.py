"""What ends the fleet: an order to stop, an abort that is executed, that nothing is left to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scraper_supervisor.core.events import Leave
from scraper_supervisor.core.states.group import ENDED, GroupState
from scraper_supervisor.core.states.supervisor import SupervisorTrigger
from scraper_supervisor.core.states.worker_life import Phase
from scraper_supervisor.core.workers.set_up import EX_CONFIG

if TYPE_CHECKING:
    from scraper_supervisor.core.events import Terminated
    from scraper_supervisor.core.fleet_state import FleetState, Group
    from scraper_supervisor.core.runs.groups import Groups
    from scraper_supervisor.core.workers.lifecycle import Lifecycle


class Shutdown:
    """Ends it."""

    def __init__(self, state: FleetState, groups: Groups, lifecycle: Lifecycle) -> None:
        self._state = state
        self._groups = groups
        self._lifecycle = lifecycle

    def terminate(self, event: Terminated, now: float) -> None:
        """Drain everything, or end it at once."""
        state = self._state
        if state.phase != "draining":
            state.go(SupervisorTrigger.TERMINATE)
            for group in state.groups.values():
                self._groups.stop(group, event.reason, now)
        if event.at_once:
            state.at_once = True
            for worker in state.workers.values():
                if worker.life.alive:
                    self._lifecycle.kill(worker, event.reason, "stopped", now)

    def leave_if_done(self, now: float) -> None:
        """Leave when a drain is over, an abort is executed, or with `once` when nothing is left to do."""
        state = self._state
        if state.once:
            self._end_paused(now)
        if state.left or state.phase == "starting" or any(worker.life.up for worker in state.workers.values()):
            return
        if state.trees:
            return
        writing = state.saving() or any(group.completing or group.queue.writing for group in state.groups.values())
        if writing and (state.clocks_run() or state.phase != "draining"):
            return  # but a drain does not wait for a disk that refuses: what is not written was not acknowledged
        if state.phase == "draining":
            self._leave(0, "drained")
            return
        if self._none_is_usable():
            told = (f"{one.name}: {one.last_failure.message}" for one in state.workers.values() if one.last_failure)
            self._leave(EX_CONFIG, f"every worker's own set-up is wrong: {'; '.join(told)}")
            return
        groups = list(state.groups.values())
        aborted = [group for group in groups if group.state is GroupState.ABORTED]
        ended = all(group.state in ENDED and group.repeat_at is None for group in groups)
        if state.once and ended and not (state.phase == "aborting" and not aborted):
            self._leave(*self._outcome(groups))
        elif state.phase == "aborting" or (aborted and all(is_over(group) for group in groups)):
            if state.settings.supervisor.on_abort == "exit" or state.once:
                self._leave(69, _reasons(aborted) or "aborted")
            else:
                state.go(SupervisorTrigger.HOLD)

    def _outcome(self, groups: list[Group]) -> tuple[int, str]:
        """The exit code of `once` and why, when every group has ended; of several codes 1 goes before 69."""
        failed = [group for group in groups if group.state is GroupState.FAILED]
        if failed:
            return 1, f"items are left and no worker is able: {_reasons(failed)}"
        held = [group for group in groups if group.state is GroupState.STOPPED and group.queue.open_items]
        if held:
            return 1, f"an operator holds items back: {', '.join(self._held(group) for group in held)}"
        aborted = [group for group in groups if group.state is GroupState.ABORTED]
        if aborted:
            return 69, _reasons(aborted)
        return 0, "every group completed"

    def _held(self, group: Group) -> str:
        how = {"paused": "paused", "drained": "drained"}.get(group.intent or "", "stopped")
        return f"{group.name} is {how} with {group.queue.open_items} open items"

    def _end_paused(self, now: float) -> None:
        """With `once`, what an operator paused is not waited for once all others have ended.

        A pause of everything in this daemon's own life is waited for: whoever ordered it is there to end it.
        """
        state = self._state
        groups = list(state.groups.values())
        paused = [group for group in groups if _is_paused(state, group)]
        if not paused or state.phase != "running" or state.storage.ledger is not None:
            return
        others = [group for group in groups if group not in paused]
        before = all(group.name in state.found or state.found.issuperset(group.workers) for group in paused)
        if all(group.state in ENDED for group in others) and (others or before):
            for group in paused:
                if not group.queue.in_flight:
                    self._groups.stop(group, "an operator paused it, and nothing else is left to do", now)

    def _none_is_usable(self) -> bool:
        """True if since the start all that came of it is that every worker says that its own set-up is wrong."""
        state = self._state
        return (
            state.phase == "running"
            and not state.concluded
            and bool(state.workers)
            and all(worker.unusable and worker.life.phase is Phase.FAILED for worker in state.workers.values())
        )

    def _leave(self, code: int, reason: str) -> None:
        self._state.left = True
        self._state.outbox.commands.append(Leave(code, reason))


def is_over(group: Group) -> bool:
    """True if nothing is to come of the group: unlike one that an operator stopped, or that failed, and may start."""
    return group.state in (GroupState.COMPLETED, GroupState.ABORTED) and group.repeat_at is None


def _is_paused(state: FleetState, group: Group) -> bool:
    """True if nobody of the group may be handed anything, by an operator's word."""
    team = [worker for worker in state.members(group) if worker.life.up]
    return group.state is GroupState.PAUSED or (
        group.state is GroupState.RUNNING and bool(team) and all(worker.paused for worker in team)
    )


def _reasons(groups: list[Group]) -> str:
    return "; ".join(f"{group.name}: {group.failed_reason or group.state.public}" for group in groups)
