"""Why a worker is handed nothing now: the one rule that decides it, and the sentence that `status` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scraper_supervisor.core.formats.timestamps import timestamp
from scraper_supervisor.core.states.group import GroupState
from scraper_supervisor.core.states.worker_life import Phase

if TYPE_CHECKING:
    from scraper_supervisor.core.fleet_state import FleetState, Group, Worker

_PHASES: Final = {
    Phase.STOPPED: "it is stopped",
    Phase.SPAWNING: "its process is being started",
    Phase.STARTING: "it has not said hello yet",
    Phase.DRAINING: "it is draining",
    Phase.STOPPING: "it is being stopped",
    Phase.BACKOFF: "it waits for its next start",
    Phase.COMPLETED: "it has ended well",
    Phase.FAILED: "it has failed",
}
_GROUPS: Final = {
    GroupState.OPENING: "the run of its group is being read from the ledger",
    GroupState.PAUSED: "its group is paused",
    GroupState.DRAINING: "its group is draining",
    GroupState.COMPLETED: "the run of its group is completed",
    GroupState.FAILED: "its group has failed",
    GroupState.ABORTED: "its group is aborted",
    GroupState.STOPPED: "its group is stopped",
}


STEADY: Final = 1.0  # seconds that a worker runs before it is believed to work though nothing else shows it


def shows_itself(state: FleetState, worker: Worker, now: float) -> bool:
    """True if a worker works as far as one can see: it asks for items, holds one, or has been up for a while."""
    if worker.life.phase is not Phase.RUNNING:
        return False
    queue, since = state.groups[worker.group].queue, worker.current.up_since
    if queue.waits(worker.name) or queue.held_by(worker.name) or worker.current.goodbye is not None:
        return True
    return since is not None and now >= since + STEADY


def why_not_ready(state: FleetState, worker: Worker) -> str | None:
    """Why this worker may be handed no further item, whatever there is to hand out; None if it may."""
    current = worker.current
    if worker.life.phase is not Phase.RUNNING:
        return _PHASES[worker.life.phase]
    if current.goodbye is not None:
        return "it has said goodbye"
    if worker.name in state.storage.folders:
        return state.storage.folders[worker.name].reason
    if current.recycle is not None:
        return f"its browser is being replaced: {current.recycle.reason}"
    if current.limit is not None:
        return f"it is restarted when its hands are empty: {current.limit}"
    if worker.paused:
        return "an operator paused it"
    group = state.groups[worker.group]
    return None if group.state is GroupState.RUNNING else _GROUPS[group.state]


def why_closed(state: FleetState) -> str | None:
    """Why nobody is handed anything, as far as the store goes; None if it takes what is written."""
    if state.storage.ledger is not None:
        return f"{state.storage.ledger.reason}: no item is handed out"
    return "free disk space is below disk_free: no item is handed out" if state.storage.low else None


def idle_reason(state: FleetState, worker: Worker, now: float, wall: float) -> str | None:
    """The sentence of `status`: why the worker is handed nothing now; None if it is, or has enough in its hands.

    Args:
        state: the fleet's.
        worker: which one.
        now: monotonic seconds.
        wall: the same moment in wall-clock seconds.
    """
    group = state.groups[worker.group]
    reason = why_not_ready(state, worker) or why_closed(state)
    if reason is not None:
        return reason
    if not group.queue.waits(worker.name):
        return None if group.queue.held_by(worker.name) else "it has not asked for an item"
    return _why_nothing_comes(group, worker, now, wall)


def _why_nothing_comes(group: Group, worker: Worker, now: float, wall: float) -> str | None:
    queue = group.queue
    if queue.frozen:
        return "items are being requeued or cancelled by an operator"
    if queue.alone(worker.name):
        return "it holds an item that it must hold alone, since several items were in hand at a death"
    counts = queue.counts(now)
    if counts.pending:
        return "items are being read from the ledger" if queue.loading else "every host that has items is at its limit"
    if counts.waiting:
        due = queue.next_due()
        return None if due is None else f"nothing is due before {timestamp(wall + max(0.0, due - now))}"
    return "every open item is in a worker's hands" if counts.in_flight else "there is no open item"
