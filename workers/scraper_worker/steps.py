"""Trying one step inside an item again, without giving up the item."""

from __future__ import annotations

import asyncio
import functools
import random
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar, overload

from scraper_worker.errors import UsageError
from scraper_worker.failures.classify import classify
from scraper_worker.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")
T = TypeVar("T")

DEFAULT_POLICY: Final = RetryPolicy()


class Retried(Generic[P, T]):
    """A step that is tried again by itself: called like the function it wraps, or awaited if it takes no arguments."""

    def __init__(self, function: Callable[P, Awaitable[T]], policy: RetryPolicy) -> None:
        self._function = function
        self._policy = policy
        functools.update_wrapper(self, function)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the step, again and again while the policy says so, and return its result."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._function(*args, **kwargs)
            except Exception as error:
                failure = classify(error)
                # A block or a dead page is not this step's to outlast: the whole fleet must hold off, or the item must
                # get another page, and both begin with the item ending.
                if failure.kind in ("blocked", "infrastructure"):
                    raise
                verdict = self._policy.decide(failure, attempt, random.random())
                if verdict.action == "final":
                    error.add_note(verdict.reason)
                    raise
            await asyncio.sleep(verdict.delay)

    def __await__(self) -> Generator[Any, None, T]:
        return self().__await__()  # type: ignore[call-arg]  # a step with arguments fails here with Python's own message

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Self: ...

    @overload
    def __get__(
        self: Retried[Concatenate[S, Q], T], instance: S, owner: type | None = None
    ) -> Callable[Q, Coroutine[Any, Any, T]]: ...

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)  # type: ignore[arg-type]  # binds self


@overload
def retry(function: Callable[P, Awaitable[T]], /, *, policy: RetryPolicy = ...) -> Retried[P, T]: ...


@overload
def retry(*, policy: RetryPolicy = ...) -> Callable[[Callable[P, Awaitable[T]]], Retried[P, T]]: ...


def retry(
    function: Callable[P, Awaitable[T]] | None = None, /, *, policy: RetryPolicy = DEFAULT_POLICY
) -> Retried[P, T] | Callable[[Callable[P, Awaitable[T]]], Retried[P, T]]:
    """Try a step again while its failures are transient.

    Three forms: `await retry(step)`, `await retry(step, policy=RetryPolicy(max_attempts=3))(argument)`, and the
    decorator `@retry` or `@retry(policy=...)`. Permanent, blocked and infrastructure failures are raised at once; after
    the last attempt the last exception is raised, with a note that says how often it was tried.

    Args:
        function: an async function, or any callable that returns an awaitable.
        policy: attempts and delays; five attempts from 1 s by default.

    Raises:
        UsageError: `function` can't be called.
    """
    if function is None:
        return functools.partial(Retried, policy=policy)
    if callable(function):
        return Retried(function, policy)
    hint = "pass the function itself, not its result: retry(lambda: page.goto(url))"  # type: ignore[unreachable]  # untyped callers
    raise UsageError(f"retry() takes a function, not {type(function).__name__}; {hint}")
