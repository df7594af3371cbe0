"""One item in a worker's hands, as its handler sees it."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterable, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from scraper_worker.errors import UsageError
from scraper_worker.items.tasks import Owner, owned_by
from scraper_worker.offers import as_entries, as_offer, key_of
from scraper_worker.portable import encodable

if TYPE_CHECKING:
    from playwright.async_api import Page

    from scraper_worker.items.evidence import Attachments
    from scraper_worker.items.progress import Progress
    from scraper_worker.offers import Entries, Entry
    from scraper_worker.protocol import Failure, Granted, WireEntry

MAX_TRACEBACK: Final = 4096  # characters
TOLD_AGAIN: Final = 3.0  # seconds after which a handler that was ended and goes on is told so again
_OWN_FOLDER: Final = str(Path(__file__).parent)


class BaseItem:
    """What every handler is given, in a task or in a thread.

    Args:
        attempt: the attempt at it.
        progress: tells how far it is.
        attachments: keeps its evidence.
    """

    def __init__(self, attempt: Attempt, progress: Progress, attachments: Attachments) -> None:
        granted = attempt.granted
        self.key: str = granted.key
        """Unique in the run."""
        self.target: str | None = granted.target
        """The host it was offered for, if one was given."""
        self.data: Any = msgspec.json.decode(granted.data)
        """What was offered with it; None if nothing was."""
        self.attempt: int = granted.attempt
        """1 plus the attempts charged so far."""
        self.last: bool = granted.last
        """Whether a failure now would be for good."""
        self._attempt = attempt
        self._progress = progress
        self._attachments = attachments
        self._offers: dict[str, WireEntry] = {}

    @property
    def cancelled(self) -> bool:
        """Whether the handler is to end: its item took too long or was cancelled or taken back, or the worker ends."""
        return self._attempt.stopped or self._attempt.abandoned

    def _add(self, entry: Entry) -> None:
        offer = as_offer(entry)
        self._offers.setdefault(key_of(offer), offer)

    @property
    def offers(self) -> list[WireEntry]:
        """What was offered so far, each key once."""
        return list(self._offers.values())

    def __repr__(self) -> str:
        return f"<Item {self.key!r}, attempt {self.attempt}>"


class Item(BaseItem):
    """What an async handler is given.

    Args:
        attempt: the attempt at it.
        progress: tells how far it is.
        attachments: keeps its evidence.
        page: a fresh page, or None with `browser=False`.
    """

    def __init__(self, attempt: Attempt, progress: Progress, attachments: Attachments, page: Page | None) -> None:
        super().__init__(attempt, progress, attachments)
        self._page = page

    @property
    def page(self) -> Page:
        """A fresh page of the supervised browser, closed when the handler returns.

        Raises:
            UsageError: the handler was started with `browser=False`.
        """
        if self._page is None:
            raise UsageError("item.page needs a browser: call process() without browser=False")
        return self._page

    async def offer(self, entries: Entries | Entry) -> None:
        """Add items found on the way: they are queued together with this item's own completion, or not at all.

        An entry that can be no item is left out of the queue and told in the log; the others are queued all the same.

        Args:
            entries: keys or mappings with key, target, data and priority; one or many, an async iterable too.

        Raises:
            UsageError: it is nothing to iterate over.
        """
        source = as_entries(entries)
        if isinstance(source, AsyncIterable):
            async for entry in source:
                self._add(entry)
        else:
            for entry in source:
                self._add(entry)

    def progress(
        self, message: str | None = None, *, done: float | None = None, total: float | None = None
    ) -> Awaitable[None]:
        """Say that the item is alive, and how far it is; `progress_timeout` counts from here.

        It is said at once; awaiting what is returned gives the loop a turn.

        Args:
            message: what it is at, for people.
            done: how much of it is done, in whatever unit.
            total: how much there is.
        """
        self._progress.say(message, done, total)
        return _a_turn()

    def attach(self, name: str, content: bytes | bytearray | str) -> Awaitable[None]:
        """Keep a file as evidence, which this item's failure will name; of an item that is done it is removed.

        The writing begins at once, in a thread; awaiting what is returned waits for it. What the disk refuses is told
        in the log, and lost.

        Args:
            name: 1 to 100 of [A-Za-z0-9._-], not beginning with a dot.
            content: bytes, or text.

        Raises:
            UsageError: the name can be no file's, or the content is neither bytes nor text.
        """
        return self._attachments.add_soon(name, content)


class ThreadItem(BaseItem):
    """What a plain function is given as handler, in a thread of its own: the same, without `await` and without a page.

    Such a handler can't be ended from outside: a long one looks at `cancelled` now and then.
    """

    @property
    def page(self) -> Page:
        """There is none.

        Raises:
            UsageError: always.
        """
        raise UsageError("item.page needs a browser: write the handler as an async function, without browser=False")

    def offer(self, entries: Entries | Entry) -> None:
        """Add items found on the way; see `Item.offer`.

        Raises:
            UsageError: it is nothing to iterate over in a thread.
        """
        source = as_entries(entries)
        if isinstance(source, AsyncIterable):
            raise UsageError("a handler in a thread offers a list or an iterable, not an async one")
        for entry in source:
            self._add(entry)

    def progress(self, message: str | None = None, *, done: float | None = None, total: float | None = None) -> None:
        """Say that the item is alive, and how far it is; see `Item.progress`."""
        self._progress.say(message, done, total)

    def attach(self, name: str, content: bytes | bytearray | str) -> None:
        """Keep a file as evidence; see `Item.attach`.

        Raises:
            UsageError: the name can be no file's, or the content is neither bytes nor text.
        """
        self._attachments.add(name, content)


def _a_turn() -> Awaitable[None]:
    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    turn.set_result(None)
    return turn


class Attempt:
    """One item under work: its handler runs in a task of its own, which can be cut short from outside.

    Args:
        granted: the item as the queue gave it.
    """

    def __init__(self, granted: Granted) -> None:
        self.granted = granted
        self.failure: Failure | None = None
        """What the handler was cut short for, to be reported in the place of its own end."""
        self.dropped = False
        self.abandoned = False
        """The worker ends, and nobody waits for what is still under way in a thread."""
        self.ended = asyncio.Event()
        """It was ended from outside: nothing that it waits for is worth it any more."""
        self.began = asyncio.get_running_loop().time()
        self._task: asyncio.Task[tuple[Any, BaseException | None]] | None = None
        self._over = False

    async def run(self, work: Callable[[], Awaitable[Any]]) -> tuple[Any, BaseException | None]:
        """Run the handler to its end: what it returned, and what it raised.

        Nothing that it raises comes through, an order to stop that nobody gave (SystemExit, or the CancelledError of
        something that it awaited) as little as an error. Only whoever awaits this can be cancelled through it.
        """
        self.began = asyncio.get_running_loop().time()  # waiting for a browser is not the item's time
        if self.stopped:
            return None, None
        loop = asyncio.get_running_loop()
        with owned_by(Owner(self.granted.key)):
            task = self._task = loop.create_task(contained(work), name=f"item {self.granted.key}")
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
            raise
        finally:
            self._task = None
        return (None, asyncio.CancelledError()) if task.cancelled() else task.result()

    def conclude(self) -> None:
        """From now on the outcome stands."""
        self._over = True

    def cut(self, failure: Failure) -> None:
        """End the handler; the first failure counts."""
        if self._over or self.failure is not None:
            return
        self.failure = failure
        self._stop()

    def drop(self) -> None:
        """End the handler and say nothing: the item is no longer ours."""
        self.dropped = True
        self._stop()

    def _stop(self) -> None:
        self.ended.set()
        # A handler that has ended already, or has not begun, finds out by looking. One that goes on (a bare `except` in
        # a loop, say) is told again, before its browser is killed under its neighbours.
        if self._task is not None and not self._over:
            self._task.cancel()
            asyncio.get_running_loop().call_later(TOLD_AGAIN, self._stop)

    @property
    def stopped(self) -> bool:
        """Whether the handler was ended, or is not to begin."""
        return self.dropped or self.failure is not None

    @property
    def seconds(self) -> float:
        """Seconds since the handler began."""
        return round(asyncio.get_running_loop().time() - self.began, 3)


async def contained(work: Callable[[], Awaitable[Any]]) -> tuple[Any, BaseException | None]:
    """What the scraper's own code returned, and what it raised, whatever that is."""
    try:
        return await work(), None
    except BaseException as error:  # noqa: BLE001 - a task that ends with SystemExit would end the whole loop
        return None, error


def trace(error: BaseException) -> str:
    """The traceback of `error` from the user's first frame on, cut in front to 4,096 characters."""
    entry = error.__traceback__
    while entry is not None and entry.tb_frame.f_code.co_filename.startswith(_OWN_FOLDER):
        entry = entry.tb_next
    try:
        lines = traceback.format_exception(type(error), error, entry or error.__traceback__)
    except Exception as raised:  # noqa: BLE001 - an exception's own attributes may raise anything
        lines = [*traceback.format_tb(entry), f"{type(error).__name__}: reading it raised {type(raised).__name__}\n"]
    text = encodable("".join(lines))
    return text if len(text) <= MAX_TRACEBACK else "…" + text[1 - MAX_TRACEBACK :]
