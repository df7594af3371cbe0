"""Deadlines and hangs: what is done about a worker, or an item in its hands, that takes too long.

While the store refuses, the clocks of items stand still: no worker is to blame for what can't be written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from scraper_supervisor.core.fleet_state import Cancelling
from scraper_supervisor.core.formats.worker_payloads import WorkerHung
from scraper_supervisor.core.states.worker_life import Phase
from scraper_worker.protocol import ItemCancel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scraper_supervisor.core.facts import PlaceHealed
    from scraper_supervisor.core.fleet_state import FleetState, Group, Worker
    from scraper_supervisor.core.workers.lifecycle import Lifecycle

CANCEL_PATIENCE: Final = 10.0  # seconds that a worker has to end an item that was cancelled


class Watchdog:
    """All workers' deadlines."""

    def __init__(self, state: FleetState, lifecycle: Lifecycle) -> None:
        self._state = state
        self._lifecycle = lifecycle

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

    def cancel(self, worker: Worker, claim: int, key: str, reason: str, now: float) -> None:
        """Have the worker end that item; in vain, the worker is killed and that item alone charged."""
        if claim not in worker.current.cancelling:
            worker.current.cancelling[claim] = Cancelling(key, now + CANCEL_PATIENCE, reason)
            self._state.tell(worker, ItemCancel(key, claim, reason, CANCEL_PATIENCE))

    def leases_lost(self, name: str, claims: Iterable[int]) -> None:
        """Others may have these items by now: their workers are told to end them, and what they answer is refused."""
        group = self._state.groups.get(name)
        for one in group.queue.lose(claims) if group is not None else ():
            worker = self._state.workers.get(one.worker)
            if worker is not None:
                self._state.tell(worker, ItemCancel(one.key, one.claim, "lease", CANCEL_PATIENCE))

    def remind(self, worker: Worker, now: float) -> None:
        """The worker came back: what it was told to cancel may have been lost with the old connection."""
        for claim, one in worker.current.cancelling.items():
            if self._state.groups[worker.group].queue.open_claim(claim):
                self._state.tell(worker, ItemCancel(one.key, claim, one.reason, max(0.0, one.until - now)))

    def _items_due(self, group: Group, now: float) -> None:
        """Cancel the items that are over item_timeout."""
        timeout = group.settings.item_timeout
        if timeout is None:
            return
        for one in group.queue.open_claims():
            worker = self._state.workers[one.worker]
            if now >= one.since + timeout and worker.life.alive and self._state.clocks_run(one.worker):
                self.cancel(worker, one.claim, one.key, f"item_timeout of {timeout:g} s", now)

    def _items_deadline(self, group: Group) -> float | None:
        timeout = group.settings.item_timeout
        if timeout is None:
            return None
        starts = (
            one.since
            for one in group.queue.open_claims()
            if one.claim not in self._state.workers[one.worker].current.cancelling
            and self._state.workers[one.worker].life.alive
            and self._state.clocks_run(one.worker)
        )
        return min((since + timeout for since in starts), default=None)

    def place_healed(self, fact: PlaceHealed, now: float) -> None:
        """The clocks of those whom a place of the store held stood still; others may hold them still."""
        ledger, folders = self._state.storage.ledger, self._state.storage.folders
        until = now if ledger is None else ledger.since  # from then on it is the ledger's trouble that counts
        for worker in self._state.workers.values():
            if fact.worker in (None, worker.name) and worker.name not in folders and fact.since < until:
                self.stood_still(worker, fact.since, until)

    def stood_still(self, worker: Worker, since: float, now: float) -> None:
        """The store refused from `since` to `now`, so that this worker could not get on."""
        self._state.groups[worker.group].queue.stood_still(worker.name, since, now)
        worker.current.cancelling = {
            claim: replace(one, until=one.until + now - since) for claim, one in worker.current.cancelling.items()
        }
        if worker.current.progress is not None:
            worker.current.progress = max(worker.current.progress, now)
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
        hung = self._hung(worker, group, now)
        if hung is not None:
            self._state.publish(WorkerHung(hung[1]), worker=worker)
            self._lifecycle.kill(worker, hung[1], hung[0], now)

    def _worker_deadline(self, worker: Worker) -> float | None:
        life = worker.life
        deadline = None if self._hello_held(worker) else life.deadline
        if not life.alive or life.killed:
            return deadline
        group = self._state.groups[worker.group]
        times = [deadline, self._silent_at(worker, group), self._stuck_at(worker, group)]
        times += [one.until for one in self._cancelled(worker, group)]
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
                self._state.publish(WorkerHung(reason), worker=worker)
                self._lifecycle.kill(worker, reason, "start-timeout", now)
            case Phase.DRAINING | Phase.RUNNING:  # running: it said goodbye and stays
                self._state.outbox.commands += life.terminate(now)
            case Phase.STOPPING:
                self._lifecycle.kill_tree(worker, "it did not end after SIGTERM")
            case _:
                pass
        self._lifecycle.note(worker, now)

    def _hung(self, worker: Worker, group: Group, now: float) -> tuple[str, str] | None:
        """(signature, reason) if the worker is to be killed."""
        settings = group.settings
        for one in self._cancelled(worker, group):
            if now >= one.until:
                worker.current.charge = one.key
                return "item-timeout", f"it did not end the cancelled item {one.key!r} within {CANCEL_PATIENCE:g} s"
        silent, stuck = self._silent_at(worker, group), self._stuck_at(worker, group)
        if silent is not None and now >= silent:
            patience = _patience(worker, group)
            if worker.current.away_since is not None:
                return "connection-lost", f"its connection was closed for {patience:g} s"
            return "heartbeat-timeout", f"it was silent for heartbeat_timeout of {patience:g} s"
        if stuck is not None and now >= stuck:
            return "progress-timeout", f"it ended no item for progress_timeout of {settings.progress_timeout:g} s"
        return None

    def _cancelled(self, worker: Worker, group: Group) -> list[Cancelling]:
        """The cancelled items that the worker still holds."""
        if not worker.current.cancelling or not self._state.clocks_run(worker.name):
            return []
        cancelling = worker.current.cancelling.items()
        return [one for claim, one in cancelling if group.queue.open_claim(claim)]

    def _silent_at(self, worker: Worker, group: Group) -> float | None:
        """When the worker's silence is a hang; after its goodbye it owes no word, only its end."""
        since = worker.current.away_since
        if since is not None and not self._state.clocks_run(worker.name):
            return None  # its hello may be refused, since no checkpoint can be read
        if since is None and worker.current.beats:
            since = worker.current.heard
        return None if worker.current.goodbye is not None or since is None else since + _patience(worker, group)

    def _stuck_at(self, worker: Worker, group: Group) -> float | None:
        if (
            worker.current.progress is None
            or not group.queue.busy(worker.name)
            or not self._state.clocks_run(worker.name)
        ):
            return None
        return worker.current.progress + group.settings.progress_timeout


def _patience(worker: Worker, group: Group) -> float:
    """Seconds that the worker may be silent."""
    silence = worker.current.silence
    return group.settings.heartbeat_timeout if silence is None else silence
