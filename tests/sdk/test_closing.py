"""A page that is in the way, with a real Chromium: it goes alone, and what happened to it is asked, not waited for."""

from __future__ import annotations

import asyncio
import time

import pytest

from scraper_worker import run
from scraper_worker.items.handling import SETTLE_TIMEOUT
from scraper_worker.protocol import BrowserStarted, BrowserStopped, ItemDone, ItemFailed

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(autouse=True)
def own_tmp(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def scrape(handlers, **options):
    async def handle(item):
        return await handlers[item.key](item)

    async def function(worker):
        await worker.process(list(handlers), handle, **options)

    return function


async def never(*_, **__):
    await asyncio.Event().wait()


async def test_a_page_that_does_not_close_is_closed_by_the_browser_and_its_neighbour_goes_on(alone_link, monkeypatch):
    monkeypatch.setattr("scraper_worker.browsers.closing.CLOSE_TIMEOUT", 0.2)
    pages, stuck = [], asyncio.Event()

    async def bad(item):
        pages.append(item.page)
        item.page.close = never
        stuck.set()

    async def neighbour(item):
        await stuck.wait()
        async with asyncio.timeout(30):
            while not pages[0].is_closed():
                await asyncio.sleep(0.01)
        return await item.page.evaluate("1 + 1")

    await run(scrape({"bad": bad, "neighbour": neighbour}, concurrency=2), alone_link)
    assert alone_link.of(ItemFailed) == []
    assert len(alone_link.of(ItemDone)) == 2
    assert len(alone_link.of(BrowserStarted)) == 1
    assert alone_link.of(BrowserStopped) == [BrowserStopped("b1", "close")]


@pytest.mark.parametrize("hang", ["for (;;);", "alert('stay')"])
async def test_a_page_that_hangs_costs_neither_its_browser_nor_the_next_item(alone_link, hang):
    async def hung(item):
        item.page.on("dialog", lambda _: None)
        await item.page.evaluate(f"void setTimeout(() => {{ {hang} }})")

    async def following(item):
        return await item.page.evaluate("1 + 1")

    await run(scrape({"hung": hung, "next": following}), alone_link)
    assert len(alone_link.of(ItemDone)) == 2
    assert len(alone_link.of(BrowserStarted)) == 1


async def test_what_became_of_a_page_is_known_as_soon_as_it_answers(alone_link):
    seconds = {}

    async def closed(item):
        await item.page.close()
        seconds[item.key, item.attempt] = time.monotonic()
        await item.page.title()

    async def aborted(item):
        await item.page.route("**/*", lambda route: route.abort("aborted"))
        seconds[item.key, item.attempt] = time.monotonic()
        await item.page.goto("http://127.0.0.1:9/")

    call = alone_link.call

    async def timed(message):
        if isinstance(message, ItemFailed):
            key = max(one for one in seconds if one[0] == message.key)
            seconds[key] = time.monotonic() - seconds[key]
        return await call(message)

    alone_link.call = timed
    await run(scrape({"closed": closed, "aborted": aborted}), alone_link)
    failed = {(one.key, one.failure.kind, one.failure.signature) for one in alone_link.of(ItemFailed)}
    assert failed == {("closed", "transient", "page-closed"), ("aborted", "transient", "net::ERR_ABORTED")}
    assert min(seconds.values()) < SETTLE_TIMEOUT / 2, "its page was asked, not waited for"
