"""The abort window against a plain recount of every vote, and the memory that it takes."""

from hypothesis import given
from hypothesis import strategies as st
from tests.core.policy.votes import MS, SETTINGS

from scraper_supervisor.core.config.settings import AbortSettings
from scraper_supervisor.core.policy.abort import SPARE, AbortWindow
from scraper_supervisor.core.policy.evidence import MOST_VOTES, windows


class Naive:
    """One group's window as plainly as it can be written: every vote kept, every window counted, no suspicion."""

    def __init__(self, settings):
        self.settings, self.votes = settings, []

    def vote(self, now, item, failed):
        self.votes = [vote for vote in self.votes if vote[1] != item] + [(now, item, failed)]

    def count(self, now):
        return sum(now < time + self.settings.window for time, _, _ in self.votes)

    def alarm(self, now):
        flags = [failed for time, _, failed in self.votes if now < time + self.settings.window][-MOST_VOTES:]
        full = self.settings.rule == "rate"
        return any(sum(flags[-n:]) >= need for n, need in windows(self.settings) if len(flags) >= n or not full)


rules = st.builds(
    AbortSettings,
    rule=st.sampled_from(["evidence", "rate"]),
    window=st.sampled_from([5.0, 20.0, 300.0]),
    min_items=st.sampled_from([2, 5, 10]),
    failure_limit=st.sampled_from([0.3, 0.5, 0.9]),
    normal_rate=st.sampled_from([0.0, 0.01]),
    confirm_after=st.sampled_from([0.0, 3.0, 60.0]),
)
gaps = st.sampled_from([0.0, 0.1, 1.0, "-", "=", "+"])
steps = st.lists(st.tuples(gaps, st.integers(0, 40), st.sampled_from([True, True, False])), max_size=120)


@given(settings=rules, steps=steps)
def test_the_window_agrees_with_a_plain_recount(settings, steps):
    """Time goes on by little, or to the next deadline and a millisecond around it."""
    window, naive, now, state, since = AbortWindow(settings), Naive(settings), 0.0, "normal", None
    for gap, item, failed in steps:
        deadline = window.next_deadline()
        if isinstance(gap, str):
            now = max(now, (now if deadline is None else deadline) + {"-": -MS, "=": 0.0, "+": MS}[gap])
        else:
            now += gap
        early = window.evaluate(now)
        assert deadline is not None or not early
        assert deadline is None or now < deadline or early
        window.vote(now, "matches", str(item), failed=failed)
        naive.vote(now, str(item), failed)
        for decision in early + window.evaluate(now):
            if decision.scope != "group":
                continue
            legal = {"normal": ("suspected",), "suspected": ("cleared", "aborted"), "aborted": ()}
            assert decision.action in legal[state]
            state = "normal" if decision.action == "cleared" else decision.action
            if decision.action == "aborted":
                assert decision.time >= since + settings.confirm_after
            since = decision.time
        if state == "normal":
            # What a healthy slice took out of the window is the one thing that the recount doesn't know of.
            kept = sum(view.items for view in window.scopes(now) if view.scope == "group")
            assert kept < naive.count(now) or not naive.alarm(now)
        if state == "suspected" and settings.confirm_after == 0.0:
            assert window.next_deadline() <= now


@given(settings=rules, steps=steps)
def test_a_first_suspicion_comes_with_the_first_alarm_of_a_plain_recount(settings, steps):
    window, naive, now = AbortWindow(settings), Naive(settings), 0.0
    for gap, item, failed in steps:
        now += gap if isinstance(gap, float) else 2.0
        window.vote(now, "matches", str(item), failed=failed)
        naive.vote(now, str(item), failed)
        suspected = bool(window.evaluate(now))
        assert suspected == naive.alarm(now)
        if suspected:
            return


def test_memory_is_bounded():
    window = AbortWindow(SETTINGS)
    for number in range(20_000):
        window.vote(number * 0.001, f"group-{number % 2}", str(number), failed=number % 3 == 0)
    assert all(MOST_VOTES <= len(scope.votes) <= MOST_VOTES + SPARE for scope in window._scopes.values())
    assert len(window._latest) <= 2 * (MOST_VOTES + SPARE)
    for scope in window._scopes.values():
        assert scope.failed == sum(scope.flags) == sum(vote.failed for vote in scope.votes)
