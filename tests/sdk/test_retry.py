"""The retry policy: bounds of every delay, and every verdict with its reason."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scraper_worker.protocol import Failure
from scraper_worker.retry import MAX_RETRY_AFTER, Jitter, RetryPolicy

UNIT = st.floats(0, 1, exclude_max=True)
POLICIES = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 20),
    base_delay=st.floats(0, 1000),
    multiplier=st.floats(1, 1e6),
    max_delay=st.floats(0, 10_000),
    jitter=st.sampled_from(get_args(Jitter)),
)


def failure(kind: str = "transient", retry_after: float | None = None) -> Failure:
    return Failure(kind, "network", "net::ERR_X", "it broke", None, retry_after)


@given(POLICIES, st.integers(1, 10_000), UNIT)
def test_a_delay_is_finite_and_within_max_delay(policy, attempt, unit):
    delay = policy.delay(attempt, unit)
    assert 0 <= delay <= policy.max_delay
    assert math.isfinite(delay)


@given(POLICIES, st.integers(1, 30), UNIT, st.booleans())
def test_transient_failures_are_retried_until_the_last_attempt(policy, attempt, unit, charged):
    verdict = policy.decide(failure(), attempt, unit, charged=charged)
    assert verdict.action == ("final" if charged and attempt >= policy.max_attempts else "retry")
    assert str(attempt) in verdict.reason


@given(POLICIES, st.integers(1, 30), UNIT, st.floats(0, 1e9))
def test_retry_after_beats_max_delay_up_to_an_hour(policy, attempt, unit, asked):
    verdict = policy.decide(failure("blocked", asked), attempt, unit, charged=False)
    assert verdict.action == "retry"
    assert verdict.delay >= min(asked, MAX_RETRY_AFTER)
    assert verdict.delay <= max(MAX_RETRY_AFTER, policy.max_delay)


@pytest.mark.parametrize("charged", [True, False])
def test_permanent_is_final_at_once(charged):
    verdict = RetryPolicy().decide(failure("permanent"), 1, 0.5, charged=charged)
    assert (verdict.action, verdict.delay) == ("final", 0.0)
    assert verdict.reason == "net::ERR_X is permanent: not tried again after attempt 1"


def test_the_default_delays_double_up_to_a_minute():
    policy = RetryPolicy(jitter="none")
    assert [policy.delay(attempt, 0.0) for attempt in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(("jitter", "low", "high"), [("full", 0.0, 4.0), ("equal", 2.0, 4.0), ("none", 4.0, 4.0)])
def test_each_jitter_draws_from_its_own_range(jitter, low, high):
    policy = RetryPolicy(jitter=jitter)
    assert policy.delay(3, 0.0) == pytest.approx(low)
    assert policy.delay(3, 1 - 1e-12) == pytest.approx(high)


def test_reasons_have_their_figures():
    policy = RetryPolicy(jitter="none")
    assert policy.decide(failure(), 2, 0.0).reason == "net::ERR_X on attempt 2 of 5: tried again in 2.0 s"
    assert policy.decide(failure(), 5, 0.0).reason == "net::ERR_X on attempt 5 of 5, the last one"
    asked = policy.decide(failure("blocked", 90), 1, 0.0, charged=False)
    assert asked.reason == "net::ERR_X on attempt 1, at no cost: the target asked for 90.0 s"


@pytest.mark.parametrize(
    "wrong",
    [{"max_attempts": 0}, {"base_delay": -1}, {"multiplier": 0.5}, {"max_delay": -1}, {"jitter": "decorrelated"}],
)
def test_a_policy_names_the_figure_that_is_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RetryPolicy(**wrong)
