"""What the rooms say in one step: commands to the daemon, questions to the store, facts to one another.

Rooms write here and return nothing of it; the fleet passes facts on after each event and hands the commands out at the
end of the step. A question to the store is kept with the two functions that take its answer or its refusal, in the one
register of the core, until the store has spoken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from scraper_supervisor.core.events import (
    Answered,
    Command,
    HangUp,
    Persist,
    PersistFailed,
    Publish,
    Refuse,
    Reply,
)
from scraper_supervisor.core.facts import Fact
from scraper_supervisor.core.ops.all_ops import Op
from scraper_worker.jsonrpc import RpcError

if TYPE_CHECKING:
    from scraper_supervisor.core.formats.event_names import Severity
    from scraper_supervisor.core.formats.event_payloads import EventPayload
    from scraper_supervisor.core.ops.operation import AnswerT, Operation


class Pending(Struct):
    """A question that the store has not answered, and what is to be done with its answer.

    `answered` and `refused` take the answer, or the event that tells why there is none, and the time in monotonic
    seconds. `conn` is the connection whose call waits for it. With `again`, the question is the supervisor's own and is
    asked once more when the place that refused it works again.
    """

    op: Op
    answered: Callable[[Any, float], None]
    refused: Callable[[PersistFailed, float], None]
    conn: int | None = None
    again: bool = False


def not_minded(_: object, __: float) -> None:
    """The answer changes nothing for whoever asked."""


class Outbox(Struct):
    """The words of one step, and the register of what the store still owes.

    Args:
        boot: a random word of this daemon's life; every correlation id begins with it.
    """

    boot: str
    commands: list[Command] = []
    facts: list[Fact] = []
    pending: dict[int, Pending] = {}
    tickets: int = 0
    incidents: int = 0

    def ticket(self) -> int:
        """A new number under which the store, or a worker, answers."""
        self.tickets += 1
        return self.tickets

    def incident_id(self) -> str:
        """A new correlation id."""
        self.incidents += 1
        return f"{self.boot}-{self.incidents}"

    # ---- the store

    def ask(
        self,
        op: Operation[AnswerT],
        answered: Callable[[AnswerT, float], None] = not_minded,
        refused: Callable[[PersistFailed, float], None] = not_minded,
        *,
        conn: int | None = None,
        again: bool = False,
    ) -> None:
        """Ask the store, and remember who is told what it answers; see `Pending`."""
        question: Any = op  # every Operation is a member of the union Op, which is what the daemon takes
        self.pending[op.ticket] = Pending(question, answered, refused, conn, again)
        self.commands.append(Persist(question))

    def owes(self, conn: int) -> bool:
        """True if a call of this connection waits for the store."""
        return any(one.conn == conn for one in self.pending.values())

    # ---- workers and operators

    def reply(self, conn: int, call: int | None, result: Any) -> None:
        """Answer a call; a notification is never answered."""
        if call is not None:
            self.commands.append(Reply(conn, call, result))

    def refuse(
        self, conn: int, call: int | None, code: int, message: str, data: object = None, *, close: bool = False
    ) -> None:
        """Answer a call with an error; a notification only loses its connection, where that is asked."""
        if call is not None:
            self.commands.append(Refuse(conn, call, RpcError(code, message, data), close))
        elif close:
            self.commands.append(HangUp(conn))

    def answer(self, request: int, ok: bool, document: object) -> None:
        """Answer an operator."""
        self.commands.append(Answered(request, ok, document))

    # ---- the event log

    def publish(
        self,
        data: EventPayload,
        severity: Severity | None = None,
        *,
        incident: str | None = None,
        worker: str | None = None,
        group: str | None = None,
        at: int | None = None,
    ) -> None:
        """Put an event out, of its usual severity or this one; its correlation id is the incident's, or a new one.

        `at`: where among the step's commands it is to stand; at their end, if it is None.
        """
        correlation_id = incident or self.incident_id()
        event = Publish(data, severity or data.SEVERITY, correlation_id, worker, group)
        self.commands.insert(len(self.commands) if at is None else at, event)
