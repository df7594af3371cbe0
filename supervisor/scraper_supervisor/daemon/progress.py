"""How far the work is, told now and then while it lasts, and what came of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import structlog
from msgspec import Struct

from scraper_supervisor.core.snapshot import groups_view

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from scraper_supervisor.core.fleet import Fleet

SHOWN_EVERY: Final = 1.0  # seconds between two looks for a terminal
LOGGED_EVERY: Final = 60.0  # seconds between two lines of the log
_log = structlog.get_logger()


class Ended(Struct, frozen=True):
    """How a daemon ended: the exit code and why, the groups as `status` tells them, and what it took."""

    code: int
    reason: str
    groups: list[dict[str, Any]] = []
    retries: int = 0
    recoveries: int = 0


class Progress:
    """Tells it by a timer; made on the running loop.

    Args:
        loop: the loop.
        fleet: whose work it is.
        shown: is given the groups as `status` tells them; None: the log gets a line a minute for each group instead.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fleet: Fleet, shown: Callable[[list[dict[str, Any]]], None] | None
    ) -> None:
        self._loop = loop
        self._fleet = fleet
        self._shown = shown
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to tell."""
        self._timer = self._loop.call_later(SHOWN_EVERY if self._shown is not None else LOGGED_EVERY, self._tell)

    def stop(self) -> None:
        """Tell no more; harmless when already done."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self) -> None:
        groups = groups_view(self._fleet, time.monotonic())
        if self._shown is not None:
            self._shown(groups)
        else:
            for group in groups:
                items = group["items"]
                _log.info(
                    "progress", group=group["name"], state=group["state"], done=items["done"], failed=items["failed"],
                    total=items["total"], rate_per_minute=group["rate_per_minute"],
                )  # fmt: skip
        self.start()
