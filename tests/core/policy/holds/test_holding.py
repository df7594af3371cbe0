"""What holds a scope, and how a hold ends, sentence by sentence of the contract."""

from itertools import pairwise

import pytest
from msgspec.structs import replace
from tests.core.policy.holds.talk import (
    EVERYTHING,
    GROUP,
    HOST,
    MS,
    OTHER,
    SETTINGS,
    TARGET,
    brief,
    feed,
    held,
    policy,
    probe,
    told,
)

from scraper_supervisor.core.config.settings import AbortSettings
from scraper_supervisor.core.policy.holds.policy import spread
from scraper_supervisor.core.policy.holds.rulings import Ruling
from scraper_supervisor.core.policy.holds.scopes import ScopeName

PLAIN = AbortSettings(rule="rate")


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
    assert brief(feed(one, "x", target="b")) == [("held", OTHER)]


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
