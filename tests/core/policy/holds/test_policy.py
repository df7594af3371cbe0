"""The hold policy, sentence by sentence of the contract."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.core.policy.holds.talk import (
    EVERYTHING,
    GROUP,
    HOST,
    MS,
    SETTINGS,
    TARGET,
    brief,
    feed,
    held,
    policy,
    probe,
)

from scraper_supervisor.core.config.settings import AbortSettings
from scraper_supervisor.core.policy.holds.policy import spread
from scraper_supervisor.core.policy.holds.rulings import Ruling
from scraper_supervisor.core.policy.holds.scopes import ScopeName

PLAIN = AbortSettings(rule="rate")
B = ScopeName("target", "b", "g")


def told(one, now=0.0, status=429, retry_after=None, *, group="g", host="a", start=True):
    return one.told(now, group, host, status, retry_after, start=start)


def items_left(name):
    return True


def no_items(name):
    return False


# ---- votes -----------------------------------------------------------------------------------------------------------


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
def test_an_alarm_holds_the_scope(outcomes, at):
    one = policy()
    seen = next((n for n, outcome in enumerate(outcomes, 1) if feed(one, outcome, start=n * 0.01)), None)
    assert seen == at


def test_a_ruling_says_why():
    reason = (
        "a in group g: 14 of the last 20 items failed (70%), "
        "the bound is 14 of 20 for failure_limit 50% and normal_rate 10%"
    )
    assert feed(policy(), "." * 6 + "x" * 14, gap=0.25) == [Ruling(4.75, "held", TARGET, 20, 14, 0.5, reason, 6.75)]


def test_an_item_has_one_vote_its_latest():
    one = policy()
    for now in range(200):
        one.vote(now * 0.1, "g", f"item-{now % 13}", failed=True, target="a")
    assert one.evaluate(20.0) == []
    assert [(figures.items, figures.failures) for figures in one.figures(20.0)] == [(13, 13)] * 3
    for now in range(13):
        one.vote(21.0, "g", f"item-{now}", failed=False, target="a")
    assert [(figures.items, figures.rate) for figures in one.figures(21.0)] == [(13, 0.0)] * 3


def test_infrastructure_votes_in_group_and_global_and_in_no_target():
    one = policy()
    for number in range(14):
        one.vote(0.0, "g", str(number), failed=True, target="a", infrastructure=True)
    assert brief(one.evaluate(0.0)) == [("held", GROUP)]


def test_with_the_rule_rate_the_window_must_be_full():
    one = policy(PLAIN)
    assert feed(one, "x" * 19) == []
    assert brief(feed(one, "x")) == [("held", TARGET)]
    assert brief(feed(policy(PLAIN), ".x" * 10)) == [("held", TARGET)]
    assert feed(policy(PLAIN), ".x" * 9 + "..") == []
    assert brief(feed(policy(PLAIN), "x" * 10 + "." * 10)) == [("held", TARGET)]  # a success fills the window


# ---- scopes ----------------------------------------------------------------------------------------------------------


def test_of_those_that_alarm_at_the_same_vote_the_narrowest_is_held():
    one = policy(h=SETTINGS)
    for number in range(7):
        for target in "ab":
            one.vote(0.0, "g", f"{target}{number}", failed=True, target=target)
    assert brief(one.evaluate(0.0)) == [("held", GROUP)]
    one = policy(h=SETTINGS)
    for number in range(7):
        for group in "gh":
            one.vote(0.0, group, str(number), failed=True, target=group)
    assert brief(one.evaluate(0.0)) == [("held", EVERYTHING)]


def test_votes_of_a_held_scope_count_in_no_wider_one():
    one = held()
    assert feed(one, "x" * 100) == []
    assert feed(one, "x" * 13, target="b") == []
    assert brief(feed(one, "x", target="b")) == [("held", B)]


def test_a_healthy_group_never_goes_down_with_a_sick_one():
    one = policy(h=SETTINGS)
    for number in range(400):
        one.vote(number * 1.0, "g", str(number), failed=True, target="a")
        one.vote(number * 1.0, "h", str(number), failed=number % 10 == 0, target="h")
        if one.gate(number * 1.0, "g", "a") == "probe":
            probe(one, number * 1.0, "failed")
    assert {name for _, name in brief(one.evaluate(400.0))} <= {TARGET, GROUP}
    assert one.gate(400.0, "h", "h") == "open"


def test_while_a_wider_scope_is_held_no_narrower_one_alarms_for_what_was_in_hand():
    one = policy()
    for number in range(7):
        for target in "ab":
            one.vote(0.0, "g", f"{target}{number}", failed=True, target=target)
    assert brief(one.evaluate(0.0)) == [("held", GROUP)]
    assert feed(one, "x" * 32) == []


# ---- holds by status -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "retry_after", "holds"),
    [(429, None, True), (429, 7.0, True), (503, 7.0, True), (503, None, False), (403, 7.0, False), (None, 7.0, False)],
)
def test_a_status_holds_the_host_at_once_in_all_groups(status, retry_after, holds):
    one = policy(h=SETTINGS)
    assert told(one, 0.0, status, retry_after) == holds
    assert brief(one.evaluate(0.0)) == ([("held", HOST)] if holds else [])
    assert one.stands("h", "a") == holds
    assert one.gate(0.0, "h", "a") == ("shut" if holds else "open")
    assert one.gate(0.0, "h", "b") == "open"
    assert not told(one, 0.0, status, retry_after), "it stands already"


def test_an_item_that_may_start_none_and_a_host_that_nobody_knows_start_no_hold():
    one = policy()
    assert not told(one, start=False)
    assert not told(one, host=None)
    assert not told(policy(replace(SETTINGS, enabled=False)))
    assert one.all_open


def test_no_probe_goes_before_the_latest_retry_after_of_an_hour_at_most():
    one = policy()
    told(one, 0.0, 429, 30.0)
    told(one, 1.0, 429, 60.0)
    told(one, 2.0, 503, 10.0)
    assert one.next_deadline() == 2.0  # there is a ruling to be fetched
    one.evaluate(2.0)
    assert one.next_deadline() == 61.0
    assert one.gate(61.0 - MS, "g", "a") == "shut"
    assert one.gate(61.0, "g", "a") == "probe"
    one = policy()
    told(one, 0.0, 429, 86_400.0)
    assert (one.gate(3600 - MS, "g", "a"), one.gate(3600.0, "g", "a")) == ("shut", "probe")


def test_its_votes_count_in_no_group_and_not_in_global_while_it_stands():
    one = policy()
    told(one)
    one.evaluate(0.0)
    assert feed(one, "x" * 50) == []
    assert feed(one, "x" * 13, target="b") == []


def test_a_429_soon_after_a_holds_end_doubles_the_next_first_wait_up_to_a_minute():
    one, now, waits = policy(), 0.0, []
    for _ in range(8):
        told(one, now)
        (ruling,) = one.evaluate(now)
        waits.append(ruling.next_probe_at - now)
        now = ruling.next_probe_at
        assert brief(probe(one, now, "done")) == [("resumed", HOST)]
        now += 60.0 - MS
    assert waits == pytest.approx([2, 4, 8, 16, 32, 60, 60, 60])
    told(one, now + 2 * MS)
    assert one.evaluate(now)[0].next_probe_at == pytest.approx(now + 2 * MS + 2.0)


def test_a_permanent_failure_ends_a_hold_that_stands_for_a_status_alone():
    one = policy()
    told(one)
    one.evaluate(0.0)
    assert brief(probe(one, 2.0, "permanent")) == [("resumed", HOST)]
    one = held()
    assert brief(probe(one, 2.0, "permanent")) == [("evaluated", TARGET)]


# ---- probes ----------------------------------------------------------------------------------------------------------


def test_one_probe_at_a_time_each_twice_as_long_after_the_end_of_the_one_before():
    one, now, waits = held(), 0.0, []
    for _ in range(4):
        due = one.next_deadline()
        waits.append(due - now)
        assert one.gate(due - MS, "g", "a") == "shut"
        number = one.begin_probe(due, "g", "a", "item")
        assert one.gate(due + 100.0, "g", "a") == "shut"
        assert one.next_deadline() is None
        now = due + 1.5
        one.end_probe(now, number, "failed")
        one.evaluate(now)
    assert waits == [2.0, 4.0, 5.0, 5.0]


@pytest.mark.parametrize(
    ("fate", "action", "wait"),
    [
        ("done", "resumed", None),
        ("failed", "evaluated", 4.0),
        ("death", "evaluated", 4.0),
        ("permanent", "evaluated", 4.0),
        ("back", None, 1.0),
        ("infrastructure", None, 1.0),
    ],
)
def test_the_fates_of_a_probe_of_a_target(fate, action, wait):
    one = held()
    assert brief(probe(one, 2.0, fate, seconds=0.5)) == ([(action, TARGET)] if action else [])
    assert one.next_deadline() == (None if wait is None else 2.5 + wait)


def test_what_said_nothing_is_counted_neither_way():
    one = held()
    probe(one, 2.0, "back")
    probe(one, 3.0, "infrastructure")
    (ruling,) = probe(one, 4.0, "failed")
    assert ruling.reason == "a in group g: probe 1 of a in group g failed"
    assert ruling.next_probe_at == 8.0


def test_infrastructure_is_a_failed_probe_of_a_group():
    one = policy()
    for number in range(14):
        one.vote(0.0, "g", str(number), failed=True, target=str(number))
    one.evaluate(0.0)
    assert brief(probe(one, 2.0, "infrastructure")) == [("evaluated", GROUP)]


def test_a_probe_needs_the_leave_of_every_held_scope_and_counts_for_all_of_them():
    one = held()
    told(one, 0.5, 429, 10.0)
    one.evaluate(0.5)
    for number in range(7):
        for target in "bc":
            one.vote(1.0, "g", f"{target}{number}", failed=True, target=target)
    assert brief(one.evaluate(1.0)) == [("held", GROUP)]
    assert one.gate(3.0, "g", "b") == "probe"
    assert one.gate(10.5 - MS, "g", "a") == "shut"
    assert one.gate(10.5, "g", "a") == "probe"
    number = one.begin_probe(10.5, "g", "a", "item")
    assert one.gate(11.0, "g", "b") == "shut", "the group's probe is that one"
    one.end_probe(11.0, number, "done")
    assert {name for _, name in brief(one.evaluate(11.0))} == {TARGET, HOST, GROUP}
    assert one.all_open


def test_another_item_is_to_be_the_next_probe():
    one = held()
    number = one.begin_probe(2.0, "g", "a", "first")
    one.end_probe(2.0, number, "failed")
    assert one.probed("g", "a") == {"first"}
    assert one.probed("g", "b") == frozenset()


def test_a_probe_that_ends_after_its_hold_says_nothing():
    one = held()
    number = one.begin_probe(2.0, "g", "a", "slow")
    one.clear(3.0)
    again = one.begin_probe(3.0, "g", "a", "first")
    one.evaluate(3.0)
    one.end_probe(4.0, number, "failed")
    assert one.evaluate(4.0) == []
    one.end_probe(5.0, again, "done")
    assert brief(one.evaluate(5.0)) == [("resumed", TARGET)]


def test_waiting_calls_are_answered_evenly_over_five_seconds():
    times = spread(10.0, 50)
    assert times[0] == 10.0
    assert times[-1] < 15.0
    assert {round(b - a, 6) for a, b in pairwise(times)} == {0.1}
    assert spread(10.0, 0) == []


def test_votes_from_before_and_during_a_hold_raise_no_alarm_after_its_end():
    one = held()
    feed(one, "x" * 30)
    assert brief(probe(one, 2.0, "done")) == [("resumed", TARGET)]
    assert feed(one, "x" * 13, start=2.0) == []
    assert brief(feed(one, "x", start=2.0)) == [("held", TARGET)]


def test_a_scope_without_items_is_normal_again_but_not_before_its_retry_after():
    one = held()
    told(one, 0.0, 429, 10.0, host="b")
    one.hold_by_hand(0.0, "c")
    one.evaluate(0.0)
    one.settle(5.0, items_left)
    assert one.evaluate(5.0) == []
    one.settle(5.0, no_items)
    assert brief(one.evaluate(5.0)) == [("resumed", TARGET)]
    one.settle(10.0, no_items)
    assert brief(one.evaluate(10.0)) == [("resumed", ScopeName("target", "b", None))]
    one.settle(1e6, no_items)
    assert one.stands("g", "c")


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_a_hold_by_hand_sends_no_probe_never_aborts_and_ends_by_clear_alone():
    one = policy()
    one.hold_by_hand(0.0, "a")
    assert brief(one.evaluate(0.0)) == [("held", HOST)]
    assert one.next_deadline() is None
    assert one.gate(1e6, "h", "a") == "shut"
    feed(one, "x" * 500, gap=1.0)
    one.reconfigure(replace(SETTINGS, enabled=False), {})
    assert one.evaluate(1e6) == []
    one.restore(0.0, [], clean=True)
    assert one.clear(1e6) == [HOST]
    assert brief(one.evaluate(1e6)) == [("resumed", HOST)]


def test_a_host_held_by_hand_and_by_status_gets_another_chance_when_cleared():
    one = policy()
    one.hold_by_hand(0.0, "a")
    told(one)
    one.evaluate(0.0)
    one.clear(5.0)
    assert brief(one.evaluate(5.0)) == [("held", HOST)]
    assert one.gate(5.0, "g", "a") == "probe"


# ---- aborted ---------------------------------------------------------------------------------------------------------


def failing_probes(one, until, *, seconds=1.0, now=0.0):
    rulings = []
    while now < until and not any(ruling.action == "aborted" for ruling in rulings):
        now = max(now, one.next_deadline() or now)
        rulings += probe(one, now, "failed", seconds=seconds)
        now += seconds
    return rulings


def test_failed_probes_abort_when_confirm_after_has_passed_since_the_first_began():
    rulings = failing_probes(held(), 200.0)
    assert [one.action for one in rulings] == ["evaluated"] * 11 + ["aborted"]
    # The first begins at 2 s, the next 4 s after its end, the others 5 s; each takes 1 s.
    assert rulings[-1].time == (2 + 1) + (4 + 1) + 9 * (5 + 1)
    assert rulings[-1].reason == "a in group g: its last 11 probes failed, for 1m"
    assert rulings[-2].time == rulings[-1].time


def test_time_alone_aborts_nothing_before_three_probes_failed():
    one = held()
    assert brief(probe(one, 2.0, "failed", seconds=100.0)) == [("evaluated", TARGET)]
    assert brief(probe(one, 106.0, "failed", seconds=100.0)) == [("evaluated", TARGET)]
    assert brief(probe(one, 211.0, "failed", seconds=0.1)) == [("evaluated", TARGET), ("aborted", TARGET)]


def test_the_clock_stands_while_no_probe_goes_out_though_one_is_due():
    one = held()
    probe(one, 2.0, "failed")  # due at 6 s, but nobody asks for an hour
    for now in (3600.0, 3605.0, 3610.0):
        assert "aborted" not in [action for action, _ in brief(probe(one, now, "failed"))]
    rulings = failing_probes(one, 4000.0, now=3610.0, seconds=0.0)
    assert rulings[-1].action == "aborted"
    assert rulings[-1].time == 3600.0 + 60.0 - 4.0 + 4.0


def test_the_clock_runs_during_a_retry_after():
    one = policy()
    told(one, 0.0, 429, 30.0)
    one.evaluate(0.0)
    for now in (30.0, 60.0):
        assert "aborted" not in [action for action, _ in brief(probe(one, now, "failed"))]
        told(one, now, 429, 30.0)
    assert brief(probe(one, 90.0, "failed")) == [("evaluated", HOST), ("aborted", HOST)]


def test_a_site_that_says_come_back_in_half_an_hour_is_not_aborted():
    one = policy()
    feed(one, "." * 1200, gap=0.25)
    for number in range(40):
        told(one, 300.0, 429, 1800.0)
        one.vote(300.0, "g", f"in hand {number}", failed=True, target="a")
    assert brief(one.evaluate(2100.0)) == [("held", HOST)]
    assert brief(probe(one, 2100.0, "done")) == [("resumed", HOST)]


def test_a_scope_that_flaps_is_aborted_by_its_whole_window():
    one, now, actions = policy(), 0.0, []
    while "aborted" not in actions and now < 3600.0:
        actions += [ruling.action for ruling in feed(one, "xx.", start=now)]
        now += 1.0
        if one.gate(now, "g", "a") == "probe":
            actions += [ruling.action for ruling in probe(one, now, "done")]
    assert actions.count("held") > 10
    assert 300.0 <= now <= 310.0
    (figures,) = [one for one in one.figures(now) if one.state == "aborted"]
    assert figures.reason.endswith("more than failure_limit 50%")


def test_no_scope_is_aborted_by_its_window_before_it_has_one():
    settings = replace(SETTINGS, confirm_after=3600.0)
    one = held(settings)
    feed(one, "x" * 20)
    rulings = failing_probes(one, 400.0)
    assert rulings[-1].action == "aborted"
    assert 300.0 <= rulings[-1].time <= 305.0
    assert rulings[-1].reason.endswith("more than failure_limit 50%")


def test_what_was_in_hand_aborts_nothing_by_itself():
    """200 items in hand, where 150 were done in the whole window: a blip fails them all."""
    one = policy()
    feed(one, "." * 150, gap=2.0)
    assert brief(feed(one, "x" * 200, start=300.0)) == [("held", TARGET)]
    assert brief(probe(one, 302.0, "done")) == [("resumed", TARGET)]


def test_no_window_aborts_a_target_that_told_how_long_it_wants_no_requests():
    one = policy()
    feed(one, "." * 30, gap=10.0)
    told(one, 300.0, 429, 600.0)
    one.evaluate(300.0)
    feed(one, "x" * 200, start=301.0)
    assert one.evaluate(899.0) == []
    assert brief(probe(one, 900.0, "done")) == [("resumed", HOST)]


def test_nothing_of_an_aborted_scope_goes_out_and_it_is_told_once():
    one = held()
    failing_probes(one, 200.0)
    assert one.gate(1e6, "g", "a") == "shut"
    assert one.next_deadline() is None
    assert one.aborted("g", "a") == TARGET
    assert one.aborted("g", "b") is None
    assert feed(one, "x" * 100, start=1e6) == []
    assert one.gate(1e6, "g", "b") == "open"


def test_with_a_duration_an_abort_gets_one_probe_and_fails_again_quietly():
    settings = replace(SETTINGS, parked=600.0)
    one = held(settings)
    begin = failing_probes(one, 200.0)[-1].time
    assert one.next_deadline() == begin + 600.0
    (ruling,) = one.evaluate(begin + 600.0)
    assert (ruling.action, ruling.quiet) == ("held", True)
    evaluated, aborted = probe(one, begin + 600.0, "failed")
    assert (evaluated.quiet, aborted.action, aborted.quiet) == (True, "aborted", True)
    assert one.next_deadline() == begin + 1200.0
    one.evaluate(begin + 1200.0)
    assert brief(probe(one, begin + 1200.0, "back")) == []
    assert brief(probe(one, begin + 1201.0, "done")) == [("resumed", TARGET)]


def test_everything_never_gets_a_chance_by_itself():
    one = policy(replace(SETTINGS, parked=600.0))
    for number in range(14):
        one.vote(0.0, str(number), "item", failed=True, target=str(number))
    assert brief(one.evaluate(0.0)) == [("held", EVERYTHING)]
    now = 0.0
    while one.next_deadline() is not None:
        now = max(now, one.next_deadline())
        probe(one, now, "failed", group="0", target="0")
    assert one.figures(now)[0].state == "aborted"


# ---- another chance, reload, restart ---------------------------------------------------------------------------------


def test_clear_holds_what_was_held_or_aborted_with_clocks_anew_and_its_first_probe_at_once():
    one = held()
    now = failing_probes(one, 200.0)[-1].time
    assert one.clear(now, [B]) == []
    assert one.clear(now, [TARGET]) == [TARGET]
    assert brief(one.evaluate(now)) == [("held", TARGET)]
    rulings = failing_probes(one, now + 200.0, now=now)
    assert [one.action for one in rulings][:2] == ["evaluated", "evaluated"]
    assert rulings[0].time == now + 1.0
    assert rulings[-1].time >= now + 60.0
    assert policy().clear(0.0) == []


def test_switched_off_it_counts_and_decides_nothing_and_aborts_stay():
    off = replace(SETTINGS, enabled=False)
    one = policy(off)
    assert feed(one, "x" * 50) == []
    one.reconfigure(SETTINGS, {})
    assert brief(one.evaluate(0.0)) == [("held", TARGET)]
    one.reconfigure(off, {})
    assert brief(one.evaluate(0.0)) == [("resumed", TARGET)]
    one = held()
    failing_probes(one, 200.0)
    one.reconfigure(off, {})
    assert one.evaluate(200.0) == []
    assert one.aborted("g", "a") == TARGET


def test_new_values_apply_to_holds_that_stand():
    one = held(replace(SETTINGS, probe_interval=500.0, probe_max=900.0))
    assert one.next_deadline() == 500.0
    one.reconfigure(SETTINGS, {})
    assert one.next_deadline() == 5.0
    rulings = failing_probes(one, 300.0)
    begin = rulings[-1].time
    one.reconfigure(replace(SETTINGS, parked=60.0), {})
    assert one.next_deadline() == begin + 60.0


@pytest.mark.parametrize("clean", [True, False])
def test_what_stands_outlives_the_daemon(clean):
    one = held()
    told(one, 0.0, 429, 600.0, host="b")
    one.hold_by_hand(0.0, "c")
    one.evaluate(0.0)
    now = failing_probes(one, 200.0)[-1].time
    kept = one.standing(now)
    other = policy()
    other.restore(0.0, kept, clean=clean)
    assert other.stands("g", "c")
    assert other.next_deadline() is not None
    told_again = brief(other.evaluate(0.0))
    assert (("held", TARGET) in told_again) == clean
    assert other.gate(0.0, "g", "a") == ("probe" if clean else "shut")
    assert (other.aborted("g", "a") is None) == clean
    left = 600.0 - now
    assert other.gate(left - MS, "g", "b") == "shut"
    assert other.gate(left, "g", "b") == "probe"
    assert other.gate(1e6, "g", "c") == "shut"
    if not clean:
        assert [one.name for one in other.standing(0.0)] == [one.name for one in kept]


def test_a_new_run_forgets_votes_and_deaths_of_its_group_alone_and_holds_stay():
    one = policy(h=SETTINGS)
    feed(one, "x" * 14, target="a")
    feed(one, "x" * 6, target="b")
    feed(one, "x" * 7, group="h", target="h")
    assert brief(one.evaluate(0.0)) == []
    one.forget("g")
    assert one.stands("g", "a")
    assert {(shown.name.group, shown.items) for shown in one.figures(0.0) if shown.state == "normal"} == {
        (None, 7),
        ("h", 7),
    }
    assert brief(feed(one, "x" * 7, group="h", target="h")) == [("held", ScopeName("target", "h", "h"))]


def test_figures_show_what_is_not_normal_and_the_largest():
    one = policy()
    for number in range(80):
        for vote in range(number % 7 + 1):
            one.vote(1.0, f"group-{number}", str(vote), failed=False, target=None)
    feed(one, "x" * 14, start=1.0)
    shown = one.figures(5.0)
    assert [(figures.name, figures.state) for figures in shown if figures.state != "normal"] == [(TARGET, "held")]
    assert shown[0].next_probe_at == 3.0
    assert (shown[0].items, shown[0].failures) == (14, 14)
    assert len(shown) == 51
    assert [figures.items for figures in shown[1:]] == sorted((one.items for one in shown[1:]), reverse=True)
    assert len(one.figures(5.0, largest=3)) == 4


# ---- whatever happens ------------------------------------------------------------------------------------------------

happenings = st.lists(
    st.tuples(
        st.sampled_from(["vote", "vote", "vote", "told", "probe", "end", "crash", "hand", "clear", "settle", "reload"]),
        st.sampled_from("gh"),
        st.sampled_from("ab"),
        st.sampled_from(["done", "failed", "failed", "permanent", "infrastructure", "back"]),
        st.sampled_from([0.0, 0.5, 5.0, 70.0]),
        st.integers(0, 30),
    ),
    max_size=120,
)


def happen(one, settings, now, what, group, target, fate, number, probes):
    """One thing happens; `probes` are those under way, oldest first."""
    if what == "vote":
        for extra in range(3):
            key = f"{target}{number}{extra}"
            one.vote(now, group, key, failed=fate != "done", target=target, infrastructure=fate == "infrastructure")
    elif what == "told":
        told(one, now, group=group, host=target, retry_after=float(number))
    elif what == "probe" and one.gate(now, group, target) == "probe":
        assert all(hold.probing is None for hold in one._over(group, target))
        probes.append(one.begin_probe(now, group, target, str(number)))
        assert one.gate(now, group, target) == "shut"
    elif what == "end" and probes:
        one.end_probe(now, probes.pop(0), fate)
    elif what == "crash":
        one.crash(now, group, None)
    elif what == "hand":
        one.hold_by_hand(now, target)
    elif what == "clear":
        one.clear(now)
    elif what == "settle":
        one.settle(now, items_left if number % 2 else no_items)
    elif what == "reload":
        new = replace(settings, enabled=number % 2 == 0)
        one.reconfigure(new, {"g": new, "h": new})


@given(happenings=happenings)
def test_states_follow_each_other_and_one_probe_goes_at_a_time(happenings):
    """What was decided is what stands; a failed probe is of a held scope; no deadline lies in the past."""
    settings = AbortSettings(window=20.0, normal_rate=0.0, failure_limit=0.2, min_items=1, parked=30.0)
    one, now, states, probes = policy(settings, h=settings), 0.0, {}, []
    for what, group, target, fate, gap, number in happenings:
        now += gap
        happen(one, settings, now, what, group, target, fate, number, probes)
        for ruling in one.evaluate(now):
            if ruling.action == "resumed":
                assert states.pop(ruling.name) in ("held", "aborted")
            elif ruling.action == "evaluated":
                assert states[ruling.name] == "held"
            else:
                states[ruling.name] = ruling.action
        assert {shown.name: shown.state for shown in one.figures(now) if shown.state != "normal"} == states
        assert one.all_open == (not states)
        deadline = one.next_deadline()
        assert deadline is None or deadline > now
