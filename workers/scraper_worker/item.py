"""One item in a worker's hands, as its handler sees it."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from scraper_worker.errors import UsageError
from scraper_worker.offers import as_entries, as_offer

if TYPE_CHECKING:
    from playwright.async_api import Page

    from scraper_worker.offers import Entries, Entry
    from scraper_worker.protocol import Failure, Granted, Offer

MAX_TRACEBACK: Final = 4096  # characters
_OWN_FOLDER: Final = str(Path(__file__).parent)


class Item:
    """What a handler is given.

    Args:
        granted: the item as the queue gave it.
        page: a fresh page, or None with `browser=False`.
    """

    def __init__(self, granted: Granted, page: Page | None) -> None:
        self.key: str = granted.key
        """Unique in the run."""
        self.target: str | None = granted.target
        """The host it was offered for, if one was given."""
        self.data: Any = msgspec.json.decode(granted.data)
        """What was offered with it; None if nothing was."""
        self.attempt: int = granted.attempt
        """1 plus the attempts charged so far."""
        self._page = page
        self._offers: dict[str, str | Offer] = {}

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

        Args:
            entries: keys or mappings with key, target, data and priority; one or many, an async iterable too.

        Raises:
            UsageError: an entry can't be an item.
        """
        source = as_entries(entries)
        if isinstance(source, AsyncIterable):
            async for entry in source:
                self._add(entry)
        else:
            for entry in source:
                self._add(entry)

    def _add(self, entry: Entry) -> None:
        offer = as_offer(entry)
        self._offers.setdefault(offer if isinstance(offer, str) else offer.key, offer)

    @property
    def offers(self) -> list[str | Offer]:
        """What was offered so far, each key once."""
        return list(self._offers.values())

    def __repr__(self) -> str:
        return f"<Item {self.key!r}, attempt {self.attempt}>"


class Attempt:
    """One item under work: it can be cut short from outside, with the failure that this is to be reported as.

    Args:
        granted: the item as the queue gave it.
    """

    def __init__(self, granted: Granted) -> None:
        self.granted = granted
        self.failure: Failure | None = None
        self.dropped = False
        self.began = asyncio.get_running_loop().time()
        self._patience: asyncio.Timeout | None = None
        self._over = False

    def begin(self) -> None:
        """Start the clock: waiting for a browser is not the item's time."""
        self.began = asyncio.get_running_loop().time()

    def limit(self) -> asyncio.Timeout:
        """The scope to run the handler in."""
        self._patience = asyncio.timeout(None)
        return self._patience

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
        # A handler that has ended already, or has not begun, finds out by looking.
        if self._patience is not None and not self._over:
            self._patience.reschedule(asyncio.get_running_loop().time())

    @property
    def stopped(self) -> bool:
        """Whether the handler was ended, or is not to begin."""
        return self.dropped or self.failure is not None

    @property
    def seconds(self) -> float:
        """Seconds since the handler began."""
        return round(asyncio.get_running_loop().time() - self.began, 3)


def trace(error: BaseException) -> str:
    """The traceback of `error` from the user's first frame on, cut in front to 4,096 characters."""
    entry = error.__traceback__
    while entry is not None and entry.tb_frame.f_code.co_filename.startswith(_OWN_FOLDER):
        entry = entry.tb_next
    text = "".join(traceback.format_exception(type(error), error, entry or error.__traceback__))
    return text if len(text) <= MAX_TRACEBACK else "…" + text[1 - MAX_TRACEBACK :]
