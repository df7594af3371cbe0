"""What an operator's request waits for, and what it is answered: what became of the workers, with the reason."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from scraper_supervisor.core.config.units import format_duration
from scraper_supervisor.core.states.group import GroupState
from scraper_supervisor.core.states.worker_life import Phase
from scraper_supervisor.core.workers.readiness import STEADY, shows_itself

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scraper_supervisor.core.fleet_state import FleetState, Worker
    from scraper_supervisor.core.workers.lifecycle import Lifecycle

SETTLED: Final = frozenset({Phase.STOPPED, Phase.COMPLETED, Phase.FAILED})


class _Waiting(Struct):
    """A request that is answered when all its workers are where it wants them.

    `workers` is name → (incarnation, recycles) when it was asked; `begun` is name → when its new process was wanted.
    """

    request: int
    method: str
    workers: dict[str, tuple[int, int]]
    begun: dict[str, float]


class Waiting:
    """The requests that are not answered yet."""

    def __init__(self, state: FleetState, lifecycle: Lifecycle) -> None:
        self._state = state
        self._lifecycle = lifecycle
        self._open: list[_Waiting] = []
        self._looked = -math.inf  # monotonic seconds

    def add(self, request: int, method: str, marks: dict[str, tuple[int, int]]) -> None:
        """Answer the request when it is done; `marks` is name → (incarnation, recycles) from before it."""
        self._open.append(_Waiting(request, method, marks, {}))

    def withdraw(self, request: int) -> None:
        """Nobody waits for the answer any more."""
        self._open = [one for one in self._open if one.request != request]

    def settle(self, now: float) -> None:
        """Answer the requests whose workers are where they were wanted, or are not going to be."""
        self._looked = now
        left: list[_Waiting] = []
        for one in self._open:
            workers = [self._state.workers[name] for name in one.workers if name in self._state.workers]
            if not all(self._is_done(one, worker, now) for worker in workers) or (
                one.method in ("restart", "reload.settle") and self._rolls(workers)
            ):
                left.append(one)
                continue
            problems = list(self._problems(one, workers))
            states = {worker.name: self._lifecycle.public(worker) for worker in workers}
            answer: object = "; ".join(problems) if problems else {"workers": states}
            self._state.outbox.answer(one.request, not problems, answer)
        self._open = left

    def next_deadline(self) -> float | None:
        """When a request is to be answered though nothing happens.

        What is past was looked at: the request waits for something else, such as another of its workers.
        """
        times = []
        for one in self._open:
            for name, begun in one.begun.items():
                worker = self._state.workers.get(name)
                if worker is None or worker.life.phase in SETTLED:
                    continue
                since = worker.current.up_since
                times.append(begun + self._limit(worker) if since is None else since + STEADY)
        return min((time for time in times if time > self._looked), default=None)

    def _rolls(self, workers: list[Worker]) -> bool:
        """True if one of the workers' groups is being restarted one by one; of no worker: any group."""
        names = {worker.group for worker in workers} or self._state.groups.keys()
        return any(self._state.groups[name].roll is not None for name in names)

    def _is_done(self, one: _Waiting, worker: Worker, now: float) -> bool:
        incarnation, recycles = one.workers[worker.name]
        phase = worker.life.phase
        match one.method:
            case "drain" | "stop":
                return phase in SETTLED or worker.life.after != "stop"
            case "start":
                if self._state.groups[worker.group].state is GroupState.OPENING:
                    return False  # it is started with its run
                return phase in SETTLED or self._came_up(one, worker, now)
            case "restart":
                if phase in SETTLED:
                    return True
                if worker.life.incarnation == incarnation:  # it waits for its turn, or stays as it is after all
                    return self._state.groups[worker.group].roll is None
                return self._came_up(one, worker, now)
            case "recycle":
                return worker.current.recycle is None or worker.recycles > recycles or phase is not Phase.RUNNING
        return True

    def _came_up(self, one: _Waiting, worker: Worker, now: float) -> bool:
        """True if it is known what became of the start: it works, it died again and waits, or its time is over."""
        if shows_itself(self._state, worker, now):
            return True
        if worker.life.incarnation > one.workers[worker.name][0] and worker.life.phase is Phase.BACKOFF:
            return True
        begun = one.begun.setdefault(worker.name, now)
        return now >= begun + self._limit(worker) and worker.current.up_since is None

    def _limit(self, worker: Worker) -> float:
        return self._state.groups[worker.group].settings.start_timeout

    def _problems(self, one: _Waiting, workers: list[Worker]) -> Iterable[str]:
        if one.method in ("drain", "stop"):
            again = [worker.name for worker in workers if worker.life.phase not in SETTLED]
            if again:
                yield f"started again meanwhile: {', '.join(again)}"
        if one.method not in ("start", "restart", "reload.settle"):
            return
        told = set()
        for name in {worker.group: None for worker in workers} or self._state.groups:
            failed = self._state.groups[name].roll_failed
            if one.method != "start" and failed is not None:
                told.add(failed.split(":", 1)[0])
                yield failed
        for worker in workers:
            if worker.name not in told and (problem := self._problem(worker)) is not None:
                yield problem

    def _problem(self, worker: Worker) -> str | None:
        phase = worker.life.phase
        why = f": {worker.last_failure.message}" if worker.last_failure is not None else ""
        if phase is Phase.FAILED:
            return f"{worker.name} failed{why}"
        if phase is Phase.BACKOFF:
            return f"{worker.name} ended again and again, the next try is under way{why}"
        if phase not in (Phase.RUNNING, Phase.STOPPED, Phase.COMPLETED):
            return f"{worker.name} is not up after start_timeout ({format_duration(self._limit(worker))}){why}"
        return None
