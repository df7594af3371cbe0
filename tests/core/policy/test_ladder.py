"""The ladder alone: which rung when, whatever the timer does, and clocks that stand still."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from tests.core.playbook import a_group

from scraper_supervisor.core.policy.ladder import RUNG, begin, overdue, overdue_at
from scraper_worker.protocol import Failure

WHY = Failure("transient", "system", "item-timeout", "item_timeout of 5 s")


def test_each_rung_has_its_time_and_the_last_one_has_none():
    ladder = begin(WHY, 100.0)
    assert (ladder.rung, ladder.next_at, ladder.left(103.0)) == ("told", 100.0 + RUNG, RUNG - 3.0)
    ladder = ladder.climbed(111.0)
    assert (ladder.rung, ladder.next_at, ladder.left(200.0)) == ("browsers", 111.0 + RUNG, 0.0)
    ladder = ladder.climbed(121.0)
    assert (ladder.rung, ladder.next_at, ladder.told) == ("worker", None, 100.0)
    assert ladder.climbed(122.0) is ladder


@given(
    st.lists(st.floats(0.001, 60.0), max_size=30),
    st.lists(st.tuples(st.integers(0, 29), st.floats(0.001, 500.0)), max_size=5),
)
def test_no_rung_is_reached_before_its_time_however_the_timer_ticks_and_the_clocks_stand(ticks, pauses):
    """A late timer delays what follows; a pause moves it by the pause."""
    still = dict(pauses)
    now, ladder, reached = 0.0, begin(WHY, 0.0), {"told": 0.0}
    counted = 0.0  # seconds that ran
    for number, tick in enumerate(ticks):
        if number in still:
            now += still[number]
            ladder = ladder.shifted(still[number])
        now += tick
        counted += tick
        if ladder.next_at is not None and now >= ladder.next_at:
            ladder = ladder.climbed(now)
            reached[ladder.rung] = counted
    times = [reached[rung] for rung in ("told", "browsers", "worker") if rung in reached]
    assert all(later - earlier >= RUNG - 1e-6 for earlier, later in pairwise(times))
    assert len(reached) == 3 or counted < 2 * (RUNG + max(ticks, default=0.0)) + 1e-6


def test_word_of_an_item_puts_off_the_one_limit_and_not_the_other():
    settings = a_group("g", item_timeout=100.0, progress_timeout=60.0)
    assert overdue_at(10.0, 10.0, settings) == 70.0
    assert overdue_at(10.0, 45.0, settings) == 105.0
    assert overdue_at(10.0, 90.0, settings) == 110.0
    assert overdue_at(10.0, 90.0, a_group("g", progress_timeout=60.0)) == 150.0


def test_the_limit_that_is_over_is_named():
    settings = a_group("g", item_timeout=100.0, progress_timeout=60.0)
    assert (overdue(10.0, settings, 105.0).signature, overdue(10.0, settings, 105.0).message) == (
        "progress-timeout",
        "progress_timeout of 60 s",
    )
    assert overdue(10.0, settings, 110.0).signature == "item-timeout"
