"""The supervised browser: one context whose cookies outlive the browser, a page for each item, and its replacement.

Whoever works on it holds it; it is replaced only when nobody does. What Playwright leaves without a timeout gets one
here, and a page's crash or a process's death is told to the item at once, since pending calls may never return. What an
item leaves behind is kept and closed beside the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from scraper_worker.browsers.belongings import unowned
from scraper_worker.browsers.closing import close_page
from scraper_worker.browsers.current import END_TIMEOUT, LEFT_TIMEOUT, Current
from scraper_worker.browsers.launch import CALL_TIMEOUT, START_TIMEOUT
from scraper_worker.browsers.options import take_storage, telling
from scraper_worker.browsers.storage import Kept
from scraper_worker.browsers.tab import Tab
from scraper_worker.errors import (
    BlockedError,
    BrowserUnavailable,
    InfrastructureError,
    ItemError,
    PermanentError,
    TransientError,
    UsageError,
)
from scraper_worker.failures.http_answers import kind_of_status, retry_after_of
from scraper_worker.protocol import BrowserStarted, BrowserStopped

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping

    from playwright.async_api import Browser, Response

log = logging.getLogger("scraper_worker")

LAUNCH_TRIES: Final = 3
LAUNCH_PAUSE: Final = 0.5  # seconds before the second try, doubling
CLOSE_TIMEOUT: Final = 10.0  # seconds for a browser to close
TIDY_TIMEOUT: Final = 2.0  # seconds that an item waits for the one before it to be closed
MAX_FINISHING: Final = 8  # pages that are closed beside the items; the next item waits then
FINISH_TIMEOUT: Final = 15.0  # seconds for all of them


class SupervisedBrowser:
    """Starts a browser when one is first wanted, and again whenever it died or was to be replaced.

    Args:
        notify: tells the supervisor of starts and ends.
    """

    def __init__(self, notify: Callable[[BrowserStarted | BrowserStopped], None]) -> None:
        self._notify = notify
        self._changing = asyncio.Lock()
        self._current: Current | None = None
        self._started = 0
        self._finishing: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()  # of those, the ones that only close
        self._closed = False
        self.kept = Kept()
        """Cookies and storage, as far as they are known; loaded before the first start, they are there from then on."""
        self._launch_options: dict[str, Any] = {}
        self._context_options: dict[str, Any] = {}
        self._outdated: str | None = None  # the browser that runs with other options than those
        self._ahead = False

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

    async def configure(self, launch: Mapping[str, Any], context: Mapping[str, Any], *, ahead: bool) -> None:
        """Options for each browser and each shared context from now on.

        What runs with others already is replaced: the context at once, the browser before its next page is given.

        Args:
            launch: for Playwright's `launch`.
            context: for its `new_context`.
            ahead: whether the next page is opened while a handler works; its context tells of that page, too.

        Raises:
            UsageError: the browser is to be another, and is held.
            BrowserUnusable: they are wrong.
        """
        self._ahead = ahead
        launch, context = dict(launch), dict(context)
        current = self._current
        if current is None or current.lost:
            take_storage(context, self.kept)
            self._launch_options, self._context_options = launch, context
            return
        other, anew = launch != self._launch_options, context != self._context_options
        if other and current.holders:
            raise UsageError(
                "process(launch=…) wants another browser than the one that runs: call it outside of"
                " `async with worker.browser()`"
            )
        if other or anew:
            await current.storage.read_all()
            take_storage(context, self.kept)
            self._launch_options, self._context_options = launch, context
        if other:
            self._outdated = current.name
        elif anew:
            async with asyncio.timeout(CALL_TIMEOUT):
                await current.open_context(context)

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
            current.release()

    async def get(self) -> Browser:
        """Playwright's browser, which may be replaced between any two awaits of the caller.

        Raises:
            BrowserUnavailable: none can be started.
        """
        async with self.hold() as browser:
            return browser

    @contextlib.asynccontextmanager
    async def tab(self, lost: Callable[[str, str], None], host: str | None = None) -> AsyncGenerator[Tab]:
        """A fresh page in the shared context, closed beside what follows with all that was opened beside it.

        Args:
            lost: called with a signature and a message if page, browser or driver is lost meanwhile.
            host: the one that the page is for, if it is known: its storage is there then.

        Raises:
            BrowserUnavailable: no browser can be started.
            InfrastructureError: the browser gave no page.
        """
        if self._closing and not self._ahead:  # one at a time: the page before is gone, unless it is slow
            await asyncio.wait(self._closing, timeout=TIDY_TIMEOUT)
        while len(self._finishing) >= MAX_FINISHING:
            await asyncio.wait(self._finishing, return_when=asyncio.FIRST_COMPLETED)
        current = await self._acquire()
        try:
            tab = await self._open(current, lost, host)
        except BaseException:
            current.release()
            raise
        try:
            yield tab
        finally:
            current.prepare()
            due = not tab.gone.is_set() and current.storage.is_due(tab.page)
            closing = self._beside(self._finish(current, tab, due), "closing a page")
            if not due:
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            if not current.lost and current.storage.cookies_are_due:
                current.hold()
                self._beside(self._read_cookies(current), "reading cookies")

    async def tidy(self) -> None:
        """No item comes any more: close what items left behind, within a few seconds."""
        if self._finishing:
            await asyncio.wait(self._finishing, timeout=FINISH_TIMEOUT)
        if self._current is not None:
            await self._current.drop_spare()

    async def capture(self) -> dict[str, Any]:
        """Cookies and storage of now, as JSON that `kept.load` takes; what can't be read stays as it was known."""
        current = self._current
        if current is not None and not current.lost:
            current.hold()
            try:
                await current.storage.read_all()
            finally:
                current.release()
        return self.kept.contents()

    async def _acquire(self) -> Current:
        async with self._changing:  # held during a replacement, so that nothing starts on a browser about to go
            current = self._current
            if current is not None and current.name == self._outdated and not current.holders:
                await self._end(current, "recycle", CLOSE_TIMEOUT)
            if current is None or current.lost:
                current = await self._launch()
            current.hold()
            return current

    async def _open(self, current: Current, lost: Callable[[str, str], None], host: str | None) -> Tab:
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                page = await current.new_page(self._context_options)
                await current.storage.arrive(host)
        except TimeoutError:
            current.running.kill()
            raise InfrastructureError(f"no page after {CALL_TIMEOUT:.0f} s", signature="browser-hung") from None
        except Exception as error:  # Playwright's errors, and the builtin Exception of older drivers
            raise InfrastructureError(f"no page: {error}", signature=current.lost or "browser-died") from error
        tab = Tab(page, lost)
        current.tabs.add(tab)
        if current.lost:
            tab.lose(current.lost, f"{current.name} is gone")
        if self._ahead:
            current.prepare()
        return tab

    def _beside(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Do something beside the items."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        return task

    @staticmethod
    async def _read_cookies(current: Current) -> None:
        try:
            await current.storage.read_cookies()
        finally:
            current.release()

    async def _finish(self, current: Current, tab: Tab, due: bool) -> None:
        """Keep what an item's page knows, and close what it left."""
        try:
            if not current.lost:
                await self._close_tab(current, tab, due)
        finally:
            current.tabs.discard(tab)
            current.release()

    @staticmethod
    async def _close_tab(current: Current, tab: Tab, due: bool) -> None:
        if due:
            await current.storage.read_page(tab.page)
        await tab.belongings.close(LEFT_TIMEOUT, spared=tab.page)
        closed = await close_page(tab.page)
        current.tabs.discard(tab)
        for page in current.strays():
            closed = await close_page(page) and closed
        if not closed and not current.lost:
            log.warning("%s could not close a page and is killed", current.name)
            current.running.kill()

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
                await current.storage.read_all(deadline / 4)
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

    async def _end(self, current: Current, reason: str, seconds: float) -> None:
        told = current.lost is not None
        current.lost = current.lost or "browser-closed"
        for tab in list(current.tabs):
            tab.lose(current.lost, f"{current.name} was closed")
        await current.end(seconds)
        if not told:
            self._notify(BrowserStopped(current.name, "recycle" if reason == "recycle" else "close"))

    async def _launch(self) -> Current:
        with unowned():  # a handler may be who wants it
            return await self._launch_anew()

    async def _launch_anew(self) -> Current:
        if self._closed:
            raise BrowserUnavailable("the worker is ending")
        previous, self._current = self._current, None
        if previous is not None:
            await previous.end(END_TIMEOUT)  # what is left of it: a driver, or a browser that hangs
        pause = LAUNCH_PAUSE
        for attempt in range(1, LAUNCH_TRIES + 1):
            try:
                self._current = await self._start()
                break
            except BrowserUnavailable:
                raise
            except Exception as error:
                line = telling(error)
                if attempt == LAUNCH_TRIES:
                    raise BrowserUnavailable(f"no browser after {attempt} tries: {line}") from error
                log.warning("the browser did not start (try %d of %d): %s", attempt, LAUNCH_TRIES, line)
            await asyncio.sleep(pause)
            pause *= 2
        assert self._current is not None
        self.announce()
        return self._current

    async def _start(self) -> Current:
        self._started += 1
        current = Current(f"b{self._started}", self.kept, self._died)
        await current.start(self._launch_options, self._context_options)
        return current

    def _died(self, current: Current, what: str) -> None:
        if current.lost:
            return
        current.lost = what
        log.warning("%s: %s", current.name, what)
        if current.announced:
            self._notify(BrowserStopped(current.name, "crash"))
        if current is self._current:  # one that has not come up is ended by who starts it
            current.begin_end(END_TIMEOUT)  # the other of the two, and their files, whether or not a next one is wanted
        victim = current.name if what == "browser-died" else f"the driver of {current.name}"
        for tab in list(current.tabs):
            tab.lose(what, f"{victim} died under the item")


def raise_for_status(response: Response | None, *, allow: Collection[int] = ()) -> None:
    """Raise what an HTTP error means for the item: blocked, transient or permanent; nothing below 400.

    Playwright's `goto` returns an error page like any other; a scraper that wants to treat it as a failure calls
    `raise_for_status(await item.page.goto(url))`. An expected absence is a result, and no failure:
    `raise_for_status(response, allow=[404])`.

    Args:
        response: what a navigation returned.
        allow: statuses that are no failure here.

    Raises:
        ItemError: of the kind that the status stands for, with status and Retry-After.
    """
    if response is None or response.status < 400 or response.status in allow:
        return
    retry_after = retry_after_of(response.headers, time.time())
    kind = kind_of_status(response.status, retry_after)
    errors: dict[str, type[ItemError]] = {"blocked": BlockedError, "permanent": PermanentError}
    message = f"HTTP {response.status} {response.status_text} from {response.url}"
    raise errors.get(kind, TransientError)(message, status=response.status, retry_after=retry_after)
