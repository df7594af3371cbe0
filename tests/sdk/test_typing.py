"""What the SDK's public names are to a type checker: mypy and pyright read this file, in strict mode.

The functions below are never called. A line that must not pass bears an ignore, and an ignore that is not needed is an
error by itself.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_type

import pytest
from playwright.async_api import Browser, Page, Response

import scraper_worker
from scraper_worker import (
    BlockedError,
    BrowserUnavailable,
    CallError,
    Failure,
    InfrastructureError,
    Item,
    ItemError,
    LoginFailed,
    PermanentError,
    Refused,
    RetryPolicy,
    SessionExpired,
    SetupError,
    StateMismatch,
    SupervisorLost,
    ThreadItem,
    TransientError,
    UsageError,
    Worker,
    WorkerError,
    classify,
    raise_for_status,
    retry,
    run,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def scrape(item: Item) -> dict[str, str]:
    return {"key": item.key}


async def of_many() -> AsyncIterator[str]:
    yield "a"


# ---- Worker


async def a_worker(worker: Worker) -> None:
    assert_type(worker.name, str)
    assert_type(worker.group, str)
    assert_type(worker.index, int)
    assert_type(worker.count, int)
    assert_type(worker.run, int)
    assert_type(worker.draining, bool)
    worker.name = "other"  # type: ignore[misc]  # it is the supervisor's to say
    async with worker.browser() as browser:
        assert_type(browser, Browser)
    assert_type(await worker.browser(), Browser)
    await worker.report(ValueError("no login"), target="site.example")


async def process_takes_entries_of_every_kind(worker: Worker) -> None:
    assert_type(await worker.process(["a", 1], scrape), None)
    await worker.process("a", scrape)
    await worker.process(None, scrape)
    await worker.process(range(9), scrape, concurrency=4, browser=False)
    await worker.process(of_many(), scrape, launch={"headless": True}, context={"locale": "en-GB"})
    await worker.process([{"key": "a", "data": {"n": 1}}], scrape)
    await worker.process([1.5], scrape)  # type: ignore[list-item]  # no key


async def process_takes_an_async_function_of_an_item(worker: Worker) -> None:
    def not_async(item: Item) -> str:
        return item.key

    def in_a_thread(item: ThreadItem) -> str:
        return item.key

    async def log_in(page: Page) -> None:
        await page.goto("u")

    async def of_a_key(key: str) -> str:
        return key

    await worker.process(["a"], not_async)  # type: ignore[arg-type]  # in a thread it is given a ThreadItem
    await worker.process(["a"], in_a_thread, browser=False)
    await worker.process(["a"], scrape, offer="always")
    await worker.process(["a"], scrape, login=log_in)
    await worker.process(["a"], scrape, keep_session=True)
    await worker.process(["a"], scrape, login=scrape)  # type: ignore[arg-type]  # it takes a page
    await worker.process(["a"], scrape, offer="never")  # type: ignore[arg-type]
    await worker.process(["a"], of_a_key)  # type: ignore[arg-type]
    await worker.process(["a"], scrape, 4)  # type: ignore[call-arg]  # by name only
    await worker.process(["a"])  # type: ignore[call-arg]


async def the_state(worker: Worker) -> None:
    assert_type(await worker.checkpoint.save({"cursor": 1}), int)
    assert_type(await worker.checkpoint.load(), dict[str, Any] | None)
    worker.checkpoint.schema("cursor", 2)
    await worker.checkpoint.save([1])  # type: ignore[arg-type]  # a state is an object

    @worker.checkpoint.migration("cursor", 1)
    def onward(state: dict[str, Any]) -> dict[str, Any]:
        return state

    assert_type(onward({}), dict[str, Any])


async def a_program() -> None:
    assert_type(await run(a_worker), None)
    await run(scrape)  # type: ignore[arg-type]  # it takes an item, not a worker


# ---- Item


async def an_item(item: Item) -> None:
    assert_type(item.key, str)
    assert_type(item.target, str | None)
    assert_type(item.attempt, int)
    assert_type(item.page, Page)
    assert_type(await item.offer(["b", {"key": "c"}]), None)
    await item.offer(1.5)  # type: ignore[arg-type]
    assert_type(item.cancelled, bool)
    assert_type(await item.progress("at it", done=1, total=2.5), None)
    assert_type(await item.attach("page.html", b""), None)
    await item.attach("page.html", 1)  # type: ignore[arg-type]
    item.page = None  # type: ignore[misc,assignment]  # the SDK's to open and close


def an_item_in_a_thread(item: ThreadItem) -> None:
    assert_type(item.offer(["b"]), None)
    assert_type(item.progress(done=1), None)
    assert_type(item.attach("page.html", "text"), None)


# ---- retry


async def fetch(url: str, *, tries: int = 1) -> bytes:
    return url.encode() * tries


@retry
async def plain(url: str) -> int:
    return len(url)


@retry(policy=RetryPolicy(max_attempts=3, jitter="none"))
async def patient(url: str) -> float:
    return float(len(url))


class Site:
    @retry
    async def visit(self, path: str) -> int:
        return len(path)


async def a_step_keeps_its_arguments_and_its_result(page: Page) -> None:
    assert_type(await retry(fetch)("u", tries=2), bytes)
    assert_type(await retry(fetch, policy=RetryPolicy())("u"), bytes)
    assert_type(await retry(lambda: page.goto("u")), Response | None)
    assert_type(await plain("u"), int)
    assert_type(await patient("u"), float)
    await retry(fetch)(1)  # type: ignore[arg-type]
    await plain()  # type: ignore[call-arg]
    retry(b"not a function")  # type: ignore[call-overload]
    RetryPolicy(3)  # type: ignore[call-arg]  # by name only
    RetryPolicy(jitter="some")  # type: ignore[arg-type]


async def a_step_that_is_a_method(site: Site) -> None:
    assert_type(await site.visit("p"), int)
    await site.visit(1)  # type: ignore[arg-type]


# ---- failures


def the_kinds_of_errors() -> None:
    kinds: list[type[ItemError]] = [SessionExpired, BlockedError, InfrastructureError, PermanentError, TransientError]
    others: list[type[WorkerError]] = [
        BrowserUnavailable, CallError, ItemError, Refused, LoginFailed, SetupError, StateMismatch, SupervisorLost,
        UsageError,
    ]  # fmt: skip
    kinds.append(UsageError)  # type: ignore[arg-type]  # it says nothing of an item
    others.append(ValueError)  # type: ignore[arg-type]


def an_error_says_how(response: Response | None) -> None:
    error = BlockedError("slow down", signature="limited", status=429, retry_after=2.5)
    assert_type(error.signature, str | None)
    assert_type(error.status, int | None)
    assert_type(error.retry_after, float | None)
    TransientError("gone", "limited")  # type: ignore[call-arg]  # by name only
    assert_type(raise_for_status(response), None)
    raise_for_status(response, allow=[404])
    raise_for_status(response, [404])  # type: ignore[call-arg]  # by name only
    assert_type(CallError(-32000, "busy").code, int)
    assert_type(CallError(-32000, "busy").data, object)


def a_failure() -> None:
    failure = classify(ValueError("x"), status=500)
    assert_type(failure, Failure)
    assert_type(failure.kind, Literal["transient", "permanent", "blocked", "infrastructure"])
    assert_type(failure.signature, str)
    failure.status = 1  # type: ignore[misc]  # frozen


@pytest.mark.parametrize("name", scraper_worker.__all__)
def test_every_public_name_is_used_above(name: str) -> None:
    tree = ast.parse(Path(__file__).read_text())
    assert name in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
