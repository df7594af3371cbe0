"""What workers' calls about items say, and how they are answered: from params to items, from records to replies."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from msgspec import Raw, Struct, field

from scraper_supervisor.core.ops.item_ops import NewItem
from scraper_supervisor.core.ops.run_ops import ReportedHosts
from scraper_worker.jsonrpc import BadParams, RpcError, check_key
from scraper_worker.protocol import (
    MAX_REFUSED,
    NOT_CLAIMED,
    STORAGE_UNAVAILABLE,
    BadEntry,
    DoneAnswer,
    Failure,
    ItemDone,
    Refused,
)

if TYPE_CHECKING:
    from scraper_supervisor.core.events import PersistFailed
    from scraper_supervisor.core.ops.item_ops import Conclusion
    from scraper_worker.protocol import ItemFailed, WireEntry

_PLAIN_URL: Final = re.compile(r"[a-z]+://([A-Za-z0-9.-]+)(?::[0-9]+)?(?:[/?#]|\Z)")  # most are, and parsing costs
STORAGE_RETRY_AFTER: Final = 1.0  # seconds until a refused call should come again


class Caller(Struct, frozen=True):
    """Who calls, and where the answer goes; `call` is None for a notification, which is never answered."""

    worker: str
    incarnation: int
    conn: int
    call: int | None


class RunRef(Struct):
    """The run that a group's queue works on, for all parts of the queue. `run_id` is 0 until there is one."""

    group: str
    run_id: int = 0
    hosts: ReportedHosts = field(default_factory=ReportedHosts)


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


class Entries(Struct):
    """What a worker offers, sorted: the items, how many entries were left out, and why the first of these were."""

    items: tuple[NewItem, ...]
    bad: int
    refused: list[Refused]


def sort_entries(entries: list[WireEntry]) -> Entries:
    """The items that a worker offers, without the entries that can be none."""
    items: list[NewItem] = []
    bad, refused = 0, []
    for index, entry in enumerate(entries):
        try:
            items.append(_new_item(entry))
        except BadParams as error:
            bad += 1
            if bad <= MAX_REFUSED:
                refused.append(Refused(index, str(error)))
    return Entries(tuple(items), bad, refused)


def _new_item(entry: WireEntry) -> NewItem:
    if isinstance(entry, str):
        check_key(entry, "key")
        return NewItem(entry, target_of(entry, None), Raw(b"null"), 0)
    if isinstance(entry, BadEntry):
        raise BadParams("key", entry.reason)
    check_key(entry.key, "key")
    data = entry.data.copy()  # else the queue would keep the whole line that it came in
    return NewItem(entry.key, target_of(entry.key, entry.target), data, entry.priority)


def left_out(entries: Entries, total: int) -> Failure:
    """What is told of the entries that were left out."""
    first = entries.refused[0]
    text = f"{entries.bad} of {total} offered items were left out; the first, number {first.index}: {first.reason}"
    return Failure("permanent", "application", "offer-refused", text)


def recorded(message: ItemDone | ItemFailed, found: Conclusion | None) -> DoneAnswer | Raw | None:
    """The answer to a call about a claim that is not open, from what the ledger recorded; None if it was another's."""
    if found is None:
        return None
    same = message.claim is not None and message.claim == found.claim
    if isinstance(message, ItemDone):
        if found.state == "done":
            return DoneAnswer(found.seq or 0, not (same and found.outcome == "done"))
        return None
    return found.answer if same else None


def not_claimed(key: str) -> RpcError:
    """The answer to who does not hold the item."""
    return RpcError(NOT_CLAIMED, f"{key!r} is not claimed by this worker")


def storage_error(fault: PersistFailed) -> RpcError:
    """What a worker is told when the disk refuses."""
    data = {"errno": fault.errno, "retry_after": STORAGE_RETRY_AFTER}
    return RpcError(STORAGE_UNAVAILABLE, f"storage unavailable: {fault.message}", data)
