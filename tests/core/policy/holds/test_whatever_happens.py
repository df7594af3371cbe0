"""Whatever happens to the hold policy: states follow each other, and one probe goes at a time."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.core.policy.holds.talk import (
    policy,
    told,
)

from scraper_supervisor.core.config.settings import AbortSettings


def items_left(name):
    return True


def no_items(name):
    return False


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
