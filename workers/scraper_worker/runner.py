"""A worker's life from hello to goodbye around the user's function."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
from typing import TYPE_CHECKING, Any

from scraper_worker.alone import Alone
from scraper_worker.client import Client
from scraper_worker.errors import UsageError
from scraper_worker.worker import Worker, first_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from scraper_worker.link import Link

    Function = Callable[[Worker], Awaitable[Any]]


async def run(function: Function, link: Link | None = None) -> None:
    """Run a worker's function until it returns: with the supervisor that spawned this process, else alone.

    SIGTERM and SIGINT begin a drain; a second one ends at once. Items in hand at a bad end are given back.

    Args:
        function: an async function that is given the `Worker`.
        link: who keeps the queue; found by the environment if None.

    Raises:
        Refused: the supervisor refused this worker.
        SupervisorLost: there was no supervisor for too long.
        Exception: what `function` raised.
    """
    if not inspect.iscoroutinefunction(function) and inspect.isfunction(function):
        raise UsageError(
            f"{function.__name__} must be an async function: write `async def {function.__name__}(worker)`"
        )
    if link is None:
        link = Client.from_environment() or Alone(getattr(function, "__name__", "alone"))
    worker = Worker(link)
    try:
        async with asyncio.TaskGroup() as tasks:
            await link.open(worker, tasks)
            await _live(function, worker, link)
    except BaseExceptionGroup as group:
        raise first_of(group) from None


async def _live(function: Function, worker: Worker, link: Link) -> None:
    try:
        with _signals(worker):
            await function(worker)
            await worker.close()
            await link.goodbye(worker.farewell)
    except BaseException as error:
        await link.give_back(f"the worker ends: {type(error).__name__}")
        await worker.close()
        raise
    finally:
        await link.close()


@contextlib.contextmanager
def _signals(worker: Worker) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None

    def asked() -> None:
        if worker.draining and main is not None:
            main.cancel("asked to end twice")
        else:
            worker.drain()

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, asked)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
