"""Keys in all their forms, and the batches that they are sent in."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scraper_worker import UsageError
from scraper_worker.offers import MAX_BATCH, MAX_BATCH_BYTES, as_entries, as_offer, offer_all
from scraper_worker.protocol import Offer


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

    async with asyncio.timeout(5):
        await offer_all(slow(), send)


async def test_what_the_source_raises_comes_through():
    async def broken():
        yield "a"
        raise RuntimeError("listing failed")

    with pytest.raises(ExceptionGroup) as caught:
        await sent(broken())
    assert caught.group_contains(RuntimeError, match="listing failed")


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
        ({"key": "k", "priority": "high"}, "can't be offered"),
        ({"key": "k", "data": object()}, "can't be offered"),
    ],
)
def test_what_is_no_entry(entry, problem):
    with pytest.raises(UsageError, match=problem):
        as_offer(entry)


def test_what_is_no_source():
    with pytest.raises(UsageError, match="float"):
        as_entries(1.5)
