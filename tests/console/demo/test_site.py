"""The demo's website: its pages, each way it can misbehave, and its access log as the truth about both."""

import http.client
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest
from playwright.async_api import Browser, BrowserContext, Error, async_playwright

from scraper_supervisor.console.demo.site import Access, DemoSite, Knobs, fate_of, match_of

MIB = 1024 * 1024


def get(url: str, timeout: float = 10.0) -> tuple[int, str]:
    """Status and text of a page, whatever the status."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def seen(site: DemoSite) -> list[tuple[str, int | None, str, int]]:
    return [(access.path, access.status, access.kind, access.visit) for access in site.accesses()]


# ---- pages -----------------------------------------------------------------------------------------------------------


def test_the_lists_lead_to_every_list_and_to_every_match_once() -> None:
    with DemoSite(Knobs(matches=53, per_page=25)) as site:
        first = get(f"{site.url}/fixtures")[1]
        lists = re.findall(r'class="page" href="([^"]+)"', first)
        assert lists == ["/fixtures?page=1", "/fixtures?page=2", "/fixtures?page=3"]
        matches = [
            path for page in lists for path in re.findall(r'class="match" href="([^"]+)"', get(site.url + page)[1])
        ]
        assert matches == [f"/match/{number}" for number in range(1, 54)]
        assert get(f"{site.url}/")[1] == first


def test_a_match_page_tells_what_the_site_knows() -> None:
    with DemoSite() as site:
        status, text = get(f"{site.url}/match/17")
        match = site.match(17)
        assert status == 200
        for name in ("date", "home", "away", "score"):
            assert f'class="{name}">{getattr(match, name)}<' in text
        assert match.home != match.away


@pytest.mark.parametrize("path", ["/match/0", "/match/31", "/match/x", "/match/", "/fixtures?page=9", "/other", "/%00"])
def test_there_is_nothing_else(path: str) -> None:
    with DemoSite(Knobs(matches=30)) as site:
        assert get(site.url + path)[0] == 404
        assert seen(site) == [(path, 404, "missing", 1)]


def test_two_sites_of_one_seed_are_alike_and_of_another_not() -> None:
    assert [match_of(1, n) for n in range(1, 50)] == [match_of(1, n) for n in range(1, 50)]
    assert [match_of(1, n) for n in range(1, 50)] != [match_of(2, n) for n in range(1, 50)]


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_an_error_is_500() -> None:
    with DemoSite(Knobs(error=1)) as site:
        assert get(f"{site.url}/match/1")[0] == 500
        assert get(f"{site.url}/fixtures")[0] == 500


def test_a_limited_visit_is_429_with_retry_after() -> None:
    with DemoSite(Knobs(limited=1, retry_after=7)) as site:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{site.url}/match/1", timeout=60)
        with caught.value as error:
            assert (error.code, error.headers["Retry-After"]) == (429, "7")


def test_a_reset_is_a_reset() -> None:
    with DemoSite(Knobs(reset=1)) as site:
        with pytest.raises(ConnectionResetError):
            get(f"{site.url}/match/1")
        assert seen(site) == [("/match/1", None, "reset", 1)]


def test_a_hang_lasts_until_the_site_has_had_enough() -> None:
    with DemoSite(Knobs(hang=1, hang_limit=0.05)) as site:
        with pytest.raises(http.client.RemoteDisconnected):
            get(f"{site.url}/match/1")
        assert seen(site) == [("/match/1", None, "hang", 1)]


def test_a_hang_ends_when_the_client_goes() -> None:
    with DemoSite(Knobs(hang=1, hang_limit=60)) as site:
        with pytest.raises(TimeoutError):
            get(f"{site.url}/match/1", timeout=0.1)
        site.close()  # waits for what is under way, which is nothing any more


def test_closing_ends_hangs_delays_and_idle_connections() -> None:
    with DemoSite(Knobs(hang=1, hang_limit=60)) as site:
        outcome: list[Exception] = []

        def visit() -> None:
            try:
                get(f"{site.url}/match/1", timeout=60)
            except Exception as error:  # noqa: BLE001 - whatever it is, the assertion below shows it
                outcome.append(error)

        with socket.create_connection(("127.0.0.1", site.port)) as idle:
            visitor = threading.Thread(target=visit)
            visitor.start()
            wait_for_access(site)
            site.close()
            visitor.join(60)
            assert idle.recv(1) == b""
        assert isinstance(outcome[0], http.client.RemoteDisconnected)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", site.port))


def wait_for_access(site: DemoSite) -> None:
    waiting = threading.Event()
    while not site.accesses():
        waiting.wait(0.001)


def test_a_client_that_hangs_up_leaves_no_trace_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with DemoSite(Knobs(latency=(0.01, 0.02))) as site:
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", site.port)) as rude:
                rude.sendall(b"GET /match/1 HTTP/1.1\r\n\r\n")
                rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert get(f"{site.url}/match/1")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_a_page_takes_its_latency() -> None:
    with DemoSite(Knobs(latency=(0.1, 0.1))) as site, pytest.raises(TimeoutError):
        get(f"{site.url}/match/1", timeout=0.05)


# ---- determinism -----------------------------------------------------------------------------------------------------

TROUBLE = Knobs(error=0.2, limited=0.1, reset=0.1, crash=0.1, hang=0.05, missing=0.05, leak=0.2)


def test_every_kind_of_trouble_comes_as_often_as_asked() -> None:
    count = 4000
    fates = [fate_of(TROUBLE, f"/match/{number}", 1) for number in range(1, count + 1)]
    for kind, share in [("error", 0.2), ("limited", 0.1), ("reset", 0.1), ("hang", 0.05), ("crash", 0.1)]:
        assert fates.count(kind) / count == pytest.approx(share * 0.95, abs=0.02)  # of those that are not missing
    assert fates.count("missing") / count == pytest.approx(0.05, abs=0.02)


def test_a_list_is_never_missing_leaky_or_crashing() -> None:
    knobs = Knobs(crash=1, missing=1, leak=1)
    assert {fate_of(knobs, f"/fixtures?page={number}", 1) for number in range(1, 50)} == {"ok"}


def test_whoever_tries_again_succeeds_but_for_missing_pages() -> None:
    with DemoSite(Knobs(error=0.9, missing=0.3, faulty_visits=2, matches=40)) as site:
        last = {}
        for number in range(1, 41):
            for _ in range(3):
                last[number] = get(f"{site.url}/match/{number}")[0]
        assert {number for number, status in last.items() if status == 404} == site.missing() != set()
        assert {status for number, status in last.items() if number not in site.missing()} == {200}


def test_a_second_site_gives_the_same_trouble_at_the_same_visits() -> None:
    def visit(site: DemoSite) -> list[tuple[str, int | None, str, int]]:
        for number in [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6]:
            get(f"{site.url}/match/{number}")
        return seen(site)

    knobs = Knobs(error=0.4, limited=0.2, missing=0.1)
    with DemoSite(knobs) as one, DemoSite(knobs) as two:
        assert visit(one) == visit(two)


def test_an_outage_is_a_change_of_knobs() -> None:
    with DemoSite() as site:
        assert get(f"{site.url}/match/1")[0] == 200
        site.knobs = Knobs(error=1, faulty_visits=1000)
        assert get(f"{site.url}/match/1")[0] == 500
        site.knobs = Knobs()
        assert get(f"{site.url}/match/1")[0] == 200


def test_a_reset_comes_twice() -> None:
    knobs = Knobs(reset=0.3, faulty_visits=50)
    fates = [fate_of(knobs, "/match/1", visit) for visit in range(1, 51)]
    runs = re.findall("r+", "".join("r" if fate == "reset" else "." for fate in fates))
    assert {len(run) for run in runs} >= {2}
    assert min(map(len, runs)) == 2


@pytest.mark.parametrize(
    ("knobs", "complaint"),
    [
        ({"error": 1.5}, "error: a share is 0 to 1"),
        ({"missing": -0.1}, "missing: a share is 0 to 1"),
        ({"error": 0.6, "hang": 0.6}, "together at most 1"),
        ({"latency": (2.0, 1.0)}, "latency"),
        ({"per_page": 0}, "per_page"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(knobs: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Knobs(**knobs)


# ---- access log and command line -------------------------------------------------------------------------------------


def test_the_log_in_the_file_is_the_log_in_memory(tmp_path: Path) -> None:
    log = tmp_path / "access.jsonl"
    with DemoSite(Knobs(error=0.5), access_log=log) as site:
        for number in range(1, 9):
            get(f"{site.url}/match/{number}")
        written = [msgspec.json.decode(line, type=Access) for line in log.read_bytes().splitlines()]
        assert written == site.accesses()
        assert {access.method for access in written} == {"GET"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", written[0].time)


def test_a_log_that_cannot_be_opened_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        DemoSite(access_log=tmp_path / "nowhere" / "access.jsonl")


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "scraper_supervisor.console.demo.site", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_alone_it_prints_its_address_and_ends_at_a_signal(end: signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "access.jsonl"
    with running("--matches", "3", "--latency", "0", "0.01", "--error", "1", "--access-log", str(log)) as site:
        assert site.stdout is not None
        assert select.select([site.stdout], [], [], 30)[0]
        url = site.stdout.readline().strip()
        assert get(f"{url}/match/3")[0] == 500
        site.send_signal(end)
        assert site.communicate(timeout=60) == ("", "")
        assert site.returncode == 0
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.slow
def test_alone_it_says_what_is_wrong_with_a_knob() -> None:
    with running("--error", "2") as site:
        assert "error: a share is 0 to 1, not 2.0" in site.communicate(timeout=60)[1]
        assert site.returncode == 2


# ---- with a real browser ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    installed = map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])
    own = os.environ.get("SCRAPER_WORKER_CHROMIUM") or next(filter(None, installed), None)  # None: Playwright's own
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=own, args=arguments)
        try:
            yield browser
        finally:
            await browser.close()


async def pss(browser: Browser) -> int:
    """Memory of the browser's whole session, in bytes."""
    cdp = await browser.new_browser_cdp_session()
    processes = (await cdp.send("SystemInfo.getProcessInfo"))["processInfo"]
    await cdp.detach()
    main = next(process["id"] for process in processes if process["type"] == "browser")
    total = 0
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.getsid(int(entry)) == main:
                fields = Path(f"/proc/{entry}/smaps_rollup").read_text().split()
                total += int(fields[fields.index("Pss:") + 1]) * 1024
        except OSError:
            continue  # it ended meanwhile
    return total


async def read_score(context: BrowserContext, url: str) -> str:
    """As a scraper does it: a fresh page, closed at once."""
    page = await context.new_page()
    try:
        await page.goto(url)
        return await page.inner_text(".score", timeout=60_000)
    finally:
        await page.close()


@pytest.mark.browser
@pytest.mark.slow
async def test_what_a_page_leaks_stays_in_its_browser_until_the_context_ends() -> None:
    pages, leaked = 6, 6 * 32 * MIB
    with DemoSite(Knobs(leak=1, leak_mib=32)) as site:
        async with chromium() as browser:
            context = await browser.new_context()
            await read_score(context, f"{site.url}/match/99")  # a first page makes a browser larger in any case
            before = await pss(browser)
            for number in range(1, pages + 1):
                assert await read_score(context, f"{site.url}/match/{number}") == site.match(number).score
            grown = await pss(browser) - before
            assert grown > 0.7 * leaked
            await context.close()
            for _ in range(100):
                if await pss(browser) < before + 0.3 * leaked:
                    break
            else:
                pytest.fail("the memory did not come back with the end of the context")


@pytest.mark.browser
@pytest.mark.slow
async def test_a_crashing_page_crashes_its_renderer_and_no_more() -> None:
    with DemoSite(Knobs(crash=1, faulty_visits=1)) as site:
        async with chromium() as browser:
            context = await browser.new_context()
            page = await context.new_page()
            async with page.expect_event("crash", timeout=60_000):
                await page.goto(f"{site.url}/match/1", wait_until="commit")
            await page.close()
            assert await read_score(context, f"{site.url}/match/1") == site.match(1).score


@pytest.mark.browser
@pytest.mark.slow
async def test_a_reset_gets_past_what_a_browser_repeats_by_itself() -> None:
    knobs = Knobs(reset=0.5, faulty_visits=2)
    paths = [f"/match/{number}" for number in range(1, 13)]
    with DemoSite(knobs) as site:
        async with chromium() as browser:
            context = await browser.new_context()
            for path in paths:
                if fate_of(knobs, path, 1) == "reset":
                    with pytest.raises(Error, match=r"ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE"):
                        await read_score(context, site.url + path)
                else:
                    await read_score(context, site.url + path)
        assert {access.kind for access in site.accesses()} == {"ok", "reset"}
