"""Runs that operators import: taken line by line, made the group's newest at once, their states made checkpoints.

A run is imported into a group that has ended, and the group is left stopped until an operator starts it. Until the
imported states are checkpoints, the group's run is not opened. A daemon that died in between goes on with that when it
opens the run.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec import Struct

from scraper_supervisor.core.checkpoints import counts_of, save_op
from scraper_supervisor.core.fleet_state import Group, Install, Intent
from scraper_supervisor.core.formats.run_export import Joiner
from scraper_supervisor.core.ops.import_ops import (
    DropState,
    ImportBegin,
    ImportDrop,
    Imported,
    ImportFinish,
    ImportLines,
    TakeState,
)
from scraper_supervisor.core.ops.state_ops import LoadState
from scraper_supervisor.core.states.group import ENDED, GroupState, GroupTrigger

if TYPE_CHECKING:
    from scraper_supervisor.core.checkpoints import Checkpoints
    from scraper_supervisor.core.events import Asked, PersistFailed
    from scraper_supervisor.core.facts import StatesOwed
    from scraper_supervisor.core.fleet_state import FleetState
    from scraper_supervisor.core.ops.import_ops import StateTaken
    from scraper_supervisor.core.runs.groups import Groups

METHODS: Final = frozenset({"items.import.begin", "items.import.lines", "items.import.finish", "items.import.drop"})

_Step: TypeAlias = ImportBegin | ImportLines | ImportFinish | ImportDrop


class NotNow(ValueError):
    """The group can't take a run now; the message names the remedy."""


class _Session(Struct):
    """An import that is not finished."""

    token: int  # tells this import from one that took its place
    run_id: int
    lines: Joiner


class _Waiting(Struct):
    """A request whose operation the ledger has not carried out; `request` is None once its command is gone.

    `former` is what an operator wanted of the group before a finish stopped it, where that is to be wanted again
    should the run not become the newest.
    """

    request: int | None
    stopped: bool = False
    former: Intent | None = None


class RunImports:
    """Serves the requests of `items import`."""

    def __init__(self, state: FleetState, groups: Groups, checkpoints: Checkpoints) -> None:
        self._state = state
        self._groups = groups
        self._checkpoints = checkpoints
        self._sessions: dict[str, _Session] = {}
        self._waiting: list[_Waiting] = []
        self._finished: dict[str, tuple[int | None, int]] = {}  # group → (request, run) to be told when it is opened

    # ---- what an operator asks

    def asked(self, event: Asked, group: Group) -> None:
        """Take a request.

        Raises:
            NotNow: the group has not ended, or there is no such import.
        """
        name, ticket = group.name, self._state.outbox.ticket()
        waiting = _Waiting(event.request)
        op: _Step
        match event.method:
            case "items.import.begin":
                self._must_rest(group)
                op = ImportBegin(ticket, name)
            case "items.import.lines":
                session = self._session(event, name)
                lines = session.lines.take(event.text)
                if not lines:
                    self._tell(waiting.request, True, {})
                    return
                op = ImportLines(ticket, name, session.run_id, lines)
            case "items.import.finish":
                session = self._session(event, name)
                try:
                    self._must_rest(group)
                    if session.lines.cut:
                        raise NotNow(f"{name}: the last line of the import is cut short")
                except NotNow:
                    self._give_up(name, session.run_id)
                    raise
                op = ImportFinish(ticket, name, session.run_id)
                self._close(group, ticket, waiting)
            case _:
                op = ImportDrop(ticket, name, self._session(event, name).run_id)
        self._waiting.append(waiting)
        self._state.outbox.ask(op, partial(self._done, op, waiting), partial(self._refused, op, waiting))

    def withdrawn(self, request: int) -> None:
        """Nobody waits for the answer any more: an import that is not being finished is given up."""
        for waiting in self._waiting:
            if waiting.request == request:
                waiting.request = None

    def _must_rest(self, group: Group) -> None:
        busy = any(worker.life.up for worker in self._state.members(group)) or group.queue.writing
        if group.state not in ENDED or busy:
            raise NotNow(f"{group.name} is {group.state.public}; stop it first: stop {group.name}")
        if self._state.phase in ("starting", "draining"):
            raise NotNow(f"the supervisor is {self._state.phase}; import into {group.name} when it is running or down")

    def _session(self, event: Asked, name: str) -> _Session:
        session = self._sessions.get(name)
        if session is None or session.token != event.token:
            raise NotNow(f"{name}: no import is going on; another one may have taken its place")
        return session

    def _close(self, group: Group, ticket: int, waiting: _Waiting) -> None:
        """From now on nothing is asked of the run that is to give way."""
        if group.intent not in ("drained", "stopped"):
            if group.state is GroupState.COMPLETED:  # one that failed or was aborted must not start for being reopened
                waiting.stopped, waiting.former = True, group.intent
            self._groups.set_intent(group.name, "stopped")
        group.queue.close()
        group.go(GroupTrigger.OPEN)
        group.opening = ticket
        group.repeat_since = group.failed_reason = None

    # ---- what the ledger did

    def _done(self, op: _Step, waiting: _Waiting, answer: Imported, _: float) -> None:
        self._waiting.remove(waiting)
        if isinstance(op, ImportBegin):
            self._sessions[op.group] = _Session(op.ticket, answer.run_id, Joiner())
        elif answer.problem is not None or not isinstance(op, ImportLines):
            self._forget(op.group, op.run_id)
        if isinstance(op, ImportFinish):
            self._reopen(op, waiting, ok=answer.problem is None)
        if answer.problem is not None:
            self._tell(waiting.request, False, f"{op.group}: {answer.problem}")
        elif not isinstance(op, ImportFinish):
            self._tell(waiting.request, True, {"token": op.ticket} if isinstance(op, ImportBegin) else {})
        elif op.group in self._state.groups:
            self._finished[op.group] = (waiting.request, answer.run)
        else:
            self._tell(waiting.request, True, {"run": answer.run, "state": None})
        if waiting.request is None:  # its command is gone
            self._give_up(op.group, answer.run_id)

    def _refused(self, op: _Step, waiting: _Waiting, fault: PersistFailed, _: float) -> None:
        """The disk refused an operation: the import is given up."""
        self._waiting.remove(waiting)
        if not isinstance(op, ImportBegin):
            self._forget(op.group, op.run_id)
        if isinstance(op, ImportFinish):
            self._reopen(op, waiting, ok=False)
        self._tell(waiting.request, False, f"{op.group}: storage unavailable: {fault.message}; nothing was imported")

    def _tell(self, request: int | None, ok: bool, document: object) -> None:
        if request is not None:
            self._state.outbox.answer(request, ok, document)

    def _give_up(self, group: str, run_id: int) -> None:
        if self._forget(group, run_id):
            self._state.outbox.ask(ImportDrop(self._state.outbox.ticket(), group, run_id))

    def _forget(self, group: str, run_id: int) -> bool:
        """An import is over; whether it was still going on. Another one that took its place goes on."""
        session = self._sessions.get(group)
        if session is None or session.run_id != run_id:
            return False
        del self._sessions[group]
        return True

    def _reopen(self, op: ImportFinish, waiting: _Waiting, *, ok: bool) -> None:
        """The group's newest run is opened: the imported one, or the old one as if nothing had been asked."""
        if not ok and waiting.stopped and self._state.intents.get(op.group) == "stopped":
            self._groups.set_intent(op.group, waiting.former)
        group = self._state.groups.get(op.group)
        if group is not None and group.state is GroupState.OPENING and group.opening == op.ticket:
            self._groups.open(group, "continue")  # else it was removed, or begins afresh

    def run_opened(self, name: str) -> None:
        """A run was opened: who imported it is told."""
        group = self._state.groups.get(name)
        if name in self._finished and (group is None or group.queue.image is not None):
            request, run = self._finished.pop(name)
            self._tell(request, True, {"run": run, "state": None if group is None else group.state.public})

    # ---- states become checkpoints, one after the other

    def states_owed(self, fact: StatesOwed) -> None:
        """Make the states that came with a run checkpoints; then the run is opened."""
        group = self._state.groups.get(fact.group)
        if group is not None:
            group.install = Install(fact.image, list(fact.image.owed), group.opening)
            self._take(group, group.install)

    def _take(self, group: Group, install: Install) -> None:
        op = TakeState(self._state.outbox.ticket(), group.name, install.image.run_id, install.owed[0])
        self._state.outbox.ask(op, partial(self._taken, group, install), partial(self._stuck, install))

    def _taken(self, group: Group, install: Install, taken: StateTaken | None, now: float) -> None:
        if group.install is not install:
            return  # the group begins afresh
        if taken is None:
            self._installed(group, install, None, now)
            return
        outbox, worker, image = self._state.outbox, install.owed[0], install.image
        # First the folder is asked for a state of this run: what is there before is from then on known as older,
        # so that damage to the state which comes now is never taken for damage to an older one.
        look = LoadState(outbox.ticket(), worker, image.fresh_from)
        self._checkpoints.read(look, lambda _, __: None, lambda _, __: None)
        counts, settings = counts_of(image), self._state.settings.checkpoint
        op = save_op(outbox.ticket(), worker, taken.run, taken.schema, taken.state, counts, settings)
        self._checkpoints.write(
            op, lambda _: self._saved(group, install), lambda fault: self._stuck(install, fault, now)
        )

    def _saved(self, group: Group, install: Install) -> None:
        """A state is a checkpoint: the ledger need not keep it."""
        if group.install is install:
            op = DropState(self._state.outbox.ticket(), group.name, install.image.run_id, install.owed[0])
            self._state.outbox.ask(op, partial(self._installed, group, install), partial(self._stuck, install))

    def _installed(self, group: Group, install: Install, _: None, __: float) -> None:
        if group.install is not install:
            return
        install.owed.pop(0)
        if install.owed:
            self._take(group, install)
        else:
            self._open(group, install)

    def _stuck(self, install: Install, _: PersistFailed, __: float) -> None:
        """A step left no trace: the states are installed when the disk works."""
        install.failed = True

    def healed(self) -> None:
        """A place of the store works again: what it refused begins anew, from what the ledger still owes."""
        for group in self._state.groups.values():
            install = group.install
            if install is not None and install.failed and self._state.clocks_run(install.owed[0]):
                group.install = None
                self._open(group, install)

    def _open(self, group: Group, install: Install) -> None:
        if group.state is GroupState.OPENING and group.opening == install.opening:
            self._groups.open(group, group.mode)
