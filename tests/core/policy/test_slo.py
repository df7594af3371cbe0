"""Service levels: worker-seconds and recoveries, and None wherever nothing is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scraper_supervisor.core.policy.slo import KEPT, UNWANTED, Recovery, Slo, SloView, percentile

STATES = ["starting", "running", "paused", "draining", "stopping", "backoff", "completed", "failed", "stopped", "held"]


def test_nothing_known_is_none_and_no_recovery_is_a_true_zero():
    assert Slo().view(10.0) == SloView(None, 0, None, None, None, None)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        pytest.param([("running", 0)], 1.0, id="running all the time"),
        pytest.param([("starting", 0), ("running", 10)], 0.9, id="starting is time lost"),
        pytest.param([("running", 0), ("backoff", 90)], 0.9, id="backoff is"),
        pytest.param([("failed", 0)], 0.0, id="never up is a true zero"),
        pytest.param([("running", 0), ("paused", 10)], 1.0, id="paused is left out"),
        pytest.param([("running", 0), ("held", 10)], 1.0, id="held is left out"),
        pytest.param([("running", 0), ("draining", 10), ("stopped", 20)], 1.0, id="draining and stopped are left out"),
        pytest.param([("completed", 0)], None, id="never wanted: unknown"),
    ],
)
def test_availability_after_100_seconds(states, expected):
    slo = Slo()
    for name, at in states:
        slo.state("matches-0", name, at)
    assert slo.view(100.0).availability == pytest.approx(expected)


def test_availability_adds_up_over_workers_and_views_change_nothing():
    slo = Slo()
    slo.state("a-0", "running", 0.0)
    slo.state("a-1", "backoff", 0.0)
    for now in (1.0, 1.0, 7.5, 10.0):
        assert slo.view(now).availability == 0.5
    slo.forget("a-1", 10.0)
    assert slo.view(20.0).availability == pytest.approx(20 / 30)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(STATES), st.integers(0, 100)), max_size=30))
def test_availability_against_a_naive_sum(steps):
    slo, now, state, running, wanted = Slo(), 0.0, {}, 0.0, 0.0
    for worker, name, elapsed in steps:
        now += elapsed
        for known in state.values():
            wanted += elapsed if known not in UNWANTED else 0
            running += elapsed if known == "running" else 0
        slo.state(worker, name, now)
        state[worker] = name
    assert slo.view(now).availability == (pytest.approx(running / wanted) if wanted else None)


def test_a_recovery_runs_from_the_first_detection_to_the_next_progress():
    slo = Slo()
    slo.state("a-0", "running", 0.0)
    slo.lost("a-0", "hang", 10.0)
    slo.lost("a-0", "death", 11.0)
    assert slo.progress("a-1", 12.0) is None
    assert slo.progress("a-0", 14.0) == Recovery("a-0", "hang", 4.0)
    assert slo.progress("a-0", 15.0) is None
    view = slo.view(20.0)
    assert (view.recoveries, view.recovery_p90_seconds, view.recovery_max_seconds) == (1, 4.0, 4.0)


@pytest.mark.parametrize("state", sorted(UNWANTED))
def test_a_loss_that_nobody_waits_for_any_more_is_no_recovery(state):
    slo = Slo()
    slo.lost("a-0", "death", 0.0)
    slo.state("a-0", state, 1.0)
    assert slo.progress("a-0", 1000.0) is None
    assert slo.view(1000.0).recoveries == 0


def test_a_loss_survives_backoff_and_start():
    slo = Slo()
    slo.lost("a-0", "death", 0.0)
    for name, now in (("backoff", 0.0), ("starting", 1.0), ("running", 2.0)):
        slo.state("a-0", name, now)
    assert slo.progress("a-0", 2.5) == Recovery("a-0", "death", 2.5)


def test_the_latest_are_kept_and_the_count_and_the_longest_go_on():
    slo = Slo()
    for n in range(KEPT + 100):
        slo.lost("a-0", "death", n)
        slo.progress("a-0", n + (50.0 if n == 0 else 1.0))
        slo.checkpoint(0.002 if n % 50 else 0.2)
    view = slo.view(1e6)
    assert (view.recoveries, view.recovery_p90_seconds, view.recovery_max_seconds) == (KEPT + 100, 1.0, 50.0)
    assert view.checkpoint_p99_seconds == 0.2


def test_items_lost_is_what_a_check_found():
    slo = Slo()
    slo.items(0)
    assert slo.view(0.0).items_lost == 0
    slo.items(3)
    assert slo.view(0.0).items_lost == 3


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.9, None), ([7.0], 0.9, 7.0), (range(1, 11), 0.9, 9), (range(1, 101), 0.99, 99), ([3, 1, 2], 1.0, 3)],
)
def test_percentile(values, share, expected):
    assert percentile(values, share) == expected
