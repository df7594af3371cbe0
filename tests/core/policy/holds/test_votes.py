"""What is counted, against a plain recount of every vote; and the memory that it takes."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from scraper_supervisor.core.config.settings import AbortSettings
from scraper_supervisor.core.policy.evidence import MOST_VOTES
from scraper_supervisor.core.policy.holds import votes as module
from scraper_supervisor.core.policy.holds.evidence import alarm_windows
from scraper_supervisor.core.policy.holds.scopes import EVERYTHING, ScopeName, judged
from scraper_supervisor.core.policy.holds.votes import FINENESS, ROOM, SPARE, Votes

GROUPS, TARGETS = ("g", "h"), ("a", "b", None)
SCOPES = [EVERYTHING] + [ScopeName("group", g, g) for g in GROUPS]
SCOPES += [ScopeName("target", t, g) for g in GROUPS for t in TARGETS if t is not None]


@dataclass
class Vote:
    time: float
    group: str
    item: str
    target: str | None
    failed: bool
    rows: tuple


class Plain:
    """Every vote kept, each question answered by counting."""

    def __init__(self, window):
        self.window, self.votes = window, []

    def cast(self, now, group, item, target, failed, alarming):
        self.votes = [one for one in self.votes if not (one.failed and (one.group, one.item) == (group, item))]
        self.votes.append(Vote(now, group, item, target, failed, judged(group, target) if alarming else ()))

    def silence(self, name):
        """Failures leave the wider rows too; done items stay in these as what they are."""
        for one in self.votes:
            if name in one.rows:
                one.rows = tuple(row for row in one.rows if row != name and not (one.failed and row.covers(name)))

    def alarm(self, name, now, windows):
        flags = [one.failed and now < one.time + self.window for one in self.votes if name in one.rows]
        return any(sum(flags[-n:]) >= need for n, need in windows)


steps = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.1, 1.0, 7.0]),
        st.sampled_from(GROUPS),
        st.sampled_from(TARGETS),
        st.integers(0, 25),
        st.sampled_from([True, True, False]),
        st.sampled_from(["vote"] * 20 + ["quiet", "silence"]),
    ),
    max_size=100,
)
rules = st.builds(
    AbortSettings,
    window=st.sampled_from([5.0, 20.0, 300.0]),
    failure_limit=st.sampled_from([0.2, 0.5]),
    normal_rate=st.sampled_from([0.0, 0.01]),
)


@given(settings=rules, steps=steps)
def test_rows_agree_with_a_plain_recount(settings, steps):
    counted, plain, now = Votes(lambda _: settings.window), Plain(settings.window), 0.0
    windows = ((3, 2), (6, 4), (12, 7), *alarm_windows(settings))
    for gap, group, target, number, failed, what in steps:
        now += gap
        item = f"{target}{number}"  # an item talks to one target
        if what == "silence":
            name = ScopeName("group", group, group) if target is None else ScopeName("target", target, group)
            counted.silence(name)
            plain.silence(name)
            continue
        counted.cast(now, group, item, target, failed=failed, alarming=what == "vote")
        plain.cast(now, group, item, target, failed, what == "vote")
        for name in SCOPES:
            row = counted.row(name)
            if row is not None:
                row.age(now - settings.window)
                assert (row.alarm(windows) is not None) == plain.alarm(name, now, windows), name


@given(settings=rules, steps=steps)
def test_no_alarm_comes_before_the_slack_is_used_up(settings, steps):
    counted, now, windows = Votes(lambda _: settings.window), 0.0, ((3, 2), (6, 4), (12, 7))
    for gap, group, target, number, failed, _ in steps:
        now += gap
        counted.cast(now, group, f"{target}{number}", target, failed=failed, alarming=True)
        row = counted.row(EVERYTHING)
        slack = row.slack
        row.age(now - settings.window)
        alarm = row.alarm(windows)
        assert alarm is None or slack <= 0
        if alarm is not None:
            row.clear()


@given(steps=steps, window=st.sampled_from([5.0, 20.0, 300.0]))
def test_the_whole_window_is_counted_to_a_slice(steps, window):
    counted, plain, now = Votes(lambda _: window), Plain(window), 0.0
    for gap, group, target, number, failed, _ in steps:
        now += gap
        counted.cast(now, group, f"{target}{number}", target, failed=failed, alarming=True)
        plain.cast(now, group, f"{target}{number}", target, failed, True)
        for name in SCOPES:
            count = counted.whole(name, now, lambda _: False)
            inside = [one for one in plain.votes if name in judged(one.group, one.target)]
            least = [one for one in inside if now < one.time + window]
            most = [one for one in inside if now < one.time + window * (1 + 1.01 / FINENESS)]
            assert len(least) <= count.items <= len(most)
            assert sum(one.failed for one in least) <= count.failures <= sum(one.failed for one in most)


def test_a_scope_that_is_left_out_counts_in_no_wider_one():
    counted = Votes(lambda _: 300.0)
    for number in range(10):
        counted.cast(0.0, "g", f"a{number}", "a", failed=True, alarming=True)
        counted.cast(0.0, "g", f"b{number}", "b", failed=False, alarming=True)
    group, held = ScopeName("group", "g", "g"), ScopeName("target", "a", None)
    assert counted.whole(group, 0.0, lambda _: False).failures == 10
    assert counted.whole(group, 0.0, lambda name: name == held).items == 10
    assert counted.whole(EVERYTHING, 0.0, lambda name: name == group).items == 0
    assert counted.whole(held, 0.0, lambda name: name == held).items == 10


def test_the_first_vote_is_the_first_after_a_whole_window_without():
    counted = Votes(lambda _: 300.0)
    name = ScopeName("target", "a", "g")
    for now in (7.0, 200.0, 400.0):
        counted.cast(now, "g", str(now), "a", failed=False, alarming=True)
    assert counted.whole(name, 400.0, lambda _: False).since == 7.0
    counted.cast(800.0, "g", "late", "a", failed=False, alarming=True)
    assert counted.whole(name, 800.0, lambda _: False).since == 800.0


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 3000)
    counted = Votes(lambda _: 300.0)
    for number in range(20_000):
        counted.cast(number * 0.001, f"g{number % 2}", str(number), "a", failed=number % 3 > 0, alarming=True)
    for name in counted.rows():
        row = counted.row(name)
        assert len(row.numbers) == len(row.places) == len(row.times) <= MOST_VOTES + SPARE
    assert len(counted._failed) == 3000
    counted.tidy(1000.0)
    assert counted.names() == []
    assert len(counted._failed) == 0
    assert counted.rows() == [EVERYTHING]


def test_targets_of_long_ago_are_forgotten_without_being_asked_for():
    counted = Votes(lambda _: 300.0)
    for number in range(20_000):
        counted.cast(number * 1.0, "g", str(number), f"host-{number}", failed=number % 2 == 0, alarming=True)
    assert len(counted._leaves["g"]) <= 300 + ROOM + 1
    assert len(counted._rows) <= 300 + ROOM + 3


def test_another_window_keeps_what_was_counted():
    spans = {None: 300.0}
    counted = Votes(lambda group: spans.get(group, spans[None]))
    for number in range(100):
        counted.cast(float(number), "g", str(number), "a", failed=number % 2 == 0, alarming=True)
    spans["g"] = 60.0
    counted.reconfigured()
    whole = counted.whole(ScopeName("group", "g", "g"), 99.0, lambda _: False)
    assert 60 <= whole.items <= 67
    assert abs(whole.failures * 2 - whole.items) <= 6
    assert counted.whole(EVERYTHING, 99.0, lambda _: False).items == 100


def test_a_forgotten_group_counts_nowhere():
    counted = Votes(lambda _: 300.0)
    for group in GROUPS:
        for number in range(9):
            counted.cast(0.0, group, str(number), "a", failed=True, alarming=True)
    counted.forget("g")
    assert counted.whole(EVERYTHING, 0.0, lambda _: False).items == 9
    assert len(counted.row(EVERYTHING).places) == 9
    assert counted.row(ScopeName("group", "g", "g")) is None
