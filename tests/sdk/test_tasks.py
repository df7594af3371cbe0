"""A handler that cancels every task it finds ends its own, and nobody else's."""

from __future__ import annotations

import asyncio

import pytest

from scraper_worker import run
from scraper_worker.items.tasks import SDK, OwnedTask, Owner, make_task, owned_by
from scraper_worker.protocol import Goodbye, ItemDone, ItemFailed


async def sleeping(owner):
    with owned_by(owner):
        return OwnedTask(asyncio.sleep(60), loop=asyncio.get_running_loop())


async def cancels(owner, task):
    with owned_by(owner):
        task.cancel()
    await asyncio.wait([task], timeout=0)
    return task.cancelled() or (await asyncio.sleep(0)) or task.cancelled()


A, B = Owner("a"), Owner("b")


@pytest.mark.parametrize(
    ("owner", "asking", "ends"),
    [
        (SDK, SDK, True),
        (SDK, None, True),
        (SDK, A, False),
        (A, A, True),
        (A, B, False),
        (A, SDK, True),
        (None, A, True),
        (None, None, True),
    ],
)
async def test_who_may_cancel_what(owner, asking, ends):
    task = await sleeping(owner)
    assert await cancels(asking, task) is ends
    with owned_by(SDK):
        task.cancel()
    await asyncio.wait([task])


async def test_what_a_handler_begins_is_its_own_with_its_time_outs_and_groups():
    async def handler():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), asyncio.TaskGroup() as tasks:
                tasks.create_task(asyncio.sleep(60))
        task = asyncio.get_running_loop().create_task(asyncio.sleep(60))
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    asyncio.get_running_loop().set_task_factory(make_task)
    with owned_by(A):
        assert await asyncio.get_running_loop().create_task(handler())


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_a_handler_that_cancels_all_tasks_harms_neither_worker_nor_neighbour(alone_link, concurrency):
    root = asyncio.current_task()
    swept = []

    async def handle(item):
        if item.key == "tidy":
            found = asyncio.all_tasks() - {asyncio.current_task(), root}
            swept.extend(task.get_name() for task in found)
            for task in found:
                task.cancel()
            await asyncio.sleep(0.01)
        else:
            inner = asyncio.get_running_loop().create_task(asyncio.sleep(0.02))
            await inner
        return item.key

    async def scrape(worker):
        await worker.process(["a", "tidy", "b", "c"], handle, concurrency=concurrency, browser=False)

    await run(scrape, alone_link)
    assert any(name.startswith("items") for name in swept)
    assert sorted(message.key for message in alone_link.of(ItemDone)) == ["a", "b", "c", "tidy"]
    assert not alone_link.of(ItemFailed)
    assert alone_link.of(Goodbye) == [Goodbye("complete")]
