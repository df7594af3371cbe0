"""A scraper whose handlers do what handlers must not. Which of it, a seed draws for each key and attempt."""

import asyncio
import ctypes
import os
import random
import signal
import sys
import time

from scrapers import note

from scraper_worker import BlockedError, InfrastructureError, PermanentError, TransientError

SEED = os.environ.get("E2E_SEED", "0")
ITEMS = int(os.environ.get("E2E_ITEMS", "40"))
CONCURRENCY = int(os.environ.get("E2E_CONCURRENCY", "1"))
KINDS = os.environ.get("E2E_KINDS", "tame").split()


class Unreadable(Exception):
    """Its text can't be had."""

    def __str__(self):
        raise SystemExit(2)

    @property
    def response(self):
        raise KeyboardInterrupt


async def fails_alone(error):
    raise error


async def leave_exit_behind(item):
    asyncio.get_running_loop().create_task(fails_alone(SystemExit(3)))
    return "left"


async def raises(item):
    errors = [
        ValueError("cut \ud83d"), PermanentError("\ud83d", status="x"), TransientError("x", retry_after="soon"),
        BlockedError("x", retry_after=0.01), InfrastructureError("x"), SystemExit(0), KeyboardInterrupt(),
        GeneratorExit(), asyncio.CancelledError("mine"), StopAsyncIteration(), MemoryError(), RecursionError(),
        Unreadable(),
        ExceptionGroup("g", [ValueError("x"), PermanentError("y")]), BaseExceptionGroup("g", [SystemExit(1)]),
    ]  # fmt: skip
    raise draw(item).choice(errors)


async def raises_in_a_group(item):
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(raises(item))
        tasks.create_task(asyncio.sleep(60))


async def returns(item):
    circle, deep = [], []
    circle.append(circle)
    for _ in range(3000):
        deep = [deep]
    return draw(item).choice(
        [
            circle,
            deep,
            "\ud83d",
            {"\ud83d": float("nan")},
            b"\xff",
            {1, 2},
            object(),
            asyncio.sleep(0),
            2**80,
            {(1,): 1},
        ]
    )


async def cancels(item):
    asyncio.current_task().cancel()
    await asyncio.sleep(60)


async def awaits_what_is_cancelled(item):
    task = asyncio.get_running_loop().create_task(asyncio.sleep(60))
    task.cancel()
    await task


async def swallows(item):
    async with asyncio.timeout(0.05):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "swallowed"


async def stops_the_loop(item):
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.01)
    return "stopped"


async def runs_a_loop(item):
    asyncio.run(asyncio.sleep(0))


async def cancels_everything(item):
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0.01)
    return "alone"


async def blocks_a_little(item):
    time.sleep(0.05)
    return "blocked"


async def offers_rubbish(item):
    await item.offer(["x" * 5000, "a\nb", None, object(), {"kee": 1}, {"key": "\ud83d"}])
    return "offered"


async def good(item):
    await asyncio.sleep(0)
    return item.key


TAME = [
    leave_exit_behind, raises, raises_in_a_group, returns, cancels, awaits_what_is_cancelled, swallows, stops_the_loop,
    runs_a_loop, cancels_everything, blocks_a_little, offers_rubbish, good,
]  # fmt: skip


async def closes_page(item):
    await item.page.close()
    return await draw(item).choice([good(item), item.page.title()])


async def closes_context(item):
    await item.page.context.close()
    return "closed"


async def closes_browser(item):
    await item.page.context.browser.close()
    return "closed"


async def leaks_pages(item):
    await item.page.evaluate("window.open('about:blank') && 1")
    await item.page.context.new_page()
    await (await item.page.context.browser.new_context()).new_page()
    return "leaked"


async def returns_a_page(item):
    return item.page


async def crashes_the_page(item):
    await item.page.goto("chrome://crash")


async def evaluates(item):
    return await item.page.evaluate("1 + 1")


async def cancels_everything_and_goes_on(item):
    await cancels_everything(item)
    return await evaluates(item)


async def syncs(item):
    from playwright.sync_api import sync_playwright

    with sync_playwright():
        raise AssertionError("never reached")


PAGED = [
    closes_page, closes_context, closes_browser, leaks_pages, returns_a_page, crashes_the_page, evaluates, evaluates,
    cancels_everything_and_goes_on, syncs,
]  # fmt: skip


async def exits(item):
    os._exit(7)


async def kills(item):
    os.kill(os.getpid(), signal.SIGKILL)


async def crashes(item):
    sys.stdout.flush()
    ctypes.string_at(0)


async def hangs(item):
    await asyncio.sleep(600)


async def returns_when_told_to_end(item):
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        return "in time"


HANGING = [hangs, returns_when_told_to_end, good, good, good]
DEADLY = [exits, kills, crashes, good, good, good]
ZOO = {"tame": TAME, "paged": PAGED, "deadly": DEADLY, "hanging": HANGING}


def draw(item):
    return random.Random(f"{SEED}:{item.key}:{item.attempt}")


async def scrape(worker):
    """Offer the keys and let the zoo loose on them."""
    note("worker", worker.name, os.getpid(), worker.run)
    keys = [f"item-{number:04}" for number in range(ITEMS)]
    await worker.process(keys, handle, concurrency=CONCURRENCY, browser="paged" in KINDS)


async def handle(item):
    """Do what the seed says."""
    animals = [animal for kind in KINDS for animal in ZOO[kind]]
    animal = draw(item).choice(animals)
    note("begin", item.key, item.attempt, animal.__name__)
    result = animal(item)
    del animals
    return await result


async def broken_source(worker):
    """Six keys, and then an error."""

    async def keys():
        for number in range(6):
            yield f"item-{number:04}"
        raise RuntimeError("the listing broke")

    note("worker", worker.name, os.getpid(), worker.run)
    await worker.process(keys(), good, browser=False)


async def broken_end(worker):
    """Everything is done, and then an error."""
    note("worker", worker.name, os.getpid(), worker.run)
    await worker.process([f"item-{number:04}" for number in range(6)], good, browser=False)
    raise RuntimeError("the export broke")


async def slow_source(worker):
    """A key takes its time to be found, in code that blocks."""

    def keys():
        for number in range(4):
            time.sleep(1.0)
            yield f"item-{number:04}"

    note("worker", worker.name, os.getpid(), worker.run)
    await worker.process(keys(), good, browser=False)
