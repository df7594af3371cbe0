"""Runs that operators import: taken line by line, made the group's newest at once, their states made checkpoints.

The group must have ended, and is left stopped: an operator starts it when all is as it should be. Until the imported
states are checkpoints, the group's run is not opened; a daemon that died in between goes on with that when it opens it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

from scraper_supervisor.core.portable import Joiner
from scraper_supervisor.core.records import (
    Answer,
    DropState,
    ImportBegin,
    ImportDrop,
    Imported,
    ImportFinish,
    ImportLines,
    ImportOp,
    LoadState,
    OpenRun,
    RunImage,
    SaveState,
    StateTaken,
    TakeState,
)
from scraper_supervisor.core.state import ENDED, Group, GroupState

if TYPE_CHECKING:
    from scraper_supervisor.core.events import Asked
    from scraper_supervisor.core.groups import Groups, Intent
    from scraper_supervisor.core.state import FleetState

METHODS: Final = frozenset({"items.import.begin", "items.import.lines", "items.import.finish", "items.import.drop"})


class NotNow(ValueError):
    """The group can't take a run now; the message names the remedy."""


class _Session(Struct):
    """An import that is not finished."""

    token: int  # tells this import from one that took its place
    run_id: int
    lines: Joiner


class _Install(Struct):
    """The states of a run that are to become checkpoints before it is opened."""

    image: RunImage
    owed: list[str]  # the first is at work
    opening: int  # what the group waits for; it waits for something else once it begins afresh
    ticket: int = 0  # of the operation that is waited for
    failed: bool = False  # it left no trace: all begins anew when the disk works again


class Imports:
    """Serves the requests of `items import`."""

    def __init__(self, state: FleetState, groups: Groups) -> None:
        self._state = state
        self._groups = groups
        self._sessions: dict[str, _Session] = {}
        self._asked: dict[int, int] = {}  # ticket → request; 0 once nobody waits for its answer
        self._installs: dict[str, _Install] = {}  # by group
        self._unstopped: dict[int, Intent | None] = {}  # ticket of a finish → the completed group's intent before it
        self._finished: dict[str, tuple[int, int]] = {}  # group → (request, run) to be told when its states are in

    # ---- what an operator asks

    def asked(self, event: Asked, group: Group) -> None:
        """Take a request.

        Raises:
            NotNow: the group has not ended, or there is no such import.
        """
        name, ticket = group.name, self._state.ticket()
        op: ImportOp
        match event.method:
            case "items.import.begin":
                self._must_rest(group)
                op = ImportBegin(ticket, name)
            case "items.import.lines":
                session = self._session(event, name)
                lines = session.lines.take(event.text)
                if not lines:
                    self._state.answer(event.request, True, {})
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
                self._close(group, ticket)
            case _:
                op = ImportDrop(ticket, name, self._session(event, name).run_id)
        self._asked[ticket] = event.request
        self._state.persist(op)

    def withdrawn(self, request: int) -> None:
        """Nobody waits for the answer any more: an import that is not being finished is given up."""
        for ticket, asked in list(self._asked.items()):
            if asked == request:
                self._asked[ticket] = 0

    def _must_rest(self, group: Group) -> None:
        busy = any(worker.life.up for worker in self._state.team(group)) or group.queue.writing
        if group.state not in ENDED or busy:
            raise NotNow(f"{group.name} is {group.state.public}; stop it first: stop {group.name}")
        if self._state.phase in ("starting", "draining"):
            raise NotNow(f"the supervisor is {self._state.phase}; import into {group.name} when it is running or down")

    def _session(self, event: Asked, name: str) -> _Session:
        session = self._sessions.get(name)
        if session is None or session.token != event.token:
            raise NotNow(f"{name}: no import is going on; another one may have taken its place")
        return session

    def _close(self, group: Group, ticket: int) -> None:
        """From now on nothing is asked of the run that is to give way."""
        if group.intent not in ("drained", "stopped"):
            if group.state is GroupState.COMPLETED:  # one that failed or was aborted must not start for being reopened
                self._unstopped[ticket] = group.intent
            self._groups.set_intent(group.name, "stopped")
        group.queue.close()
        group.state, group.opening = GroupState.OPENING, ticket
        group.repeat_at = group.failed_reason = None

    # ---- what the store answers

    def persisted(self, op: ImportOp, answer: Answer) -> None:
        """The ledger carried out an operation."""
        install = self._installs.get(op.group)
        if install is not None and op.ticket == install.ticket:
            self._go_on(op.group, install, op, answer)
            return
        request = self._asked.pop(op.ticket, None)
        if request is None or not isinstance(answer, Imported):
            return
        if isinstance(op, ImportBegin):
            self._sessions[op.group] = _Session(op.ticket, answer.run_id, Joiner())
        elif answer.problem is not None or not isinstance(op, ImportLines):
            self._forget(op.group, op.run_id)
        if isinstance(op, ImportFinish):
            self._reopen(op, ok=answer.problem is None)
        if answer.problem is not None:
            self._state.answer(request, False, f"{op.group}: {answer.problem}")
        elif not isinstance(op, ImportFinish):
            self._state.answer(request, True, {"token": op.ticket} if isinstance(op, ImportBegin) else {})
        elif op.group in self._state.groups:
            self._finished[op.group] = (request, answer.run)
        else:
            self._state.answer(request, True, {"run": answer.run, "state": None})
        if request == 0:  # its command is gone
            self._give_up(op.group, answer.run_id)

    def _give_up(self, group: str, run_id: int) -> None:
        if self._forget(group, run_id):
            self._state.persist(ImportDrop(self._state.ticket(), group, run_id))

    def _forget(self, group: str, run_id: int) -> bool:
        """An import is over; whether it was still going on. Another one that took its place goes on."""
        session = self._sessions.get(group)
        if session is None or session.run_id != run_id:
            return False
        del self._sessions[group]
        return True

    def persist_failed(self, op: ImportOp, message: str) -> None:
        """The disk refused an operation: the import is given up, or its states are installed when the disk works."""
        install = self._installs.get(op.group)
        if install is not None and op.ticket == install.ticket:
            install.failed = True
            return
        request = self._asked.pop(op.ticket, None)
        if request is None:
            return
        if not isinstance(op, ImportBegin):
            self._forget(op.group, op.run_id)
        if isinstance(op, ImportFinish):
            self._reopen(op, ok=False)
        self._state.answer(request, False, f"{op.group}: storage unavailable: {message}; nothing was imported")

    def _reopen(self, op: ImportFinish, *, ok: bool) -> None:
        """The group's newest run is opened: the imported one, or the old one as if nothing had been asked."""
        if op.ticket in self._unstopped:
            former = self._unstopped.pop(op.ticket)
            if not ok and self._state.intents.get(op.group) == "stopped":
                self._groups.set_intent(op.group, former)
        group = self._state.groups.get(op.group)
        if group is not None and group.state is GroupState.OPENING and group.opening == op.ticket:
            self._groups.open(group, "continue")  # else it was removed, or begins afresh

    # ---- states become checkpoints

    def opened(self, op: OpenRun, image: RunImage) -> bool:
        """A run was read from the ledger. Whether it may be opened: no state of it is still to become a checkpoint."""
        group = self._state.groups.get(op.group)
        if group is None or op.ticket != group.opening:
            return True
        if image.owed:
            install = self._installs[op.group] = _Install(image, list(image.owed), op.ticket)
            self._take(op.group, install)
            return False
        self._installs.pop(op.group, None)
        return True

    def told(self, op: OpenRun) -> None:
        """A run was opened: who imported it is told."""
        group = self._state.groups.get(op.group)
        if op.group in self._finished and (group is None or group.queue.image is not None):
            request, run = self._finished.pop(op.group)
            self._state.answer(request, True, {"run": run, "state": None if group is None else group.state.public})

    def saved(self, op: SaveState) -> None:
        """A state is a checkpoint: the ledger need not keep it."""
        for name, install in self._installs.items():
            if install.ticket == op.ticket:
                install.ticket = self._state.ticket()
                self._state.persist(DropState(install.ticket, name, install.image.run_id, op.worker))

    def save_failed(self, op: SaveState) -> None:
        """A state could not be written."""
        for install in self._installs.values():
            install.failed = install.failed or install.ticket == op.ticket

    def healed(self) -> None:
        """A place of the store works again: what it refused begins anew, from what the ledger still owes."""
        for name, install in list(self._installs.items()):
            if install.failed and self._state.clocks_run(install.owed[0]):
                del self._installs[name]
                self._open(name, install)

    def awaits(self, worker: str) -> bool:
        """Whether a group is not opened before a state is in this worker's folder."""
        return any(
            install.owed[:1] == [worker] and self._wanting(name, install) is not None
            for name, install in self._installs.items()
        )

    def _wanting(self, name: str, install: _Install) -> Group | None:
        """The group, if it still waits for this."""
        group = self._state.groups.get(name)
        current = group is not None and group.state is GroupState.OPENING and group.opening == install.opening
        return group if current else None

    def _open(self, name: str, install: _Install) -> None:
        group = self._wanting(name, install)
        if group is not None:
            self._groups.open(group, group.mode)

    def _take(self, name: str, install: _Install) -> None:
        install.ticket = self._state.ticket()
        self._state.persist(TakeState(install.ticket, name, install.image.run_id, install.owed[0]))

    def _go_on(self, name: str, install: _Install, op: ImportOp, answer: Answer) -> None:
        if isinstance(op, TakeState) and isinstance(answer, StateTaken):
            install.ticket = self._state.ticket()
            # First the folder is asked for a state of this run: what is there before is from then on known as older,
            # so that damage to the state which comes now is never taken for damage to an older one.
            self._state.persist(LoadState(self._state.ticket(), op.worker, install.image.fresh_from))
            self._state.persist(self._save(install, op.worker, answer))
            return
        install.owed.pop(0)
        if install.owed:
            self._take(name, install)
        else:
            self._open(name, install)

    def _save(self, install: _Install, worker: str, taken: StateTaken) -> SaveState:
        image, checkpoint = install.image, self._state.settings.checkpoint
        pending = sum(lane.open for lane in image.lanes) + image.waiting
        counts = (pending, image.done, image.failed)
        gzip = checkpoint.compression == "gzip"
        return SaveState(
            install.ticket, worker, taken.run, taken.schema, taken.state, *counts, checkpoint.retention, gzip
        )
