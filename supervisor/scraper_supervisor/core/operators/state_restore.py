"""`checkpoint restore`: an older state becomes the newest one, and the worker starts again from it.

A worker that is up may save until its end, so the state is read first and written when the worker is down. The store
carries out in order what it is asked of one worker's files: its next hello finds the restored state.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct

from scraper_supervisor.core.checkpoints import why_not_given
from scraper_supervisor.core.ops.state_ops import LoadState, StateLoaded
from scraper_supervisor.core.states.worker_life import Phase
from scraper_worker.protocol import is_slot

if TYPE_CHECKING:
    from scraper_supervisor.core.checkpoints import Checkpoints
    from scraper_supervisor.core.events import Asked, PersistFailed
    from scraper_supervisor.core.fleet_state import FleetState, Worker
    from scraper_supervisor.core.ops.state_ops import StateSaved
    from scraper_supervisor.core.runs.groups import Groups
    from scraper_supervisor.core.workers.lifecycle import Lifecycle


class _Restore(Struct):
    """A state on its way from an old generation to a new one."""

    request: int | None  # None: nobody waits for the answer any more
    worker: str
    slot: str | None  # None: its main state
    generation: int
    incarnation: int  # the worker's, when it was asked
    found: StateLoaded | None = None  # what was read, until it is asked to be written
    written: int | None = None  # the new generation
    started: bool = False  # it had failed, and was started again


class StateRestores:
    """Serves the operators' checkpoint.restore."""

    def __init__(self, state: FleetState, groups: Groups, lifecycle: Lifecycle, checkpoints: Checkpoints) -> None:
        self._state = state
        self._groups = groups
        self._lifecycle = lifecycle
        self._checkpoints = checkpoints
        self._under_way: dict[str, _Restore] = {}  # by worker

    def asked(self, event: Asked) -> None:
        """Take a request: one name and a generation."""
        refusal = self._refusal(event)
        if refusal is not None or event.generation is None:
            self._state.outbox.answer(event.request, False, refusal)
            return
        worker = self._state.workers[event.names[0]]
        one = _Restore(event.request, worker.name, event.slot, event.generation, worker.life.incarnation)
        self._under_way[worker.name] = one
        ticket, fresh_from = self._state.outbox.ticket(), self._checkpoints.fresh_from(worker, event.slot)
        op = LoadState(ticket, worker.name, fresh_from, event.generation, event.slot)
        self._checkpoints.read(op, partial(self._loaded, one), lambda fault, _: self._refused(one, fault))

    def withdrawn(self, request: int) -> None:
        """Nobody waits for the answer any more; what was begun is brought to its end."""
        for one in self._under_way.values():
            if one.request == request:
                one.request = None

    def _loaded(self, one: _Restore, answer: StateLoaded, now: float) -> None:
        if self._under_way.get(one.worker) is not one:
            return
        refusal = why_not_given(one.worker, one.generation, answer, one.slot)
        if refusal is not None:
            self._end(one, False, refusal)
            return
        one.found = answer
        worker = self._state.workers.get(one.worker)
        if worker is not None and worker.life.up:
            one.incarnation = worker.life.incarnation
            self._lifecycle.drain(worker, f"an operator restores checkpoint {one.generation}", "restart", now)

    def _saved(self, one: _Restore, answer: StateSaved) -> None:
        one.written = answer.generation

    def _refused(self, one: _Restore, fault: PersistFailed) -> None:
        if self._under_way.get(one.worker) is one:
            self._end(one, False, f"storage unavailable, nothing was restored: {fault.message}")

    def settle(self, now: float) -> None:
        """Write what waits for a worker to be down, and answer where the worker is where it was wanted."""
        for one in list(self._under_way.values()):
            worker = self._state.workers.get(one.worker)
            if worker is None:
                self._end(one, False, f"{one.worker} was removed from the configuration meanwhile")
            elif one.found is not None and self._is_down(one, worker):
                self._write(one, one.found, worker, now)
            elif one.written is not None and self._has_settled(one, worker):
                self._answer(one, one.written, worker)

    # ---- inside

    def _refusal(self, event: Asked) -> str | None:
        if len(event.names) != 1 or event.generation is None:
            return "expected one worker and a generation"
        if event.slot is not None and not is_slot(event.slot):
            return f"no slot can be named {event.slot!r}"
        name = event.names[0]
        worker = self._state.workers.get(name)
        if worker is None:
            return f"no worker is named {name!r}; known are: {', '.join(self._state.workers) or 'none'}"
        if name in self._under_way:
            return f"checkpoint {self._under_way[name].generation} of {name} is being restored already"
        if self._state.phase == "draining":
            return "the supervisor is draining; try again when it has ended"
        if self._state.groups[worker.group].queue.image is None:
            return f"the run of {worker.group} is still being read from the ledger; try again"
        return None

    def _is_down(self, one: _Restore, worker: Worker) -> bool:
        if self._state.groups[worker.group].queue.image is None:
            return False  # a new run is being opened, and the state is to be of that one
        return not worker.life.up or worker.life.incarnation != one.incarnation

    def _write(self, one: _Restore, found: StateLoaded, worker: Worker, now: float) -> None:
        if one.slot is None:
            worker.state = None  # else it would be written over the restored one at the next occasion
        one.found = None
        op = self._checkpoints.op_of(worker, found.schema, found.state, one.slot)
        self._checkpoints.write(op, partial(self._saved, one), partial(self._refused, one))
        if worker.life.phase is Phase.FAILED:
            one.started = self._groups.restart_failed(worker, now)
        elif worker.life.phase is Phase.BACKOFF:
            self._lifecycle.start(worker, now)

    def _has_settled(self, one: _Restore, worker: Worker) -> bool:
        came_back = worker.life.phase is Phase.RUNNING and worker.life.incarnation > one.incarnation
        return came_back or worker.life.phase in (Phase.STOPPED, Phase.COMPLETED, Phase.FAILED)

    def _answer(self, one: _Restore, written: int, worker: Worker) -> None:
        if worker.life.phase is Phase.FAILED and (one.started or worker.life.incarnation > one.incarnation):
            why = f": {worker.last_failure.message}" if worker.last_failure is not None else ""
            what = f"checkpoint {one.generation} is restored as {written}, but {worker.name} failed{why}"
            self._end(one, False, what)
            return
        state = self._lifecycle.public(worker)
        document = {"worker": worker.name, "restored": one.generation, "generation": written, "state": state}
        self._end(one, True, document)

    def _end(self, one: _Restore, ok: bool, document: object) -> None:
        del self._under_way[one.worker]
        if one.request is not None:
            self._state.outbox.answer(one.request, ok, document)
