"""Which scopes an item is in, and which lie within which."""

import pytest
from tests.core.policy.holds.talk import EVERYTHING, GROUP, HOST, TARGET

from scraper_supervisor.core.policy.holds.scopes import ScopeName, judged, scopes_of


def test_the_narrowest_comes_first_and_a_host_in_all_groups_is_judged_by_no_votes():
    assert scopes_of("g", "a") == (TARGET, HOST, GROUP, EVERYTHING)
    assert judged("g", "a") == (TARGET, GROUP, EVERYTHING)
    assert scopes_of("g", None) == judged("g", None) == (GROUP, EVERYTHING)


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        (EVERYTHING, TARGET, True),
        (EVERYTHING, HOST, True),
        (GROUP, TARGET, True),
        (GROUP, HOST, False),
        (HOST, TARGET, True),
        (TARGET, HOST, False),
        (GROUP, EVERYTHING, False),
        (TARGET, TARGET, True),
        (GROUP, ScopeName("target", "a", "h"), False),
        (HOST, ScopeName("target", "b", "g"), False),
        (GROUP, ScopeName("group", "h", "h"), False),
    ],
)
def test_what_lies_within(wide, narrow, covers):
    assert wide.covers(narrow) == covers


def test_sentences_name_them():
    assert [str(one) for one in (EVERYTHING, GROUP, HOST, TARGET)] == [
        "all groups",
        "group g",
        "a in all groups",
        "a in group g",
    ]
