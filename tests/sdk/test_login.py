"""A worker's session without a browser started: restored, saved, refused; what a login must be."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from msgspec import Raw

from scraper_worker import SetupError, run
from scraper_worker.browsers.browser import SupervisedBrowser
from scraper_worker.errors import CallError
from scraper_worker.item import Attempt
from scraper_worker.login import session as session_module
from scraper_worker.login.session import SCHEMA, Session
from scraper_worker.protocol import (
    NO_CHECKPOINT,
    SESSION_SLOT,
    TOO_LARGE,
    CheckpointSave,
    Granted,
    RestartDelays,
)

COOKIE = {"name": "session", "value": "1", "domain": "127.0.0.1", "path": "/"}
STATE = {"cookies": [COOKIE], "origins": []}


async def log_in(page):
    raise AssertionError(f"nobody logs in here, on {page}")


def a_session(link, login=log_in):
    browser = SupervisedBrowser(link.notify)
    return Session(login, browser, link, RestartDelays), browser


def saved(link):
    return [message for message in link.of(CheckpointSave) if message.slot == SESSION_SLOT]


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def test_what_was_saved_is_restored_and_saved_again_only_when_it_changed(alone_link, monkeypatch):
    await alone_link.save(CheckpointSave(SCHEMA, Raw(msgspec.json.encode(STATE)), SESSION_SLOT))
    session, browser = a_session(alone_link)
    await session.restore()
    assert browser.kept.cookies == [COOKIE]
    attempt = Attempt(Granted("x", 1, None, Raw(b"null"), 1))
    assert await session.ready(attempt) is None
    await session.close()
    assert len(saved(alone_link)) == 1
    browser.kept.load({"cookies": [], "origins": []})
    monkeypatch.setattr(session_module, "SAVE_EVERY", 0.01)
    async with asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(session.keep())
        await until(lambda: len(saved(alone_link)) == 2)
        await asyncio.sleep(0.05)
        keeping.cancel()
    assert len(saved(alone_link)) == 2
    assert bytes(saved(alone_link)[-1].state) == b'{"cookies":[],"origins":[]}'


@pytest.mark.parametrize(
    ("schema", "state"),
    [("session/9", STATE), (SCHEMA, {"cookies": 5}), (SCHEMA, {"origins": [{"origin": 1}]})],
)
async def test_a_session_that_can_not_be_read_is_none(alone_link, caplog, schema, state):
    await alone_link.save(CheckpointSave(schema, Raw(msgspec.json.encode(state)), SESSION_SLOT))
    session, browser = a_session(alone_link)
    await session.restore()
    assert "is not used" in caplog.text
    assert not browser.kept.cookies
    held = Attempt(Granted("x", 1, None, Raw(b"null"), 1, held=True))
    assert "held" in str(await session.ready(held)), "it would have to log in"


async def test_a_slot_that_is_damaged_is_no_session(alone_link, caplog):
    async def load(generation=None, slot=None):
        raise CallError(NO_CHECKPOINT, f"all of {slot} is damaged")

    alone_link.load = load
    session, _ = a_session(alone_link)
    await session.restore()
    assert "is lost" in caplog.text


async def test_a_session_that_is_too_large_is_told_and_scraping_goes_on(alone_link, caplog):
    async def save(message):
        raise CallError(TOO_LARGE, f"{message.slot} is over max_state")

    alone_link.save = save
    session, _ = a_session(alone_link)
    await session.save()
    assert "is not saved" in caplog.text


async def test_a_session_that_is_over_is_not_saved_at_the_end(alone_link):
    session, browser = a_session(alone_link)
    browser.kept.load(STATE)
    await session.close()
    assert not saved(alone_link)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"login": print, "browser": True}, "async function"),
        ({"login": log_in, "browser": False}, "browser=False"),
        ({"keep_session": True, "browser": False}, "browser=False"),
    ],
)
async def test_a_login_that_can_not_be_meant_is_a_wrong_set_up(alone_link, options, message):
    async def handle(item):
        return item.key

    async def scrape(worker):
        await worker.process(["a"], handle, **options)

    with pytest.raises(SetupError, match=message):
        await run(scrape, alone_link)
