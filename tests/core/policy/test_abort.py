"""The abort window: its bounds, its two steps to the millisecond, and what an operator does."""

import math

import pytest
from msgspec.structs import replace
from tests.core.policy.votes import MS, SETTINGS, actions, feed

from scraper_supervisor.core.config.settings import AbortSettings
from scraper_supervisor.core.policy.abort import AbortWindow, Decision
from scraper_supervisor.core.policy.evidence import bound, windows

RATE = AbortSettings(rule="rate")


def states(window, now):
    return {(view.scope, view.key): view.state for view in window.scopes(now)}


# ---- the rule --------------------------------------------------------------------------------------------------------


def test_the_bounds_are_those_of_the_simulations():
    sizes = [20, 28, 40, 57, 80, 113, 160, 226, 320, 453, 640, 905]
    assert [n for n, _ in windows(SETTINGS)] == sizes
    assert [bound(n, 0.1) for n in sizes] == [14, 16, 20, 24, 29, 35, 44, 55, 69, 89, 115, 150]
    assert [need for _, need in windows(SETTINGS)] == [14, 16, 20, 29, 40, 57, 80, 113, 160, 227, 320, 453]


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.37])
@pytest.mark.parametrize("n", [1, 9, 20, 160])
def test_a_bound_is_the_smallest_count_that_is_improbable_enough(n, rate):
    def tail(least):
        return math.fsum(math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(least, n + 1))

    count = bound(n, rate)
    assert count == n + 1 or tail(count) <= 1.000001e-9
    assert tail(count - 1) > 0.999999e-9


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        (AbortSettings(min_items=5), (10, 10)),  # nothing smaller can be sure
        (AbortSettings(min_items=40), (40, 20)),
        (AbortSettings(min_items=2000), (2000, 1000)),
        (AbortSettings(failure_limit=0.9), (20, 18)),
        (AbortSettings(failure_limit=0.1), (20, 14)),
        (AbortSettings(rule="rate", min_items=5, failure_limit=0.3), (5, 2)),
    ],
)
def test_windows_begin_at_min_items(settings, first):
    assert windows(settings)[0] == first


def test_many_items_are_bounded_without_the_exact_sum():
    assert 100_000 * 0.1 < bound(100_000, 0.1) < 100_000 * 0.12


# ---- suspicion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "at"),
    [
        pytest.param("x" * 14, 14, id="14 of 14: six more could not undo it"),
        pytest.param("x" * 13, None, id="13 are not enough"),
        pytest.param("." * 100 + "x" * 14, 114, id="after a good time"),
        pytest.param("......" + "x" * 13, None, id="13 of 19"),
        pytest.param("xx." * 60, 20, id="two of three"),
        pytest.param("x." * 100, 39, id="every other: exactly the limit"),
        pytest.param("x.." * 300, None, id="a third is under the limit"),
    ],
)
def test_an_alarm_makes_a_scope_suspected(outcomes, at):
    window = AbortWindow(SETTINGS)
    for number, outcome in enumerate(outcomes, 1):
        window.vote(number * 0.01, "matches", str(number), failed=outcome == "x")
        suspected = [d for d in window.evaluate(number * 0.01) if d.action == "suspected"]
        if suspected:
            assert [(d.scope, d.key) for d in suspected] == [("group", "matches")], "the narrowest alone"
            break
    assert (number if suspected else None) == at


def test_a_decision_says_why():
    decided, _ = feed(AbortWindow(SETTINGS), "." * 6 + "x" * 14)
    reason = (
        "group matches: 14 of the last 20 items failed (70%), "
        "the bound is 14 of 20 for failure_limit 50% and normal_rate 10%"
    )
    (decision,) = decided
    assert decision == Decision(4.75, "suspected", "group", "matches", 20, 14, 0.7, 0.5, reason)


def test_an_item_has_one_vote_its_latest():
    window = AbortWindow(SETTINGS)
    for now in range(200):
        window.vote(now * 0.1, "matches", f"item-{now % 13}", failed=True)
    assert window.evaluate(20.0) == []
    assert [(view.items, view.failures) for view in window.scopes(20.0)] == [(13, 13), (13, 13)]
    for now in range(13):
        window.vote(21.0, "matches", f"item-{now}", failed=False)
    assert [(view.items, view.failures, view.rate) for view in window.scopes(21.0)] == [(13, 0, 0.0), (13, 0, 0.0)]


def test_the_same_key_in_two_groups_is_two_items():
    window = AbortWindow(SETTINGS)
    for group in ("a", "b"):
        window.vote(0.0, group, "item", failed=True)
    assert [view.items for view in window.scopes(0.0)] == [2, 1, 1]


def test_votes_leave_the_window_to_the_millisecond():
    window = AbortWindow(SETTINGS)
    window.vote(0.0, "matches", "a", failed=True)
    window.vote(1.0, "matches", "b", failed=False)
    assert [view.items for view in window.scopes(300.0 - MS)] == [2, 2]
    assert [view.items for view in window.scopes(300.0)] == [1, 1]
    assert window.scopes(301.0) == []
    assert window._latest == {}


def test_with_the_rule_rate_the_window_must_be_full():
    window = AbortWindow(RATE)
    decided, _ = feed(window, "x" * 19)
    assert decided == []
    decided, _ = feed(window, "x", start=5.0, first=19)
    assert actions(decided) == ["suspected"]
    assert decided[0].reason.endswith("the bound is 10 of 20 for failure_limit 50%")
    assert actions(feed(AbortWindow(RATE), ".x" * 10)[0]) == ["suspected"]
    assert actions(feed(AbortWindow(RATE), ".x" * 9 + "..")[0]) == []


# ---- from suspicion to abort, or back --------------------------------------------------------------------------------


def test_a_suspicion_that_stands_is_aborted_to_the_millisecond():
    window = AbortWindow(SETTINGS)
    _, last = feed(window, "x" * 14)
    assert window.next_deadline() == last + 60.0
    assert window.evaluate(last + 60.0 - MS) == []
    decided = window.evaluate(last + 60.0)
    assert [(d.action, d.scope, d.time) for d in decided] == [("aborted", "group", last + 60.0)]
    expected = "group matches: suspected for 1m and no better: 14 of the last 14 items failed (100%), the bound"
    assert decided[0].reason.startswith(expected)
    assert window.next_deadline() is None
    assert set(states(window, 1e6).values()) == {"aborted"}


@pytest.mark.parametrize("late", [0.0, 5.0, 1e6])
def test_a_late_call_decides_what_was_due_then(late):
    window = AbortWindow(SETTINGS)
    _, last = feed(window, "x" * 14)
    window.vote(last + 60.0 + late, "matches", "late", failed=False)
    assert [(d.action, d.time) for d in window.evaluate(last + 60.0 + late)] == [("aborted", last + 60.0)]


def test_an_abort_is_told_once_and_outlives_its_votes():
    window = AbortWindow(SETTINGS)
    _, last = feed(window, "x" * 14)
    window.evaluate(last + 60.0)
    decided, _ = feed(window, "x" * 100 + "." * 500, start=last + 61.0, first=14)
    assert decided == []
    (view,) = [view for view in window.scopes(1e6) if view.scope == "group"]
    assert (view.state, view.items, view.failures) == ("aborted", 14, 14)


@pytest.mark.parametrize(("late", "action"), [(-MS, None), (0.0, "cleared"), (MS, "cleared")])
def test_with_too_few_votes_left_the_suspicion_ends(late, action):
    window = AbortWindow(replace(SETTINGS, window=30.0))
    feed(window, "x" * 20, gap=0.25)  # the alarm needs 14 of the 20: with the seventh gone it is over
    deadline = window.next_deadline()
    assert deadline == 6 * 0.25 + 30.0
    decided = window.evaluate(deadline + late)
    assert actions(decided) == ([action] if action else [])
    if decided:
        assert decided[-1].reason == "group matches: time has passed; 13 of the last 13 items failed"


def test_a_healthy_slice_ends_the_suspicion_and_what_was_before_it_no_longer_counts():
    window = AbortWindow(SETTINGS)
    _, last = feed(window, "x" * 200)
    decided, last = feed(window, "." * 16, start=last + 1.0, first=200)  # 4 of the last 20: 1 outage in 170 has that
    assert decided == []
    decided, last = feed(window, ".", start=last + 0.25, first=216)
    assert actions(decided) == ["cleared"]
    assert decided[-1].reason == "group matches: well again since the alarm; 3 of the last 20 items failed"
    assert [view.items for view in window.scopes(last)] == [20]
    assert window.next_deadline() is None


def test_near_the_bound_a_suspicion_does_not_come_and_go_with_each_vote():
    window = AbortWindow(SETTINGS)
    _, last = feed(window, "x" * 14)
    # Two of three done: soon below the bound, never a healthy slice.
    decided, _ = feed(window, "..x" * 40, start=last + 0.25, first=14)
    assert actions(decided) == ["cleared"]
    assert "below the bound for 20 votes" in decided[-1].reason


def test_an_alarm_that_pauses_is_confirmed_anew():
    window = AbortWindow(SETTINGS)
    _, last = feed(window, "x" * 14)
    begin = last + 30.0
    _, last = feed(window, "." * 15, start=begin, gap=0.1, first=14)  # after the seventh 13 of 20, and 14 of 28
    assert window.next_deadline() == pytest.approx(begin + 6 * 0.1 + 60.0)
    decided, last = feed(window, "x" * 14, start=last + 1.0, gap=0.1, first=29)
    assert decided == []
    again = window.next_deadline() - 60.0
    assert last - 1.3 <= again <= last
    assert actions(window.evaluate(again + 60.0)) == ["aborted"]


def test_one_group_may_be_suspected_and_the_whole_not():
    window = AbortWindow(SETTINGS)
    for number in range(60):
        now = number * 0.1
        window.vote(now, "bad", str(number), failed=True)
        for good in ("good-1", "good-2"):
            window.vote(now, good, str(number), failed=False)
    assert [(d.action, d.scope, d.key) for d in window.evaluate(6.0)] == [("suspected", "group", "bad")]
    assert states(window, 6.0)["global", ""] == "normal"


def test_votes_of_a_group_that_alarms_count_in_no_wider_scope():
    # Beside 522 done items of one group all 342 of another failed, in spells: in some windows of both most failed.
    window, decided, now = AbortWindow(SETTINGS), [], 0.0
    for spell in range(18):
        done, now = feed(window, "." * 29, start=now + 0.1, gap=0.1, group="good", first=spell * 29)
        failed, now = feed(window, "x" * 19, start=now + 0.1, gap=0.1, group="bad", first=spell * 19)
        decided += done + failed
    decided += window.evaluate(now + 60.0)
    assert [(d.action, d.scope, d.key) for d in decided] == [("suspected", "group", "bad"), ("aborted", "group", "bad")]
    whole = next(view for view in window.scopes(now) if view.scope == "global")
    assert (whole.items, whole.failures) == (18 * 29, 0)


def test_what_is_wrong_in_many_groups_is_still_seen_in_the_whole():
    window, decided = AbortWindow(SETTINGS), []
    for number in range(20):  # each too small to alarm by itself
        window.vote(number * 0.1, f"group-{number % 10}", str(number), failed=True)
        decided += window.evaluate(number * 0.1)
    assert [(d.action, d.scope) for d in decided] == [("suspected", "global")]


def test_a_wider_suspicion_ends_when_one_group_turns_out_to_be_the_cause():
    window, decided = AbortWindow(SETTINGS), []
    for number in range(3):
        window.vote(number * 0.1, "good", str(number), failed=True)
    for number in range(14):
        window.vote(1.0 + number * 0.1, "bad", str(number), failed=True)
        decided += window.evaluate(1.0 + number * 0.1)
    assert [(d.action, d.scope) for d in decided] == [
        ("suspected", "global"), ("cleared", "global"), ("suspected", "group"),
    ]  # fmt: skip
    assert decided[1].reason.startswith("all groups: group bad alarms by itself")


def test_a_group_that_is_well_again_counts_in_the_whole_from_then_on():
    window = AbortWindow(SETTINGS)
    _, last = feed(window, "x" * 200)
    decided, last = feed(window, "." * 17, start=last + 1.0, first=200)
    assert actions(decided) == ["cleared"]
    _, last = feed(window, "...", start=last + 1.0, first=300)
    assert {view.scope: (view.items, view.failures) for view in window.scopes(last)} == {
        "group": (23, 3), "global": (3, 0),
    }  # fmt: skip


def test_what_still_ends_in_an_aborted_group_says_nothing_of_the_others():
    window = AbortWindow(SETTINGS)
    crashes(window, [(float(now), None) for now in range(5)])
    decided, last = feed(window, "x" * 50, start=6.0)
    assert (decided, states(window, last)) == ([], {("group", "matches"): "aborted"})


# ---- ends that come at once ------------------------------------------------------------------------------------------


def crashes(window, rows):
    for now, charged in rows:
        if charged == "done":
            window.done("matches")
        else:
            window.crash(now, "matches", charged)
    return window.evaluate(rows[-1][0])


@pytest.mark.parametrize(
    ("rows", "aborted"),
    [
        pytest.param([(n, None) for n in range(5)], True, id="five"),
        pytest.param([(n, None) for n in range(4)], False, id="four"),
        pytest.param([*((n, None) for n in range(4)), (4, "done"), (5, None)], False, id="an item done between"),
        pytest.param([(n, "bad") for n in range(9)], False, id="all charged to one item"),
        pytest.param([(n, "bad") for n in range(9)] + [(10 + n, None) for n in range(4)], True, id="and four others"),
        pytest.param([(n, f"item-{n}") for n in range(5)], True, id="five items"),
        pytest.param([(0, None), (300 - MS, None), *[(300 - MS, None)] * 3], True, id="just within crash_window"),
        pytest.param([(0, None), (300, None), *[(300, None)] * 3], False, id="just out of it"),
    ],
)
def test_deaths_with_no_item_done_between(rows, aborted):
    decided = crashes(AbortWindow(SETTINGS), rows)
    assert [(d.action, d.scope, d.key) for d in decided] == ([("aborted", "group", "matches")] if aborted else [])
    if aborted:
        expected = "group matches: 5 deaths within 5m with no item done between them, consecutive_crashes is 5"
        assert decided[0].reason == expected
        assert decided[0].rate is None


def test_a_successful_vote_is_an_item_done():
    window = AbortWindow(SETTINGS)
    for n in range(20):
        window.crash(n, "matches", None)
        if n % 4 == 3:
            window.vote(n, "matches", str(n), failed=False)
    assert window.evaluate(20.0) == []


def test_a_suspected_group_may_be_aborted_at_once():
    window = AbortWindow(SETTINGS)
    feed(window, "x" * 14)
    crashes(window, [(10.0, None)] * 5)
    assert states(window, 10.0) == {("group", "matches"): "aborted"}


# ---- what an operator does -------------------------------------------------------------------------------------------


def test_switched_off_it_counts_and_decides_nothing():
    window = AbortWindow(replace(SETTINGS, enabled=False))
    decided, last = feed(window, "x" * 50)
    assert decided + crashes(window, [(last, None)] * 9) == []
    assert window.next_deadline() is None
    window.reconfigure(SETTINGS)
    assert actions(window.evaluate(last)) == ["suspected"]
    window.reconfigure(replace(SETTINGS, enabled=False))
    assert actions(window.evaluate(last)) == ["cleared"]


def test_new_settings_apply_to_what_was_counted():
    window = AbortWindow(SETTINGS)
    _, last = feed(window, "x" * 14)
    window.reconfigure(replace(SETTINGS, confirm_after=10.0))
    assert window.next_deadline() == last + 10.0
    window.evaluate(last)
    window.reconfigure(replace(SETTINGS, window=1.0))
    decided = window.evaluate(last)
    assert actions(decided) == ["cleared"]
    assert decided[-1].reason == "group matches: the configuration changed; 4 of the last 4 items failed"


def test_clear_begins_anew():
    window = AbortWindow(SETTINGS)
    _, last = feed(window, "x" * 14)
    window.evaluate(last + 60.0)
    window.clear()
    assert [(d.action, d.reason) for d in window.evaluate(last + 61.0)] == [
        ("cleared", "group matches: cleared by an operator; 14 of the last 14 items failed"),
    ]
    assert window.scopes(last + 61.0) == []
    decided, _ = feed(window, "x" * 14, start=last + 62.0)
    assert actions(decided) == ["suspected"]


def test_a_new_run_forgets_its_group_alone():
    window = AbortWindow(SETTINGS)
    feed(window, "x" * 13, group="matches")
    feed(window, "x" * 14, group="players", start=4.0)
    window.crash(8.0, "matches", None)
    window.evaluate(8.0)
    window.forget("matches")
    assert states(window, 8.0) == {("group", "players"): "suspected"}
    window.forget("players")
    assert actions(window.evaluate(8.0)) == ["cleared"]
    assert window.scopes(8.0) == []
    assert window._latest == {}
    assert window._crashes == {}


def test_views_show_what_is_not_normal_and_the_largest():
    window = AbortWindow(SETTINGS)
    for number in range(80):
        for vote in range(number % 7 + 1):
            window.vote(1.0, f"group-{number}", str(vote), failed=False)
    feed(window, "x" * 14, start=1.0, group="bad")
    views = window.scopes(5.0)
    assert [(v.scope, v.key) for v in views if v.state == "suspected"] == [("group", "bad")]
    assert len(views) == 51
    assert [v.items for v in views[1:]] == sorted((v.items for v in views[1:]), reverse=True)
    assert {v.reason for v in views[1:]} == {None}
    assert len(window.scopes(5.0, largest=3)) == 4
