"""Threads for what blocks, all made at once: a host that gives no further thread must not find us in need of one.

They are daemon threads, unlike those of an executor: one that hangs (a disk that does not answer) keeps neither the
loop nor the process from ending.
"""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

JOINED_WITHIN: Final = 10.0  # seconds that what is under way has at the end
_T = TypeVar("_T")


class ThreadsStopped(RuntimeError):
    """The threads take nothing any more."""


class Threads:
    """A fixed number of threads that call functions for the loop.

    What may wait here is bounded by the callers: each call stands for a worker, a request or a reload.

    Args:
        loop: where results arrive.
        name: of the threads.
        count: how many.

    Raises:
        RuntimeError: the host gives no further thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str, count: int) -> None:
        self._loop = loop
        self._calls: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(count)
        ]
        for started, thread in enumerate(self._threads):
            try:
                thread.start()
            except RuntimeError:
                self._threads = self._threads[:started]
                self.stop()
                raise

    def run(self, function: Callable[[], _T]) -> asyncio.Future[_T]:
        """Call a function in a thread; its result, or what it raised, arrives on the loop.

        Raises:
            ThreadsStopped: it is too late.
        """
        if self._stopped:
            raise ThreadsStopped("the threads are stopped")
        future: asyncio.Future[_T] = self._loop.create_future()
        self._calls.put((function, future))
        return future

    def stop(self, seconds: float = JOINED_WITHIN) -> bool:
        """Let what was asked be done and the threads end; whether they did within so many seconds."""
        if not self._stopped:
            self._stopped = True
            for _ in self._threads:
                self._calls.put(None)
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, future = call
            try:
                result, error = function(), None
            except BaseException as raised:  # noqa: BLE001 - it is the caller's
                result, error = None, raised
            try:
                self._loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:  # the loop is closed: nobody waits
                return


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
