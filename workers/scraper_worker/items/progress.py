"""How far an item is, told to the supervisor a few times a second at most, from the loop or from a thread."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from scraper_worker.portable import encodable
from scraper_worker.protocol import ItemProgress

if TYPE_CHECKING:
    from collections.abc import Callable

    from scraper_worker.protocol import Granted

EVERY: Final = 0.25  # seconds between two notes; of those that come in between the latest is told
LONGEST: Final = 1000  # characters of a message


class Progress:
    """One item's progress.

    Args:
        granted: the item.
        notify: sends a notification.
    """

    def __init__(self, granted: Granted, notify: Callable[[ItemProgress], None]) -> None:
        self._granted = granted
        self._notify = notify
        self._loop = asyncio.get_running_loop()
        self._latest: ItemProgress | None = None
        self._told_at = float("-inf")  # by the loop's clock

    def say(self, message: str | None, done: float | None, total: float | None) -> None:
        """Tell it soon. May be called in any thread."""
        text = None if message is None else encodable(str(message))[:LONGEST]
        note = ItemProgress(self._granted.key, self._granted.claim, text, done, total)
        waits, self._latest = self._latest is not None, note
        if not waits:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is told any more
                self._loop.call_soon_threadsafe(self._due)

    def _due(self) -> None:
        wait = self._told_at + EVERY - self._loop.time()
        if wait > 0:
            self._loop.call_later(wait, self._tell)
        else:
            self._tell()

    def _tell(self) -> None:
        note, self._latest = self._latest, None
        self._told_at = self._loop.time()
        if note is not None:
            self._notify(note)
