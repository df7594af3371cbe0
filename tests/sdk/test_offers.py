"""Keys in all their forms, and the batches that they are sent in."""

from __future__ import annotations

import asyncio
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scraper_worker import UsageError
from scraper_worker.offers import MAX_BATCH, MAX_BATCH_BYTES, as_entries, as_offer, offer_all
from scraper_worker.protocol import BadEntry, Offer


async def sent(entries):
    batches = []

    async def send(batch, more):
        batches.append((batch, more))

    await offer_all(entries, send)
    return batches


@given(st.integers(0, 3500), st.booleans())
def test_every_key_is_sent_once_in_order_and_only_the_last_batch_ends_it(count, asynchronous):
    keys = [str(number) for number in range(count)]

    async def one_by_one():
        for key in keys:
            yield key

    batches = asyncio.run(sent(one_by_one() if asynchronous else keys))
    assert [key for batch, _ in batches for key in batch] == keys
    assert all(len(batch) <= MAX_BATCH for batch, _ in batches)
    assert [more for _, more in batches] == [True] * (len(batches) - 1) + [False] * bool(batches)


async def test_batches_are_bounded_by_bytes():
    data = "x" * (MAX_BATCH_BYTES // 3)
    batches = await sent([{"key": str(number), "data": data} for number in range(5)])
    assert [len(batch) for batch, _ in batches] == [2, 2, 1]


async def test_a_slow_source_has_each_key_offered_at_once():
    seen = asyncio.Queue()

    async def slow():
        yield "a"
        assert (await seen.get(), await seen.get()) == ([], ["a"])  # waits until the key before has been offered
        yield "b"

    async def send(batch, more):
        seen.put_nowait(batch)

    async with asyncio.timeout(60):
        await offer_all(slow(), send)


async def test_what_the_source_raises_comes_through():
    async def broken():
        yield "a"
        raise RuntimeError("listing failed")

    with pytest.raises(RuntimeError, match="listing failed"):
        await sent(broken())


def test_the_forms_of_an_entry():
    assert as_offer("k") == "k"
    assert as_offer(17) == "17"
    offer = as_offer({"key": 17, "target": "h", "data": {"a": 1}, "priority": 2})
    assert (offer.key, offer.target, msgspec.json.decode(offer.data), offer.priority) == ("17", "h", {"a": 1}, 2)
    assert as_offer(Offer("k")).key == "k"
    assert as_entries("abc") == ["abc"]
    assert as_entries({"key": "k"}) == [{"key": "k"}]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("", "1 to 4096 bytes"),
        ("a\n", "control"),
        (True, "bool"),
        (None, "NoneType"),
        ({"target": "h"}, "no key"),
        ({"key": "k", "prio": 1}, "unknown 'prio'"),
        ({"key": "k", "priority": "high"}, "Expected `int`"),
        ({"key": "k", "data": object()}, "the data is not JSON"),
    ],
)
def test_what_is_no_entry_is_sent_as_such(entry, problem):
    bad = as_offer(entry)
    assert isinstance(bad, BadEntry)
    assert problem in bad.reason


def test_what_is_no_source():
    with pytest.raises(UsageError, match="float"):
        as_entries(1.5)


async def test_a_sync_source_that_blocks_has_each_key_offered_at_once():
    go_on = threading.Semaphore(0)
    seen = asyncio.Queue()

    def slow():
        yield "a"
        assert go_on.acquire(timeout=10)
        yield "b"
        assert go_on.acquire(timeout=10)

    async def send(batch, more):
        seen.put_nowait((batch, more))

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(offer_all(slow(), send))
        assert [await seen.get(), await seen.get()] == [([], True), (["a"], True)]
        go_on.release()
        assert await seen.get() == (["b"], True)
        go_on.release()
        assert await seen.get() == ([], False)


async def test_what_a_source_gave_before_it_failed_is_offered_and_it_is_not_at_its_end():
    batches = []

    def broken():
        yield from ("a", "b")
        raise RuntimeError("listing failed")

    async def send(batch, more):
        batches.append((batch, more))

    with pytest.raises(RuntimeError, match="listing failed"):
        await offer_all(broken(), send)
    assert [key for batch, _ in batches for key in batch] == ["a", "b"]
    assert all(more for _, more in batches)


@given(st.integers(0, 3500))
def test_of_a_sync_source_every_key_is_sent_once_in_order(count):
    keys = [str(number) for number in range(count)]
    batches = asyncio.run(sent(iter(keys)))
    assert [key for batch, _ in batches for key in batch] == keys
    assert all(len(batch) <= MAX_BATCH for batch, _ in batches)
    assert [more for _, more in batches] == [True] * (len(batches) - 1) + [False]


async def test_a_source_that_nobody_wants_any_more_is_left():
    async def send(batch, more):
        if batch:
            raise RuntimeError("no more")

    for source in (iter(map(str, range(100_000))), aiter_of(100_000)):
        with pytest.raises(RuntimeError, match="no more"):
            await offer_all(source, send)
    async with asyncio.timeout(10):
        while any(thread.name == "source of keys" for thread in threading.enumerate()):
            await asyncio.sleep(0.001)


async def aiter_of(count):
    for number in range(count):
        yield str(number)
