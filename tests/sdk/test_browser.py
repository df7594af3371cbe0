"""The supervised browser, with a real Chromium and a small local site."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from urllib.parse import parse_qs, urlsplit

import pytest

from scraper_worker import BrowserUnavailable, raise_for_status, run
from scraper_worker.protocol import (
    BrowserRecycle,
    BrowserStarted,
    BrowserStopped,
    Goodbye,
    ItemDone,
    ItemFailed,
    ItemRelease,
)

pytestmark = [pytest.mark.browser, pytest.mark.slow]


class Site:
    """Answers every path with what the path says, and remembers who asked with which cookie."""

    def __init__(self):
        self.seen = []
        self.port = 0

    async def _serve(self, reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                url = urlsplit(lines[0].split()[1])
                cookie = next((line[8:] for line in lines if line.lower().startswith("cookie: ")), "")
                self.seen.append((url.path, cookie))
                query = parse_qs(url.query)
                status = query.get("status", ["200"])[0]
                extra = "".join(f"{header}\r\n" for header in query.get("header", []))
                body = b"" if "empty" in query else f"<title>{url.path}</title>".encode()
                fields = f"Content-Type: text/html\r\nContent-Length: {len(body)}\r\n{extra}"
                writer.write(f"HTTP/1.1 {status} X\r\n{fields}\r\n".encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def __call__(self, path):
        return f"http://127.0.0.1:{self.port}{path}"


@pytest.fixture
async def site():
    site = Site()
    server = await asyncio.start_server(site._serve, "127.0.0.1", 0)
    site.port = server.sockets[0].getsockname()[1]
    yield site
    server.close()


@pytest.fixture(autouse=True)
def own_tmp(tmp_path, monkeypatch):
    """A killed driver leaves its profiles behind: not in the system's folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture(params=["chromium", "chromium-headless-shell"])
def kind(request, monkeypatch):
    """Each kind of headless browser that is here."""
    if shutil.which(request.param) is None:
        pytest.skip(f"no {request.param} on PATH")
    monkeypatch.setenv("SCRAPER_WORKER_CHROMIUM", request.param)
    return request.param


def exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def failures(link):
    return [(message.key, message.failure.kind, message.failure.signature) for message in link.of(ItemFailed)]


async def forever(page):
    await page.evaluate("new Promise(() => {})")


async def test_three_at_a_time_in_one_browser_with_one_cookie_jar(site, alone_link):
    together = asyncio.Barrier(3)

    async def scrape(worker):
        await worker.process([str(number) for number in range(6)], one, concurrency=3)
        assert worker.pages() == {"b1": 6}

    async def one(item):
        response = await item.page.goto(site(f"/{item.key}?header=Set-Cookie:k{item.key}=1;Max-Age=999"))
        raise_for_status(response)
        async with asyncio.timeout(60):
            await together.wait()
        return await item.page.title()

    await run(scrape, alone_link)
    assert sorted(bytes(message.result) for message in alone_link.of(ItemDone)) == [b'"/%d"' % n for n in range(6)]
    assert {message.target for message in alone_link.of(ItemDone)} == {"127.0.0.1"}
    (started,) = alone_link.of(BrowserStarted)
    assert (started.browser, started.engine) == ("b1", "chromium")
    assert started.driver_pid is not None
    assert alone_link.of(BrowserStopped) == [BrowserStopped("b1", "close")]
    assert alone_link.of(Goodbye) == [Goodbye("complete")]
    await until(lambda: not exists(started.pid) and not exists(started.driver_pid))
    assert any("k" in cookie for _, cookie in site.seen)


async def test_cookies_and_storage_are_kept_when_the_browser_is_replaced_between_items(site, alone_link, kind):
    ready, go_on = asyncio.Event(), asyncio.Event()
    values = []

    async def scrape(worker):
        async with asyncio.TaskGroup() as tasks:
            processing = tasks.create_task(worker.process(["1", "2"], one))
            await ready.wait()
            recycling = tasks.create_task(worker.recycle(BrowserRecycle("b1", "memory", 20.0)))
            while not worker._browser._changing.locked():
                await asyncio.sleep(0)
            assert not recycling.done()
            go_on.set()
            await recycling
            assert list(worker.pages()) == ["b2"]
            await worker.recycle(BrowserRecycle("b1", "memory", 20.0))  # gone already: nothing to do
            await processing

    async def one(item):
        await item.page.goto(site(f"/{item.key}?header=Set-Cookie:session=s;Max-Age=999"))
        if item.key == "1":
            await item.page.evaluate("localStorage.setItem('a', 'kept')")
            ready.set()
            await go_on.wait()
        values.append(await item.page.evaluate("localStorage.getItem('a')"))

    await run(scrape, alone_link)
    assert values == ["kept", "kept"]
    assert ("/2", "session=s") in site.seen
    assert failures(alone_link) == []
    told = [m for m in alone_link.said if isinstance(m, BrowserStarted | BrowserStopped)]
    assert [(m.browser, getattr(m, "reason", "started")) for m in told] == [
        ("b1", "started"),
        ("b1", "recycle"),
        ("b2", "started"),
        ("b2", "close"),
    ]
    assert told[0].driver_pid != told[2].driver_pid


@pytest.mark.parametrize(("victim", "signature"), [("pid", "browser-died"), ("driver_pid", "driver-died")])
async def test_a_death_under_the_item_is_infrastructure_and_the_next_one_gets_a_new_browser(
    alone_link, victim, signature, kind
):
    async def scrape(worker):
        await worker.process(["a"], one)

    async def one(item):
        if len(alone_link.of(BrowserStarted)) == 1:
            os.kill(getattr(alone_link.of(BrowserStarted)[0], victim), signal.SIGKILL)
            await forever(item.page)
        return await item.page.evaluate("1 + 1")

    await run(scrape, alone_link)
    ((key, kind, seen),) = failures(alone_link)
    assert (key, kind) == ("a", "infrastructure")
    assert seen in ("browser-died", "driver-died")  # a driver takes its browser along, and either end may be seen first
    assert seen == signature or victim == "driver_pid"
    assert [bytes(message.result) for message in alone_link.of(ItemDone)] == [b"2"]
    assert alone_link.of(BrowserStopped) == [BrowserStopped("b1", "crash"), BrowserStopped("b2", "close")]


async def test_what_a_killed_driver_leaves_is_removed_while_the_worker_goes_on(alone_link, own_tmp, kind):
    left = {}

    async def scrape(worker):
        await worker.process(["a"], one)

    async def one(item):
        first = alone_link.of(BrowserStarted)[0]
        if len(alone_link.of(BrowserStarted)) == 1:
            left["files"] = set(own_tmp.iterdir())
            assert any(own_tmp.glob("*/playwright_chromiumdev_profile-*"))
            os.kill(first.pid, signal.SIGSTOP)  # it can't see that the driver is gone
            os.kill(first.driver_pid, signal.SIGKILL)
            left["killed"] = asyncio.get_running_loop().time()
            await forever(item.page)
        await until(lambda: not exists(first.pid) and not left["files"] & set(own_tmp.iterdir()))
        left["seconds"] = asyncio.get_running_loop().time() - left["killed"]

    await run(scrape, alone_link)
    assert len(alone_link.of(ItemDone)) == 1
    assert left["seconds"] < 30, "2 s on a machine that has nothing else to do"
    assert list(own_tmp.iterdir()) == []


async def test_a_crashed_page_is_infrastructure_and_spares_its_neighbour(site, alone_link, kind):
    crashed = asyncio.Event()

    async def scrape(worker):
        await worker.process(["bad", "good"], one, concurrency=2)

    async def one(item):
        if item.key == "bad" and not crashed.is_set():
            try:
                await item.page.goto("chrome://crash")
                await forever(item.page)
            finally:
                crashed.set()
        await item.page.goto(site("/x"))
        await crashed.wait()
        return await item.page.title()

    await run(scrape, alone_link)
    assert failures(alone_link) == [("bad", "infrastructure", "page-crashed")]
    assert len(alone_link.of(ItemDone)) == 2
    assert len(alone_link.of(BrowserStarted)) == 1


async def test_a_document_s_status_explains_the_failure(site, alone_link, kind):
    paths = {
        "empty": "/?status=429&empty=1&header=Retry-After:%200",
        "selector": "/?status=404",
        "raised": "/?status=410",
        "error": "/?status=503",
        "absent": "/?status=404",
    }

    async def scrape(worker):
        await worker.process(list(paths), one)

    async def one(item):
        if item.attempt > 1 or failures(alone_link).count((item.key, "blocked", "http-429")):
            return
        response = await item.page.goto(site(paths[item.key]))
        if item.key == "selector":
            await item.page.click("#score", timeout=50)
        if item.key == "raised" or (item.key == "empty" and kind == "chromium-headless-shell"):
            raise_for_status(response)  # `goto` raises by itself for an empty error page in the full one alone
        if item.key == "absent":
            raise_for_status(response, allow=[404])
        if item.key == "error":
            raise ValueError("no score")

    await run(scrape, alone_link)
    assert sorted(failures(alone_link)) == [
        ("empty", "blocked", "http-429"),
        ("error", "transient", "http-503"),
        ("raised", "permanent", "http-410"),
        ("selector", "permanent", "http-404"),
    ]
    assert "absent" in {message.key for message in alone_link.of(ItemDone)}
    (blocked,) = [message.failure for message in alone_link.of(ItemFailed) if message.key == "empty"]
    assert (blocked.status, blocked.retry_after) == (429, 0.0)


async def test_the_browser_of_a_worker_s_own(site, alone_link):
    async def scrape(worker):
        async with worker.browser() as browser:
            page = await browser.new_page()
            await page.goto(site("/own"))
            assert await page.title() == "/own"
            await page.close()
        assert await worker.browser() is browser

    await run(scrape, alone_link)
    assert len(alone_link.of(BrowserStarted)) == 1


async def test_a_browser_that_is_not_there_ends_the_worker_and_gives_the_item_back(alone_link, monkeypatch):
    monkeypatch.setenv("SCRAPER_WORKER_CHROMIUM", "/nowhere/chromium")

    async def one(item):
        raise AssertionError("never reached")

    async def scrape(worker):
        await worker.process(["a"], one)

    with pytest.raises(BrowserUnavailable, match="/nowhere/chromium"):
        await run(scrape, alone_link)
    assert [message.key for message in alone_link.of(ItemRelease)] == ["a"]
    assert alone_link.of(ItemFailed) == []


async def test_a_browser_that_hangs_is_killed_and_the_item_tried_again(alone_link, monkeypatch):
    monkeypatch.setattr("scraper_worker.browsers.closing.CLOSE_TIMEOUT", 0.2)
    monkeypatch.setattr("scraper_worker.browsers.closing.TARGET_TIMEOUT", 0.2)

    async def scrape(worker):
        await worker.process(["a"], one)

    async def one(item):
        if len(alone_link.of(BrowserStarted)) == 1:
            os.kill(alone_link.of(BrowserStarted)[0].pid, signal.SIGSTOP)
            raise ValueError("the page does not answer")
        return await item.page.evaluate("1 + 1")

    await run(scrape, alone_link)
    assert len(alone_link.of(ItemDone)) == 1
    assert alone_link.of(BrowserStopped) == [BrowserStopped("b1", "crash"), BrowserStopped("b2", "close")]
    await until(lambda: not exists(alone_link.of(BrowserStarted)[0].pid))


async def test_a_browser_killed_while_its_replacement_waits_is_replaced_all_the_same(alone_link):
    ready = asyncio.Event()

    async def scrape(worker):
        async with asyncio.TaskGroup() as tasks:
            processing = tasks.create_task(worker.process(["a"], one))
            await ready.wait()
            recycling = tasks.create_task(worker.recycle(BrowserRecycle("b1", "memory", 20.0)))
            while not worker._browser._changing.locked():
                await asyncio.sleep(0)
            os.killpg(alone_link.of(BrowserStarted)[0].pid, signal.SIGKILL)
            await recycling
            assert list(worker.pages()) == ["b2"]
            await processing

    async def one(item):
        if not ready.is_set():
            ready.set()
            await forever(item.page)

    await run(scrape, alone_link)
    assert failures(alone_link) == [("a", "infrastructure", "browser-died")]
    assert len(alone_link.of(ItemDone)) == 1
