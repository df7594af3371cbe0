"""The one way in which an effect that takes its time may fail: told, answered, and nobody else's matter."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

CANCELLED_WITHIN: Final = 1.0  # seconds that a cancelled task has to end
_log = structlog.get_logger()


class Tasks:
    """The daemon's tasks: none of them can end it, and at its end none is waited for in vain."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._to_finish: set[asyncio.Task[None]] = set()
        self._ended = False

    def start(
        self,
        work: Coroutine[Any, Any, None],
        name: str,
        failed: Callable[[Exception], None] | None = None,
        *,
        finish: bool = False,
    ) -> asyncio.Task[None] | None:
        """Run a coroutine beside everything else.

        Args:
            work: what is done.
            name: what the log calls it.
            failed: called with an exception that the coroutine raised, after it was logged: whoever waits for the
                outcome must be given one.
            finish: at the end of the daemon, let it come to its own end first.

        Returns:
            The task; None where it was not started: at the end of the daemon nothing is any more.
        """
        if self._ended:
            work.close()
            return None
        task = asyncio.get_running_loop().create_task(self._supervised(work, name, failed), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        if finish:
            self._to_finish.add(task)
            task.add_done_callback(self._to_finish.discard)
        return task

    async def close(self, seconds: float) -> None:
        """Wait so long for those that are to finish, and end all others; nothing is started any more."""
        if self._to_finish:
            await asyncio.wait(set(self._to_finish), timeout=seconds)
        self._ended = True
        left = set(self._running)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=CANCELLED_WITHIN)

    @staticmethod
    async def _supervised(
        work: Coroutine[Any, Any, None], name: str, failed: Callable[[Exception], None] | None
    ) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - a bug, or a host that refuses: it is this task's alone
            _log.error("a task failed", task=name, exc_info=error)
            if failed is not None:
                failed(error)
