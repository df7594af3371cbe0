"""What a handler opens in the browser beside its page, so that the item's end can close it, and its neighbours stay.

All items of a worker share a browser and a context. Playwright does not tell who opened a page; the task that asked
does. So the calls that open or close something are watched on the two shared objects: what a handler opens there is
noted as its own, and what it closes is what it opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from typing import TYPE_CHECKING, Any

from scraper_worker.items.tasks import SDK, owned_by

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from playwright.async_api import Browser, BrowserContext, Download, Page

log = logging.getLogger("scraper_worker")

_owner: contextvars.ContextVar[Belongings | None] = contextvars.ContextVar("owner", default=None)


class Belongings:
    """Pages, contexts and downloads of one item. Popups come with the page that opened them."""

    def __init__(self) -> None:
        self._pages: list[Page] = []
        self._contexts: list[BrowserContext] = []
        self._downloads: list[Download] = []
        self._opening: set[asyncio.Task[Any]] = set()
        self._late: set[asyncio.Task[None]] = set()
        self._ended = False

    @contextlib.contextmanager
    def owned(self) -> Generator[None]:
        """Whatever is opened inside, in tasks that begin inside as well, belongs here."""
        token = _owner.set(self)
        try:
            yield
        finally:
            _owner.reset(token)

    def holds(self, page: Page) -> bool:
        """True if the page is one of these."""
        return page in self._pages

    def add(self, page: Page) -> None:
        """A page belongs here, and with it the popups and downloads that it will start."""
        self._pages.append(page)
        page.on("popup", self.add)
        page.on("download", self._downloaded)
        if self._ended:  # it came after the end, from a task that the handler left behind or from a page being closed
            self._close_late(page.close())

    def _downloaded(self, download: Download) -> None:
        self._downloads.append(download)

    def add_context(self, context: BrowserContext) -> None:
        """A context belongs here, with all its pages."""
        self._contexts.append(context)
        if self._ended:
            self._close_late(context.close())

    async def open(self, opening: Awaitable[Any], add: Callable[[Any], None]) -> Any:
        """Wait for something that is being opened; it belongs here even if whoever waits is cancelled meanwhile."""

        async def opened() -> Any:
            thing = await opening
            add(thing)
            return thing

        task = asyncio.get_running_loop().create_task(opened(), name="opening a page")
        self._opening.add(task)
        task.add_done_callback(self._opened)
        return await asyncio.shield(task)

    def _opened(self, task: asyncio.Task[Any]) -> None:
        self._opening.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited for it is told; nobody may be left

    async def close(self, seconds: float, *, spared: Page | None = None) -> None:
        """Close all of it and delete the downloads. Never raises, and gives up after `seconds`.

        Args:
            seconds: how long this may take.
            spared: a page that somebody else closes.
        """
        self._ended = spared is not None  # else it is the handler that closes, and may open more
        try:
            async with asyncio.timeout(seconds):
                if self._opening:
                    await asyncio.wait(self._opening)
                while self._downloads:
                    await _quietly(_discard(self._downloads.pop()))
                for page in [page for page in self._pages if page is not spared and not page.is_closed()]:
                    await _quietly(page.close())
                while self._contexts:
                    await _quietly(self._contexts.pop().close())
        except TimeoutError:
            log.warning("what an item left open was not closed within %.0f s", seconds)

    def _close_late(self, closing: Awaitable[None]) -> None:
        task = asyncio.get_running_loop().create_task(_quietly(closing), name="closing a page")
        self._late.add(task)
        task.add_done_callback(self._late.discard)


async def _discard(download: Download) -> None:
    await download.cancel()  # of one that runs; deleting would wait for its end
    await download.delete()


async def _quietly(closing: Awaitable[None]) -> None:
    try:
        await closing
    except Exception as error:  # noqa: BLE001 - Playwright's errors for what is closed already, or gone with its browser
        log.debug("closing what an item opened: %r", error)


@contextlib.contextmanager
def unowned() -> Generator[None]:
    """What the SDK itself opens inside, and tasks that begin there, belong to no item, whoever made it do so."""
    token = _owner.set(None)
    try:
        with owned_by(SDK):
            yield
    finally:
        _owner.reset(token)


def watch_context(context: BrowserContext, seconds: float) -> None:
    """Watch the shared context: `new_page`, and `close`, which in a handler closes what that handler opened."""
    new_page, close = context.new_page, context.close

    async def opened(*args: Any, **options: Any) -> Page:
        owner = _owner.get()
        page: Page = await (new_page(*args, **options) if owner is None else owner.open(new_page(), owner.add))
        return page

    _replace(context, "new_page", opened)
    _replace(context, "close", _closing(close, seconds))


def watch_browser(browser: Browser, seconds: float, counted: Callable[[BrowserContext], None]) -> None:
    """Watch the browser: `new_context`, `new_page`, and `close` as above.

    Args:
        browser: the browser.
        seconds: how long closing may take.
        counted: called with each context, so that its pages are counted.
    """
    new_context, new_page, close = browser.new_context, browser.new_page, browser.close

    async def opened_context(*args: Any, **options: Any) -> BrowserContext:
        owner = _owner.get()
        made = new_context(*args, **options)
        context: BrowserContext = await (made if owner is None else owner.open(made, owner.add_context))
        counted(context)
        return context

    async def opened_page(*args: Any, **options: Any) -> Page:
        owner = _owner.get()
        made = new_page(*args, **options)
        page: Page = await (made if owner is None else owner.open(made, owner.add))
        counted(page.context)
        return page

    _replace(browser, "new_context", opened_context)
    _replace(browser, "new_page", opened_page)
    _replace(browser, "close", _closing(close, seconds))


def _closing(close: Callable[..., Awaitable[None]], seconds: float) -> Callable[..., Awaitable[None]]:
    async def closing(*args: Any, **options: Any) -> None:
        owner = _owner.get()
        if owner is None:
            await close(*args, **options)
        else:
            await owner.close(seconds)

    return closing


def _replace(thing: object, name: str, function: Callable[..., Any]) -> None:
    """Put a function of ours in the place of a method, on this one object."""
    setattr(thing, name, function)
