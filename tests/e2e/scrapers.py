"""The scrapers that the end-to-end tests run; what they are to do comes in their environment."""

import asyncio
import os
import signal
from pathlib import Path

from scraper_worker import PermanentError, TransientError, raise_for_status

FOLDER = Path(os.environ["E2E_FOLDER"])
ITEMS = int(os.environ.get("E2E_ITEMS", "20"))
CONCURRENCY = int(os.environ.get("E2E_CONCURRENCY", "1"))
SECONDS = float(os.environ.get("E2E_SECONDS", "0"))
SITE = os.environ.get("E2E_SITE", "")


def note(*words):
    """A line in the trace, whole or not at all, from whatever process."""
    if "E2E_SILENT" in os.environ:
        return
    handle = os.open(FOLDER / "trace", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(handle, (" ".join(map(str, words)) + "\n").encode())
    os.close(handle)


def look_for_the_dead():
    """Note which processes live that must be gone by now."""
    path = FOLDER / "must-be-gone"
    pids = path.read_text().split() if path.exists() else []
    if str(os.getpid()) in pids:
        return  # one of the dead ourselves, with an item that was in our hands before
    for pid in pids:
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
            note("undead", pid)


async def gate(name):
    """Wait as long as the file of that name exists."""
    while (FOLDER / name).exists():
        await asyncio.sleep(0.01)


async def wrong_options(worker):
    """A browser is wanted with an option that there is not."""
    await worker.process(["a"], one, launch={"useragent": "x"})


async def quick(worker):
    """Items without a browser."""
    note("worker", worker.name, os.getpid(), worker.run)
    keys = [f"item-{number:04}" for number in range(ITEMS)]
    await worker.process(keys, one, concurrency=CONCURRENCY, browser=False)


async def one(item):
    """Work on an item as its key, the environment and the files in the folder say."""
    note("begin", item.key, item.attempt, os.getpid())
    look_for_the_dead()
    await asyncio.sleep(SECONDS)
    await gate("gate")
    await gate(f"gate-{item.key}")
    if item.key in os.environ.get("E2E_POISON", "").split():
        os.kill(os.getpid(), signal.SIGKILL)
    if item.key in os.environ.get("E2E_TRANSIENT", "").split() and item.attempt == 1:
        raise TransientError("try again")
    if item.key in os.environ.get("E2E_PERMANENT", "").split():
        raise PermanentError("never")
    note("end", item.key, item.attempt, os.getpid())
    return {"key": item.key}


async def remember(worker):
    """As `quick`, with the number of items so far in a checkpoint."""
    loaded = await worker.checkpoint.load()
    note("loaded", worker.name, 0 if loaded is None else loaded["count"])
    count = 0 if loaded is None else loaded["count"]

    async def handle(item):
        nonlocal count
        result = await one(item)
        count += 1
        await worker.checkpoint.save({"count": count})
        return result

    keys = [f"item-{number:04}" for number in range(ITEMS)]
    await worker.process(keys, handle, browser=False)


async def outgrown(worker):
    """Save a state as an old version of this code did, and load it as a new one that lacks a migration."""
    await worker.checkpoint.save({"old": True}, schema="shape/1")
    worker.checkpoint.schema("shape", 3)
    worker.checkpoint.migration("shape", 1)(lambda state: {**state, "moved": True})
    await worker.checkpoint.load()


async def browse(worker):
    """Match pages of the demo site."""
    note("worker", worker.name, os.getpid(), worker.run)
    keys = [f"{SITE}/match/{number}" for number in range(1, ITEMS + 1)]
    await worker.process(keys, page, concurrency=CONCURRENCY)


async def page(item):
    """The score on a match page; a cookie set by the first page is asked for on each later one."""
    note("begin", item.key, item.attempt, os.getpid())
    look_for_the_dead()
    context = item.page.context
    cookies = {cookie["name"]: cookie["value"] for cookie in await context.cookies()}
    if "first" not in cookies:
        await context.add_cookies([{"name": "first", "value": item.key.rsplit("/", 1)[1], "url": SITE}])
    raise_for_status(await item.page.goto(item.key, timeout=60_000))
    score = await item.page.inner_text(".score", timeout=60_000)
    await gate("gate")
    return {"score": score, "first": cookies.get("first")}


async def crash(worker):
    """Die at once, every time."""
    note("worker", worker.name, os.getpid(), worker.run)
    os.kill(os.getpid(), signal.SIGKILL)


async def failing(worker):
    """Every item fails as on a site that answers 500, but for the last of the first few, which takes its time."""
    await worker.checkpoint.save({"begun": True})
    keys = [f"{SITE}/match/{number}" for number in range(1, ITEMS + 1)]
    await worker.process(keys, page500, concurrency=CONCURRENCY, browser=False)


async def page500(item):
    """What a page of a broken site gives."""
    if item.key.endswith("/match/3"):
        await gate("gate")
        return "late, but well"
    await asyncio.sleep(SECONDS)
    raise TransientError("HTTP 500", status=500)
