"""The tables of a group's and the supervisor's states have no holes, no traps, and the names of the contract."""

from enum import Enum
from itertools import product

import pytest

from scraper_supervisor.core.states.group import ENDED, GROUP_TABLE, GroupState, GroupTrigger
from scraper_supervisor.core.states.supervisor import SUPERVISOR_TABLE, SupervisorState, SupervisorTrigger
from scraper_supervisor.core.states.table import STAYS, table


class Light(Enum):
    RED = "red"
    GREEN = "green"


class Switch(Enum):
    FLIP = "flip"
    BREAK = "break"


def test_a_table_says_what_follows():
    made = table(
        Switch,
        (Light.RED, Light.GREEN),
        {Switch.FLIP: (Light.GREEN, Light.RED), Switch.BREAK: (STAYS, Light.RED)},
    )
    assert made[Light.RED, Switch.FLIP] is Light.GREEN
    assert made[Light.RED, Switch.BREAK] is Light.RED


@pytest.mark.parametrize(
    ("states", "rows"),
    [
        ((Light.RED,), {Switch.FLIP: (STAYS,), Switch.BREAK: (STAYS,)}),
        ((Light.RED, Light.GREEN), {Switch.FLIP: (STAYS, STAYS)}),
        ((Light.RED, Light.GREEN), {Switch.FLIP: (STAYS,), Switch.BREAK: (STAYS, STAYS)}),
    ],
)
def test_a_table_with_a_hole_is_an_error(states, rows):
    with pytest.raises(ValueError, match=r"table of Switch|shorter|longer"):
        table(Switch, states, rows)


def test_every_state_answers_every_trigger():
    assert set(GROUP_TABLE) == set(product(GroupState, GroupTrigger))
    assert set(SUPERVISOR_TABLE) == set(product(SupervisorState, SupervisorTrigger))


def test_public_names_are_those_of_the_contract():
    assert {state.public for state in GroupState} == {
        "running", "paused", "draining", "completed", "failed", "aborted", "stopped",
    }  # fmt: skip
    assert {str(state) for state in SupervisorState} == {"starting", "running", "draining", "aborting", "aborted"}


def test_a_group_that_has_ended_works_again_only_if_its_workers_are_wanted():
    for state in ENDED:
        for trigger in GroupTrigger:
            again = trigger in (GroupTrigger.OPEN, GroupTrigger.STAFF, GroupTrigger.STAFF_PAUSED)
            assert (GROUP_TABLE[state, trigger] not in ENDED) == again, (state, trigger)


def test_a_drain_of_the_supervisor_is_never_turned_back():
    for trigger in SupervisorTrigger:
        assert SUPERVISOR_TABLE[SupervisorState.DRAINING, trigger] is SupervisorState.DRAINING
