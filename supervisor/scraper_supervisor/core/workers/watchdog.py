"""Deadlines and hangs: what is done about a worker, or an item in its hands, that takes too long.

Items climb the ladder of `core/policy/ladder.py`; here each rung becomes words and kills. While the store refuses, the
clocks of items stand still: no worker is to blame for what can't be written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scraper_supervisor.core.policy.ladder import RUNG
from scraper_supervisor.core.states.worker_life import Phase
from scraper_supervisor.core.workers.readiness import why_closed, why_not_ready
from scraper_worker.protocol import ItemCancel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scraper_supervisor.core.facts import PlaceHealed
    from scraper_supervisor.core.fleet_state import FleetState, Group, Worker
    from scraper_supervisor.core.queue.stuck import Step
    from scraper_supervisor.core.workers.lifecycle import Lifecycle
    from scraper_supervisor.core.workers.recycling import Recycling


class Watchdog:
    """All workers' deadlines."""

    def __init__(self, state: FleetState, lifecycle: Lifecycle, recycling: Recycling) -> None:
        self._state = state
        self._lifecycle = lifecycle
        self._recycling = recycling

    def due(self, now: float) -> None:
        """Whatever deadlines of workers and of items in their hands have come."""
        for worker in list(self._state.workers.values()):
            self._worker_due(worker, now)
        for group in self._state.groups.values():
            self._items_due(group, now)

    def next_deadline(self) -> float | None:
        """When `due` has something to do."""
        times = [self._worker_deadline(worker) for worker in self._state.workers.values()]
        times += [self._items_deadline(group) for group in self._state.groups.values()]
        return min((time for time in times if time is not None), default=None)

    # ---- items

    def cancel(self, group: Group, keys: Iterable[str], now: float) -> None:
        """An operator cancels items: those in workers' hands are to be ended."""
        for step in group.queue.stuck.cancel(keys, now):
            self._climb(step, now)

    def leases_lost(self, name: str, claims: Iterable[int]) -> None:
        """Others may have these items by now: their workers are told to end them, and what they answer is refused."""
        group = self._state.groups.get(name)
        for one in group.queue.lose(claims) if group is not None else ():
            worker = self._state.workers.get(one.worker)
            if worker is not None:
                self._state.tell(worker, ItemCancel(one.key, one.claim, "lease", RUNG))

    def remind(self, worker: Worker, now: float) -> None:
        """The worker came back: what it was told to cancel may have been lost with the old connection."""
        for one in self._state.groups[worker.group].queue.stuck.told(worker.name):
            self._state.tell(worker, ItemCancel(one.key, one.claim, one.ladder.why.message, one.ladder.left(now)))

    def _items_due(self, group: Group, now: float) -> None:
        """Lead up the ladder what takes too long."""
        for step in group.queue.stuck.due(group.settings, now, self._items_run):
            self._climb(step, now)

    def _climb(self, step: Step, now: float) -> None:
        """An item reached a rung."""
        worker, why = self._state.workers[step.worker], step.ladder.why
        match step.ladder.rung:
            case "told":
                self._state.tell(worker, ItemCancel(step.key, step.claim, why.message, RUNG))
            case "browsers":
                reason = f"{step.key!r} was not ended within {RUNG:g} s: {why.message}"
                self._recycling.kill_for_item(worker, step.ladder.told, reason, now)
            case "worker":
                reason = f"it did not end {step.key!r} within {2 * RUNG:g} s: {why.message}"
                self._lifecycle.hung(worker, reason, why.signature, now)

    def _items_deadline(self, group: Group) -> float | None:
        return group.queue.stuck.next_deadline(group.settings, self._items_run)

    def _items_run(self, name: str) -> bool:
        """True if the clocks of this worker's items run."""
        life = self._state.workers[name].life
        return life.alive and not life.killed and self._state.clocks_run(name)

    def place_healed(self, fact: PlaceHealed, now: float) -> None:
        """The clocks of those whom a place of the store held stood still; others may hold them still."""
        ledger, folders = self._state.storage.ledger, self._state.storage.folders
        until = now if ledger is None else ledger.since  # from then on it is the ledger's trouble that counts
        for worker in self._state.workers.values():
            if fact.worker in (None, worker.name) and worker.name not in folders and fact.since < until:
                self.stood_still(worker, fact.since, until)

    def stood_still(self, worker: Worker, since: float, now: float) -> None:
        """The store refused from `since` to `now`, so that this worker could not get on."""
        self._state.groups[worker.group].queue.stuck.stood_still(worker.name, since, now)
        if worker.current.quiet_since is not None:
            worker.current.quiet_since = max(worker.current.quiet_since, now)
        if worker.current.away_since is not None:
            worker.current.away_since = max(worker.current.away_since, now)
        worker.life.stood_still(since, now)

    # ---- workers

    def _worker_due(self, worker: Worker, now: float) -> None:
        """Whatever of the worker's deadlines has come."""
        life = worker.life
        group = self._state.groups[worker.group]
        if not self._hello_held(worker) and life.take_due(now):
            self._life_due(worker, group, now)
        if not life.alive or life.killed:
            return
        silent, idle = self._silent_at(worker, group), self._idle_at(worker, group)
        if silent is not None and now >= silent:
            patience = _patience(worker, group)
            if worker.current.away_since is not None:
                self._lifecycle.hung(worker, f"its connection was closed for {patience:g} s", "connection-lost", now)
            else:
                reason = f"it was silent for heartbeat_timeout of {patience:g} s"
                self._lifecycle.hung(worker, reason, "heartbeat-timeout", now)
        elif idle is not None and now >= idle:
            spent = f"progress_timeout of {group.settings.progress_timeout:g} s"
            reason = f"it asked for no item for {spent}, though there is one"
            self._lifecycle.hung(worker, reason, "progress-timeout", now)

    def _worker_deadline(self, worker: Worker) -> float | None:
        life = worker.life
        deadline = None if self._hello_held(worker) else life.deadline
        if not life.alive or life.killed:
            return deadline
        group = self._state.groups[worker.group]
        times = [deadline, self._silent_at(worker, group), self._idle_at(worker, group)]
        return min((time for time in times if time is not None), default=None)

    def _hello_held(self, worker: Worker) -> bool:
        """True if its hello is late because no checkpoint can be read."""
        return worker.life.phase is Phase.STARTING and not self._state.clocks_run(worker.name)

    def _life_due(self, worker: Worker, group: Group, now: float) -> None:
        life = worker.life
        match life.phase:
            case Phase.BACKOFF:
                self._lifecycle.start(worker, now)
            case Phase.STARTING:
                reason = f"no hello within start_timeout of {group.settings.start_timeout:g} s"
                self._lifecycle.hung(worker, reason, "start-timeout", now)
            case Phase.DRAINING | Phase.RUNNING:  # running: it said goodbye and stays
                self._state.outbox.commands += life.terminate(now)
            case Phase.STOPPING:
                self._lifecycle.kill_tree(worker, "it did not end after SIGTERM")
            case _:
                pass
        self._lifecycle.note(worker, now)

    def _silent_at(self, worker: Worker, group: Group) -> float | None:
        """When the worker's silence is a hang; after its goodbye it owes no word, only its end."""
        since = worker.current.away_since
        if since is not None and not self._state.clocks_run(worker.name):
            return None  # its hello may be refused, since no checkpoint can be read
        if since is None and worker.current.beats:
            since = worker.current.heard
        return None if worker.current.goodbye is not None or since is None else since + _patience(worker, group)

    def _idle_at(self, worker: Worker, group: Group) -> float | None:
        """When it is a hang that the worker, which could be handed an item, neither has one nor calls."""
        current, queue = worker.current, group.queue
        left = queue.left_since
        if left is None or current.quiet_since is None or current.conn is None:
            return None
        if queue.held_by(worker.name) or queue.waits(worker.name) or self._state.outbox.owes(current.conn):
            return None
        if why_not_ready(self._state, worker) is not None or why_closed(self._state) is not None:
            return None
        return max(left, current.quiet_since) + group.settings.progress_timeout


def _patience(worker: Worker, group: Group) -> float:
    """Seconds that the worker may be silent."""
    silence = worker.current.silence
    return group.settings.heartbeat_timeout if silence is None else silence
