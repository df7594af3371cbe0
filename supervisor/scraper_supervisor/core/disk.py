"""How the store's disk does: faults, the probes that find their end, and what is asked again then."""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING, Final

from scraper_supervisor.core.records import LoadIntents, LoadRun, LoadState, Op, OpenRun, Probe, SetIntent, SetRunState

if TYPE_CHECKING:
    from scraper_supervisor.core.events import PersistFailed
    from scraper_supervisor.core.state import FleetState

PROBE_EVERY: Final = 1.0  # seconds between tries whether a failed disk works again
DISK_RECOVERED: Final = 1.1  # times disk_free that must be free again before items are handed out
GIB: Final = 2**30


class Disk:
    """The one place that decides whether the disk works."""

    def __init__(self, state: FleetState) -> None:
        self._state = state
        self._again: list[LoadIntents | OpenRun | LoadRun] = []
        self._states_unset: dict[str, SetRunState] = {}  # by group
        self._intents_unset: dict[str, SetIntent] = {}  # by name

    def failed(self, event: PersistFailed, now: float) -> None:
        """An operation left no trace. Those of our own that nobody else repeats are kept to be asked again."""
        storage, op = self._state.storage, event.op
        if event.errno == EINVAL:  # the operation made no sense, the disk is well: asking again would not end
            return
        if isinstance(op, LoadState):  # one worker's file is unreadable, which is that worker's matter alone
            return
        if storage.fault is None:
            storage.incident, storage.since = self._state.incident_id(), now
            self._state.publish(
                "storage_degraded",
                "critical",
                "storage",
                incident=storage.incident,
                reason=event.message,
                errno=event.errno,
            )
        storage.fault, storage.errno = event.message, event.errno
        if isinstance(op, Probe):
            storage.probing = False
        if not storage.probing:
            storage.probe_at = now + PROBE_EVERY if storage.probe_at is None else storage.probe_at
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
        """It may be time to try whether the disk works again; one try at a time, however slow it is."""
        storage = self._state.storage
        if storage.probe_at is not None and now >= storage.probe_at:
            storage.probe_at, storage.probing = None, True
            self._state.persist(Probe(self._state.ticket()))

    def healed(self, now: float) -> float | None:
        """A probe went well. Returns since when the disk had refused, None if it had not."""
        storage = self._state.storage
        storage.probing = False
        if storage.fault is None or storage.since is None:
            return None
        since = storage.since
        storage.fault = storage.since = storage.probe_at = None
        self._state.publish("storage_recovered", "info", "storage", incident=storage.incident, seconds=now - since)
        again: list[Op] = [
            *(op for op in self._again if self._still_wanted(op)),
            *self._wanted_states(),
            *self._wanted_intents(),
        ]
        self._again, self._states_unset, self._intents_unset = [], {}, {}
        for op in again:
            self._state.persist(op)
        return since

    def measured(self, free: int | None, now: float) -> None:
        """So many bytes are free. Below disk_free, items in hands go on and no further one is handed out."""
        storage, limit = self._state.storage, self._state.settings.resources.disk_free
        if free is None:
            return
        if not storage.low and free < limit:
            storage.low, storage.low_incident, storage.low_since = True, self._state.incident_id(), now
            reason = f"{free} bytes are free, disk_free is {limit}: no item is handed out"
            self._state.publish("storage_degraded", "critical", "storage", incident=storage.low_incident, reason=reason)
        elif storage.low and free >= min(limit * DISK_RECOVERED, limit + GIB):
            storage.low = False
            self._state.publish(
                "storage_recovered",
                "info",
                "storage",
                incident=storage.low_incident,
                disk_free=free,
                seconds=now - storage.low_since,
            )

    # ---- inside: what is wanted now may not be what was refused then

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
