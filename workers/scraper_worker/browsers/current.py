"""The browser in use: its shared context, who holds it, and every page that is open there."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from scraper_worker.browsers.belongings import unowned, watch_browser, watch_context
from scraper_worker.browsers.capture import ContextStorage
from scraper_worker.browsers.closing import close_page
from scraper_worker.browsers.launch import CALL_TIMEOUT, Running, launch
from scraper_worker.browsers.options import check_names, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from playwright.async_api import BrowserContext, Page

    from scraper_worker.browsers.storage import Kept
    from scraper_worker.browsers.tab import Tab

log = logging.getLogger("scraper_worker")

CONTEXT_GRACE: Final = 0.1  # seconds; a browser that dies closes its context first, and that it died says more
LEFT_TIMEOUT: Final = 5.0  # seconds for what a handler left open to close
END_TIMEOUT: Final = 1.0  # seconds for a browser to close that is of no use any more


class Current:
    """One browser from its start to its end.

    Args:
        name: as the supervisor is told.
        kept: cookies and storage, brought into each of its shared contexts.
        died: called once with "browser-died" or "driver-died" when that happens unasked.
    """

    running: Running
    context: BrowserContext
    storage: ContextStorage

    def __init__(self, name: str, kept: Kept, died: Callable[[Current, str], None]) -> None:
        self.name = name
        self.announced = False
        self.holders = 0
        self.pages = 0
        """Pages that scrapers opened or were given."""
        self.tabs: set[Tab] = set()
        """Those of items in hand, and those that are being closed."""
        self.closed = False
        """True if its context is closed, and it is to get another before the next page."""
        self.idle = asyncio.Event()
        self.idle.set()
        self.lost: str | None = None
        self._kept = kept
        self._died = died
        self._opened: dict[Page, float] = {}  # pages open in the shared context, and since when by the loop's clock
        self._own: set[Page] = set()  # of those, pages that are the SDK's and no scraper's
        self._opening = 0  # of those, how many are being opened: the browser tells of them before it is known which
        self._spare: asyncio.Task[Page] | None = None
        self._ending: asyncio.Task[None] | None = None

    # ---- its life

    async def start(self, launch_options: Mapping[str, Any], context_options: Mapping[str, Any]) -> None:
        """Start it and open the shared context.

        Raises:
            BrowserUnavailable: what failed can't be mended by trying again.
            Exception: what Playwright raises, for anything else.
        """
        self.running = running = await launch(launch_options, lambda what: self._died(self, what))
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                await self.open_context(context_options)
        except BaseException:
            await running.stop(END_TIMEOUT)
            raise
        watch_browser(running.browser, LEFT_TIMEOUT, self._count)

    async def open_context(self, options: Mapping[str, Any]) -> None:
        """Open the shared context, with the cookies that are known; storage follows."""
        browser = self.running.browser
        check_names("context", options, type(browser).new_context, ("launch", browser.browser_type.launch))
        with unowned():
            try:
                context = await browser.new_context(**options)
            except Exception as error:
                refused = None if self.lost else refusal("context= is refused", error)
                if refused is not None:
                    raise refused from error
                raise
            if self.running.blank:
                await context.new_page()  # stays, and is none of those that are counted
        previous, self._spare = self._spare, None
        if previous is not None:
            previous.cancel()
        self.context, self.closed = context, False
        self.storage = ContextStorage(context, self._kept, self._open_own, self._close_own)
        await self.storage.bring_cookies()
        watch_context(context, LEFT_TIMEOUT)
        context.on("page", self._page_opened)
        context.on("close", lambda _: self._context_closed(context))
        self.storage.begin()

    async def end(self, seconds: float) -> None:
        """Close browser and driver, by force what is not gone after `seconds`, and remove their files. Never raises."""
        self.begin_end(seconds)
        assert self._ending is not None
        await asyncio.wait([self._ending])

    def begin_end(self, seconds: float) -> None:
        """Begin to end it, unless that has begun."""
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end(seconds), name=f"the end of {self.name}")

    async def _end(self, seconds: float) -> None:
        if self._spare is not None:
            self._spare.cancel()
        await self.storage.end()
        await self.running.stop(seconds)

    def hold(self) -> None:
        """Somebody works on it."""
        self.holders += 1
        self.idle.clear()

    def release(self) -> None:
        """Somebody works on it no more."""
        self.holders -= 1
        if not self.holders:
            self.idle.set()

    # ---- pages

    async def new_page(self, context_options: Mapping[str, Any]) -> Page:
        """A page in the shared context, which is opened anew where it is gone and the browser lives."""
        if not self.closed:
            try:
                return await self._spare_page() or await self.context.new_page()
            except Exception as error:
                if self.lost:
                    raise
                log.warning("the context of %s gives no page (%s) and is opened anew", self.name, error)
        await self.open_context(context_options)
        return await self.context.new_page()

    def prepare(self) -> None:
        """Begin to open the page that the next item will get."""
        if self._spare is None and not self.lost and not self.closed:
            self._spare = asyncio.get_running_loop().create_task(self._open_own(), name="the next page")
            self._spare.add_done_callback(_note)

    async def drop_spare(self) -> None:
        """Close the page that was prepared. Never raises."""
        page = await self._spare_page()
        if page is not None:
            self.pages -= 1
            await close_page(page)

    async def _spare_page(self) -> Page | None:
        """The page that was prepared, if it is any good."""
        spare, self._spare = self._spare, None
        if spare is None:
            return None
        await asyncio.wait([spare])
        if spare.cancelled() or spare.exception() is not None:
            return None
        page = spare.result()
        if page.is_closed() or page not in self._own:
            return None
        self._own.discard(page)
        self.pages += 1
        return page

    async def _open_own(self) -> Page:
        """A page that is no scraper's."""
        self._opening += 1
        try:
            with unowned():
                page = await self.context.new_page()
        finally:
            self._opening -= 1
        self._own.add(page)
        self.pages -= 1
        page.on("crash", lambda _: self._own.discard(page))
        return page

    async def _close_own(self, page: Page) -> None:
        try:
            await page.close()
        finally:
            self._own.discard(page)

    def strays(self) -> list[Page]:
        """Pages of the shared context that nobody owns, and whose opener must be gone: no item in hand is older."""
        if self._opening:
            return []  # one of them may be ours, and there will be another look
        oldest = min((tab.began for tab in self.tabs), default=float("inf"))
        owned = [tab.belongings for tab in self.tabs]
        return [
            page
            for page, since in self._opened.items()
            if since < oldest and page not in self._own and not any(belongings.holds(page) for belongings in owned)
        ]

    # ---- what the browser tells

    def _page_opened(self, page: Page) -> None:
        self.pages += 1
        self._opened[page] = asyncio.get_running_loop().time()
        storage = self.storage

        def closed(_: Page) -> None:
            self._opened.pop(page, None)

        page.on("close", closed)
        page.on("framenavigated", lambda frame: None if page in self._own else storage.visited(frame))

    def _count(self, context: BrowserContext) -> None:
        """A context of a scraper's own: its pages count, too, from the first on, which may be open already."""
        self.pages += len(context.pages)

        def opened(_: Page) -> None:
            self.pages += 1

        context.on("page", opened)

    def _context_closed(self, context: BrowserContext) -> None:
        """The shared context is gone: with its browser, which is told by itself, or alone, by DevTools."""
        self.closed = self.closed or context is self.context
        victims = [tab for tab in self.tabs if tab.page.context is context]

        def tell() -> None:
            for tab in victims:
                tab.lose(self.lost or "context-closed", f"the context of {self.name} was closed under the item")

        asyncio.get_running_loop().call_later(CONTEXT_GRACE, tell)


def _note(opening: asyncio.Task[Page]) -> None:
    if not opening.cancelled() and (error := opening.exception()) is not None:
        log.debug("the next page was not opened ahead: %r", error)
