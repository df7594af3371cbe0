"""Who may cancel a task: a handler its own, and nobody else's.

`asyncio.all_tasks()` shows a handler the tasks of everything in the process: those that keep the worker connected and
draw items, Playwright's, and those of its neighbours. A handler that tidies up by cancelling all of them would end its
worker and its neighbours' items. So each task remembers who began it, and what a handler asks of tasks that are not its
own is not done.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

log = logging.getLogger("scraper_worker")
T = TypeVar("T")


class Owner:
    """Whose code begins tasks.

    Args:
        name: the key of a handler's item; "" for the SDK itself.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.told = False


SDK: Final = Owner("")
# None: the scraper's own function, whose tasks anybody may cancel.
_present: contextvars.ContextVar[Owner | None] = contextvars.ContextVar("owner of tasks", default=None)


class OwnedTask(asyncio.Task[T]):
    """A task that a handler can cancel only if it, or the scraper's own function, began it."""

    def __init__(self, coro: Coroutine[Any, Any, T] | Generator[Any, None, T], **options: Any) -> None:
        context: contextvars.Context | None = options.get("context")
        self.owner = _present.get() if context is None else context.get(_present)
        super().__init__(coro, **options)

    def cancel(self, msg: Any | None = None) -> bool:
        """Ask the task to end; False, and nothing is done, where a handler asks it of what is not its own."""
        asking = _present.get()
        if asking in (None, SDK) or self.owner in (None, asking):
            return super().cancel(msg)
        assert asking is not None
        if not asking.told and not self.done():
            asking.told = True
            log.warning("the handler of %.80r cancelled tasks that are not its own; they go on", asking.name)
        return False


def make_task(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, T] | Generator[Any, None, T], /, **options: Any
) -> OwnedTask[T]:
    """A loop's task factory."""
    return OwnedTask(coro, loop=loop, **options)


@contextlib.contextmanager
def owned_by(owner: Owner | None) -> Generator[None]:
    """Tasks that begin inside are this owner's, and what is asked inside is asked by it."""
    token = _present.set(owner)
    try:
        yield
    finally:
        _present.reset(token)
