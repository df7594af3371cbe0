"""What a worker offers: keys in any of their forms, in batches that a line can hold."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import msgspec
from msgspec import Struct

from scraper_worker.errors import UsageError
from scraper_worker.jsonrpc import check_key
from scraper_worker.portable import encodable, to_json
from scraper_worker.protocol import BadEntry, Offer, WireEntry

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

    from scraper_worker.protocol import Refused

MAX_BATCH: Final = 1000  # items in one call
MAX_BATCH_BYTES: Final = 4 * 1024 * 1024  # of keys and data, well under a line's limit

Entry: TypeAlias = str | int | Mapping[str, Any] | Offer
"""A key (a number counts as its digits), or a mapping of key and, where wanted, target, data and priority."""
Entries: TypeAlias = Iterable[Entry] | AsyncIterable[Entry]
Send: TypeAlias = Callable[[list[WireEntry], bool], Awaitable[object]]

_FIELDS: Final = frozenset({"key", "target", "data", "priority"})
_SHOWN: Final = 200  # characters of a bad entry
_SOURCE_PATIENCE: Final = 5.0  # seconds that a source has to end once nobody wants its keys any more
log = logging.getLogger("scraper_worker")


def as_offer(entry: Entry) -> WireEntry:
    """One entry as the protocol has it; a `BadEntry` that says why, where it can be no item.

    A bad entry is sent as well: the supervisor leaves it out and tells of it, and its neighbours are queued.
    """
    try:
        return _as_offer(entry)
    except ValueError as error:
        return BadEntry(encodable(str(error)), encodable(repr(entry)[:_SHOWN]))


def _as_offer(entry: Entry) -> str | Offer:
    if isinstance(entry, Mapping):
        offer: str | Offer = _from_mapping(entry)
    elif isinstance(entry, int) and not isinstance(entry, bool):
        offer = str(int(entry))
    elif isinstance(entry, str):
        offer = str.__str__(entry)
    elif isinstance(entry, Offer):
        offer = entry
    else:
        raise ValueError(f"an item is a key or a mapping with one, not of type {type(entry).__name__}")
    check_key(offer if isinstance(offer, str) else offer.key, "key")
    return offer


def _from_mapping(entry: Mapping[str, Any]) -> Offer:
    unknown = sorted(map(str, set(entry) - _FIELDS))
    if unknown or "key" not in entry:
        problem = f"unknown {unknown[0]!r}" if unknown else "no key"
        raise ValueError(f"an item has key, target, data and priority; this one has {problem}")
    fields = {name: value for name, value in entry.items() if name != "data"}
    target = fields.get("target")
    if isinstance(target, str):
        fields["target"] = encodable(target)
    plain = msgspec.convert({**fields, "key": str(entry["key"])}, Offer)
    return msgspec.structs.replace(plain, data=to_json(entry.get("data"), "data"))


def key_of(offer: WireEntry) -> str:
    """What tells an entry from others."""
    if isinstance(offer, str):
        return offer
    return offer.entry if isinstance(offer, BadEntry) else offer.key


def tell_refused(offered: list[WireEntry], refused: list[Refused]) -> None:
    """Log what was left out."""
    for one in refused:
        log.warning("%.80r was not queued: %s", key_of(offered[one.index]), one.reason)


def as_entries(entries: Entries | Entry) -> Iterable[Entry] | AsyncIterable[Entry]:
    """A single key or mapping as a list of one, since a string would otherwise be taken for its letters.

    Raises:
        UsageError: it is neither an entry nor anything to iterate over.
    """
    if isinstance(entries, str | int | Mapping | Offer):
        return [entries]  # pyright: ignore[reportReturnType]  # a mapping with other keys is refused later, by `as_offer`
    if isinstance(entries, Iterable | AsyncIterable):
        return entries
    raise UsageError(f"keys are a list, an iterable or an async iterable, not {type(entries).__name__}")


class _Batch:
    """Offers that one line can hold."""

    def __init__(self) -> None:
        self.offers: list[WireEntry] = []
        self._bytes = 0

    def takes(self, offer: WireEntry) -> bool:
        return not self.offers or (len(self.offers) < MAX_BATCH and self._bytes + _size(offer) <= MAX_BATCH_BYTES)

    def add(self, offer: WireEntry) -> None:
        self.offers.append(offer)
        self._bytes += _size(offer)


def _size(offer: WireEntry) -> int:
    """Bytes on the wire, at the most that UTF-8 makes of them."""
    if isinstance(offer, str):
        return 4 * len(offer) + 4
    if isinstance(offer, BadEntry):
        return 4 * (len(offer.reason) + len(offer.entry)) + 8
    return 4 * (len(offer.key) + len(offer.target or "")) + len(bytes(offer.data)) + 64


async def offer_all(entries: Entries, send: Send) -> None:
    """Offer everything, batch by batch, each with whether more will follow.

    What is all there already goes by thousands. Any other source is drawn beside the sending: an async iterable in a
    task of its own, another iterable in a thread of its own, where it may block. What it gave while the last batch was
    answered is the next one, so that of a slow source each key is offered at once, and of a fast one a thousand. What
    it gave before it failed is offered, too.

    Raises:
        BaseException: what the source raised, after all that it gave has been offered.
    """
    if isinstance(entries, Collection):
        await _offer_at_once(entries, send)
    elif isinstance(entries, AsyncIterable):
        await _offer_as_they_come(_drawn_in_task(entries), send)
    else:
        await _offer_as_they_come(_drawn_in_thread(entries), send)


async def _offer_at_once(entries: Iterable[Entry], send: Send) -> None:
    batch = _Batch()
    for entry in entries:
        offer = as_offer(entry)
        if not batch.takes(offer):
            await send(batch.offers, True)
            batch = _Batch()
        batch.add(offer)
    if batch.offers:
        await send(batch.offers, False)


class _End(Struct):
    """A source's end, and what it raised if it failed."""

    error: BaseException | None


class _Drawn(Protocol):
    """What a source gave, at the end where it is taken."""

    def empty(self) -> bool: ...

    def get_nowait(self) -> WireEntry | _End: ...

    async def get(self) -> WireEntry | _End: ...


async def _offer_as_they_come(drawn: AbstractAsyncContextManager[_Drawn], send: Send) -> None:
    async with drawn as queue:
        # The first, empty batch says that there will be more, so that a run with items left can go on at once.
        await send([], True)
        kept: WireEntry | _End | None = None
        while True:
            batch = _Batch()
            entry = kept if kept is not None else await queue.get()
            kept = None
            while not isinstance(entry, _End) and batch.takes(entry):
                batch.add(entry)
                if queue.empty():
                    break
                entry = queue.get_nowait()
            else:
                kept = entry
            if not isinstance(kept, _End):
                await send(batch.offers, True)
            elif kept.error is None:
                await send(batch.offers, False)
                return
            else:
                if batch.offers:  # what a source gave before it failed is worked on, and it is not at its end
                    await send(batch.offers, True)
                raise kept.error


@contextlib.asynccontextmanager
async def _drawn_in_task(entries: AsyncIterable[Entry]) -> AsyncGenerator[_Drawn]:
    queue: asyncio.Queue[WireEntry | _End] = asyncio.Queue(MAX_BATCH)

    async def draw() -> None:
        error: BaseException | None = None
        try:
            async for entry in entries:
                await queue.put(as_offer(entry))
        except BaseException as raised:  # noqa: BLE001 - a source may raise anything, and it is told as its failure
            error = raised
        await queue.put(_End(error))

    task = asyncio.get_running_loop().create_task(draw(), name="source of keys")
    try:
        yield queue
    finally:
        task.cancel()
        while not queue.empty():  # it may wait for room
            queue.get_nowait()
        done, _ = await asyncio.wait([task], timeout=_SOURCE_PATIENCE)
        if not done:
            log.warning("the source of keys does not end though it was cancelled")


@contextlib.asynccontextmanager
async def _drawn_in_thread(entries: Iterable[Entry]) -> AsyncGenerator[_Drawn]:
    drawn = _FromThread()

    def draw() -> None:
        error: BaseException | None = None
        try:
            for entry in entries:
                if not drawn.put(as_offer(entry)):
                    return
        except BaseException as raised:  # noqa: BLE001 - as above
            error = raised
        drawn.end(_End(error))

    # A thread of its own and a daemon: a source that blocks for ever keeps no process from ending.
    run = contextvars.copy_context().run
    threading.Thread(target=run, args=(draw,), name="source of keys", daemon=True).start()
    try:
        yield drawn
    finally:
        drawn.leave()


class _FromThread:
    """A bounded queue from a thread into the loop. The loop is woken once for all that has come together."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._entries: deque[WireEntry | _End] = deque()
        self._room = threading.Semaphore(MAX_BATCH)
        self._came = asyncio.Event()
        self._left = False

    # ---- in the thread

    def put(self, entry: WireEntry) -> bool:
        """Wait for room and put the entry in; False if nobody takes any more."""
        self._room.acquire()
        if not self._left:
            self._append(entry)
        return not self._left

    def end(self, end: _End) -> None:
        """Say that this was all."""
        self._append(end)

    def _append(self, entry: WireEntry | _End) -> None:
        self._entries.append(entry)
        if len(self._entries) == 1:  # else the loop has been woken and has not taken them yet
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody takes any more
                self._loop.call_soon_threadsafe(self._came.set)

    # ---- in the loop

    def leave(self) -> None:
        """Take no more; the thread ends at its next key."""
        self._left = True
        self._room.release()

    def empty(self) -> bool:
        return not self._entries

    def get_nowait(self) -> WireEntry | _End:
        self._room.release()
        return self._entries.popleft()

    async def get(self) -> WireEntry | _End:
        while not self._entries:
            self._came.clear()
            if not self._entries:  # it may have come in between
                await self._came.wait()
        return self.get_nowait()
