"""Cookies, local storage and IndexedDB over a change of browser: all hosts on loopback, one site for all of them."""

from __future__ import annotations

import asyncio
import json
import logging
import time

import pytest

from scraper_worker import run
from scraper_worker.browsers.capture import SWEEP_TIMEOUT
from scraper_worker.browsers.storage import MAX_ORIGINS, Kept, origin_of
from scraper_worker.protocol import BrowserRecycle, BrowserStarted, ItemDone, ItemFailed


async def serve(reader, writer):
    """A site that gives each visitor a cookie, and keeps storage by script."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            host = next(line[6:] for line in head.decode().split("\r\n") if line.lower().startswith("host: "))
            script = "localStorage.token || localStorage.setItem('token', 'of ' + location.host)"
            body = f"<title>{host}</title><script>{script}</script>"
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nSet-Cookie: visited=1; Max-Age=9999\r\n"
                + f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


@pytest.fixture
async def port():
    server = await asyncio.start_server(serve, "0.0.0.0", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture(autouse=True)
def own_tmp(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def host(number):
    return f"127.0.{number // 200 + 1}.{number % 200 + 1}"


async def recycle(worker, name="b1"):
    """A planned replacement; the seconds that it took to begin with."""
    await worker.recycle(BrowserRecycle(name, "memory", 20.0))


# ---- without a browser


def test_what_is_kept_is_json_that_loads_again():
    kept = Kept()
    kept.set_cookies([{"name": "a", "value": "1", "domain": "x", "path": "/"}])
    kept.put("http://x", {"origin": "http://x", "localStorage": [{"name": "k", "value": "v"}]}, "mark")
    kept.put("http://empty", {"origin": "http://empty", "localStorage": []}, "mark")
    again = Kept()
    again.load(kept.contents())
    assert again.contents() == kept.contents()
    assert again.origins == ["http://x"]
    assert again.revision > 0


def test_an_origin_without_storage_changes_nothing_and_one_that_was_cleared_goes():
    kept = Kept()
    kept.put("http://x", {"origin": "http://x", "localStorage": []}, "mark")
    assert (kept.revision, kept.mark("http://x")) == (0, None)
    kept.put("http://x", {"origin": "http://x", "localStorage": [{"name": "k", "value": "v"}]}, "mark")
    kept.put("http://x", {"origin": "http://x", "localStorage": []}, "other")
    assert (kept.revision, kept.origins) == (2, [])


def test_a_revision_tells_whether_there_is_something_to_save():
    kept = Kept()
    kept.set_cookies([{"name": "a"}])
    before = kept.revision
    kept.set_cookies([{"name": "a"}])
    assert kept.revision == before
    kept.set_cookies([{"name": "b"}])
    assert kept.revision > before


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ({"cookies": {}}, "cookies"),
        ({"cookies": ["a"]}, "cookies"),
        ({"origins": [{"origin": "x"}]}, "origins"),
        ({"origins": [{"origin": "http://x", "localStorage": 1}]}, "localStorage"),
    ],
)
def test_what_is_no_state_is_refused_and_changes_nothing(state, what):
    kept = Kept()
    kept.set_cookies([{"name": "a"}])
    with pytest.raises(ValueError, match=what):
        kept.load(state)
    assert kept.cookies == [{"name": "a"}]


def test_of_too_many_origins_the_least_recently_seen_go_and_are_named():
    kept = Kept()
    storage = {"localStorage": [{"name": "k", "value": "v"}]}
    for number in range(MAX_ORIGINS):
        assert kept.put(f"http://h{number}", {"origin": f"http://h{number}", **storage}, None) == []
    kept.seen("http://h0")
    assert kept.put("http://new", {"origin": "http://new", **storage}, None) == ["http://h1"]
    big = {"origin": "http://big", "localStorage": [{"name": "k", "value": "v" * 5_000_000}]}
    kept.put("http://big", big, None)
    assert len(kept.put("http://big2", {**big, "origin": "http://big2"}, None)) > 900


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://a.example/x?y", "https://a.example"),
        ("https://a.example:443/", "https://a.example"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        ("about:blank", None),
        ("http://a:99999/", None),
        (None, None),
    ],
)
def test_the_origin_of_a_url(url, origin):
    assert origin_of(url) == origin


def test_origins_near_a_host():
    kept = Kept()
    for name in ("https://example.com", "https://auth.example.com", "https://ample.com"):
        kept.put(name, {"origin": name, "localStorage": [{"name": "k", "value": "v"}]}, None)
    assert kept.near("example.com") == ["https://auth.example.com", "https://example.com"]
    assert kept.near("auth.example.com") == ["https://auth.example.com", "https://example.com"]


# ---- with one


KEEP = """async () => {
  const opening = indexedDB.open('auth', 3);
  opening.onupgradeneeded = () => {
    opening.result.createObjectStore('users', {keyPath: 'id'}).createIndex('by name', 'name', {unique: true});
    opening.result.createObjectStore('plain');
  };
  const db = await new Promise(resolve => { opening.onsuccess = () => resolve(opening.result); });
  const transaction = db.transaction(['users', 'plain'], 'readwrite');
  transaction.objectStore('users').put({id: 1, name: 'Ann', since: new Date(86400000), tags: new Set(['a']), big: 5n});
  transaction.objectStore('plain').put({token: 'x', bytes: new Uint8Array([1, 2, 255])}, 'session');
  await new Promise(resolve => { transaction.oncomplete = resolve; });
  db.close();
}"""
LOOK = """async () => {
  const opening = indexedDB.open('auth');
  const db = await new Promise(resolve => { opening.onsuccess = () => resolve(opening.result); });
  const done = request => new Promise(resolve => { request.onsuccess = () => resolve(request.result); });
  const users = db.transaction('users').objectStore('users');
  const user = await done(users.index('by name').get('Ann'));
  const session = await done(db.transaction('plain').objectStore('plain').get('session'));
  return [db.version, users.keyPath, user.id, user.since.getTime(), user.tags.has('a'), String(user.big), session.token,
    [...session.bytes], session.bytes instanceof Uint8Array];
}"""


@pytest.mark.browser
@pytest.mark.slow
async def test_a_login_on_another_host_and_a_page_that_hangs_cost_nothing_that_is_known(port, alone_link):
    """IndexedDB and local storage of a host that was only passed through; the cookies whatever a page does."""
    ready, go_on, seen = asyncio.Event(), asyncio.Event(), {}

    async def scrape(worker):
        async with asyncio.TaskGroup() as tasks:
            processing = tasks.create_task(worker.process(["login", "use"], one))
            await ready.wait()
            recycling = tasks.create_task(recycle(worker))
            while not worker._browser._changing.locked():
                await asyncio.sleep(0)
            go_on.set()
            begin = time.monotonic()
            await recycling
            seen["seconds"] = time.monotonic() - begin
            await processing

    async def one(item):
        if item.key == "login":
            context = item.page.context
            hung = await context.new_page()
            await hung.goto(f"http://{host(3)}:{port}/")
            await hung.evaluate("void setTimeout(() => { for (;;); })")
            await item.page.goto(f"http://{host(1)}:{port}/")
            await item.page.evaluate(KEEP)
            await item.page.goto(f"http://{host(2)}:{port}/")
            ready.set()
            await go_on.wait()
            return
        for number in (1, 2, 3):
            await item.page.goto(f"http://{host(number)}:{port}/none")
            seen[number] = await item.page.evaluate("[localStorage.token, document.cookie]")
        await item.page.goto(f"http://{host(1)}:{port}/")
        seen["database"] = await item.page.evaluate(LOOK)

    await run(scrape, alone_link)
    assert alone_link.of(ItemFailed) == []
    assert len(alone_link.of(BrowserStarted)) == 2
    assert seen["database"] == [3, "id", 1, 86400000, True, "5", "x", [1, 2, 255], True]
    for number in (1, 2, 3):
        assert seen[number][1] == "visited=1"
    assert seen[1][0] == f"of {host(1)}:{port}"


@pytest.mark.browser
@pytest.mark.slow
async def test_an_item_does_not_wait_for_the_storage_of_the_one_before_it(port, alone_link, monkeypatch):
    monkeypatch.setattr("scraper_worker.browsers.capture.READ_TIMEOUT", 3600.0)
    monkeypatch.setattr("scraper_worker.browsers.browser.TIDY_TIMEOUT", 3600.0)
    dialogs, pages = asyncio.Queue(), []

    async def one(item):
        pages.append(item.page)
        if item.key == "first":
            await item.page.goto(f"http://{host(1)}:{port}/")
            item.page.on("dialog", dialogs.put_nowait)
            await item.page.evaluate("void setTimeout(() => alert('no script runs now'))")
            return
        assert not pages[0].is_closed()
        await (await dialogs.get()).dismiss()

    async def scrape(worker):
        async with asyncio.timeout(60):
            await worker.process(["first", "second"], one)
        assert worker._browser.kept.origins == [f"http://{host(1)}:{port}"]

    await run(scrape, alone_link)
    assert len(alone_link.of(ItemDone)) == 2
    assert alone_link.of(ItemFailed) == []


@pytest.mark.browser
@pytest.mark.slow
async def test_what_is_known_is_given_out_as_json_and_taken_back(port, alone_link):
    """As a login is kept over the worker's life: captured in one, loaded in the next."""
    kept = {}

    async def first(worker):
        async def one(item):
            await item.page.goto(f"http://{host(1)}:{port}/")
            kept.update(await worker._browser.capture())

        await worker.process(["a"], one)

    await run(first, alone_link)
    assert [cookie["name"] for cookie in kept["cookies"]] == ["visited"]
    assert [origin["localStorage"] for origin in kept["origins"]] == [
        [{"name": "token", "value": f"of {host(1)}:{port}"}]
    ]
    kept["origins"][0]["localStorage"][0]["value"] = "of the first life"
    seen = []

    async def second(worker):
        async def one(item):
            await item.page.goto(item.data)
            seen.append(await item.page.evaluate("[localStorage.token, document.cookie]"))

        worker._browser.kept.load(json.loads(json.dumps(kept)))
        await worker.process([{"key": "b", "data": f"http://{host(1)}:{port}/"}], one)

    link = type(alone_link)()
    await run(second, link)
    assert link.of(ItemFailed) == []
    assert seen == [["of the first life", "visited=1"]]


@pytest.mark.browser
@pytest.mark.slow
async def test_a_crawl_of_150_hosts_no_item_waits_and_the_login_survives(port, alone_link, caplog):
    """Cookies of all hosts, storage of all origins; nothing between two items takes as long as a look at them."""
    hosts = 150
    between, kept = [], {}
    last_end = 0.0

    async def scrape(worker):
        keys = [f"http://{host(number)}:{port}/{number}" for number in range(hosts)]
        async with asyncio.TaskGroup() as tasks:
            processing = tasks.create_task(worker.process([*keys, {"key": "again", "target": host(7)}], one))
            await recycled.wait()
            begin = time.monotonic()
            await recycle(worker)
            kept["seconds"] = time.monotonic() - begin
            go_on.set()
            await processing

    recycled, go_on = asyncio.Event(), asyncio.Event()

    async def one(item):
        nonlocal last_end
        if item.key == "again":
            return await read(item.page)
        if last_end:
            between.append(time.monotonic() - last_end)
        await item.page.goto(item.key)
        if item.key.endswith(f"/{hosts - 1}"):
            recycled.set()
        last_end = time.monotonic()
        return None

    async def read(page):
        for number in (7, 8, hosts - 1):
            await page.goto(f"http://{host(number)}:{port}/")
            kept[number] = await page.evaluate("[localStorage.getItem('token'), document.cookie]")

    gate = alone_link.call

    async def call(message):
        if type(message).__name__ == "ItemNext" and recycled.is_set():
            await go_on.wait()
        return await gate(message)

    alone_link.call = call
    with caplog.at_level(logging.WARNING, "scraper_worker"):
        await run(scrape, alone_link)
    assert alone_link.of(ItemFailed) == []
    assert len(alone_link.of(ItemDone)) == hosts + 1
    assert len(alone_link.of(BrowserStarted)) == 2
    for number in (7, 8, hosts - 1):
        assert kept[number] == [f"of {host(number)}:{port}", "visited=1"]
    between.sort()
    assert between[len(between) * 99 // 100] < 1.0, between[-10:]
    assert "not" not in caplog.text, caplog.text
    assert kept["seconds"] < SWEEP_TIMEOUT + 20
