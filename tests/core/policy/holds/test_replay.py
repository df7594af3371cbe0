"""Recorded events given to the hold policy again."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.policy.holds.farm import Farm, Fault, healthy, out, poisoned

from scraper_supervisor.core.config.settings import AbortSettings
from scraper_supervisor.core.formats.timestamps import seconds, timestamp
from scraper_supervisor.core.policy.holds.replay import Replay

BEGIN = 1_790_000_000.0


def finished(time, key, *, outcome=None, took=0.0, group="g", target="a", fault=None):
    failure = None
    if fault is not None:
        failure = {"kind": fault.kind, "category": "external", "signature": "x", "message": "x"}
        failure |= {"status": fault.status, "retry_after": fault.retry_after}
    data = {"key": key, "attempt": 1, "outcome": outcome or ("retry" if fault else "done"), "target": target}
    data |= {"seconds": took, "failure": failure}
    return {"time": timestamp(BEGIN + time), "event": "item_finished", "group": group, "data": data}


def replayed(events, settings=None, **groups):
    replay = Replay(settings or AbortSettings(), groups)
    for event in events:
        replay.feed(event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n")
    return replay.report()


def told(report):
    return [(one.action, one.scope, one.key, seconds(one.time) - BEGIN) for one in report.decisions]


def outage(count, *, start=0.0, gap=1.0):
    return [finished(start + n * gap, f"{start}/{n}", fault=Fault()) for n in range(count)]


def test_what_a_farm_recorded_is_held_and_aborted_at_the_same_moments():
    farm = Farm(out([(600, 4000)], healthy(1)), seed=1, watched=True).run(800)
    events = [finished(t, key, group=g, target=host, took=2.0, fault=f) for t, g, host, key, f in farm.attempts]
    report = replayed(events)
    expected = [(one.action, one.name.scope, one.name.key, one.time) for one in farm.rulings]
    assert told(report) == [one for one in expected if one[0] != "evaluated"]
    assert [one[0] for one in told(report)] == ["held", "aborted"]
    assert report.aborted
    assert report.since == events[0]["time"]


def test_the_first_attempt_that_began_when_a_probe_was_due_stands_for_it_and_others_do_not_count():
    events = outage(14, gap=0.1)  # held at 1.3 s, a probe is due at 3.3 s
    events += [finished(4.0, "early", took=1.0)]  # began at 3.0 s
    events += [finished(5.0, "probe", took=1.0)]
    events += [finished(6.0, "after")]
    report = replayed(events)
    assert told(report) == [("held", "target", "a", pytest.approx(1.3)), ("resumed", "target", "a", 5.0)]
    assert report.items == 14 + 2
    assert not report.aborted


def test_it_goes_on_after_an_abort_with_that_scope_aside():
    events = outage(200)
    events += [finished(300.0 + n, f"b{n}", target="b") for n in range(40)]
    report = replayed(events)
    assert [one[:3] for one in told(report)] == [("held", "target", "a"), ("aborted", "target", "a")]
    assert report.until == timestamp(BEGIN + 339.0)
    assert report.items == 14 + 14 + 40  # votes up to the hold, probes, and the other target


def test_a_status_holds_the_host_in_all_groups():
    busy = Fault("blocked", 429, 30.0)
    events = [finished(0.0, "one", fault=busy), finished(10.0, "two", group="h"), finished(31.0, "three", group="h")]
    report = replayed(events)
    assert told(report) == [("held", "target", "a", 0.0), ("resumed", "target", "a", 31.0)]
    assert report.decisions[0].group is None


def test_an_item_starts_no_more_than_three_holds():
    events, now = [], 0.0
    for _ in range(4):
        events += [finished(now, "same", fault=Fault("blocked", 429)), finished(now + 70.0, f"{now}")]
        now += 140.0
    assert [one[0] for one in told(replayed(events))] == ["held", "resumed"] * 3


def test_deaths_abort_their_group_and_orders_do_not():
    def exits(**data):
        return [
            {"time": timestamp(BEGIN + n * 3), "event": "worker_exited", "group": "g", "data": data} for n in range(5)
        ]

    assert told(replayed(exits(ordered=False, code=1, charged=None)))[0][:3] == ("aborted", "group", "g")
    assert told(replayed(exits(ordered=False, code=0, died=True)))[0][:3] == ("aborted", "group", "g")
    for ends in (exits(ordered=True, code=1), exits(ordered=False, code=0), exits(ordered=False, code=1, died=False)):
        assert replayed(ends).decisions == ()


def test_what_an_operator_cancelled_is_no_vote():
    cancelled = finished(0.0, "x", fault=Fault("permanent"))
    cancelled["data"]["failure"]["signature"] = "cancelled"
    assert replayed([cancelled]).items == 0


def test_each_group_has_its_own_settings():
    events = [finished(n * 1.0, str(n), group=group, fault=Fault()) for n in range(20) for group in "gh"]
    report = replayed(events, AbortSettings(enabled=False), g=AbortSettings(enabled=False), h=AbortSettings())
    assert {one.group for one in report.decisions} == {"h"}


FOREIGN = (
    b"",
    b"\n",
    b"not json item_finished\n",
    b'{"event": "item_finished"}\n',
    b'{"event": "item_fin',
    b"\xff\xfe\n",
    b'{"event": "item_finished", "time": "2026-05-01T12:00:00", "group": "g", "data": {"key": "k", "outcome": "x"}}\n',
    b'{"event": "checkpoint_created", "time": 5, "data": {"event": "item_finished"}}\n',
)


@pytest.mark.parametrize("line", FOREIGN)
def test_a_torn_or_foreign_line_is_skipped(line):
    events = outage(14, gap=0.1)
    assert replayed([*events[:7], line, *events[7:]]) == replayed(events)


@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from(FOREIGN)), max_size=20))
def test_whatever_the_file_holds_it_ends_with_a_report(lines):
    report = replayed([b'"item_finished"' + line for line in lines])
    assert msgspec.to_builtins(report)["from"] is None
    assert report.items == 0


def test_rules_are_compared_on_the_same_recording():
    farm = Farm(poisoned(2, 0.45), seed=2, max_attempts=1, watched=True).run(1200)
    events = [finished(t, key, group=g, target=host, took=2.0, fault=f) for t, g, host, key, f in farm.attempts]
    assert not replayed(events, AbortSettings(failure_limit=0.95)).decisions
    assert replayed(events, AbortSettings(rule="rate")).decisions
