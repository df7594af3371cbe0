"""Handlers that are plain functions, each call in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from scraper_worker.item import Attempt


def is_plain(handler: Callable[..., Any]) -> bool:
    """Whether a handler is a function or method that is not async, and so would block the loop."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if inspect.iscoroutinefunction(handler):
        return False
    if inspect.isroutine(handler):
        return True
    return not inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004 - it is looked at, not called


async def in_thread(call: Callable[[], Any], attempt: Attempt) -> Any:
    """Call a function in a thread, and return or raise what it does.

    A thread can't be ended. One whose item was cut short is waited for: it is to look at `item.cancelled`, and the
    supervisor ends the worker of one that does not. When the worker itself ends nobody waits, and the thread, a daemon,
    ends with the process. There are never more threads than items in hand.

    Args:
        call: what to call.
        attempt: the attempt that it works for.

    Raises:
        BaseException: what the function raised.
        asyncio.CancelledError: the worker ends.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as raised:  # noqa: BLE001 - it is raised again where the thread is waited for
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, ended, (result, error))

    run = contextvars.copy_context().run
    name = f"item {attempt.granted.key}"[:100]
    threading.Thread(target=run, args=(work,), name=name, daemon=True).start()
    while not ended.done():
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            if not attempt.stopped:
                attempt.abandoned = True
                raise
    result, error = ended.result()
    if error is not None:
        raise error
    return result


def _settle(ended: asyncio.Future[tuple[Any, BaseException | None]], end: tuple[Any, BaseException | None]) -> None:
    if not ended.done():
        ended.set_result(end)
