"""Closing one page, the mildest way first, so that its neighbours in the browser stay."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from playwright.async_api import Page

log = logging.getLogger("scraper_worker")

CLOSE_TIMEOUT: Final = 2.0  # seconds for a page to close when asked
TARGET_TIMEOUT: Final = 2.0  # seconds for the browser to close it, and for its renderer to be ended, each


async def close_page(page: Page) -> bool:
    """Close a page; False where nothing but the end of its browser will.

    A page is asked by Playwright first. If that does not return, the browser closes it; then its renderer is ended.
    Handlers of the scraper's own (routes, dialogs) are passed over by both. Never raises.
    """
    if await _within(page.close(), CLOSE_TIMEOUT) or page.is_closed():
        return True
    log.warning("a page at %s does not close, and is closed by the browser", page.url)
    closed = asyncio.Event()
    page.on("close", lambda _: closed.set())
    page.on("crash", lambda _: closed.set())
    for ask in (_close_target, _crash):
        if await _within(ask(page, closed), TARGET_TIMEOUT) or page.is_closed():
            return True
    return False


async def _close_target(page: Page, closed: asyncio.Event) -> None:
    session = await page.context.new_cdp_session(page)
    target = (await session.send("Target.getTargetInfo"))["targetInfo"]["targetId"]
    await session.send("Target.closeTarget", {"targetId": target})
    await closed.wait()


async def _crash(page: Page, closed: asyncio.Event) -> None:
    session = await page.context.new_cdp_session(page)
    crashing = asyncio.get_running_loop().create_task(session.send("Page.crash"), name="ending a renderer")
    try:
        await closed.wait()  # a renderer that ends does not answer
    finally:
        crashing.cancel()


async def _within(asking: Awaitable[None], seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await asking
    except TimeoutError:
        return False
    except Exception as error:  # noqa: BLE001 - of a page that is gone, or goes with its browser
        log.debug("closing a page: %r", error)
        return True
    return True
