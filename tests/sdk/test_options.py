"""Options for browser and context: wrong ones are told at once, by name; right ones hold from the first page on."""

from __future__ import annotations

import asyncio
import json
import logging
import os

import pytest

from scraper_worker import BrowserUnavailable, UsageError, run
from scraper_worker.browsers.options import is_wrong, take_storage, telling
from scraper_worker.browsers.storage import Kept
from scraper_worker.errors import BrowserUnusable
from scraper_worker.protocol import BrowserStarted, ItemDone, ItemFailed, ItemRelease

BOX = """BrowserType.launch: Target page, context or browser has been closed
Browser logs:

╔══════════════════════════════════════════╗
║ Looks like you launched a headed browser without having a XServer running. ║
║ Set either 'headless: true' or use 'xvfb-run <your-playwright-app>'. ║
║                                          ║
║ <3 Playwright Team                       ║
╚══════════════════════════════════════════╝
Call log:
  - <launching> /usr/bin/chromium --disable-field-trial-config
  - <launched> pid=77
  - [pid=77] starting
"""
DIED = """BrowserType.launch: Target page, context or browser has been closed
Browser logs:

<launching> /usr/bin/chromium --no-first-run
<launched> pid=5
[pid=5][err] [5:5:1128/060000.1:ERROR:zygote.cc(1)] Failed to fork
[pid=5] <process did exit: exitCode=1, signal=null>
"""


@pytest.fixture(autouse=True)
def own_tmp(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_the_telling_lines_of_an_error():
    told = telling(Exception(BOX))
    assert told.startswith("Looks like you launched a headed browser without having a XServer running.; Set either")
    assert "<3" not in told
    assert "Target page" not in told
    assert telling(Exception(DIED)) == "Failed to fork"
    assert telling(Exception("Browser.new_context: Invalid URL")) == "Browser.new_context: Invalid URL"
    assert telling(Exception("Target page, context or browser has been closed")).startswith("Target page")
    assert telling(Exception()) == "Exception()"
    assert len(telling(Exception("x" * 5000))) == 400


def test_a_launch_that_merely_failed_is_no_wrong_option():
    from playwright.async_api import Error
    from playwright.async_api import TimeoutError as PlaywrightTimeout

    for merely in (
        PlaywrightTimeout("BrowserType.launch: Timeout 30000ms exceeded."),
        Error(DIED),
        Error("BrowserType.launch: Failed to launch: Error: spawn /usr/bin/chromium EAGAIN"),
        Error("BrowserType.launch: ENOSPC: no space left on device, mkdtemp '/tmp/playwright-artifacts-'"),
        Exception("BrowserType.launch: Connection closed while reading from the driver"),
        TimeoutError(),
    ):
        assert not is_wrong(merely), merely
    for wrong in (
        Error(BOX),
        Error("BrowserType.launch: Failed to launch: Error: spawn /etc/passwd EACCES"),
        Error("BrowserType.launch: args: expected array, got string"),
        Error('BrowserType.launch: Unsupported chromium channel "nosuch"'),
        TypeError("launch() got an unexpected keyword argument"),
    ):
        assert is_wrong(wrong), wrong


def test_a_storage_file_is_taken_and_one_that_is_none_refused(tmp_path):
    kept = Kept()
    file = tmp_path / "state.json"
    state = {"cookies": [{"name": "a", "value": "1", "domain": "x", "path": "/"}], "origins": []}
    file.write_text(json.dumps(state))
    options = {"storage_state": str(file), "locale": "en"}
    take_storage(options, kept)
    assert options == {"locale": "en"}
    assert kept.contents() == state
    file.write_text('{"cookies": 1}')
    for bad in (str(file), str(tmp_path / "none.json"), {"origins": "x"}, "\0", 5):
        with pytest.raises(BrowserUnusable, match="storage_state in context="):
            take_storage({"storage_state": bad}, kept)
    assert kept.contents() == state


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"launch": {"useragent": "x"}}, r"launch= has no option 'useragent'"),
        ({"launch": {"user_agent": "x"}}, r"'user_agent' is an option of context=, not of launch="),
        ({"launch": {"args": "--foo"}}, r"args: expected array, got string"),
        ({"launch": {"executable_path": "/nowhere"}}, r"executable doesn't exist at /nowhere"),
        ({"context": {"useragent": "x"}}, r"context= has no option 'useragent'; did you mean 'user_agent'"),
        ({"context": {"viewport": {"width": "a", "height": 1}}}, r"context= is refused: viewport.width: expected"),
        ({"context": {"storage_state": "/nowhere.json"}}, r"/nowhere.json, can't be read: No such file"),
        ({"launch": {"headless": False, "channel": "chromium"}}, r"without having a XServer|needs the full Chromium"),
    ],
)
async def test_wrong_options_are_the_worker_s_set_up_and_are_tried_once(alone_link, options, told, monkeypatch, caplog):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)

    async def one(item):
        raise AssertionError("never reached")

    async def scrape(worker):
        await worker.process(["a"], one, **options)

    with caplog.at_level(logging.WARNING, "scraper_worker"), pytest.raises(BrowserUnusable, match=told) as caught:
        await run(scrape, alone_link)
    assert "\n" not in str(caught.value)
    assert "did not start" not in caplog.text
    assert alone_link.of(ItemFailed) == []
    assert len(alone_link.of(ItemRelease)) <= 1


@pytest.mark.browser
@pytest.mark.slow
async def test_a_launch_that_fails_is_tried_again_and_is_no_set_up(alone_link, monkeypatch, tmp_path):
    monkeypatch.setattr("scraper_worker.browsers.browser.LAUNCH_PAUSE", 0.0)
    tries = tmp_path / "tries"
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\necho x >>{tries}\necho 'no luck today' >&2\nexit 1\n")
    browser.chmod(0o755)

    async def one(item):
        raise AssertionError("never reached")

    async def scrape(worker):
        await worker.process(["a"], one, launch={"executable_path": str(browser)})

    with pytest.raises(BrowserUnavailable, match="no browser after 3 tries: no luck today") as caught:
        await run(scrape, alone_link)
    assert not isinstance(caught.value, BrowserUnusable)
    assert len(tries.read_text().split()) == 3


@pytest.mark.browser
@pytest.mark.slow
async def test_options_hold_from_the_first_item_on_where_a_browser_runs_already(alone_link):
    seen = []

    async def one(item):
        seen.append(await item.page.evaluate("[navigator.userAgent, navigator.language]"))
        cookies = await item.page.context.cookies()
        assert [cookie["name"] for cookie in cookies] == ["before"]

    async def scrape(worker):
        browser = await worker.browser()
        await browser.contexts[0].add_cookies([{"name": "before", "value": "1", "url": "http://127.0.0.1"}])
        await worker.process(["a", "b"], one, context={"user_agent": "mine", "locale": "de-AT"})

    await run(scrape, alone_link)
    assert len(alone_link.of(ItemDone)) == 2, alone_link.of(ItemFailed)
    assert seen == [["mine", "de-AT"]] * 2
    assert len(alone_link.of(BrowserStarted)) == 1


@pytest.mark.browser
@pytest.mark.slow
async def test_a_browser_with_other_options_is_replaced_before_the_first_item_unless_it_is_held(alone_link):
    async def one(item):
        await asyncio.sleep(0)
        return [cookie["name"] for cookie in await item.page.context.cookies()]

    async def scrape(worker):
        async with worker.browser() as browser:
            await browser.contexts[0].add_cookies([{"name": "before", "value": "1", "url": "http://127.0.0.1"}])
            first = alone_link.of(BrowserStarted)[0].pid
            with pytest.raises(UsageError, match=r"outside of `async with worker.browser\(\)`"):
                await worker.process(["x"], one, launch={"args": ["--mute-audio"]})
        worker._processed = False  # that call offered nothing
        await worker.process(["a"], one, launch={"args": ["--mute-audio"]})
        second = alone_link.of(BrowserStarted)[1].pid
        with open(f"/proc/{second}/cmdline") as file:
            assert "--mute-audio" in file.read().split("\0")
        assert not os.path.exists(f"/proc/{first}/fd")

    await run(scrape, alone_link)
    assert [bytes(done.result) for done in alone_link.of(ItemDone)] == [b'["before"]']
    assert len(alone_link.of(BrowserStarted)) == 2
