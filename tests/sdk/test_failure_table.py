"""docs/failures.md row by row: each error produced for real, on loopback, and classified."""

import asyncio
import http.client
import os
import re
import resource
import socket
import ssl
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from time import time
from urllib.parse import quote

import pytest
import pytest_asyncio
from playwright.async_api import async_playwright
from tests.sdk.wild import Wild

from scraper_worker import raise_for_status
from scraper_worker.browsers.executable import choose
from scraper_worker.failures.classify import classify

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROW = re.compile(r"\| (?P<what>[^|]+) \| (?P<kind>\w+) \| (?P<category>\w+) \| `(?P<signature>[^`]+)` \|")
KINDS = ("transient", "permanent", "blocked", "infrastructure")
PAGE = Path(__file__).parents[2] / "docs" / "failures.md"
ROWS = [row.groupdict() for row in map(ROW.fullmatch, PAGE.read_text(encoding="utf-8").splitlines()) if row]
NO_DNS = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"  # nothing leaves this machine
SOON, LATE = 300, 30_000  # ms: for what never comes, and for what comes however busy the machine is


class World:
    """A browser and the server that answers badly."""

    def __init__(self, wild, playwright, browser, closed):
        self.wild, self.playwright, self.browser = wild, playwright, browser
        self.nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"

    @asynccontextmanager
    async def page(self, **options):
        context = await self.browser.new_context(**options)
        page = await context.new_page()
        page.set_default_timeout(LATE)
        try:
            yield page
        finally:
            await context.close()

    async def goto(self, url, *, timeout=LATE, **options):
        async with self.page(**options) as page:
            await page.goto(url, timeout=timeout)

    async def status(self, status, *headers):
        query = f"/?status={status}" + "".join(f"&header={quote(header)}" for header in headers)
        async with self.page() as page:
            raise_for_status(await page.goto(self.wild(query)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory):
    async with Wild() as wild, async_playwright() as playwright:
        closed = socket.socket()  # bound, so that nobody else takes it, and not listened at
        closed.bind(("127.0.0.1", 0))
        await wild.serve_tls(tmp_path_factory.mktemp("tls"))
        executable = choose(playwright.chromium.executable_path, {})
        browser = await playwright.chromium.launch(executable_path=executable, args=[NO_DNS])
        yield World(wild, playwright, browser, closed)
        await browser.close()
        closed.close()


# ---- how each comes about --------------------------------------------------------------------------------------------


async def offline(world):
    async with world.page() as page:
        await page.context.set_offline(True)
        await page.goto(world.wild("/"))


async def blocked(world):
    async with world.page() as page:
        await page.route("**/*", lambda route: route.abort("blockedbyclient"))
        await page.goto(world.wild("/"))


async def navigated(world):
    async with world.page() as page:
        await page.goto(world.wild("/"))
        await page.evaluate("() => { location.reload(); return new Promise(() => {}) }")


async def detached(world):
    async with world.page() as page:
        await page.goto(world.wild("/"))
        frame = page.frames[1]
        await page.evaluate("document.querySelector('iframe').remove()")
        await frame.evaluate("1")


async def crashed(world):
    async with world.page() as page:
        session = await page.context.new_cdp_session(page)
        tasks = asyncio.get_running_loop()
        waiting = tasks.create_task(page.evaluate("new Promise(() => {})"))
        crash = tasks.create_task(session.send("Page.crash"))
        try:
            await waiting
        finally:
            crash.cancel()
            await asyncio.gather(crash, return_exceptions=True)


async def closed(world):
    async with world.page() as page:
        await page.close(reason="any text, net::ERR_FAILED too")
        await page.click("p")


async def missing(world):
    async with world.page() as page:
        await page.click("#none", timeout=SOON)


async def twice(world):
    async with world.page() as page:
        await page.goto(world.wild("/"))
        await page.locator("p").inner_text()


async def unparsed(world):
    async with world.page() as page:
        await page.locator("p[").click()


async def script(world):
    async with world.page() as page:
        await page.evaluate("nope()")


def later():
    return formatdate(time() + 90, usegmt=True)


def fetch(url):
    try:
        urllib.request.urlopen(url, timeout=LATE / 1000).read()
    except urllib.error.HTTPError as error:
        error.close()  # it is an open answer, too
        raise


def plainly(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LATE / 1000)
    try:
        connection.request("GET", path)
        connection.getresponse().read()
    finally:
        connection.close()


def unanswered(port):
    with socket.create_connection(("127.0.0.1", port), timeout=0.1) as one:
        one.recv(1)


def tls_to_plain(port):
    context = ssl.create_default_context()
    one = socket.create_connection(("127.0.0.1", port), timeout=LATE / 1000)
    with context.wrap_socket(one, server_hostname="127.0.0.1", do_handshake_on_connect=False) as wrapped:
        wrapped.do_handshake()


def too_many_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
    held = []
    try:
        while True:
            held.append(os.dup(0))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in held:
            os.close(one)


def url_of(path, timeout=LATE):
    return lambda world: world.goto(world.wild(path), timeout=timeout)


def status(code, *headers):
    return lambda world: world.status(code, *(header() if callable(header) else header for header in headers))


def python(function, *arguments):
    return lambda world: asyncio.to_thread(function, *(one(world) if callable(one) else one for one in arguments))


HOW = {
    "no answer within the timeout": url_of("/silent", SOON),
    "a document that is cut off": url_of("/cut", SOON),
    "a selector that never comes": missing,
    "nobody listens": lambda world: world.goto(world.nobody),
    "closed without an answer": url_of("/close"),
    "the connection is reset": url_of("/reset"),
    "a header that contradicts itself": url_of("/garbage"),
    "a name that DNS does not know": lambda world: world.goto("http://nowhere.test/"),
    "TLS with a port that speaks none": lambda world: world.goto(f"https://127.0.0.1:{world.wild.rude_port}/"),
    "an answer without content (204)": url_of("/?status=204"),
    "a certificate that nobody trusts": lambda world: world.goto(f"https://127.0.0.1:{world.wild.tls_port}/"),
    "redirects without an end": url_of("/loop"),
    "a port that browsers refuse": lambda world: world.goto("http://127.0.0.1:1/"),
    "a file that is not there": lambda world: world.goto("file:///nowhere/at/all"),
    "blocked by the scraper itself": blocked,
    "this machine is offline": offline,
    "the proxy does not listen": lambda world: world.goto("http://nowhere.test/", proxy={"server": world.nobody}),
    "the proxy opens no tunnel": lambda world: world.goto(
        "https://nowhere.test/", proxy={"server": f"http://127.0.0.1:{world.wild.port}"}
    ),
    "a text that is no URL": lambda world: world.goto("nonsense"),
    "a download instead of a page": url_of("/file"),
    "a selector that does not parse": unparsed,
    "a selector that fits twice": twice,
    "a script error in evaluate": script,
    "the page navigated away meanwhile": navigated,
    "the frame was removed meanwhile": detached,
    "the page crashed": crashed,
    "the page is closed": closed,
    "there is no such browser": lambda world: world.playwright.chromium.launch(executable_path="/nowhere/chrome"),
    "the browser ends at its start": lambda world: world.playwright.chromium.launch(executable_path="/bin/false"),
    **{f"HTTP {code}": status(code) for code in (401, 403, 429, 408, 500, 502, 503, 504, 522, 524, 404, 410, 451)},
    "HTTP 429 and Retry-After in seconds": status(429, "Retry-After: 90"),
    "HTTP 429 and Retry-After as a date": status(429, lambda: f"Retry-After: {later()}"),
    "HTTP 503 and Retry-After in seconds": status(503, "Retry-After: 90"),
    "urllib: HTTP 429 and Retry-After as a date": python(
        fetch, lambda world: world.wild(f"/?status=429&header={quote('Retry-After: ' + later())}")
    ),
    "urllib: nobody listens": python(fetch, lambda world: world.nobody),
    "http.client: closed without an answer": python(plainly, lambda world: world.wild.port, "/close"),
    "http.client: a body that is cut off": python(plainly, lambda world: world.wild.port, "/cut"),
    "socket: no answer within the timeout": python(unanswered, lambda world: world.wild.port),
    "socket: a name that is none": python(lambda: socket.getaddrinfo("none", 80, flags=socket.AI_NUMERICHOST)),
    "ssl: a port that speaks none": python(tls_to_plain, lambda world: world.wild.rude_port),
    "no file handles are left": python(too_many_files),
    "a name that the code does not know": python(lambda: nobody_knows_this),  # noqa: F821
    "an attribute of None": python(lambda: None.text),
    "anything else": python(lambda: (_ for _ in ()).throw(ValueError("no score in match 4711"))),
}


def test_the_page_and_the_test_have_the_same_rows():
    assert [row["what"] for row in ROWS] == list(dict.fromkeys(row["what"] for row in ROWS))
    assert {row["what"] for row in ROWS} == set(HOW)
    assert {row["kind"] for row in ROWS} == set(KINDS)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("row", ROWS, ids=[row["what"] for row in ROWS])
async def test_a_real_error_is_what_the_page_says(world, row):
    async def happens():
        await HOW[row["what"]](world)

    with pytest.raises(Exception) as raised:  # noqa: PT011 - which one it is, is what the table says
        async with asyncio.timeout(60):
            await happens()
    failure = classify(raised.value)
    assert (failure.kind, failure.category) == (row["kind"], row["category"]), str(raised.value)
    begin = row["signature"].removesuffix("…")  # what differs from one version of a library to the next is left out
    assert failure.signature == begin or (begin != row["signature"] and failure.signature.startswith(begin))
    if "Retry-After" in row["what"]:
        assert failure.retry_after == pytest.approx(90, abs=2)
    else:
        assert failure.retry_after is None
