"""An item's page, and what became known about it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from scraper_worker.browsers.belongings import Belongings
from scraper_worker.failures.challenges import challenge_of
from scraper_worker.failures.http_answers import retry_after_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.async_api import Page, Request, Response

log = logging.getLogger("scraper_worker")

PROBE_PAUSE: Final = 0.05  # seconds between two questions to a page that gave no clear answer


class Tab:
    """A page for one item, and what became known about it.

    Args:
        page: the page.
        lost: called with a signature and a message when the page is lost under the item.
    """

    def __init__(self, page: Page, lost: Callable[[str, str], None]) -> None:
        self.page = page
        self.status: int | None = None
        """HTTP status of the last main document, None before one has come."""
        self.retry_after: float | None = None
        """Seconds that its Retry-After asked for."""
        self.host: str | None = None
        """Host of the last main document asked for."""
        self.headers: dict[str, str] = {}
        """Headers of the last main document, with names in lower case."""
        self.gone = asyncio.Event()
        self.belongings = Belongings()
        self.belongings.add(page)
        self.began = asyncio.get_running_loop().time()
        self._lost = lost
        page.on("crash", lambda _: self.lose("page-crashed", "the page crashed"))
        page.on("request", self._requested)
        page.on("response", self._responded)

    def lose(self, signature: str, message: str) -> None:
        """Tell the item that its page is gone."""
        if not self.gone.is_set():
            self.gone.set()
            self._lost(signature, message)

    async def settle(self, seconds: float) -> bool:
        """Wait until it is known whether the page is lost, which is told a moment after the call that it broke.

        Either its loss is told, or the page answers, or the browser does for a page that is closed.

        Args:
            seconds: how long at most.

        Returns:
            Whether it is lost.
        """
        tasks = asyncio.get_running_loop()
        gone = tasks.create_task(self.gone.wait(), name="a page's loss")
        answer = tasks.create_task(self._answers(), name="a page's answer")
        try:
            await asyncio.wait([gone, answer], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            answer.cancel()
            await asyncio.wait([gone, answer])
        return self.gone.is_set()

    async def challenge(self, seconds: float) -> str | None:
        """Who challenges us with this page, or None; a page that does not answer within so many seconds is none."""
        page = None
        try:
            async with asyncio.timeout(seconds):
                page = await self.page.content()
        except Exception as error:  # noqa: BLE001 - Playwright raises its base error for a page that is closed or lost
            log.debug("a page whose HTML could not be read: %r", error)
        return challenge_of(self.headers, page)

    async def _answers(self) -> None:
        while True:
            try:
                if self.page.is_closed():
                    await self.page.context.cookies("http://localhost")
                else:
                    await self.page.evaluate("1")
            except Exception as error:  # noqa: BLE001 - Playwright's base class: lost, or between two documents
                log.debug("a page whose call failed: %r", error)
                await asyncio.sleep(PROBE_PAUSE)
            else:
                return

    def _is_document(self, request: Request) -> bool:
        if not request.is_navigation_request():
            return False
        try:
            return bool(request.frame == self.page.main_frame)
        except Exception as error:  # noqa: BLE001 - Playwright raises its base error for a frame not there yet or any more
            log.debug("a navigation without a frame: %r", error)
            return False

    def _requested(self, request: Request) -> None:
        if self._is_document(request):
            self.host = urlsplit(request.url).hostname
            self.status = self.retry_after = None
            self.headers = {}

    def _responded(self, response: Response) -> None:
        if self._is_document(response.request):
            self.status = response.status
            self.headers = response.headers
            self.retry_after = retry_after_of(response.headers, time.time())
