"""How much of what a worker prints is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scraper_supervisor.core.policy.line_rate import LINE_COSTS, LineRate


def prints(rate: LineRate, lines: int, now: float, size: int = 80) -> int:
    """How many of so many lines are kept."""
    kept = 0
    while kept < lines and rate.allowed(now):
        rate.kept(size)
        kept += 1
    if kept < lines:
        rate.drop(lines - kept)
    return kept


def test_a_second_of_it_may_come_at_once_and_a_flood_is_cut_to_the_rate() -> None:
    rate = LineRate(1000, 0.0)
    assert prints(rate, 5000, 0.0) == 1000
    assert rate.dropped == 4000
    assert prints(rate, 5000, 0.4) == 0, "a gap lasts until half a second's worth is there"
    assert prints(rate, 5000, 0.6) == 600
    assert prints(rate, 5000, 100.0) == 1000


def test_a_steady_worker_at_its_rate_loses_nothing() -> None:
    rate = LineRate(100, 0.0)
    assert sum(prints(rate, 10, tick / 10) for tick in range(1000)) == 10_000
    assert rate.dropped == 0


def test_long_lines_count_as_several() -> None:
    rate = LineRate(10, 0.0)
    assert prints(rate, 10, 0.0, LINE_COSTS * 4) == 2


@given(
    st.integers(1, 5000),
    st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(0, 10_000), st.integers(0, 20_000)), max_size=30),
)
def test_over_any_time_no_more_is_kept_than_the_rate_and_a_second_of_it(
    lines: int, bursts: list[tuple[float, int, int]]
) -> None:
    rate, now, kept, printed = LineRate(lines, 0.0), 0.0, 0, 0
    for pause, count, size in bursts:
        now += pause
        kept += prints(rate, count, now, size)
        printed += count
    assert kept <= lines * (now + 1) + 1e-6
    assert kept + rate.dropped == printed
