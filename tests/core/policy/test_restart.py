"""The restart policy: rows of ends and verdicts, its limits to the millisecond, and properties over any history."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scraper_supervisor.core.config.settings import RestartSettings
from scraper_supervisor.core.policy.restart import KEPT, RestartHistory, Verdict, on_exit, on_start, reset

MS = 0.001
NO_LIMITS = RestartSettings(max_restarts=0, max_unstable=0)


def live(policy, ends, *, unit=0.5, start=0.0):
    """Run a worker through (uptime, blamed) ends, each restart taking its delay; the verdicts and the last history."""
    history, now, verdicts = RestartHistory(), start, []
    for uptime, blamed in ends:
        history = on_start(history, now)
        now += uptime
        history, verdict = on_exit(history, policy, now, blamed=blamed, unit=unit)
        verdicts.append(verdict)
        if verdict.action == "fail":
            break
        now += verdict.delay
    return verdicts, history, now


@pytest.mark.parametrize(
    ("uptimes", "unit", "delays"),
    [
        pytest.param([0, 0, 0, 0, 0], 0.0, [0, 0.5, 1, 2, 4], id="first at once, then half of base * multiplier^n"),
        pytest.param([0, 0, 0, 0], 0.999999, [0, 1, 2, 4], id="never more than the whole"),
        pytest.param([0] * 9, 0.0, [0, 0.5, 1, 2, 4, 8, 16, 30, 30], id="capped at max_delay before the jitter"),
        pytest.param([60, 60, 60], 0.0, [0, 0, 0], id="after a stable period at once"),
        pytest.param([60, 0, 0, 60, 0, 0], 0.0, [0, 0.5, 1, 0, 0.5, 1], id="a stable period begins anew"),
        pytest.param([60 - MS, 60 - MS], 0.0, [0, 0.5], id="a millisecond short of stable"),
    ],
)
def test_delays(uptimes, unit, delays):
    verdicts, _, _ = live(NO_LIMITS, [(uptime, None) for uptime in uptimes], unit=unit)
    assert [verdict.action for verdict in verdicts] == ["restart"] * len(uptimes)
    assert [verdict.delay for verdict in verdicts] == pytest.approx(delays, abs=1e-5)


def test_over_max_restarts_within_fails_and_says_so():
    verdicts, _, _ = live(RestartSettings(), [(0.0, None)] * 10)
    assert [verdict.action for verdict in verdicts] == ["restart"] * 5 + ["fail"]
    expected = "the worker ended after 0.0 s: this would be restart 6 within 5m, over max_restarts 5"
    assert verdicts[-1] == Verdict("fail", 0.0, expected)


@pytest.mark.parametrize(("late", "action"), [(-MS, "fail"), (0.0, "restart"), (MS, "restart")])
def test_the_window_rolls_over_to_the_millisecond(late, action):
    policy = RestartSettings(max_restarts=2, within=100.0, max_unstable=0)
    history = RestartHistory()
    for now in (0.0, 50.0):
        history, _ = on_exit(on_start(history, now), policy, now, blamed=None, unit=0.5)
    _, verdict = on_exit(on_start(history, 99.0), policy, 100.0 + late, blamed=None, unit=0.5)
    assert verdict.action == action


def test_uptimes_that_slip_through_the_window_end_at_crash_11():
    """With uptimes of 59 s and back-off to 60 s there are never six restarts in 5 min; the streak gives up."""
    verdicts, _, _ = live(RestartSettings(), [(59.0, None)] * 20, unit=0.999)
    assert len(verdicts) == 11
    expected = "over max_unstable 10"
    assert verdicts[-1].action == "fail"
    assert verdicts[-1].reason.endswith(expected)
    assert "restart 11 in a row without a stable period of 1m" in verdicts[-1].reason


def test_a_stable_period_ends_the_streak():
    policy = RestartSettings(max_restarts=0, max_unstable=2)
    verdicts, _, _ = live(policy, [(1, None), (1, None), (60, None), (1, None), (1, None), (1, None)])
    assert [verdict.action for verdict in verdicts] == ["restart"] * 5 + ["fail"]


@pytest.mark.parametrize("policy", [RestartSettings(max_unstable=0), RestartSettings(max_restarts=0, max_unstable=5)])
def test_deaths_charged_to_one_item_count_once_in_both_limits(policy):
    poisoned = [(0.0, "bad")] * 4
    verdicts, _, _ = live(policy, [*poisoned, *[(0.0, None)] * 4, (0.0, "bad"), (0.0, None)])
    assert [verdict.action for verdict in verdicts] == ["restart"] * 9 + ["fail"]
    assert "(1 within 5m" in verdicts[3].reason
    assert "deaths charged to one item counted once" in verdicts[3].reason


def test_different_items_count_each():
    verdicts, _, _ = live(RestartSettings(), [(0.0, f"item-{n}") for n in range(9)])
    assert len(verdicts) == 6


def test_an_end_without_a_start_has_no_uptime():
    history, first = on_exit(RestartHistory(), RestartSettings(), 1e6, blamed=None, unit=0.0)
    _, second = on_exit(history, RestartSettings(), 2e6, blamed=None, unit=0.0)
    assert (first.delay, second.delay) == (0.0, 0.5)


def test_the_cause_opens_the_reason_and_a_crossed_limit_counts_like_any_other():
    history = on_start(RestartHistory(), 0.0)
    _, verdict = on_exit(history, RestartSettings(), 12.34, blamed=None, unit=0.0, cause="over worker_memory 1 GiB")
    expected = "over worker_memory 1 GiB after 12.3 s: restarted at once, as its first restart (1 within 5m of "
    assert verdict.reason == expected + "max_restarts 5)"


def test_reset_forgets_everything_but_a_start():
    _, history, now = live(RestartSettings(), [(0.0, None)] * 6)
    history = reset(on_start(history, now))
    assert history == RestartHistory(started_at=now)
    _, verdict = on_exit(history, RestartSettings(), now + 1, blamed=None, unit=0.5)
    assert (verdict.action, verdict.delay) == ("restart", 0.0)


def test_a_policy_that_changes_takes_effect_at_the_next_end():
    _, history, now = live(NO_LIMITS, [(0.0, None)] * 6)
    _, verdict = on_exit(history, RestartSettings(), now, blamed=None, unit=0.5)
    assert verdict.action == "fail"


def test_never_giving_up_for_years_overflows_nothing_and_remembers_little():
    verdicts, history, _ = live(NO_LIMITS, [(0.0, str(n)) for n in range(3000)], unit=0.0)
    assert verdicts[-1].delay == 30.0
    assert len(history.deaths) <= KEPT
    assert len(history.streak) <= KEPT


@pytest.mark.parametrize(
    ("policy", "delay"),
    [
        (RestartSettings(base_delay=0.0), 0.0),
        (RestartSettings(multiplier=1.0), 0.5),
        (RestartSettings(base_delay=90.0), 30.0),
    ],
)
def test_odd_policies(policy, delay):
    verdicts, _, _ = live(policy, [(0.0, None)] * 3, unit=0.0)
    assert verdicts[-1].delay == delay


@given(
    policy=st.builds(
        RestartSettings,
        base_delay=st.floats(0, 100),
        max_delay=st.floats(0, 1000),
        multiplier=st.floats(1, 1000),
        stable_after=st.floats(1, 100),
        max_restarts=st.integers(0, 6),
        within=st.floats(1, 1000),
        max_unstable=st.integers(0, 6),
    ),
    ends=st.lists(st.tuples(st.floats(0, 200), st.sampled_from([None, None, "a", "b"])), max_size=40),
    unit=st.floats(0, 1, exclude_max=True),
)
def test_limits_hold_against_a_naive_recount(policy, ends, unit):
    history, now, seen = RestartHistory(), 0.0, []
    for uptime, blamed in ends:
        history = on_start(history, now)
        now += uptime
        stable = now - history.started_at >= policy.stable_after
        seen.append((now, blamed, stable))
        history, verdict = on_exit(history, policy, now, blamed=blamed, unit=unit)
        recent = [item for time, item, _ in seen if now < time + policy.within]
        streak = []
        for _, item, was_stable in seen:
            streak = [] if was_stable else [*streak, item]
        counts = [
            len([i for i in items if i is None]) + len({i for i in items if i is not None})
            for items in (recent, streak)
        ]
        over = any(
            0 < most < count for most, count in zip((policy.max_restarts, policy.max_unstable), counts, strict=True)
        )
        assert (verdict.action == "fail") == over
        assert 0.0 <= verdict.delay <= policy.max_delay
        if stable or len(seen) == 1:
            assert verdict.delay == 0.0
        elif not over:
            assert verdict.delay >= min(policy.base_delay, policy.max_delay) / 2
        if over:
            break
        now += verdict.delay
