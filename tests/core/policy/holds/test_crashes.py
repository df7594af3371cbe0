"""Deaths in a row: which of them count, and when they abort a group."""

import pytest
from tests.core.policy.holds.talk import GROUP, MS, SETTINGS, brief, feed, policy


@pytest.mark.parametrize(
    ("rows", "aborted"),
    [
        pytest.param([(n, None) for n in range(0, 10, 2)], True, id="five"),
        pytest.param([(n, None) for n in range(0, 8, 2)], False, id="four"),
        pytest.param([*((n, None) for n in range(0, 8, 2)), (8, "done"), (9, None)], False, id="an item done between"),
        pytest.param([(n, "bad") for n in range(0, 18, 2)], False, id="all charged to one item"),
        pytest.param([*((n, "bad") for n in range(0, 18, 2)), (20, 0), (22, 1), (24, 2), (26, 3)], True, id="and 4"),
        pytest.param([(n, n) for n in range(0, 10, 2)], True, id="five items"),
        pytest.param([(n * (2 - MS), None) for n in range(9)], True, id="each second one is within 2 s of one"),
        pytest.param([(1.0 + n * 0.1, n) for n in range(19)], False, id="all within 2 s of the first"),
        pytest.param([(0, None), (292, 1), (294, 2), (296, 3), (300 - MS, 4)], True, id="just within crash_window"),
        pytest.param([(0, None), (292, 1), (294, 2), (296, 3), (300, 4)], False, id="just out of it"),
    ],
)
def test_deaths_with_no_item_done_between(rows, aborted):
    one = policy()
    for now, charged in rows:
        if charged == "done":
            one.done("g")
        else:
            one.crash(now, "g", None if charged is None else str(charged))
    rulings = one.evaluate(rows[-1][0])
    assert brief(rulings) == ([("aborted", GROUP)] if aborted else [])
    if aborted:
        expected = "group g: 5 deaths within 5m with no item done between them, consecutive_crashes is 5"
        assert rulings[0].reason == expected
        assert rulings[0].rate is None
        assert one.gate(rows[-1][0], "g", "a") == "shut"


def test_a_vote_of_a_done_item_ends_the_streak():
    one = policy()
    for n in range(0, 40, 2):
        one.crash(n, "g", None)
        if n % 8 == 6:
            feed(one, ".", start=n)
    assert one.evaluate(40.0) == []


def test_another_chance_forgets_the_deaths():
    one = policy()
    for n in range(5):
        one.crash(n * 2.0, "g", None)
    one.clear(20.0)
    one.evaluate(20.0)
    for n in range(4):
        one.crash(20.0 + n * 2, "g", None)
    assert one.evaluate(30.0) == []
    one.crash(30.0, "g", None)
    assert brief(one.evaluate(30.0)) == [("aborted", GROUP)]


def test_each_group_has_its_own_settings():
    one = policy(h=type(SETTINGS)(consecutive_crashes=2))
    for n in range(2):
        one.crash(n * 2.0, "g", None)
        one.crash(n * 2.0, "h", None)
    assert [name.key for _, name in brief(one.evaluate(9.0))] == ["h"]
