"""Scrapers that hang, each in a way of its own, at the first attempt of the items that the environment names."""

import asyncio
import ctypes
import os
import socket
import time
from pathlib import Path

from scrapers import gate, note

FOLDER = Path(os.environ["E2E_FOLDER"])
ITEMS = int(os.environ.get("E2E_ITEMS", "8"))
CONCURRENCY = int(os.environ.get("E2E_CONCURRENCY", "4"))
BROWSER = "E2E_BROWSER" in os.environ
HANGS = os.environ.get("E2E_HANGS", "").split()  # KEY=HOW

_deaf = socket.create_server(("127.0.0.1", 0))  # it listens, and never answers


async def in_goto(item):
    await item.page.goto(f"http://127.0.0.1:{_deaf.getsockname()[1]}/", timeout=0)


async def deaf_to_cancelling(item):
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            note("cancelled", item.key)


async def done_when_cancelled(item):
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        note("cancelled", item.key)


async def in_a_call(item):
    time.sleep(600)


async def in_c_code(item):
    sleep = ctypes.PyDLL(None).sleep  # which keeps the interpreter's lock
    while True:
        sleep(600)


def keys():
    return [f"item-{number:04}" for number in range(ITEMS)]


async def scrape(worker):
    """Offer the keys; those named hang."""
    note("worker", worker.name, os.getpid(), worker.run)
    await worker.process(keys(), handle, concurrency=CONCURRENCY, browser=BROWSER)


async def handle(item):
    """Hang at the first attempt if told so; else wait for the gate, in a page if there is one."""
    note("begin", item.key, item.attempt)
    how = dict(hang.split("=") for hang in HANGS).get(item.key)
    if how is not None and not (FOLDER / f"hung-{item.key}").exists():
        (FOLDER / f"hung-{item.key}").touch()
        await globals()[how](item)
    elif BROWSER:
        await item.page.evaluate("1 + 1")
    await gate("gate" if how is None else "no gate")
    return item.key


async def asks_for_nothing(worker):
    """The first process of a worker never comes to ask for an item."""
    note("worker", worker.name, os.getpid(), worker.run)
    if not (FOLDER / "asked").exists():
        (FOLDER / "asked").touch()
        await asyncio.sleep(600)
    await worker.process(None, handle, browser=False)
