"""The supervised browser: one context whose cookies outlive the browser, a page for each item, and its replacement.

Whoever works on it holds it; it is replaced only when nobody does. What Playwright leaves without a timeout gets one
here, and a page's crash or a process's death is told to the item at once, since pending calls may never return.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from scraper_worker.browsers.belongings import Belongings, unowned, watch_browser, watch_context
from scraper_worker.browsers.launch import CALL_TIMEOUT, START_TIMEOUT, Running, launch
from scraper_worker.classify import kind_of_status, parse_retry_after
from scraper_worker.errors import (
    BlockedError,
    BrowserUnavailable,
    InfrastructureError,
    ItemError,
    PermanentError,
    TransientError,
)
from scraper_worker.protocol import BrowserStarted, BrowserStopped

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from playwright.async_api import Browser, BrowserContext, Page, Request, Response, StorageState

log = logging.getLogger("scraper_worker")

LAUNCH_TRIES: Final = 3
LAUNCH_PAUSE: Final = 0.5  # seconds before the second try, doubling
CLOSE_TIMEOUT: Final = 10.0  # seconds for a browser to close
PAGE_CLOSE_TIMEOUT: Final = 5.0  # seconds; a browser that can't close a page in this time hangs
CONTEXT_GRACE: Final = 0.1  # seconds; a browser that dies closes its context first, and that it died says more
STORAGE_INTERVAL: Final = 10.0  # seconds between two looks at cookies and storage
STORAGE_TIMEOUT: Final = 5.0  # seconds


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

    def _responded(self, response: Response) -> None:
        if self._is_document(response.request):
            self.status = response.status
            self.retry_after = parse_retry_after(response.headers.get("retry-after"), time.time())


class _Current:
    """The browser in use."""

    running: Running
    context: BrowserContext

    def __init__(self, name: str) -> None:
        self.name = name
        self.announced = False
        self.holders = 0
        self.pages = 0
        self.tabs: set[Tab] = set()
        self.closed = False
        """True if its context is closed, and it is to get another before the next page."""
        self.opened: dict[Page, float] = {}
        """Pages open in the shared context, and when they opened by the loop's clock."""
        self.idle = asyncio.Event()
        self.idle.set()
        self.lost: str | None = None

    def strays(self) -> list[Page]:
        """Pages of the shared context that nobody owns, and whose opener must be gone: no item in hand is older."""
        oldest = min((tab.began for tab in self.tabs), default=float("inf"))
        owned = [tab.belongings for tab in self.tabs]
        return [
            page
            for page, since in self.opened.items()
            if since < oldest and not any(belongings.holds(page) for belongings in owned)
        ]


class SupervisedBrowser:
    """Starts a browser when one is first wanted, and again whenever it died or was to be replaced.

    Args:
        notify: tells the supervisor of starts and ends.
    """

    def __init__(self, notify: Callable[[BrowserStarted | BrowserStopped], None]) -> None:
        self._notify = notify
        self._changing = asyncio.Lock()
        self._current: _Current | None = None
        self._started = 0
        self._storage: StorageState | None = None
        self._storage_at = 0.0
        self._storing = False
        self._closed = False
        self.launch_options: dict[str, Any] = {}
        self.context_options: dict[str, Any] = {}

    def pages(self) -> dict[str, int]:
        """Pages opened since its start, by the browser that runs now."""
        current = self._current
        return {} if current is None or current.lost else {current.name: current.pages}

    def announce(self) -> None:
        """Tell the supervisor of the browser that runs now."""
        current = self._current
        if current is None or current.lost:
            return
        running = current.running
        current.announced = True
        self._notify(
            BrowserStarted(current.name, running.main.pid, running.driver_pid, "chromium", running.browser.version)
        )

    # ---- use ---------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncGenerator[Browser]:
        """Playwright's browser, not replaced as long as it is held.

        Raises:
            BrowserUnavailable: none can be started.
        """
        current = await self._acquire()
        try:
            yield current.running.browser
        finally:
            self._release(current)

    async def get(self) -> Browser:
        """Playwright's browser, which may be replaced between any two awaits of the caller.

        Raises:
            BrowserUnavailable: none can be started.
        """
        async with self.hold() as browser:
            return browser

    @contextlib.asynccontextmanager
    async def tab(self, lost: Callable[[str, str], None]) -> AsyncGenerator[Tab]:
        """A fresh page in the shared context, closed at the end with all that was opened beside it.

        Args:
            lost: called with a signature and a message if page, browser or driver is lost meanwhile.

        Raises:
            BrowserUnavailable: no browser can be started.
            InfrastructureError: the browser gave no page.
        """
        current = await self._acquire()
        try:
            tab = await self._open(current, lost)
            try:
                yield tab
            finally:
                current.tabs.discard(tab)
                if not current.lost:
                    await self._close_tab(current, tab)
        finally:
            self._release(current)

    async def _acquire(self) -> _Current:
        async with self._changing:  # held during a replacement, so that nothing starts on a browser about to go
            current = self._current
            if current is None or current.lost:
                current = await self._launch()
            current.holders += 1
            current.idle.clear()
            return current

    @staticmethod
    def _release(current: _Current) -> None:
        current.holders -= 1
        if not current.holders:
            current.idle.set()

    async def _open(self, current: _Current, lost: Callable[[str, str], None]) -> Tab:
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                page = await self._new_page(current)
        except TimeoutError:
            current.running.kill()
            raise InfrastructureError(f"no page after {CALL_TIMEOUT:.0f} s", signature="browser-hung") from None
        except Exception as error:  # Playwright's errors, and the builtin Exception of older drivers
            raise InfrastructureError(f"no page: {error}", signature=current.lost or "browser-died") from error
        tab = Tab(page, lost)
        current.tabs.add(tab)
        if current.lost:
            tab.lose(current.lost, f"{current.name} is gone")
        return tab

    async def _new_page(self, current: _Current) -> Page:
        """A page in the shared context, which is opened anew where it is gone and the browser lives."""
        if not current.closed:
            try:
                return await current.context.new_page()
            except Exception as error:
                if current.lost:
                    raise
                log.warning("the context of %s gives no page (%s) and is opened anew", current.name, error)
        await self._open_context(current)
        return await current.context.new_page()

    async def _close_tab(self, current: _Current, tab: Tab) -> None:
        if not tab.gone.is_set():
            await self._remember(current)
        await tab.belongings.close(PAGE_CLOSE_TIMEOUT, spared=tab.page)
        try:
            async with asyncio.timeout(PAGE_CLOSE_TIMEOUT):
                await tab.page.close()
                for page in current.strays():
                    await page.close()
        except TimeoutError:
            log.warning("%s could not close a page in %.0f s and is killed", current.name, PAGE_CLOSE_TIMEOUT)
            current.running.kill()
        except Exception as error:  # noqa: BLE001 - gone is what it was to become
            log.debug("closing a page: %r", error)

    async def _remember(self, current: _Current, *, at_once: bool = False) -> None:
        """Keep cookies and local storage, for the next browser."""
        now = time.monotonic()
        if self._storing or (not at_once and now - self._storage_at < STORAGE_INTERVAL):
            return
        self._storing = True
        try:
            async with asyncio.timeout(STORAGE_TIMEOUT):
                self._storage = await current.context.storage_state()
        except Exception as error:  # noqa: BLE001 - the older state is better than none, and the item is not to blame
            log.debug("reading cookies and storage: %r", error)
        finally:
            self._storing = False
            self._storage_at = time.monotonic()

    # ---- replacement -------------------------------------------------------------------------------------------------

    async def recycle(self, name: str, deadline: float) -> None:
        """Replace browser and driver as soon as nobody holds them; returns when the new ones are up.

        Args:
            name: the browser to replace; if it is gone already, there is nothing to do.
            deadline: seconds for its end, once nobody holds it.

        Raises:
            BrowserUnavailable: no new one can be started.
        """
        async with self._changing:
            current = self._current
            if current is None or current.name != name or self._closed:
                return
            await current.idle.wait()
            if not current.lost:
                await self._remember(current, at_once=True)
                await self._end(current, "recycle", min(CLOSE_TIMEOUT, max(1.0, deadline / 2)))
            if not self._closed:
                await self._launch()

    async def close(self) -> None:
        """End the browser for good."""
        self._closed = True
        with contextlib.suppress(TimeoutError):  # somebody may hold it for ever; then it ends with this process
            async with asyncio.timeout(START_TIMEOUT), self._changing:
                current, self._current = self._current, None
                if current is not None:
                    await self._end(current, "close", CLOSE_TIMEOUT)

    async def _end(self, current: _Current, reason: str, seconds: float) -> None:
        told = current.lost is not None
        current.lost = current.lost or "browser-closed"
        for tab in list(current.tabs):
            tab.lose(current.lost, f"{current.name} was closed")
        await current.running.stop(seconds)
        if not told:
            self._notify(BrowserStopped(current.name, "recycle" if reason == "recycle" else "close"))

    async def _launch(self) -> _Current:
        with unowned():  # a handler may be who wants it
            return await self._launch_anew()

    async def _launch_anew(self) -> _Current:
        if self._closed:
            raise BrowserUnavailable("the worker is ending")
        previous, self._current = self._current, None
        if previous is not None:
            await previous.running.stop(1.0)  # what is left of it: a driver, or a browser that hangs
        pause = LAUNCH_PAUSE
        for attempt in range(1, LAUNCH_TRIES + 1):
            try:
                self._current = await self._start()
                break
            except BrowserUnavailable:
                raise
            except Exception as error:
                line = str(error).splitlines()[0] if str(error) else repr(error)
                if attempt == LAUNCH_TRIES:
                    raise BrowserUnavailable(f"no browser after {attempt} tries: {line}") from error
                log.warning("the browser did not start (try %d of %d): %s", attempt, LAUNCH_TRIES, line)
            await asyncio.sleep(pause)
            pause *= 2
        assert self._current is not None
        self.announce()
        return self._current

    async def _start(self) -> _Current:
        self._started += 1
        current = _Current(f"b{self._started}")
        current.running = running = await launch(self.launch_options, lambda what: self._died(current, what))
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                await self._open_context(current)
        except BaseException:
            await running.stop(1.0)
            raise
        watch_browser(running.browser, PAGE_CLOSE_TIMEOUT, lambda context: self._counted(current, context))
        return current

    async def _open_context(self, current: _Current) -> None:
        """Open the shared context, with the cookies and the storage that are known."""
        options: dict[str, Any] = self.context_options
        if self._storage is not None:
            options = {**options, "storage_state": self._storage}
        with unowned():
            context = await current.running.browser.new_context(**options)
            if current.running.blank:
                await context.new_page()  # stays, and is none of those that are counted
        current.context, current.closed = context, False
        watch_context(context, PAGE_CLOSE_TIMEOUT)
        context.on("page", lambda page: self._opened(current, page))
        context.on("close", lambda _: self._context_closed(current, context))

    @staticmethod
    def _opened(current: _Current, page: Page) -> None:
        current.pages += 1
        current.opened[page] = asyncio.get_running_loop().time()

        def closed(_: Page) -> None:
            current.opened.pop(page, None)

        page.on("close", closed)

    @staticmethod
    def _counted(current: _Current, context: BrowserContext) -> None:
        """A context of a scraper's own: its pages count, too, from the first on, which may be open already."""
        current.pages += len(context.pages)

        def opened(_: Page) -> None:
            current.pages += 1

        context.on("page", opened)

    def _context_closed(self, current: _Current, context: BrowserContext) -> None:
        """The shared context is gone: with its browser, which is told by itself, or alone, by DevTools."""
        current.closed = current.closed or context is current.context
        victims = [tab for tab in current.tabs if tab.page.context is context]

        def tell() -> None:
            for tab in victims:
                tab.lose(current.lost or "context-closed", f"the context of {current.name} was closed under the item")

        asyncio.get_running_loop().call_later(CONTEXT_GRACE, tell)

    def _died(self, current: _Current, what: str) -> None:
        if current.lost:
            return
        current.lost = what
        log.warning("%s: %s", current.name, what)
        if current.announced:
            self._notify(BrowserStopped(current.name, "crash"))
        victim = current.name if what == "browser-died" else f"the driver of {current.name}"
        for tab in list(current.tabs):
            tab.lose(what, f"{victim} died under the item")


def raise_for_status(response: Response | None) -> None:
    """Raise what an HTTP error means for the item: blocked, transient or permanent; nothing below 400.

    Playwright's `goto` returns an error page like any other; a scraper that wants to treat it as a failure calls
    `raise_for_status(await item.page.goto(url))`.

    Raises:
        ItemError: of the kind that the status stands for, with status and Retry-After.
    """
    if response is None or response.status < 400:
        return
    retry_after = parse_retry_after(response.headers.get("retry-after"), time.time())
    kind = kind_of_status(response.status, retry_after)
    errors: dict[str, type[ItemError]] = {"blocked": BlockedError, "permanent": PermanentError}
    message = f"HTTP {response.status} {response.status_text} from {response.url}"
    raise errors.get(kind, TransientError)(message, status=response.status, retry_after=retry_after)
