"""A gap in the loop counts for nobody."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.playbook import Play

from scraper_supervisor.core.config.settings import RestartSettings
from scraper_supervisor.core.events import Due, KillTree, Stalled
from scraper_supervisor.core.workers.standstill import later
from scraper_worker.protocol import Heartbeat


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 100))
def test_a_clock_moves_by_as_much_of_the_gap_as_it_ran_in(at, since, length):
    now = since + length
    at = min(at, now)
    moved = later(at, since, now)
    assert moved <= now + 1e-9, "nothing is counted from a time to come"
    assert moved >= at
    if at <= since:
        assert moved == pytest.approx(at + length)
        assert now - moved == pytest.approx(since - at), "what was counted before the gap stays counted"
    else:
        assert moved == pytest.approx(now), "what began in the gap begins at its end"


def hung(play):
    return [one for one in play.log if one.event == "worker_hung"]


@pytest.mark.parametrize("gap", [8.0, 600.0])
def test_silence_in_a_gap_is_no_hang_and_what_came_before_it_is_counted(gap):
    play = Play("x", heartbeat_timeout=4.0)
    a = play.up()
    play >> a.notes(Heartbeat())
    beat = play.now
    play.at(beat + 3.0)
    play.at(beat + 3.0 + gap) >> Stalled(beat + 3.0)
    play >> Due()
    assert not hung(play)
    play.at(beat + gap + 3.999) >> Due()
    assert not hung(play)
    play.at(beat + gap + 4.0).ignoring(KillTree) >> Due()
    assert "silent" in hung(play)[0].data.reason


def test_an_item_has_its_time_without_the_gap():
    play = Play("x", item_timeout=10.0)
    a = play.up()
    play.gives(a, "x")
    given_at = play.now
    play.at(given_at + 60.0) >> Stalled(given_at + 2.0)
    assert play.fleet.watchdog.next_deadline() == given_at + 68.0


def test_a_hello_is_late_by_its_own_time_alone():
    play = Play("x", start_timeout=5.0)
    life = play.fleet.state.workers["g-0"].life
    play.spawned()
    before, since = life.deadline, play.now
    assert before is not None
    play.at(since + 60.0) >> Stalled(since)
    assert life.deadline == before + 60.0


def test_a_wait_of_our_own_is_not_lengthened():
    play = Play("x", restart_policy=RestartSettings(base_delay=10.0, max_delay=10.0))
    life = play.fleet.state.workers["g-0"].life
    for _ in range(2):
        play.dies(play.spawned())
    before, since = life.deadline, play.now
    assert before is not None
    play.at(since + 5.0) >> Stalled(since)
    assert life.deadline == before
