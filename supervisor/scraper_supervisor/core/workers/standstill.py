"""A gap in the loop counts for nobody: every clock that counts against a worker or an item runs that much later.

While the supervisor did not run (it was stopped, the host was paused, a step took its time), nobody was heard, and who
was stopped with it could say nothing. One function moves all clocks; what is only a wait of our own (a back-off, a
retry, a repeat) goes on as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scraper_supervisor.core.fleet_state import FleetState, Worker


def later(at: float, since: float, now: float) -> float:
    """A time from which something is counted, if nothing counts from `since` to `now`; all in monotonic seconds."""
    return at + max(0.0, now - max(since, at))


def stand_still(state: FleetState, since: float, now: float) -> None:
    """Move all clocks by the gap from `since` to `now`, as far as they ran in it; in monotonic seconds."""
    for worker in state.workers.values():
        state.groups[worker.group].queue.stuck.stood_still(worker.name, since, now)
        _worker(worker, since, now)
    for group in state.groups.values():
        if group.roll is not None and group.roll.since is not None and group.roll.spawning is None:
            group.roll.since = later(group.roll.since, since, now)
    troubles = [*state.storage.folders.values(), *([state.storage.ledger] if state.storage.ledger is not None else [])]
    for trouble in troubles:  # its end moves the clocks by all its time: not by the gap again
        trouble.since = later(trouble.since, since, now)


def _worker(worker: Worker, since: float, now: float) -> None:
    current, life = worker.current, worker.life
    if current.heard is not None:
        current.heard = later(current.heard, since, now)
    if current.away_since is not None:
        current.away_since = later(current.away_since, since, now)
    if current.quiet_since is not None:
        current.quiet_since = now
    if current.recycle is not None and current.recycle.since is not None:
        current.recycle.since = later(current.recycle.since, since, now)
    life.paused(since, now)
