"""`process` without a browser: semantics over a queue in memory, orders over a scripted supervisor."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from scraper_worker import BlockedError, PermanentError, TransientError, UsageError, run
from scraper_worker.connection.client import Client
from scraper_worker.protocol import Goodbye, ItemDone, ItemFailed, ItemsOffer


def failures(link):
    return [(message.key, message.failure.kind, message.failure.signature) for message in link.of(ItemFailed)]


def scrape(handler, keys, **options):
    async def function(worker):
        await worker.process(keys, handler, browser=False, **options)

    return function


async def test_every_item_is_done_once_with_its_result(alone_link):
    async def handle(item):
        return {"key": item.key, "data": item.data}

    keys = ["a", {"key": "b", "data": {"x": 1}, "target": "h"}, 3]
    await run(scrape(handle, keys, concurrency=2), alone_link)
    results = {message.key: bytes(message.result) for message in alone_link.of(ItemDone)}
    assert results == {
        "a": b'{"key":"a","data":null}',
        "b": b'{"key":"b","data":{"x":1}}',
        "3": b'{"key":"3","data":null}',
    }
    assert all(message.seconds is not None for message in alone_link.of(ItemDone))
    assert alone_link.of(Goodbye) == [Goodbye("complete")]


async def test_what_is_found_on_the_way_goes_with_the_item_s_completion(alone_link):
    async def handle(item):
        if item.key == "list":
            await item.offer(["a", "b", "a"])
            await item.offer("c")

    await run(scrape(handle, ["list"]), alone_link)
    assert sorted(message.key for message in alone_link.of(ItemDone)) == ["a", "b", "c", "list"]
    assert alone_link.of(ItemDone)[0].offers == ["a", "b", "c"]
    assert len(alone_link.of(ItemsOffer)) == 1


async def test_failures_are_classified_and_retried(alone_link):
    outcomes = {
        "flaky": [ValueError("x"), None],
        "gone": [PermanentError("gone", status=404)],
        "typo": [NameError("x")],
        "never": [TransientError("1"), TransientError("2"), TransientError("3")],
        "blocked": [BlockedError("hold on", retry_after=0.001), None],
        "odd": [None],
    }

    async def handle(item):
        outcome = outcomes[item.key].pop(0)
        if outcome is not None:
            raise outcome
        return object() if item.key == "odd" else None

    await run(scrape(handle, list(outcomes)), alone_link)
    assert sorted(message.key for message in alone_link.of(ItemDone)) == ["blocked", "flaky"]
    assert sorted(failures(alone_link)) == [
        ("blocked", "blocked", "BlockedError: hold on"),
        ("flaky", "transient", "ValueError: x"),
        ("gone", "permanent", "http-404"),
        *[("never", "transient", "TransientError: N")] * 3,
        ("odd", "permanent", "result-not-json"),
        ("typo", "permanent", "NameError: x"),
    ]
    trace = next(message.failure.traceback for message in alone_link.of(ItemFailed) if message.key == "flaky")
    assert "in handle" in trace
    assert "worker.py" not in trace.replace("test_worker.py", "")


async def test_items_are_worked_on_side_by_side(alone_link):
    together = asyncio.Barrier(3)

    async def handle(item):
        async with asyncio.timeout(60):
            await together.wait()

    await run(scrape(handle, [str(number) for number in range(6)], concurrency=3), alone_link)
    assert len(alone_link.of(ItemDone)) == 6


async def test_items_are_pulled_while_keys_are_still_offered(alone_link):
    first_done = asyncio.Event()

    async def keys():
        yield "first"
        async with asyncio.timeout(60):
            await first_done.wait()
        yield "second"

    async def handle(item):
        first_done.set()

    await run(scrape(handle, keys()), alone_link)
    assert [message.key for message in alone_link.of(ItemDone)] == ["first", "second"]


async def test_a_second_call_names_the_remedy(alone_link):
    async def handle(item):
        return None

    async def function(worker):
        await worker.process(["a"], handle, browser=False)
        await worker.process(["b"], handle, browser=False)

    with pytest.raises(UsageError, match=r"item\.data.*two groups"):
        await run(function, alone_link)


async def test_misuse_is_explained(alone_link):
    async def handle(item):
        return None

    async def function(worker):
        def sync(item):
            return None

        with pytest.raises(UsageError, match="async def sync"):
            await worker.process([], sync)
        with pytest.raises(UsageError, match="concurrency"):
            await worker.process([], handle, concurrency=0)
        with pytest.raises(UsageError, match="float"):
            await worker.process(1.5, handle, browser=False)

    await run(function, alone_link)


async def test_item_page_needs_a_browser(alone_link):
    async def handle(item):
        return item.page

    await run(scrape(handle, ["a"]), alone_link)
    assert failures(alone_link) == [
        ("a", "permanent", "UsageError: item.page needs a browser: call process() without browser=False")
    ]


async def test_a_drain_finishes_what_is_in_hand(alone_link):
    in_hand, go_on = asyncio.Event(), asyncio.Event()
    seen = []

    async def handle(item):
        seen.append(item.key)
        in_hand.set()
        await go_on.wait()
        return "finished"

    async def function(worker):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.process(["a", "b"], handle, browser=False))
            await in_hand.wait()
            worker.drain()
            assert worker.draining
            go_on.set()

    await run(function, alone_link)
    assert seen == ["a"]
    assert [bytes(message.result) for message in alone_link.of(ItemDone)] == [b'"finished"']
    assert alone_link.of(Goodbye) == [Goodbye("drained")]


@contextlib.asynccontextmanager
async def supervised(fake, function):
    """A worker running `function` against the scripted supervisor, which has welcomed it."""
    client = Client(fake.path, "g-0", "t")
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run(function, client))
        peer = await fake.accept()
        await peer.welcome()
        yield peer, running


async def granted(peer, key="a", claim=7):
    peer.answer(
        await peer.expect("item.next"), {"key": key, "claim": claim, "target": None, "data": None, "attempt": 1}
    )


async def forever(item):
    await asyncio.Event().wait()


async def test_no_item_is_asked_for_before_the_first_offer_counts(fake):
    async def handle(item):
        return 1

    async with supervised(fake, scrape(handle, ["a"])) as (peer, running):
        offer = await peer.expect("items.offer")
        assert offer.params == {"items": ["a"]}
        assert peer._later == []
        peer.answer(offer, {"added": 1, "known": 0})
        await granted(peer)
        done = await peer.expect("item.done")
        assert (done["key"], done["claim"], done["result"]) == ("a", 7, 1)
        peer.answer(done, {"seq": 1, "duplicate": False})
        peer.answer(await peer.expect("item.next"), {"end": "complete"})
        said = await peer.expect("goodbye")
        assert said["reason"] == "complete"
        peer.answer(said, {})
        await running


async def finish(peer):
    """Let the worker go."""
    peer.answer(await peer.expect("item.next"), {"end": "complete"})
    peer.answer(await peer.expect("goodbye"), {})


async def test_an_item_is_cancelled_by_order(fake):
    async with supervised(fake, scrape(forever, [])) as (peer, _):
        await granted(peer)
        peer.tell("item.cancel", {"key": "a", "claim": 7, "reason": "item_timeout of 5 s", "deadline": 5})
        failed = await peer.expect("item.failed")
        assert failed["failure"] == {
            "kind": "transient",
            "category": "system",
            "signature": "item-timeout",
            "message": "item_timeout of 5 s",
        }
        peer.answer(failed, {"action": "final", "attempt": 1, "delay": None, "reason": "r"})
        await finish(peer)


async def test_an_item_taken_back_over_a_reconnect_is_dropped_in_silence(fake):
    stopped = asyncio.Event()

    async def handle(item):
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with supervised(fake, scrape(handle, [])) as (peer, _):
        await granted(peer)
        await peer.expect("heartbeat")
        peer.close()
        peer = await fake.accept()
        hello = await peer.welcome([])
        assert hello["in_flight"] == [{"key": "a", "claim": 7}]
        async with asyncio.timeout(60):
            await stopped.wait()
        await finish(peer)
        assert not [message for message in peer._later if message.method in ("item.failed", "item.done")]


async def test_an_outcome_that_does_not_count_is_no_crash(fake):
    async def handle(item):
        return 1

    async with supervised(fake, scrape(handle, [])) as (peer, _):
        await granted(peer)
        peer.refuse(await peer.expect("item.done"), -32007)
        await finish(peer)


async def test_a_result_that_is_refused_fails_its_item(fake):
    async def handle(item):
        return "x" * 100

    async with supervised(fake, scrape(handle, [])) as (peer, _):
        await granted(peer)
        peer.refuse(await peer.expect("item.done"), -32004, "too large")
        failed = await peer.expect("item.failed")
        assert failed["failure"]["kind"] == "permanent"
        peer.answer(failed, {"action": "final", "attempt": 1, "delay": None, "reason": "r"})
        await finish(peer)


async def test_a_drain_by_order_ends_with_drained(fake):
    async with supervised(fake, scrape(forever, [])) as (peer, running):
        await peer.expect("item.next")
        peer.tell("drain", {"reason": "stop", "deadline": 30})
        said = await peer.expect("goodbye")
        assert said["reason"] == "drained"
        peer.answer(said, {})
        await running


async def test_what_the_function_raises_gives_the_items_back(fake):
    in_hand = asyncio.Event()

    async def handle(item):
        in_hand.set()
        await asyncio.Event().wait()

    async def broken():
        await in_hand.wait()
        raise SystemError("and so the worker ends")

    async def function(worker):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.process([], handle, browser=False))
            tasks.create_task(broken())

    async def live():
        with pytest.raises(SystemError):
            await run(function, Client(fake.path, "g-0", "t"))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(live())
        peer = await fake.accept()
        await peer.welcome()
        await granted(peer)
        released = await peer.expect("item.release")
        assert (released["claim"], released["reason"]) == (7, "the worker ends: ExceptionGroup")
        peer.answer(released, {})


async def test_a_drain_does_not_wait_for_the_first_offer(fake):
    async with supervised(fake, scrape(forever, ["a"])) as (peer, running):
        await peer.expect("items.offer")
        peer.tell("drain", {"reason": "stop", "deadline": 30})
        said = await peer.expect("goodbye")
        assert said["reason"] == "drained"
        peer.answer(said, {})
        await running
