"""What workers' calls about items say, and how they are answered: from params to items, from records to replies."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from msgspec import Raw, Struct

from scraper_supervisor.core.events import Persist, Refuse, Reply
from scraper_supervisor.core.records import Conclusion, FetchLanes, FetchWaiting, LedgerOp, NewItem
from scraper_worker.protocol import (
    NOT_CLAIMED,
    STORAGE_UNAVAILABLE,
    DoneAnswer,
    ItemDone,
    ItemFailed,
    Offer,
    RpcError,
    check_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_PLAIN_URL: Final = re.compile(r"[a-z]+://([A-Za-z0-9.-]+)(?::[0-9]+)?(?:[/?#]|\Z)")  # most are, and parsing costs
STORAGE_RETRY_AFTER: Final = 1.0  # seconds until a refused call should come again


class Caller(Struct, frozen=True):
    """Who calls, and where the answer goes."""

    worker: str
    incarnation: int
    conn: int
    call: int


class Asked(Struct, frozen=True):
    """An operation that the store has not answered yet, and the call behind it, if there is one."""

    op: LedgerOp
    caller: Caller | None = None
    message: ItemDone | ItemFailed | None = None


class Requests:
    """What one group's queue asked of the ledger.

    Args:
        group: its name.
        ticket: mints the numbers under which the store answers.
    """

    def __init__(self, group: str, ticket: Callable[[], int]) -> None:
        self.group = group
        self.ticket = ticket
        self.run_id = 0
        self._asked: dict[int, Asked] = {}

    def ask(self, op: LedgerOp, caller: Caller | None = None, message: ItemDone | ItemFailed | None = None) -> Persist:
        """Ask, and remember for whom."""
        self._asked[op.ticket] = Asked(op, caller, message)
        return Persist(op)

    def answered(self, ticket: int) -> Asked | None:
        """What was asked under this ticket; None if it is nobody's matter any more."""
        return self._asked.pop(ticket, None)

    def owes(self, conn: int) -> bool:
        """Whether a call of this connection waits for the ledger."""
        return any(asked.caller is not None and asked.caller.conn == conn for asked in self._asked.values())

    def forget_fetches(self) -> None:
        """What is on its way for the lanes as they were would move new ones past items that they do not hold."""
        fetches = (FetchLanes, FetchWaiting)
        self._asked = {ticket: one for ticket, one in self._asked.items() if not isinstance(one.op, fetches)}


def target_of(key: str, given: str | None) -> str | None:
    """The host an item talks to: as given, else the host of a key that is a URL."""
    if given is not None or "://" not in key:
        return given
    plain = _PLAIN_URL.match(key)
    if plain is not None:
        return plain[1].lower()
    try:
        return urlsplit(key).hostname
    except ValueError:
        return None


def new_items(entries: list[str | Offer], path: str) -> tuple[NewItem, ...]:
    """The items that a worker offers.

    Raises:
        BadParams: a key is none; `path` and its index are named.
    """
    items: list[NewItem] = []
    for index, entry in enumerate(entries):
        if isinstance(entry, str):
            check_key(entry, f"{path}[{index}]")
            items.append(NewItem(entry, target_of(entry, None), Raw(b"null"), 0))
        else:
            check_key(entry.key, f"{path}[{index}].key")
            data = entry.data.copy()  # else the queue would keep the whole line that it came in
            items.append(NewItem(entry.key, target_of(entry.key, entry.target), data, entry.priority))
    return tuple(items)


def recorded(caller: Caller, message: ItemDone | ItemFailed, found: Conclusion | None) -> Reply | Refuse:
    """Answer a call about a claim that is not open, from what the ledger recorded."""
    if found is not None:
        same = message.claim is not None and message.claim == found.claim
        if isinstance(message, ItemDone) and found.state == "done":
            return Reply(caller.conn, caller.call, DoneAnswer(found.seq or 0, not (same and found.outcome == "done")))
        if isinstance(message, ItemFailed) and same and found.answer is not None:
            return Reply(caller.conn, caller.call, found.answer)
    return not_claimed(caller, message.key)


def not_claimed(caller: Caller, key: str) -> Refuse:
    """The answer to who does not hold the item."""
    return Refuse(caller.conn, caller.call, RpcError(NOT_CLAIMED, f"{key!r} is not claimed by this worker"))


def storage_error(errno: int, message: str) -> RpcError:
    """What a worker is told when the disk refuses."""
    data = {"errno": errno, "retry_after": STORAGE_RETRY_AFTER}
    return RpcError(STORAGE_UNAVAILABLE, f"storage unavailable: {message}", data)
