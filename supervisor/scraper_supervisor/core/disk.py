"""How the store's disk does: faults, the probes that find their end, and what is asked again then.

The store has places that can refuse: the ledger, and each worker's folder of checkpoints. A place is tried each second
with what it had refused, and is well again when the probe is. Whatever place refuses a write first, everybody is held
until the ledger's probe tells whether it is the whole disk. A folder that still refuses then, or that cannot be read,
holds its own worker alone.
"""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING, Final

import msgspec

from scraper_supervisor.core.records import (
    AddItems,
    Conclude,
    LoadIntents,
    LoadRun,
    LoadState,
    NewItem,
    Op,
    OpenRun,
    Probe,
    ProbeFolder,
    SaveState,
    SetIntent,
    SetRunState,
    StateOp,
)
from scraper_supervisor.core.state import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable

    from scraper_supervisor.core.events import PersistFailed
    from scraper_supervisor.core.state import FleetState

PROBE_EVERY: Final = 1.0  # seconds between tries whether a failed disk works again
PROBE_ROOM: Final = 256 * 1024  # bytes that must be free for more than the probe itself: a commit of many items
DISK_RECOVERED: Final = 1.1  # times disk_free that must be free again before items are handed out
GIB: Final = 2**30


class Disk:
    """The one place that decides whether the disk works.

    `awaited` tells of a folder whether an import is to be saved there, before its worker is hired or without it.
    """

    def __init__(self, state: FleetState, awaited: Callable[[str], bool]) -> None:
        self._state = state
        self._awaited = awaited
        self._probes: dict[int, str | None] = {}  # ticket → worker whose folder is tried, None: the ledger
        self._again: list[LoadIntents | OpenRun | LoadRun] = []
        self._states_unset: dict[str, SetRunState] = {}  # by group
        self._intents_unset: dict[str, SetIntent] = {}  # by name

    def next_deadline(self) -> float | None:
        """When `due` has something to try."""
        storage = self._state.storage
        troubles = [*storage.folders.values(), *([storage.ledger] if storage.ledger is not None else [])]
        return min((one.probe_at for one in troubles if one.probe_at is not None), default=None)

    def failed(self, event: PersistFailed, now: float) -> None:
        """An operation left no trace. Those of our own that nobody else repeats are kept to be asked again."""
        op = event.op
        if op.ticket in self._probes:
            self._still_refuses(self._probes.pop(op.ticket), event, now)
        elif event.errno == EINVAL:  # the operation made no sense, the disk is well: asking again would not end
            return
        elif isinstance(op, LoadState) and op.generation is not None:
            return  # one old file says nothing of the others; who asked for it is told
        elif isinstance(op, StateOp):
            self._folder_failed(op, event, now)
        else:
            self._everybody_held(event.message, event.errno, now + PROBE_EVERY, now)
            ledger = self._state.storage.ledger
            if ledger is not None:
                ledger.reason, ledger.room = event.message, max(ledger.room, PROBE_ROOM + 2 * _size(op))
        match op:
            case SetRunState():
                self._states_unset[op.group] = op
            case SetIntent():
                self._intents_unset[op.name] = op
            case LoadIntents() | OpenRun() | LoadRun():
                self._again.append(op)
            case _:
                pass

    def due(self, now: float) -> None:
        """It may be time to try whether a place works again; one try at a time, however slow it is."""
        storage = self._state.storage
        if storage.ledger is not None and _comes(storage.ledger, now):
            self._probe(None, Probe(self._state.ticket(), storage.ledger.room))
        for worker, trouble in list(storage.folders.items()):
            if not _comes(trouble, now):
                continue
            ticket = self._state.ticket()
            if worker not in self._state.workers and not self._awaited(worker):  # nobody needs its folder
                del storage.folders[worker]
                self._tell_if_over(now)
            elif trouble.read is not None:
                self._probe(worker, msgspec.structs.replace(trouble.read, ticket=ticket))
            else:
                self._probe(worker, ProbeFolder(ticket, worker, trouble.room))

    def healed(self, op: Op, now: float) -> tuple[str | None, float] | None:
        """An operation went well. If it was a probe that ends a trouble: whose, and since when.

        The worker is the one that its folder held; None stands for everybody, whom the ledger held.
        """
        storage = self._state.storage
        if op.ticket not in self._probes:
            return None
        worker = self._probes.pop(op.ticket)
        trouble = storage.ledger if worker is None else storage.folders.pop(worker, None)
        if trouble is None:
            return None
        if worker is None:
            storage.ledger = None
            for folder in storage.folders.values():  # whom these hold goes on being held, and has been so far
                folder.since = min(folder.since, trouble.since)
        self._tell_if_over(now)
        if worker is None:
            self._ask_again()
        return worker, trouble.since

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
                self._state.publish("storage_degraded", "critical", "storage", incident=storage.incident, reason=reason)
        elif storage.low and free >= min(limit * DISK_RECOVERED, limit + GIB):
            storage.low = False
            self._tell_if_over(now)

    # ---- inside: troubles

    def _everybody_held(self, reason: str, errno: int, probe_at: float, now: float) -> None:
        storage = self._state.storage
        if storage.ledger is not None:
            return
        self._begin(now)
        storage.ledger = Trouble(reason, now, probe_at, PROBE_ROOM)
        self._degraded(reason, errno)

    def _degraded(self, reason: str, errno: int) -> None:
        incident = self._state.storage.incident
        self._state.publish("storage_degraded", "critical", "storage", incident=incident, reason=reason, errno=errno)

    def _begin(self, now: float) -> None:
        """Something goes wrong: an incident begins, unless something was wrong already."""
        storage = self._state.storage
        if storage.ledger is None and not storage.folders and not storage.low:
            storage.incident, storage.since = self._state.incident_id(), now

    def _tell_if_over(self, now: float) -> None:
        storage = self._state.storage
        if storage.ledger is None and not storage.folders and not storage.low:
            seconds = now - storage.since
            self._state.publish("storage_recovered", "info", "storage", incident=storage.incident, seconds=seconds)

    def _folder_failed(self, op: StateOp, event: PersistFailed, now: float) -> None:
        storage = self._state.storage
        reason = f"the checkpoints of {op.worker}: {event.message}"
        trouble = storage.folders.get(op.worker)
        if trouble is None:
            if not isinstance(op, LoadState):
                self._everybody_held(reason, event.errno, now, now)
            elif storage.ledger is None:  # what cannot be read says nothing of the whole disk
                self._begin(now)
                self._degraded(reason, event.errno)
            # An import comes again as soon as the folder is well: it is its probe that puts a second between two tries.
            soon = not isinstance(op, LoadState) and not self._awaited(op.worker)
            probe_at = now if soon else now + PROBE_EVERY
            trouble = storage.folders[op.worker] = Trouble(reason, now, probe_at)
        trouble.reason = reason
        if isinstance(op, LoadState):
            trouble.read = trouble.read or op
        else:
            trouble.room = max(trouble.room, PROBE_ROOM + _size(op))

    def _still_refuses(self, worker: str | None, event: PersistFailed, now: float) -> None:
        storage = self._state.storage
        trouble = storage.ledger if worker is None else storage.folders.get(worker)
        if trouble is not None:
            trouble.reason = event.message if worker is None else f"the checkpoints of {worker}: {event.message}"
            trouble.probe_at = now + PROBE_EVERY

    def _probe(self, worker: str | None, op: Op) -> None:
        self._probes[op.ticket] = worker
        self._state.persist(op)

    # ---- inside: what is wanted now may not be what was refused then

    def _ask_again(self) -> None:
        again: list[Op] = [
            *(op for op in self._again if self._still_wanted(op)),
            *self._wanted_states(),
            *self._wanted_intents(),
        ]
        self._again, self._states_unset, self._intents_unset = [], {}, {}
        for op in again:
            self._state.persist(op)

    def _still_wanted(self, op: LoadIntents | OpenRun | LoadRun) -> bool:
        if isinstance(op, LoadIntents):
            return True
        group = self._state.groups.get(op.group)
        return group is not None and (isinstance(op, LoadRun) or op.ticket == group.opening)

    def _wanted_states(self) -> list[SetRunState]:
        ops: list[SetRunState] = []
        for name, op in self._states_unset.items():
            group = self._state.groups.get(name)
            if group is None:
                ops.append(op)
            elif group.queue.image is not None and group.queue.image.run_id == op.run_id:
                ops.append(SetRunState(self._state.ticket(), name, op.run_id, group.run_state))
        return ops

    def _wanted_intents(self) -> list[SetIntent]:
        intents = self._state.intents
        return [SetIntent(self._state.ticket(), name, intents.get(name)) for name in self._intents_unset]


def _comes(trouble: Trouble, now: float) -> bool:
    """Whether it is time to try; marked as being tried."""
    if trouble.probe_at is None or now < trouble.probe_at:
        return False
    trouble.probe_at = None
    return True


def _size(op: Op) -> int:
    """About how many bytes an operation writes."""
    match op:
        case SaveState(state=state):
            return len(bytes(state))
        case Conclude(result=result, offers=offers):
            return (0 if result is None else len(bytes(result))) + _offered(offers)
        case AddItems(items=items):
            return _offered(items)
        case _:
            return 0


def _offered(items: tuple[NewItem, ...]) -> int:
    return sum(len(item.key) + len(bytes(item.data)) for item in items)
