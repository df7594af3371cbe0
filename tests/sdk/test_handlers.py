"""Whatever a handler does is its own item's outcome: the others are worked on, and the worker goes on."""

from __future__ import annotations

import asyncio

import pytest
from msgspec import Raw

from scraper_worker import BlockedError, PermanentError, WorkerError, run
from scraper_worker.errors import CallError
from scraper_worker.item import Attempt
from scraper_worker.protocol import BAD_PARAMS, Failure, Goodbye, Granted, ItemDone, ItemFailed, ItemRelease


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Nobody waits long for more once the source has failed."""
    monkeypatch.setattr("scraper_worker.worker.LAST_WAIT", 0.05)


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


class Unreadable(Exception):
    def __str__(self):
        raise SystemExit(1)


async def cancels_itself():
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


async def awaits_a_cancelled_task():
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(asyncio.sleep(60))
        task.cancel()
        await task


async def raises(error):
    raise error


async def in_a_group(error):
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(raises(error))
        tasks.create_task(asyncio.sleep(60))


async def returns(value):
    return value


async def runs_a_loop():
    asyncio.run(asyncio.sleep(0))


def circle():
    value = []
    value.append(value)
    return value


BAD = {
    "surrogate": (lambda: raises(PermanentError("cut \ud83d")), "permanent", "PermanentError: cut \ufffd"),
    "unreadable": (lambda: raises(Unreadable()), "transient", "Unreadable"),
    "exit": (lambda: raises(SystemExit(0)), "transient", "SystemExit: N"),
    "interrupt": (lambda: raises(KeyboardInterrupt()), "transient", "KeyboardInterrupt"),
    "generator": (lambda: raises(GeneratorExit()), "transient", "GeneratorExit"),
    "base group": (
        lambda: raises(BaseExceptionGroup("g", [SystemExit(), PermanentError("x")])),
        "permanent",
        "PermanentError: x",
    ),
    "cancel": (cancels_itself, "transient", "CancelledError"),
    "cancelled": (awaits_a_cancelled_task, "transient", "CancelledError"),
    "404 in a group": (lambda: in_a_group(PermanentError("gone", status=404)), "permanent", "http-404"),
    "429 in a group": (lambda: in_a_group(BlockedError("slow", retry_after=0.0)), "blocked", "BlockedError: slow"),
    "blocking": (runs_a_loop, "permanent", "blocking-call"),
    "circle": (lambda: returns(circle()), "permanent", "result-cycle"),
    "deep": (lambda: returns(nested(5000)), "permanent", "result-too-deep"),
    "object": (lambda: returns(object()), "permanent", "result-not-json"),
}


@pytest.mark.filterwarnings("ignore:coroutine 'sleep' was never awaited")
@pytest.mark.parametrize("concurrency", [1, 3])
async def test_nothing_that_a_handler_does_ends_its_worker(alone_link, concurrency):
    async def handle(item):
        return await (BAD[item.key][0]() if item.key in BAD else returns(item.key))

    async def scrape(worker):
        await worker.process([*BAD, "good 1", "good 2"], handle, browser=False, concurrency=concurrency)

    await run(scrape, alone_link)
    seen = {one.key: (one.failure.kind, one.failure.signature) for one in alone_link.of(ItemFailed)}
    assert seen == {key: (kind, signature) for key, (_, kind, signature) in BAD.items()}
    assert sorted(one.key for one in alone_link.of(ItemDone)) == ["good 1", "good 2"]
    assert alone_link.of(Goodbye) == [Goodbye("complete")]
    assert alone_link.of(ItemRelease) == []


async def test_a_result_that_json_can_hold_is_kept(alone_link):
    async def handle(item):
        return {"text": "cut \ud83d", "rate": float("nan"), "raw": b"ab", "set": {1}}

    async def scrape(worker):
        await worker.process(["a"], handle, browser=False)

    await run(scrape, alone_link)
    (done,) = alone_link.of(ItemDone)
    assert bytes(done.result).decode() == '{"text":"cut \ufffd","rate":null,"raw":"YWI=","set":[1]}'


async def test_a_bad_offer_among_good_ones_fails_nothing(alone_link, caplog):
    bad = ["x" * 5000, "a\nb", None, {"kee": 1}, {"key": "k", "data": object()}, "cut \ud83d"]

    async def handle(item):
        if item.key == "list":
            await item.offer([f"good {number}" for number in range(51)] + bad)

    async def scrape(worker):
        await worker.process(["list", "bad\n"], handle, browser=False)

    await run(scrape, alone_link)
    assert alone_link.of(ItemFailed) == []
    assert len(alone_link.of(ItemDone)) == 52
    told = [record.getMessage() for record in caplog.records if "was not queued" in record.getMessage()]
    assert len(told) == 1 + len(bad)
    assert any("unknown 'kee'" in line for line in told)


# ---- the source ------------------------------------------------------------------------------------------------------


async def test_what_a_source_gave_before_it_failed_is_worked_on_and_the_worker_fails(alone_link):
    async def keys():
        for number in range(6):
            yield str(number)
        raise RuntimeError("the listing broke")

    async def handle(item):
        return None

    async def scrape(worker):
        await worker.process(keys(), handle, browser=False)

    with pytest.raises(RuntimeError, match="the listing broke"):
        await run(scrape, alone_link)
    assert len(alone_link.of(ItemDone)) == 6
    assert alone_link.of(Goodbye) == []


@pytest.mark.parametrize("raised", [SystemExit, asyncio.CancelledError, GeneratorExit])
async def test_a_source_that_ends_as_if_it_were_told_to_has_failed(alone_link, raised):
    async def keys():
        yield "a"
        raise raised

    async def handle(item):
        return None

    async def scrape(worker):
        await worker.process(keys(), handle, browser=False, concurrency=2)

    with pytest.raises(WorkerError, match=raised.__name__):
        await run(scrape, alone_link)
    assert len(alone_link.of(ItemDone)) == 1


async def test_a_sync_source_that_fails_after_five_keys_has_them_worked_on(alone_link):
    def keys():
        yield from "12345"
        raise OSError("the file is gone")

    async def handle(item):
        return None

    async def scrape(worker):
        await worker.process(keys(), handle, browser=False)

    with pytest.raises(OSError, match="the file is gone"):
        await run(scrape, alone_link)
    assert len(alone_link.of(ItemDone)) == 5


async def test_a_drain_leaves_a_source_that_would_go_on_for_ever(alone_link):
    async def keys():
        number = 0
        while True:
            yield str(number)
            number += 1

    async def handle(item):
        worker_of[0].drain()

    worker_of = []

    async def scrape(worker):
        worker_of.append(worker)
        await worker.process(keys(), handle, browser=False)

    async with asyncio.timeout(10):
        await run(scrape, alone_link)
    assert len(alone_link.of(ItemDone)) == 1
    assert alone_link.of(Goodbye) == [Goodbye("drained")]


async def test_a_failure_that_is_refused_ends_no_worker(alone_link):
    answer = alone_link.call
    refused = []

    async def call(message):
        if isinstance(message, ItemDone) and not refused:
            refused.append(message)
            raise CallError(BAD_PARAMS, "not like this")
        return await answer(message)

    alone_link.call = call

    async def handle(item):
        return None

    async def scrape(worker):
        await worker.process(["a", "b"], handle, browser=False)

    await run(scrape, alone_link)
    assert [one.failure.signature for one in alone_link.of(ItemFailed)] == ["result-refused"]
    assert len(alone_link.of(ItemDone)) == 1


async def test_a_handler_that_swallows_the_order_to_end_is_told_again(monkeypatch):
    monkeypatch.setattr("scraper_worker.item.TOLD_AGAIN", 0.01)
    begun, swallowed = asyncio.Event(), []

    async def handle():
        begun.set()
        for number in range(3):
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                swallowed.append(number)
        return "too late"

    attempt = Attempt(Granted("k", 1, None, Raw(b"null"), 1))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(attempt.run(handle))
        await begun.wait()
        attempt.cut(Failure("transient", "system", "item-timeout", "item_timeout of 1 s"))
    assert running.result() == ("too late", None)
    assert (swallowed, attempt.failure.signature) == ([0, 1, 2], "item-timeout")


async def test_a_cut_handler_cleans_up_and_its_neighbour_goes_on(alone_link):
    cleaned, in_hand = [], asyncio.Event()

    async def handle(item):
        if item.key == "cut":
            in_hand.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                cleaned.append(item.key)
        async with asyncio.timeout(10):
            while not cleaned:
                await asyncio.sleep(0)

    async def scrape(worker):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.process(["cut", "other"], handle, browser=False, concurrency=2))
            await in_hand.wait()
            for attempt in list(worker._attempts.values()):
                if attempt.granted.key == "cut":
                    attempt.drop()
            async with asyncio.timeout(10):
                while not alone_link.of(ItemDone):
                    await asyncio.sleep(0)
            worker.drain()

    await run(scrape, alone_link)
    assert cleaned == ["cut"]
    assert [one.key for one in alone_link.of(ItemDone)] == ["other"]
    assert alone_link.of(ItemFailed) == []
