"""How the store's disk does: faults, the probes that find their end, and what is asked again then.

The store has places that can refuse: the ledger, and each worker's folder of checkpoints. A place is tried each second
with what it had refused; when the probe succeeds, the place is well. Whatever place refuses a write first, everybody is
held until the ledger's probe tells whether it is the whole disk. A folder that still refuses then, or that cannot be
read, holds its own worker alone.
"""

from __future__ import annotations

from errno import EINVAL
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from scraper_supervisor.core.checkpoints import publish_damage
from scraper_supervisor.core.facts import PlaceHealed
from scraper_supervisor.core.fleet_state import Trouble
from scraper_supervisor.core.formats.event_payloads import StorageDegraded, StorageRecovered
from scraper_supervisor.core.ops.import_ops import ImportLines
from scraper_supervisor.core.ops.item_ops import AddItems, Conclude, NewItem
from scraper_supervisor.core.ops.run_ops import LoadRun, OpenRun, Probe, SetIntent, SetRunState
from scraper_supervisor.core.ops.state_ops import LoadState, ProbeFolder, SaveState, StateOp, state_of_whom

if TYPE_CHECKING:
    from scraper_supervisor.core.events import PersistFailed, StoreFaulted
    from scraper_supervisor.core.fleet_state import FleetState
    from scraper_supervisor.core.ops.all_ops import Op
    from scraper_supervisor.core.ops.state_ops import StateLoaded
    from scraper_supervisor.core.outbox import Pending

PROBE_EVERY: Final = 1.0  # seconds between tries whether a failed disk works again
PROBE_ROOM: Final = 256 * 1024  # bytes that must be free for more than the probe itself: a commit of many items
DISK_RECOVERED: Final = 1.1  # times disk_free that must be free again before items are handed out
GIB: Final = 2**30


class StorageHealth:
    """The one place that decides whether the disk works."""

    def __init__(self, state: FleetState) -> None:
        self._state = state
        self._again: list[Pending] = []  # questions of the supervisor's own that the ledger refused

    def next_deadline(self) -> float | None:
        """When `due` has something to try."""
        storage = self._state.storage
        troubles = [*storage.folders.values(), *([storage.ledger] if storage.ledger is not None else [])]
        return min((one.probe_at for one in troubles if one.probe_at is not None), default=None)

    def failed(self, event: PersistFailed, question: Pending | None, now: float) -> None:
        """An operation left no trace. Questions of the supervisor's own are kept to be asked again."""
        op = event.op
        if self._is_probe(op) or event.errno == EINVAL:
            return  # a probe is told by itself; and what made no sense says nothing of the disk, nor ends by a repeat
        if question is not None and question.again:
            self._again.append(question)
        if isinstance(op, LoadState) and op.generation is not None:
            return  # one old file says nothing of the others; who asked for it is told
        if isinstance(op, StateOp):
            self._folder_failed(op, event, now)
        else:
            self._ledger_failed(event.message, event.errno, PROBE_ROOM + 2 * _size(op), now)

    def _is_probe(self, op: Op) -> bool:
        storage = self._state.storage
        troubles = [*storage.folders.values(), *([storage.ledger] if storage.ledger is not None else [])]
        return any(trouble.probe == op.ticket for trouble in troubles)

    def told(self, news: StoreFaulted, now: float) -> None:
        """The store found its ledger unwell while nothing was asked of it: everybody is held, as when it refuses."""
        self._ledger_failed(news.message, news.errno, PROBE_ROOM, now)

    def due(self, now: float) -> None:
        """It may be time to try whether a place works again; one try at a time, however slow it is."""
        storage, outbox = self._state.storage, self._state.outbox
        if storage.ledger is not None and _comes(storage.ledger, now):
            self._probe(None, storage.ledger, Probe(outbox.ticket(), storage.ledger.room))
        for worker, trouble in list(storage.folders.items()):
            if not _comes(trouble, now):
                continue
            if worker not in self._state.workers and not self._state.awaits_state(worker):  # nobody needs its folder
                del storage.folders[worker]
                self._tell_if_over(now)
            elif trouble.read is not None:
                op = msgspec.structs.replace(trouble.read, ticket=outbox.ticket())
                trouble.probe = op.ticket
                outbox.ask(op, partial(self._readable, worker, trouble), partial(self._still_refuses, worker, trouble))
            else:
                self._probe(worker, trouble, ProbeFolder(outbox.ticket(), worker, trouble.room, trouble.slot))

    def _probe(self, worker: str | None, trouble: Trouble, op: Probe | ProbeFolder) -> None:
        trouble.probe = op.ticket
        self._state.outbox.ask(
            op, lambda _, now: self._healed(worker, trouble, now), partial(self._still_refuses, worker, trouble)
        )

    def _readable(self, worker: str, trouble: Trouble, answer: StateLoaded, now: float) -> None:
        publish_damage(self._state, worker, answer)
        self._healed(worker, trouble, now)

    def _healed(self, worker: str | None, trouble: Trouble, now: float) -> None:
        """A probe went well: the trouble of this worker's folder, or with None of the ledger, is over."""
        storage = self._state.storage
        if worker is None and storage.ledger is trouble:
            storage.ledger = None
            for folder in storage.folders.values():  # whom these hold goes on being held, and has been so far
                folder.since = min(folder.since, trouble.since)
        elif worker is not None and storage.folders.get(worker) is trouble:
            del storage.folders[worker]
        else:
            return
        self._tell_if_over(now)
        if worker is None:
            self._ask_again()
        self._state.outbox.facts.append(PlaceHealed(worker, trouble.since))

    def measured(self, free: int | None, now: float) -> None:
        """So many bytes are free. Below disk_free, items in hands go on and no further one is handed out."""
        storage, limit = self._state.storage, self._state.settings.resources.disk_free
        if free is None:
            return
        if not storage.low and free < limit:
            self._begin(now)
            storage.low = True
            if storage.ledger is None:  # else worse has been told
                reason = f"{free} bytes are free, disk_free is {limit}: no item is handed out"
                self._state.publish(StorageDegraded(reason), incident=storage.incident)
        elif storage.low and free >= min(limit * DISK_RECOVERED, limit + GIB):
            storage.low = False
            self._tell_if_over(now)

    # ---- inside: troubles

    def _ledger_failed(self, reason: str, errno: int, room: int, now: float) -> None:
        self._everybody_held(reason, errno, now + PROBE_EVERY, now)
        ledger = self._state.storage.ledger
        if ledger is not None:
            ledger.reason, ledger.room = reason, max(ledger.room, room)

    def _everybody_held(self, reason: str, errno: int, probe_at: float, now: float) -> None:
        storage = self._state.storage
        if storage.ledger is not None:
            return
        self._begin(now)
        storage.ledger = Trouble(reason, now, probe_at, PROBE_ROOM)
        self._degraded(reason, errno)

    def _degraded(self, reason: str, errno: int) -> None:
        incident = self._state.storage.incident
        self._state.publish(StorageDegraded(reason, errno), incident=incident)

    def _begin(self, now: float) -> None:
        """Something goes wrong: an incident begins, unless something was wrong already."""
        storage = self._state.storage
        if storage.ledger is None and not storage.folders and not storage.low:
            storage.incident, storage.since = self._state.outbox.incident_id(), now

    def _tell_if_over(self, now: float) -> None:
        storage = self._state.storage
        if storage.ledger is None and not storage.folders and not storage.low:
            seconds = now - storage.since
            self._state.publish(StorageRecovered(seconds), incident=storage.incident)

    def _folder_failed(self, op: StateOp, event: PersistFailed, now: float) -> None:
        storage = self._state.storage
        reason = f"the checkpoints of {state_of_whom(op.worker, op.slot)}: {event.message}"
        trouble = storage.folders.get(op.worker)
        if trouble is None:
            if not isinstance(op, LoadState):
                self._everybody_held(reason, event.errno, now, now)
            elif storage.ledger is None:  # what cannot be read says nothing of the whole disk
                self._begin(now)
                self._degraded(reason, event.errno)
            # An import comes again as soon as the folder is well: it is its probe that puts a second between two tries.
            soon = not isinstance(op, LoadState) and not self._state.awaits_state(op.worker)
            probe_at = now if soon else now + PROBE_EVERY
            trouble = storage.folders[op.worker] = Trouble(reason, now, probe_at)
        trouble.reason = reason
        trouble.slot = op.slot
        if isinstance(op, LoadState):
            trouble.read = trouble.read or op
        else:
            trouble.room = max(trouble.room, PROBE_ROOM + _size(op))

    def _still_refuses(self, worker: str | None, trouble: Trouble, event: PersistFailed, now: float) -> None:
        trouble.reason = event.message if worker is None else f"the checkpoints of {worker}: {event.message}"
        trouble.probe, trouble.probe_at = None, now + PROBE_EVERY

    # ---- inside: what is wanted now may not be what was refused then

    def _ask_again(self) -> None:
        again, self._again = self._again, []
        latest: dict[tuple[str, str], Pending] = {}
        for question in again:
            match question.op:
                case SetRunState(group=group):
                    latest["run", group] = question
                case SetIntent(name=name):
                    latest["intent", name] = question
                case op if self._still_wanted(op):
                    self._ask(question, op)
        for question in latest.values():
            wanted = self._as_wanted_now(question.op)
            if wanted is not None:
                self._ask(question, wanted)

    def _ask(self, question: Pending, op: Op) -> None:
        self._state.outbox.ask(op, question.answered, question.refused, conn=question.conn, again=True)

    def _still_wanted(self, op: Op) -> bool:
        if not isinstance(op, OpenRun | LoadRun):
            return True
        group = self._state.groups.get(op.group)
        return group is not None and (isinstance(op, LoadRun) or op.ticket == group.opening)

    def _as_wanted_now(self, op: Op) -> Op | None:
        if isinstance(op, SetIntent):
            return SetIntent(self._state.outbox.ticket(), op.name, self._state.intents.get(op.name))
        if not isinstance(op, SetRunState):
            return None
        group = self._state.groups.get(op.group)
        if group is None:
            return op
        if group.queue.image is None or group.queue.image.run_id != op.run_id:
            return None
        return SetRunState(self._state.outbox.ticket(), op.group, op.run_id, group.run_state)


def _comes(trouble: Trouble, now: float) -> bool:
    """True if it is time to try the place again. The trouble is then marked as being tried."""
    if trouble.probe_at is None or now < trouble.probe_at:
        return False
    trouble.probe_at = None
    return True


def _size(op: Op) -> int:
    """About how many bytes an operation writes, where that may be many."""
    if isinstance(op, SaveState):
        return len(bytes(op.state))
    if isinstance(op, ImportLines):
        return len(op.lines)
    if isinstance(op, AddItems):
        return _offered(op.items)
    if isinstance(op, Conclude):
        return (0 if op.result is None else len(bytes(op.result))) + _offered(op.offers)
    return 0


def _offered(items: tuple[NewItem, ...]) -> int:
    return sum(len(item.key) + len(bytes(item.data)) for item in items)
