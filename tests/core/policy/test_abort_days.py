"""The abort window on good days and on bad ones: who is never suspected, and how soon an outage is seen."""

import random

import pytest
from tests.core.policy.votes import SETTINGS, actions, feed

from scraper_supervisor.core.policy.abort import AbortWindow


@pytest.mark.untraced
@pytest.mark.slow
@pytest.mark.parametrize("drift", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_day_raises_no_alarm(seed, drift):
    """8 workers, 4 items a second for 12 hours, 10% failing: independently, or drifting between 2 and 18% each hour."""
    dice, window, rate = random.Random(seed), AbortWindow(SETTINGS), 0.1
    for number in range(12 * 3600 * 4):
        if drift and number % 14_400 == 0:
            rate = dice.uniform(0.02, 0.18)
        window.vote(number * 0.25, f"group-{number % 5}", str(number), failed=dice.random() < rate)
    assert window.evaluate(12 * 3600.0) == []


def test_poisoned_items_tried_five_times_each_raise_no_alarm():
    """10% of the items fail every attempt: 36% of the attempts, but 10% of the items."""
    dice, window, now = random.Random(7), AbortWindow(SETTINGS), 0.0
    for number in range(8000):
        attempts = 5 if dice.random() < 0.1 else 1
        for _ in range(attempts):
            now += 0.25
            window.vote(now, "matches", str(number), failed=attempts == 5)
    assert window.evaluate(now) == []


@pytest.mark.parametrize("rate", [0.9, 1.0])
@pytest.mark.parametrize("seed", range(10))
def test_an_outage_is_seen_within_20_votes_and_aborted_when_it_stays(seed, rate):
    dice, window = random.Random(seed), AbortWindow(SETTINGS)
    healthy = "".join("x" if dice.random() < 0.1 else "." for _ in range(1500))
    decided, last = feed(window, healthy)
    assert decided == []
    outage = "".join("x" if dice.random() < rate else "." for _ in range(300))
    decided, _ = feed(window, outage, start=last + 0.25, first=1500)
    assert actions(decided) == ["suspected", "aborted"]
    suspected, aborted = (d.time for d in decided if d.scope == "group")
    assert (suspected - last) / 0.25 <= 20
    assert aborted == suspected + 60.0


@pytest.mark.parametrize("length", [10, 20, 30])
@pytest.mark.parametrize("seed", range(10))
def test_a_blip_is_suspected_and_not_aborted(seed, length):
    dice, window = random.Random(seed), AbortWindow(SETTINGS)
    votes = "".join("x" if dice.random() < 0.1 else "." for _ in range(1500)) + "x" * (length * 4)
    votes += "".join("x" if dice.random() < 0.1 else "." for _ in range(1500))
    decided, _ = feed(window, votes)
    assert actions(decided) == ["suspected", "cleared"]
    first, last = (d.time for d in decided if d.scope == "group")
    assert last - first < length + 20
