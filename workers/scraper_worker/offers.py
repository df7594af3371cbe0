"""What a worker offers: keys in any of their forms, in batches that a line can hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Raw

from scraper_worker.errors import UsageError
from scraper_worker.protocol import BadParams, Offer, check_key

MAX_BATCH: Final = 1000  # items in one call
MAX_BATCH_BYTES: Final = 4 * 1024 * 1024  # of keys and data, well under a line's limit

Entry: TypeAlias = str | int | Mapping[str, Any] | Offer
"""A key (a number counts as its digits), or a mapping of key and, where wanted, target, data and priority."""
Entries: TypeAlias = Iterable[Entry] | AsyncIterable[Entry]
Send: TypeAlias = Callable[[list[str | Offer], bool], Awaitable[object]]

_FIELDS: Final = frozenset({"key", "target", "data", "priority"})


def as_offer(entry: Entry) -> str | Offer:
    """One entry as the protocol has it.

    Raises:
        UsageError: it is no entry; the message says why.
    """
    if isinstance(entry, Mapping):
        offer: str | Offer = _from_mapping(entry)
    elif isinstance(entry, int) and not isinstance(entry, bool):
        offer = str(entry)
    elif isinstance(entry, str | Offer):
        offer = entry
    else:
        raise UsageError(f"an item is a key or a mapping with one, not {entry!r} ({type(entry).__name__})")
    key = offer if isinstance(offer, str) else offer.key
    try:
        check_key(key, "key")
    except BadParams as error:
        raise UsageError(f"{key[:80]!r} can't be a key: {error}") from None
    return offer


def _from_mapping(entry: Mapping[str, Any]) -> str | Offer:
    unknown = sorted(set(entry) - _FIELDS)
    if unknown or "key" not in entry:
        problem = f"unknown {unknown[0]!r}" if unknown else "no key"
        raise UsageError(f"an item has key, target, data and priority; {dict(entry)!r} has {problem}")
    try:
        fields = {**entry, "key": str(entry["key"]), "data": Raw(msgspec.json.encode(entry.get("data")))}
        checked = {name: value for name, value in fields.items() if name != "data"}
        plain = msgspec.convert(checked, Offer)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{entry['key']!r} can't be offered: {error}") from None
    return msgspec.structs.replace(plain, data=fields["data"])


def as_entries(entries: Entries | Entry) -> Iterable[Entry] | AsyncIterable[Entry]:
    """A single key or mapping as a list of one, since a string would otherwise be taken for its letters.

    Raises:
        UsageError: it is neither an entry nor anything to iterate over.
    """
    if isinstance(entries, str | int | Mapping | Offer):
        return [entries]
    if isinstance(entries, Iterable | AsyncIterable):
        return entries
    raise UsageError(f"keys are a list, an iterable or an async iterable, not {type(entries).__name__}")


class _Batch:
    """Offers that one line can hold."""

    def __init__(self) -> None:
        self.offers: list[str | Offer] = []
        self._bytes = 0

    def takes(self, offer: str | Offer) -> bool:
        return not self.offers or (len(self.offers) < MAX_BATCH and self._bytes + _size(offer) <= MAX_BATCH_BYTES)

    def add(self, offer: str | Offer) -> None:
        self.offers.append(offer)
        self._bytes += _size(offer)


def _size(offer: str | Offer) -> int:
    """Bytes on the wire, at the most that UTF-8 makes of them."""
    if isinstance(offer, str):
        return 4 * len(offer) + 4
    return 4 * (len(offer.key) + len(offer.target or "")) + len(bytes(offer.data)) + 64


async def offer_all(entries: Entries, send: Send) -> None:
    """Offer everything, batch by batch, each with whether more will follow.

    Of an async iterable, what it yielded while the last batch was answered is the next one, so that of a slow one each
    item is offered at once, and of a fast one a thousand.

    Raises:
        UsageError: an entry is none. What the iterable raises comes through, from an async one in an ExceptionGroup.
    """
    if isinstance(entries, AsyncIterable):
        await _offer_as_they_come(entries, send)
        return
    batch = _Batch()
    for entry in entries:
        offer = as_offer(entry)
        if not batch.takes(offer):
            await send(batch.offers, True)
            batch = _Batch()
        batch.add(offer)
    if batch.offers:
        await send(batch.offers, False)


async def _offer_as_they_come(entries: AsyncIterable[Entry], send: Send) -> None:
    queue: asyncio.Queue[str | Offer | None] = asyncio.Queue(MAX_BATCH)

    async def pump() -> None:
        async for entry in entries:
            await queue.put(as_offer(entry))
        await queue.put(None)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pump(), name="offered keys")
        # The first, empty batch says that there will be more, so that a run with items left can go on at once.
        await send([], True)
        kept: str | Offer | None = None
        ended = False
        while not ended:
            batch = _Batch()
            offer = kept or await queue.get()
            kept = None
            while True:
                if offer is None:
                    ended = True
                    break
                if not batch.takes(offer):
                    kept = offer
                    break
                batch.add(offer)
                if queue.empty():
                    break
                offer = queue.get_nowait()
            await send(batch.offers, not ended)
