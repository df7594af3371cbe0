"""What aborts a scope, and how it gets another chance, sentence by sentence of the contract."""

import pytest
from msgspec.structs import replace
from tests.core.policy.holds.talk import (
    EVERYTHING,
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

from scraper_supervisor.core.policy.holds.scopes import ScopeName

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
    assert one.clear(now, [OTHER]) == []
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
