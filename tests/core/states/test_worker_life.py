"""A worker's life: the table is total, drawn, and what each step brings with it."""

import importlib.util
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.playbook import ANY, a_group

from scraper_supervisor.core.events import KillTree, Signal, Spawn
from scraper_supervisor.core.states.worker_life import ALIVE, TABLE, TERM_GRACE, UP, Clock, Life, Phase, Trigger

ROOT = Path(__file__).parents[3]
GROUP = a_group(start_timeout=30.0, stop_timeout=20.0)
PLAIN = a_group(entrypoint=None, command=("x",), stop_timeout=20.0)
PUBLIC = {"starting", "running", "paused", "draining", "stopping", "backoff", "completed", "failed", "stopped"}


def life_in(phase):
    """A life that has come to this phase."""
    life = Life("g-0")
    if phase is Phase.STOPPED:
        return life
    life.start(GROUP)
    if phase is Phase.SPAWNING:
        return life
    if phase in (Phase.BACKOFF, Phase.COMPLETED, Phase.FAILED):
        life.gone(
            {Phase.BACKOFF: "wait", Phase.COMPLETED: "done", Phase.FAILED: "fail"}[phase], Clock("start", 0.0, 9.0)
        )
        return life
    life.spawned(77, "token", GROUP, 0.0)
    if phase is Phase.STARTING:
        return life
    life.hello()
    if phase is Phase.DRAINING:
        life.drain("why", "stop", GROUP, 1.0)
    if phase is Phase.STOPPING:
        life.terminate(1.0)
    assert life.phase is phase
    return life


def test_every_phase_answers_every_trigger():
    assert set(TABLE) == set(product(Phase, Trigger))


def test_public_names_are_those_of_the_contract():
    assert {phase.public for phase in Phase} <= PUBLIC


def test_a_process_ends_only_by_being_gone():
    """Nothing but a GONE takes a phase with a process to one without: no worker is forgotten while it lives."""
    gone = {Trigger.GONE_WAIT, Trigger.GONE_STOP, Trigger.GONE_DONE, Trigger.GONE_FAIL}
    for (phase, trigger), after in TABLE.items():
        if phase in UP and trigger not in gone:
            assert after in UP, (phase, trigger)
        if phase not in UP and trigger is not Trigger.START:
            assert after not in UP, (phase, trigger)
        if phase in ALIVE and trigger in gone:
            assert after not in UP, (phase, trigger)


def test_a_reload_computes_the_clock_that_runs_anew():
    shorter = a_group(start_timeout=3.0, stop_timeout=2.0)
    starting, draining, waiting = life_in(Phase.STARTING), life_in(Phase.DRAINING), life_in(Phase.BACKOFF)
    assert (starting.deadline, draining.deadline, waiting.deadline) == (30.0, 21.0, 9.0)
    for life in (starting, draining, waiting):
        assert life.reconfigured(shorter, 4.0)
        assert not life.reconfigured(shorter, 4.0)
    assert (starting.deadline, draining.deadline, waiting.deadline) == (3.0, 3.0, 4.0)


def test_a_reload_leaves_a_span_alone_that_no_setting_tells():
    life = life_in(Phase.RUNNING)
    life.terminate(1.0)
    assert not life.reconfigured(a_group(stop_timeout=0.5), 0.0)
    assert life.deadline == 6.0


def test_no_phase_is_a_trap():
    for phase in Phase:
        reached, more = {phase}, [phase]
        while more:
            here = more.pop()
            for after in {TABLE[here, trigger] for trigger in Trigger} - reached:
                reached.add(after)
                more.append(after)
        assert Phase.RUNNING in reached, phase


def test_the_drawing_is_not_stale():
    spec = importlib.util.spec_from_file_location("draw_states", ROOT / "scripts" / "draw_states.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text() == script.page(), "run scripts/draw_states.py"


@pytest.mark.parametrize("phase", Phase)
def test_start_spawns_a_new_incarnation_unless_there_is_one(phase):
    life = life_in(phase)
    incarnation = life.incarnation
    commands = life.start(GROUP)
    if phase in UP:
        assert commands == []
    else:
        assert commands == [Spawn("g-0", incarnation + 1, GROUP)]


@pytest.mark.parametrize("phase", Phase)
def test_kill_is_sent_once_and_only_where_there_is_a_process(phase):
    life = life_in(phase)
    first = life.kill("why", (5,))
    assert first == ([KillTree("g-0", 1, (5,))] if phase in ALIVE else [])
    assert life.kill("why", (5,)) == []


@pytest.mark.parametrize(
    ("phase", "commands", "tell", "deadline"),
    [
        (Phase.STARTING, [Signal("g-0", 1, 15)], False, 25.0),
        (Phase.RUNNING, [], True, 25.0),
        (Phase.DRAINING, [], False, 21.0),
        (Phase.STOPPING, [], False, 6.0),
        (Phase.SPAWNING, [], False, None),
        (Phase.BACKOFF, [], False, None),
        (Phase.FAILED, [], False, None),
    ],
)
def test_drain(phase, commands, tell, deadline):
    life = life_in(phase)
    assert life.drain("why", "stop", GROUP, 5.0) == (commands, tell)
    assert life.deadline == deadline
    assert life.after == "stop"


def test_a_plain_worker_runs_from_its_spawn_and_drains_by_sigterm():
    life = Life("g-0")
    life.start(PLAIN)
    assert life.spawned(77, "token", PLAIN, 0.0) == []
    assert (life.phase, life.deadline) == (Phase.RUNNING, None)
    assert life.drain("why", "restart", PLAIN, 1.0) == ([Signal("g-0", 1, 15)], False)
    assert (life.phase, life.deadline) == (Phase.STOPPING, 21.0)


def test_an_order_that_came_before_the_process_is_obeyed_when_it_runs():
    life = life_in(Phase.SPAWNING)
    life.drain("why", "stop", GROUP, 0.0)
    assert life.spawned(77, "token", GROUP, 3.0) == [Signal("g-0", 1, 15)]
    assert life.deadline == 23.0


def test_an_order_to_stop_is_never_softened_to_a_restart():
    life = life_in(Phase.RUNNING)
    life.drain("stop it", "stop", GROUP, 0.0)
    life.drain("reload", "restart", GROUP, 0.0)
    assert (life.after, life.reason) == ("stop", "stop it")


def test_the_grace_after_sigterm_is_the_contracts():
    assert TERM_GRACE == 5.0


STEPS = {
    "start": lambda life, _: life.start(GROUP),
    "spawned": lambda life, now: life.spawned(77, "token", GROUP, now),
    "hello": lambda life, _: life.hello(),
    "drain": lambda life, now: life.drain("why", "stop", GROUP, now),
    "restart": lambda life, now: life.drain("why", "restart", GROUP, now),
    "terminate": lambda life, now: life.terminate(now),
    "kill": lambda life, _: life.kill("why", ()),
    "gone, wait": lambda life, now: life.gone("wait", Clock("start", now, 1.0)),
    "gone, stop": lambda life, _: life.gone("stop"),
    "gone, done": lambda life, _: life.gone("done"),
    "gone, fail": lambda life, _: life.gone("fail"),
    "reload": lambda life, _: life.reconfigured(PLAIN, 2.0),
    "stop waiting": lambda life, _: life.stop_waiting(),
}


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=30))
def test_whatever_happens_a_life_makes_sense(steps):
    life = Life("g-0")
    for now, step in enumerate(steps):
        STEPS[step](life, float(now))
        if life.phase in (Phase.STARTING, Phase.DRAINING):
            assert life.deadline is not None, "nobody may start or drain for ever"
        if life.phase is Phase.STOPPING:
            assert life.deadline is not None or life.killed
        if life.phase is Phase.BACKOFF:
            assert life.deadline is not None
        if life.phase in (Phase.STOPPED, Phase.COMPLETED, Phase.FAILED):
            assert life.pid is None or life.phase is ANY
