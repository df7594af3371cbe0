"""What operators ask for on the control socket, and when it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from msgspec import Raw
from msgspec.structs import replace

from scraper_supervisor.core.events import Answered
from scraper_supervisor.core.formats.redaction import hidden_in
from scraper_supervisor.core.operators import run_import as imports
from scraper_supervisor.core.operators.acts import act
from scraper_supervisor.core.operators.waiting import Waiting
from scraper_supervisor.core.ops.item_ops import FindKeys, NewItem
from scraper_supervisor.core.queue.item_calls import target_of
from scraper_supervisor.core.runs.aborts import AllTogether
from scraper_supervisor.core.runs.rolling import begin
from scraper_supervisor.core.states.group import ENDED, GroupState, GroupTrigger
from scraper_supervisor.core.states.supervisor import SupervisorTrigger
from scraper_worker.jsonrpc import BadParams, check_key

if TYPE_CHECKING:
    from scraper_supervisor.core.events import Asked, PersistFailed
    from scraper_supervisor.core.fleet_state import FleetState, Group, Worker
    from scraper_supervisor.core.formats.event_payloads import OperatorActed
    from scraper_supervisor.core.operators.run_import import RunImports
    from scraper_supervisor.core.operators.state_restore import StateRestores
    from scraper_supervisor.core.ops.item_ops import WholeKeys
    from scraper_supervisor.core.policy.abort import AbortWindow
    from scraper_supervisor.core.runs.aborts import Aborts
    from scraper_supervisor.core.runs.groups import Groups
    from scraper_supervisor.core.workers.lifecycle import Lifecycle
    from scraper_supervisor.core.workers.recycling import Recycling
    from scraper_supervisor.core.workers.watchdog import Watchdog

ITEMS: Final = frozenset({"items.add", "items.requeue", "items.cancel"})


class _Refusal(ValueError):
    """The request can't be served; the message names the remedy."""


class Orders:
    """Serves the requests that change something. Reading is the snapshot's matter."""

    def __init__(
        self,
        state: FleetState,
        groups: Groups,
        lifecycle: Lifecycle,
        watchdog: Watchdog,
        recycling: Recycling,
        abort: AbortWindow,
        aborts: Aborts,
        state_restores: StateRestores,
        run_imports: RunImports,
    ) -> None:
        self._state = state
        self._groups = groups
        self._lifecycle = lifecycle
        self._watchdog = watchdog
        self._recycling = recycling
        self._abort = abort
        self._aborts = aborts
        self._state_restores = state_restores
        self._run_imports = run_imports
        self._waiting = Waiting(state, lifecycle)

    def asked(self, event: Asked, now: float) -> None:
        """Take a request; one that is not refused is told, before what it brings about."""
        commands = self._state.outbox.commands
        before = len(commands)
        self._serve(event, now)
        refused = any(
            isinstance(one, Answered) and one.request == event.request and not one.ok for one in commands[before:]
        )
        told = None if refused else _act(event)
        if told is not None:
            self._state.outbox.publish(told, at=before)

    def _serve(self, event: Asked, now: float) -> None:
        try:
            if event.method in ITEMS:
                self._items(event, now)
            elif event.method in imports.METHODS:
                self._run_imports.asked(event, self._group(event.names))
            elif event.method == "checkpoint.restore":
                self._state_restores.asked(event)
            elif event.method == "abort.clear":
                for name in event.names:
                    self._group((name,))  # or it is refused
                cleared = self._aborts.clear(event.names, now)
                self._state.outbox.answer(event.request, True, {"cleared": cleared})
            elif event.method == "claims":
                claims = [claim for group in self._state.groups.values() for claim in group.queue.claims()]
                self._state.outbox.answer(event.request, True, claims)
            else:
                self._order(event, now)
        except (_Refusal, BadParams, AllTogether, imports.NotNow) as error:
            self._state.outbox.answer(event.request, False, str(error))

    def withdrawn(self, request: int) -> None:
        """Nobody waits for the answer any more."""
        self._waiting.withdraw(request)
        self._state_restores.withdrawn(request)
        self._run_imports.withdrawn(request)

    # ---- workers and groups

    def _order(self, event: Asked, now: float) -> None:
        groups, workers = self._named(event.names)
        team = [worker for group in groups for worker in self._state.members(group)] + workers
        marks = {worker.name: (worker.life.incarnation, worker.recycles) for worker in team}
        match event.method:
            case "pause" | "resume":
                self._pause(groups, workers, paused=event.method == "pause", now=now)
            case "drain" | "stop":
                intent: Literal["drained", "stopped"] = "drained" if event.method == "drain" else "stopped"
                for group in groups:
                    self._groups.set_intent(group.name, intent)
                    self._groups.stop(group, f"an operator ordered: {event.method}", now)
                for worker in workers:
                    self._groups.set_intent(worker.name, intent)
                    self._lifecycle.drain(worker, f"an operator ordered: {event.method}", "stop", now)
            case "start":
                self._start(groups, workers, fresh=event.fresh, now=now)
            case "restart":
                self._restart(groups, workers, now)
            case "reload.settle":  # the configuration is in force already; the restarts that it orders are waited for
                marks = {}
            case "recycle":
                for worker in team:
                    self._recycling.request(worker)
            case _:
                raise _Refusal(f"unknown request {event.method!r}")
        if not event.wait:
            self._state.outbox.answer(event.request, True, {"workers": sorted(marks)})
            return
        self._waiting.add(event.request, event.method, marks)

    def _restart(self, groups: list[Group], workers: list[Worker], now: float) -> None:
        """Restart who is up, one by one, and start who is not; a failed group begins anew."""
        names = {group.name: list(group.workers) for group in groups}
        for worker in workers:
            names.setdefault(worker.group, []).append(worker.name)
        for name, team in names.items():
            group = self._state.groups[name]
            members = [self._state.workers[one] for one in team]
            if group.state is GroupState.FAILED and group in groups:
                self._groups.resume_run(group, now, reset=True)
            for worker in members:
                if not worker.life.up and group.state not in ENDED and group.state is not GroupState.OPENING:
                    self._lifecycle.start(worker, now)
            before = [worker.name for worker in members if worker.life.up and worker.life.pid is not None]
            begin(self._state, group, before, "an operator ordered a restart")

    def _named(self, names: tuple[str, ...]) -> tuple[list[Group], list[Worker]]:
        if not names:
            return list(self._state.groups.values()), []
        groups, workers = [], []
        for name in names:
            if name in self._state.groups:
                groups.append(self._state.groups[name])
            elif name in self._state.workers:
                workers.append(self._state.workers[name])
            else:
                known = ", ".join([*self._state.groups, *self._state.workers]) or "none"
                raise _Refusal(f"no group or worker is named {name!r}; known are: {known}")
        return groups, workers

    def _pause(self, groups: list[Group], workers: list[Worker], *, paused: bool, now: float) -> None:
        for group in groups:
            self._intend_pause(group.name, paused)
            group.go(GroupTrigger.PAUSE if paused else GroupTrigger.RESUME)
            workers = [*workers, *self._state.members(group)] if not paused else workers
        for worker in workers:
            self._intend_pause(worker.name, paused)
            worker.paused = paused
            if not paused and worker.current.quiet_since is not None:
                worker.current.quiet_since = now
        for worker in self._state.workers.values():
            self._lifecycle.note(worker, now)

    def _intend_pause(self, name: str, paused: bool) -> None:
        """What is drained or stopped stays so: resume ends a pause and nothing else."""
        if self._state.intents.get(name) in (None, "paused"):
            self._groups.set_intent(name, "paused" if paused else None)

    def _start(self, groups: list[Group], workers: list[Worker], *, fresh: bool, now: float) -> None:
        self._state.concluded = True  # what comes of it is no longer what came of the daemon's own start
        anew = {group.name for group in groups if fresh or self._is_over(group)}
        for group in groups:
            if group.name in anew and any(worker.life.up for worker in self._state.members(group)):
                raise _Refusal(f"{group.name} has workers running; stop it first: stop {group.name}")
        for worker in workers:
            group = self._state.groups[worker.group]
            if group.state in ENDED:
                raise _Refusal(f"{group.name} is {group.state.public}; start the group: start {group.name}")
        if self._state.phase in ("aborting", "aborted"):
            self._abort.clear()
            self._state.go(SupervisorTrigger.CLEAR)
        for group in groups:
            self._groups.set_intent(group.name, None)
            for worker in self._state.members(group):
                self._groups.set_intent(worker.name, None)
                worker.paused = False
            if group.name in anew:
                group.queue.close()
                self._groups.open(group, "fresh" if fresh else "next")
            elif group.state is not GroupState.OPENING:
                if group.state is GroupState.ABORTED:
                    self._abort.forget(group.name)
                self._groups.resume_run(group, now, reset=True)
        for worker in workers:
            self._groups.set_intent(worker.name, None)
            worker.paused = False
            self._lifecycle.keep(worker)
            if self._state.groups[worker.group].state is not GroupState.OPENING:  # else it is started with its run
                self._lifecycle.start(worker, now)

    def _is_over(self, group: Group) -> bool:
        """True if the group's run is over. A run to which items were added while the group was stopped is not."""
        return group.state is GroupState.COMPLETED and not group.queue.unfinished

    def settle(self, now: float) -> None:
        """Answer the requests whose workers are where they were wanted."""
        self._state_restores.settle(now)
        self._waiting.settle(now)

    def next_deadline(self) -> float | None:
        """When a request is to be answered though nothing happens."""
        return self._waiting.next_deadline()

    # ---- items

    def _items(self, event: Asked, now: float) -> None:
        group = self._group(event.names)
        if group.queue.image is None:
            raise _Refusal(f"the run of {group.name} is still being read from the ledger; try again")
        if event.method != "items.add" and any(hidden_in(key) for key in event.keys):
            self._find_whole(event, group.queue.image.run_id)
            return
        self._change_items(event, group, now)

    def _find_whole(self, event: Asked, run_id: int) -> None:
        """Items are named as they are shown, with something hidden: the ledger knows them whole."""
        outbox = self._state.outbox
        op = FindKeys(outbox.ticket(), event.names[0], run_id, event.keys)

        def found(answer: WholeKeys, now: float) -> None:
            group = self._state.groups.get(op.group)
            if group is None or group.queue.image is None or group.queue.image.run_id != run_id:
                outbox.answer(event.request, False, f"the run of {op.group} has ended meanwhile; try again")
            else:
                self._change_items(replace(event, keys=answer.keys), group, now)

        def refused(fault: PersistFailed, _: float) -> None:
            outbox.answer(event.request, False, f"storage unavailable: {fault.message}")

        outbox.ask(op, found, refused)

    def _change_items(self, event: Asked, group: Group, now: float) -> None:
        match event.method:
            case "items.add":
                for index, key in enumerate(event.keys):
                    check_key(key, f"keys[{index}]")
                items = tuple(NewItem(key, target_of(key, None), Raw(b"null"), 0) for key in event.keys)
                group.queue.add(event.request, items)
            case "items.requeue":
                group.queue.requeue(event.request, event.keys, failed=event.failed, parked=event.parked)
            case _:
                self._watchdog.cancel(group, event.keys, now)
                group.queue.cancel(event.request, event.keys)

    def _group(self, names: tuple[str, ...]) -> Group:
        group = self._state.groups.get(names[0]) if names else None
        if group is None:
            known = ", ".join(self._state.groups) or "none"
            raise _Refusal(f"no group is named {names[0] if names else ''!r}; known are: {known}")
        return group


def _act(event: Asked) -> OperatorActed | None:
    return act(
        event.method,
        event.names,
        event.uid,
        keys=event.keys,
        fresh=event.fresh,
        failed=event.failed,
        parked=event.parked,
        generation=event.generation,
        slot=event.slot,
    )
