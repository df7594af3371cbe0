"""A worker's life from hello to goodbye around the user's function."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import signal
from typing import TYPE_CHECKING, Any, Final

from scraper_worker.connection.alone import Alone
from scraper_worker.connection.client import Client
from scraper_worker.errors import SetupError
from scraper_worker.items.tasks import SDK, make_task, owned_by
from scraper_worker.worker import Worker, first_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from scraper_worker.connection.link import Link
    from scraper_worker.items.arguments import ByHand

    Function = Callable[[Worker], Awaitable[Any]]


log = logging.getLogger("scraper_worker")

LEFT_TIMEOUT: Final = 5.0  # seconds for tasks that were left behind
_RAISES_INTERRUPT: Final = signal.default_int_handler


async def run(function: Function, link: Link | None = None, by_hand: ByHand | None = None) -> None:
    """Run a worker's function until it returns: with the supervisor that spawned this process, else alone.

    SIGTERM and SIGINT begin a drain; a second one ends at once. Items in hand at a bad end are given back.

    Args:
        function: an async function that is given the `Worker`.
        link: who keeps the queue; found by the environment if None.
        by_hand: the one item to work on, where somebody looks on.

    Raises:
        SetupError: it is no async function, or what it asks for can't be had.
        Refused: the supervisor refused this worker.
        SupervisorLost: there was no supervisor for too long.
        Exception: what `function` raised.
    """
    if not inspect.iscoroutinefunction(function) and inspect.isfunction(function):
        raise SetupError(
            f"{function.__name__} must be an async function: write `async def {function.__name__}(worker)`"
        )
    loop = asyncio.get_running_loop()
    if loop.get_task_factory() is None:
        loop.set_task_factory(make_task)
    if link is None:
        link = Client.from_environment() or Alone(getattr(function, "__name__", "alone"))
    worker = Worker(link, by_hand)
    try:
        with owned_by(SDK):
            async with asyncio.TaskGroup() as tasks:
                await link.open(worker, tasks)
                await _live(function, worker, link)
    except BaseExceptionGroup as group:
        raise first_of(group) from None


def run_process(function: Function, link: Link | None = None, by_hand: ByHand | None = None) -> None:
    """`run`, in an event loop that nothing but this function's own end ends.

    A task that a handler left behind may raise SystemExit, and a handler may stop the loop: either comes out of the
    loop, and the loop simply goes on. What is left when the function has ended gets a moment to end, too.

    Raises:
        BaseException: what `run` raises; KeyboardInterrupt for a SIGINT that comes before there is anything to drain.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.set_task_factory(make_task)
    with owned_by(SDK):
        task = loop.create_task(run(function, link, by_hand), name="worker")
    try:
        while not task.done():
            try:
                loop.run_until_complete(task)
            except BaseException as error:
                if task.done():
                    raise
                # While the worker runs, SIGINT is a callback of the loop, and raises nothing.
                if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is _RAISES_INTERRUPT:
                    raise
                log.warning("%r came out of the event loop from something that a handler began; it goes on", error)
    finally:
        _end(loop)
    task.result()


def _end(loop: asyncio.AbstractEventLoop) -> None:
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    try:
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=LEFT_TIMEOUT))
        loop.run_until_complete(asyncio.wait_for(loop.shutdown_asyncgens(), LEFT_TIMEOUT))
    except BaseException as error:  # noqa: BLE001 - whatever the leftovers raise, this is their end
        log.warning("%r came from what the worker left behind", error)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def _live(function: Function, worker: Worker, link: Link) -> None:
    try:
        with _signals(worker):
            with owned_by(None):
                await function(worker)
            await worker.close()
            await link.goodbye(worker.farewell)
    except BaseException as error:
        _forget_cancels()
        if isinstance(error, Exception):
            await link.not_through()
        await link.give_back(f"the worker ends: {type(error).__name__}")
        await worker.close()
        raise
    finally:
        await link.close()


def _forget_cancels() -> None:
    """What this task was asked to end for ends it now; its timeouts are to work until then.

    Of Python 3.11.2, which is Debian's: a TaskGroup leaves its own request behind where a task fails while it waits,
    and asyncio.timeout() does not raise TimeoutError in a task that has one.
    """
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


@contextlib.contextmanager
def _signals(worker: Worker) -> Generator[None]:
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None

    def asked() -> None:
        if worker.draining:
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
