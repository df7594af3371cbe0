"""`retry(...)` for a step inside an item, in each of its forms."""

from __future__ import annotations

import pytest

from scraper_worker import BlockedError, PermanentError, RetryPolicy, TransientError, UsageError, retry

AT_ONCE = RetryPolicy(max_attempts=3, base_delay=0)


class Step:
    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.calls = []

    async def __call__(self, *arguments):
        self.calls.append(arguments)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def test_awaited():
    step = Step(TransientError("a"), TransientError("b"), "well")
    assert await retry(step, policy=AT_ONCE) == "well"
    assert len(step.calls) == 3


async def test_called_with_arguments():
    step = Step(ValueError("a"), "well")
    assert await retry(step, policy=AT_ONCE)(1, 2) == "well"
    assert step.calls == [(1, 2), (1, 2)]


async def test_as_a_decorator_of_functions_and_methods():
    class Site:
        tries = 0

        @retry(policy=AT_ONCE)
        async def load(self, url):
            self.tries += 1
            if self.tries < 2:
                raise ValueError(url)
            return url

    @retry
    async def plain(value):
        return value

    assert await Site().load("u") == "u"
    assert await plain(3) == 3
    assert plain.__name__ == "plain"


async def test_the_last_exception_is_raised_with_a_note():
    step = Step(*(TransientError(str(number)) for number in range(3)))
    with pytest.raises(TransientError, match="2") as caught:
        await retry(step, policy=AT_ONCE)
    assert "attempt 3 of 3" in caught.value.__notes__[0]


@pytest.mark.parametrize("error", [PermanentError("no"), BlockedError("wait", retry_after=1), NameError("typo")])
async def test_what_waiting_here_can_t_mend_is_raised_at_once(error):
    step = Step(error)
    with pytest.raises(type(error)):
        await retry(step, policy=AT_ONCE)
    assert len(step.calls) == 1


def test_a_coroutine_is_no_function():
    with pytest.raises(UsageError, match="lambda"):
        retry(7)
