"""What an item opens in the browser is closed with it, and what its handler closes is no more than that."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from scraper_worker import run
from scraper_worker.protocol import BrowserStarted, BrowserStopped, ItemDone, ItemFailed

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(autouse=True)
def own_tmp(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def scrape(handlers, **options):
    async def handle(item):
        return await handlers[item.key](item)

    async def function(worker):
        await worker.process(list(handlers), handle, **options)

    return function


def pages_of(browser):
    return sum(len(context.pages) for context in browser.contexts)


async def title(item):
    return await item.page.evaluate("1 + 1")


async def close_context(item):
    await item.page.context.close()
    return "mine"


async def close_browser(item):
    await item.page.context.browser.close()
    return "mine"


async def close_page(item):
    await item.page.close()
    return "mine"


async def use_after_close(item):
    await item.page.close()
    await item.page.title()


async def test_what_a_handler_closes_is_its_own_page_and_no_death(alone_link):
    handlers = {
        "context": close_context,
        "1": title,
        "browser": close_browser,
        "2": title,
        "page": close_page,
        "3": title,
    }
    handlers["after"] = use_after_close
    await run(scrape(handlers), alone_link)
    assert sorted(one.key for one in alone_link.of(ItemDone)) == ["1", "2", "3", "browser", "context", "page"]
    assert {(one.failure.kind, one.failure.signature) for one in alone_link.of(ItemFailed)} == {
        ("transient", "page-closed")
    }
    assert len(alone_link.of(BrowserStarted)) == 1
    assert alone_link.of(BrowserStopped) == [BrowserStopped("b1", "close")]


async def test_a_neighbour_s_page_stays_when_a_handler_closes_the_context_and_the_browser(alone_link):
    closed = asyncio.Event()
    together = asyncio.Barrier(2)

    async def closer(item):
        await together.wait()
        await item.page.context.close()
        await item.page.context.browser.close()
        closed.set()

    async def neighbour(item):
        await together.wait()
        async with asyncio.timeout(20):
            await closed.wait()
        return await item.page.evaluate("1 + 1")

    await run(scrape({"closer": closer, "neighbour": neighbour}, concurrency=2), alone_link)
    assert alone_link.of(ItemFailed) == []
    assert len(alone_link.of(ItemDone)) == 2


async def test_a_context_that_is_closed_all_the_same_is_opened_anew(alone_link):
    async def by_devtools(item):
        session = await item.page.context.browser.new_browser_cdp_session()
        contexts = (await session.send("Target.getBrowserContexts"))["browserContextIds"]
        for context in contexts:
            await session.send("Target.disposeBrowserContext", {"browserContextId": context})
        await item.page.evaluate("1 + 1")

    seen = []

    async def once(item):
        seen.append(item.key)
        return await (by_devtools(item) if len(seen) == 1 else title(item))

    await run(scrape({"bad": once, "good": title}), alone_link)
    assert [one.failure.signature for one in alone_link.of(ItemFailed)] == ["page-closed"]
    assert sorted(one.key for one in alone_link.of(ItemDone)) == ["bad", "good"]
    assert len(alone_link.of(BrowserStarted)) == 1


async def test_popups_pages_and_contexts_are_closed_and_counted(alone_link):
    open_pages = []

    async def opener(item):
        browser = item.page.context.browser
        open_pages.append(pages_of(browser))
        async with item.page.expect_popup():
            await item.page.evaluate("window.open('about:blank')")
        await item.page.context.new_page()
        context = await browser.new_context()
        await context.new_page()
        await browser.new_page()
        open_pages.append(pages_of(browser))
        async with asyncio.timeout(10):
            while owners[0].pages()["b1"] % 5:
                await asyncio.sleep(0.01)

    owners = []

    async def function(worker):
        owners.append(worker)
        await worker.process([str(number) for number in range(4)], opener)
        assert worker.pages() == {"b1": 20}
        async with worker.browser() as browser:
            left.append(pages_of(browser))

    left = []
    await run(function, alone_link)
    assert alone_link.of(ItemFailed) == []
    (blank,) = left  # the one that the SDK leaves open in a full Chromium
    assert [count - blank for count in open_pages] == [1, 5] * 4
    assert blank <= 1


async def test_a_page_that_was_being_opened_when_the_item_ended_is_closed(alone_link):
    open_pages = []

    async def leaver(item):
        open_pages.append(pages_of(item.page.context.browser))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(item.page.context.new_page())
            raise ValueError("meanwhile")

    async def function(worker):
        await worker.process(["a"], leaver)
        async with worker.browser() as browser:
            assert pages_of(browser) == open_pages[0] - 1

    await run(function, alone_link)


async def test_downloads_are_deleted(alone_link, own_tmp):
    paths = []

    async def download(item):
        await item.page.set_content("<a id=a download=x.txt href='data:text/plain,hello'>x</a>")
        async with item.page.expect_download() as coming:
            await item.page.click("#a")
        path = Path(await (await coming.value).path())
        paths.append(path)
        return path.read_text()

    async def function(worker):
        await worker.process(["a"], download)
        assert not paths[0].exists()

    await run(function, alone_link)
    assert [bytes(one.result) for one in alone_link.of(ItemDone)] == [b'"hello"']


async def test_a_page_of_the_worker_s_own_stays(alone_link):
    async def function(worker):
        async with worker.browser() as browser:
            page = await browser.new_page()
            await worker.process(["a", "b"], title)
            assert await page.evaluate("2 + 2") == 4
            await page.close()

    await run(function, alone_link)
    assert len(alone_link.of(ItemDone)) == 2
