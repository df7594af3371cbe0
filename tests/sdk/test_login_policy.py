"""When a worker logs in, tries again and gives up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scraper_worker.login.policy import GIVE_UP_AFTER, LoginPolicy
from scraper_worker.protocol import RestartDelays

DELAYS = RestartDelays(base_delay=1.0, multiplier=2.0, max_delay=5.0)


def logged_in() -> LoginPolicy:
    policy = LoginPolicy()
    policy.succeeded()
    return policy


def test_without_a_session_a_login_comes_first() -> None:
    assert not LoginPolicy().has_session
    assert logged_in().has_session


def test_the_first_that_finds_it_expired_has_a_login_and_those_that_began_before_are_only_repeated() -> None:
    policy = logged_in()
    policy.done(1)
    assert policy.expired(1, 0) == "again"
    assert not policy.has_session
    policy.succeeded()
    assert policy.expired(1, 0) == "again"
    assert policy.has_session, "it began before the last login"


def test_the_second_time_in_a_claim_the_item_fails() -> None:
    policy = logged_in()
    assert policy.expired(1, 0) == "again"
    policy.succeeded()
    assert policy.expired(2, 1) == "fail"
    assert policy.has_session, "the item may be to blame: the next one decides"


def test_a_login_after_which_nothing_is_done_counts_as_one_that_failed() -> None:
    policy = logged_in()
    assert policy.in_vain
    assert not policy.failed(10.0, DELAYS)
    assert not policy.in_vain, "it counts once"
    assert (policy.failures, policy.not_before) == (1, 11.0)
    policy.succeeded()
    policy.done(1)
    assert policy.in_vain, "that was done by a try of an earlier session"
    policy.done(2)
    assert not policy.in_vain
    assert policy.failures == 0


def test_the_waits_grow_as_those_between_restarts_and_the_fifth_is_the_last() -> None:
    policy = LoginPolicy()
    ends = [policy.failed(0.0, DELAYS) for _ in range(GIVE_UP_AFTER)]
    assert ends == [False] * 4 + [True]
    assert [DELAYS.after(number) for number in (1, 2, 3, 4, 400)] == [1.0, 2.0, 4.0, 5.0, 5.0]


@given(st.lists(st.sampled_from(["login ok", "login bad", "expired", "done"]), max_size=60))
def test_whatever_happens_it_ends_after_five_logins_that_brought_nothing(events: list[str]) -> None:
    policy, bad, over = LoginPolicy(), 0, False
    for event in events:
        if event == "expired" and policy.has_session:
            assert policy.expired(policy.epoch, 0) == "again"
        elif event == "done" and policy.has_session:
            policy.done(policy.epoch)
            bad = 0
        elif event.startswith("login") and not policy.has_session:
            if policy.in_vain:
                bad, over = bad + 1, policy.failed(0.0, DELAYS)
            elif event == "login ok":
                policy.succeeded()
            else:
                bad, over = bad + 1, policy.failed(0.0, DELAYS)
        assert over == (bad >= GIVE_UP_AFTER)
        if over:
            return


def test_delays_have_a_ceiling() -> None:
    assert RestartDelays(1.0, 1000.0, 60.0).after(5) == 60.0
    assert RestartDelays(0.0, 2.0, 60.0).after(5) == 0.0
