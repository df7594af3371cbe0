"""The bounds of the evidence rule, and which windows there are."""

import pytest

from scraper_supervisor.core.config.settings import AbortSettings
from scraper_supervisor.core.policy.evidence import bound
from scraper_supervisor.core.policy.holds.evidence import alarm_windows


def test_the_bounds_are_those_of_the_simulations():
    windows = alarm_windows(AbortSettings())
    sizes = [20, 28, 40, 57, 80, 113, 160, 226, 320, 453, 640, 905]
    assert [n for n, _ in windows] == sizes
    assert [bound(n, 0.1) for n in sizes] == [14, 16, 20, 24, 29, 35, 44, 55, 69, 89, 115, 150]
    assert [need for _, need in windows] == [14, 16, 20, 29, 40, 57, 80, 113, 160, 227, 320, 453]


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        (AbortSettings(min_items=5), (20, 14)),  # the windows are what they are; min_items only leaves some out
        (AbortSettings(min_items=21), (28, 16)),
        (AbortSettings(min_items=40), (40, 20)),
        (AbortSettings(min_items=905), (905, 453)),
        (AbortSettings(min_items=1000), (1280, 640)),  # the series goes on to the first that is not below it
        (AbortSettings(failure_limit=0.9), (20, 18)),
        (AbortSettings(failure_limit=0.11), (20, 14)),
        (AbortSettings(rule="rate", min_items=5, failure_limit=0.3), (5, 2)),
    ],
)
def test_windows_below_min_items_are_not_looked_at(settings, first):
    assert alarm_windows(settings)[0] == first
