"""A context's cookies and storage: read from it beside the items, and brought into the next one.

Cookies are one call to the browser. Storage can be read and written by a page of its origin only: it is read from an
item's page when the item has ended, and what is not open anywhere is visited by a page of ours that gets an empty
document in the place of the site's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from scraper_worker.browsers.in_page import READ, WRITE
from scraper_worker.browsers.storage import MAX_ORIGIN, MAX_ORIGINS, origin_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from playwright.async_api import BrowserContext, Frame, Page, Route

    from scraper_worker.browsers.storage import Kept

log = logging.getLogger("scraper_worker")

COOKIES_TIMEOUT: Final = 5.0  # seconds for all cookies; they take a hundredth of that
COOKIES_INTERVAL: Final = 10.0  # seconds between two looks at the cookies
READ_INTERVAL: Final = 30.0  # seconds between two looks at one origin's storage; each costs a page a tenth of its CPU
READ_TIMEOUT: Final = 0.5  # seconds for the storage of a page that is open
VISIT_TIMEOUT: Final = 2.0  # seconds for the storage of an origin that no page is open at
SWEEP_TIMEOUT: Final = 3.0  # seconds for all origins that were not read when they were last seen
ARRIVAL_TIMEOUT: Final = 5.0  # seconds that an item may wait for storage to be brought in
_NAMED: Final = 5  # origins in a message


class ContextStorage:
    """What is read from, and brought into, one shared context.

    Args:
        context: the context, without pages of items yet.
        kept: what is known, and comes to be known.
        open_page: opens a page in the context that is no scraper's.
        close_page: closes such a page.
    """

    def __init__(
        self,
        context: BrowserContext,
        kept: Kept,
        open_page: Callable[[], Awaitable[Page]],
        close_page: Callable[[Page], Awaitable[None]],
    ) -> None:
        self._context = context
        self._kept = kept
        self._open_page = open_page
        self._close_page = close_page
        self._unread: dict[str, float | None] = {}  # origins visited since they were last read, the latest last
        self._absent: dict[str, None] = dict.fromkeys(kept.origins)  # not brought in yet
        self._visiting = asyncio.Lock()
        self._bringing: asyncio.Task[None] | None = None
        self._cookies_at = -COOKIES_INTERVAL
        self._read_at: dict[str, float | None] = {}  # when an origin was read last, by the monotonic clock

    # ---- into the context

    async def bring_cookies(self) -> None:
        """Give the context the cookies that are known; one that it refuses does not cost the others."""
        cookies: Any = self._kept.cookies
        if not cookies:
            return
        try:
            await self._context.add_cookies(cookies)
        except Exception as error:  # noqa: BLE001 - Playwright's base class; the next call says whether the browser is gone
            log.debug("not all cookies at once: %r", error)
        else:
            return
        refused = []
        for cookie in cookies:
            try:
                await self._context.add_cookies([cookie])
            except Exception as error:  # noqa: BLE001 - as above
                refused.append(f"{cookie['name']} of {cookie.get('domain')} ({error})")
        log.warning("%d cookies were not brought over: %s", len(refused), "; ".join(refused[:_NAMED]))

    def begin(self) -> None:
        """Begin to bring storage in, beside the items."""
        if self._absent:
            self._bringing = asyncio.get_running_loop().create_task(self._bring_all(), name="storage of origins")

    async def end(self) -> None:
        """Bring no more in."""
        if self._bringing is not None:
            self._bringing.cancel()
            await asyncio.wait([self._bringing])

    async def arrive(self, host: str | None) -> None:
        """Wait until the storage is there that an item for a host will find; of all hosts if it is None. Never raises.

        Gives up after a few seconds, and the rest comes beside the item.
        """
        bringing = self._bringing
        if bringing is None or bringing.done():
            return
        try:
            async with asyncio.timeout(ARRIVAL_TIMEOUT):
                if host is None:
                    await asyncio.wait([bringing])
                for origin in self._kept.near(host) if host is not None else ():
                    await self._bring(origin)
        except TimeoutError:
            log.warning("storage of %s comes late: the browser is slow", host or f"{len(self._absent)} origins")

    async def _bring_all(self) -> None:
        lost = []
        while self._absent:
            origin = next(iter(self._absent))
            if not await self._bring(origin):
                lost.append(origin)
        if lost:
            log.warning("storage was not brought over: %s", _names(lost))

    async def _bring(self, origin: str) -> bool:
        """Bring an origin's storage in, unless that was done or a page has been there first."""
        async with self._visiting:
            if origin not in self._absent:
                return True
            del self._absent[origin]
            storage = self._kept.storage(origin)
            if storage is None or origin in self._unread:
                return True
            try:
                async with asyncio.timeout(VISIT_TIMEOUT), self._visit(origin) as page:
                    await page.evaluate(WRITE, storage)
            except Exception as error:  # noqa: BLE001 - a slow or dying browser raises anything, and nobody waits for it
                log.debug("bringing the storage of %s: %r", origin, error)
                return False
            return True

    # ---- out of the context

    def visited(self, frame: Frame) -> None:
        """A frame of a scraper's page has gone somewhere."""
        if frame.parent_frame is None and (origin := origin_of(frame.url)) is not None:
            self._unread.pop(origin, None)
            self._unread[origin] = None
            self._kept.seen(origin)
            for known in (self._unread, self._read_at):
                if len(known) > MAX_ORIGINS:
                    del known[next(iter(known))]

    @property
    def cookies_are_due(self) -> bool:
        """Whether the cookies are to be looked at: once in a while."""
        return time.monotonic() - self._cookies_at >= COOKIES_INTERVAL

    async def read_cookies(self) -> bool:
        """Keep the cookies; whether they are kept. Never raises."""
        self._cookies_at = time.monotonic()
        try:
            async with asyncio.timeout(COOKIES_TIMEOUT):
                cookies: list[Any] = await self._context.cookies()
        except Exception as error:  # noqa: BLE001 - what was known before is better than nothing
            log.debug("reading cookies: %r", error)
            return False
        self._kept.set_cookies(cookies)
        return True

    def is_due(self, page: Page) -> bool:
        """Whether the storage of the origin that a page is at is to be looked at: once in a while for one origin."""
        origin = origin_of(page.url)
        if origin is None or origin not in self._unread or page.is_closed():
            return False
        before = self._read_at.get(origin)
        return before is None or time.monotonic() - before >= READ_INTERVAL

    async def read_page(self, page: Page) -> None:
        """Keep the storage of the origin that a page is at, if the page answers. Never raises."""
        origin = origin_of(page.url)
        if origin is None or origin not in self._unread:
            return
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                await self._read(page, origin)
        except Exception as error:  # noqa: BLE001 - a hung or closed page; another look may come
            log.debug("reading the storage of %s: %r", origin, error)

    async def read_all(self, seconds: float = SWEEP_TIMEOUT) -> None:
        """Keep cookies and storage of now, and warn of what could not be read. Never raises.

        Args:
            seconds: for all storage, at most; cookies have a time of their own.
        """
        if not await self.read_cookies():
            log.warning("cookies could not be read; those known before are kept")
        latest = list(reversed(self._unread))
        wanted = sorted(latest, key=lambda origin: origin in self._read_at)  # those that were never read come first
        try:
            async with asyncio.timeout(min(seconds, SWEEP_TIMEOUT)):
                for page in self._context.pages:
                    await self.read_page(page)
                for origin in wanted:
                    if origin in self._unread:
                        await self._read_elsewhere(origin)
        except TimeoutError:
            log.debug("no time for all storage")
        missing = [origin for origin in wanted if origin in self._unread]
        never = [origin for origin in missing if origin not in self._read_at]
        if never:
            log.warning("storage could not be read, and is kept as known before, if at all: %s", _names(never))
        elif missing:
            log.info("storage is kept as it was up to %.0f s ago: %s", READ_INTERVAL, _names(missing))

    async def _read_elsewhere(self, origin: str) -> None:
        try:
            async with asyncio.timeout(VISIT_TIMEOUT), self._visiting, self._visit(origin) as page:
                await self._read(page, origin)
        except Exception as error:  # noqa: BLE001 - an origin that can't be read in time is named in the end
            log.debug("reading the storage of %s: %r", origin, error)

    async def _read(self, page: Page, origin: str) -> None:
        answer = await page.evaluate(READ, [self._kept.mark(origin), MAX_ORIGIN])
        if answer is None or answer["origin"] != origin:
            return
        if answer["lost"]:
            log.warning("a database of %s is not kept: %s", origin, answer["lost"])
        if answer["size"] > MAX_ORIGIN:
            log.warning("storage of %s is not kept: %d characters, over %d", origin, answer["size"], MAX_ORIGIN)
            self._kept.forget(origin)
        elif "storage" in answer:
            dropped = self._kept.put(origin, answer["storage"], answer["mark"])
            if dropped:
                log.warning("there is too much storage; no longer kept: %s", _names(dropped))
        self._unread.pop(origin, None)
        self._read_at.pop(origin, None)
        self._read_at[origin] = time.monotonic()

    # ---- a page of ours

    @contextlib.asynccontextmanager
    async def _visit(self, origin: str) -> AsyncGenerator[Page]:
        """A page at an origin that gets an empty document from us."""
        page = await self._open_page()
        try:
            await page.route("**/*", _empty)
            await page.goto(f"{origin}/", wait_until="commit")
            yield page
        finally:
            await self._leave(page)

    async def _leave(self, page: Page) -> None:
        try:
            async with asyncio.timeout(VISIT_TIMEOUT):
                await self._close_page(page)
        except Exception as error:  # noqa: BLE001 - gone is what it was to become
            log.debug("closing a page of ours: %r", error)


async def _empty(route: Route) -> None:
    await route.fulfill(body="<!doctype html>", content_type="text/html")


def _names(origins: list[str]) -> str:
    named = ", ".join(origins[:_NAMED])
    return named if len(origins) <= _NAMED else f"{named} and {len(origins) - _NAMED} more"
