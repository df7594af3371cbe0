"""`checkpoint restore`: whatever the worker is at, its next hello finds the restored state."""

import pytest
from msgspec import Raw
from tests.core.playbook import ANY, Play, Some, writes

from scraper_supervisor.core.events import (
    Answered,
    Asked,
    HangUp,
    Persisted,
    PersistFailed,
    Reply,
    Spawn,
    SpawnFailed,
    Tell,
    Terminated,
    Withdrawn,
)
from scraper_supervisor.core.ops.state_ops import LoadState, SaveState, StateLoaded
from scraper_worker.protocol import NO_CHECKPOINT, CheckpointSave, Drain, Goodbye, ItemDone


def saves(play, puppet, page):
    play >> puppet(CheckpointSave("cursor/1", Raw(b'{"page":%d}' % page))) << puppet.gets(ANY)


def asks(generation=1, request=7, name="g-0"):
    return Asked(request, "checkpoint.restore", (name,), generation=generation)


def restored(generation, state="running", request=7, of=1):
    document = {"worker": "g-0", "restored": of, "generation": generation, "state": state}
    return Answered(request, True, document)


def finds(play, puppet):
    """The puppet says hello; the state it is given."""
    some = Some()
    play >> puppet.hello() << puppet.gets(some)
    return some.value.checkpoint


def kept(play):
    return [bytes(state) for _, _, _, state in play.store.states["g-0"]]


def test_the_worker_drains_and_comes_back_with_the_restored_state():
    play = Play("x", "y")
    a = play.up()
    saves(play, a, 1)
    saves(play, a, 2)
    x = play.gives(a, "x")
    play >> asks() << Tell(a.conn, Drain("an operator restores checkpoint 1", 30.0))
    saves(play, a, 3)
    play >> a(ItemDone("x", x.claim)) << a.gets(ANY)
    play >> a(Goodbye("drained")) << a.gets(ANY)
    play >> a.exits() << a.buried()
    play.ignoring(HangUp)
    b = play.spawned()
    assert kept(play)[-1] == b'{"page":1}', "nothing that the worker saved on its way out is newer"
    found = finds(play, b)
    assert (bytes(found.state), found.schema) == (b'{"page":1}', "cursor/1")
    play << restored(found.generation)


def test_a_save_under_way_does_not_overtake_it():
    play = Play("x")
    a = play.up()
    saves(play, a, 1)
    play.hold()
    play >> a(CheckpointSave("cursor/1", Raw(b'{"page":2}'))) << writes(SaveState)
    play >> asks() << writes(LoadState)
    play >> play.durable() << a.gets(ANY)
    play >> play.durable() << Tell(a.conn, ANY)
    play >> a(CheckpointSave("cursor/1", Raw(b'{"page":3}'))) << writes(SaveState)
    play >> a.exits() << a.buried()
    play.ignoring(HangUp)
    spawn = play.seen.pop(0)
    assert isinstance(spawn, Spawn)
    play << writes(SaveState)
    play.silence().flow().ignoring(Reply)
    b = play.puppet(spawn)
    play >> b.runs()
    assert bytes(finds(play, b).state) == b'{"page":1}'
    play << restored(4)
    assert kept(play) == [b'{"page":%d}' % page for page in (1, 2, 3, 1)]


def test_what_memory_holds_is_not_written_over_it():
    """Neither at the interval, nor at the next worker's end: only what that one saves itself."""
    play = Play("x", "y", progress_timeout=1000.0)
    a = play.up()
    saves(play, a, 1)
    saves(play, a, 2)
    play >> asks() << Tell(a.conn, ANY)
    play >> a(Goodbye("drained")) << a.gets(ANY)
    play >> a.exits() << a.buried()
    play.ignoring(HangUp)
    b = play.up()
    play << restored(3)
    x = play.gives(b, "x")
    play >> b(ItemDone("x", x.claim)) << b.gets(ANY)
    play.until(play.settings.checkpoint.interval + 1.0)
    play.dies(b).ignoring(HangUp)
    assert kept(play) == [b'{"page":1}', b'{"page":2}', b'{"page":1}']


def test_it_counts_in_the_present_run_also_after_a_fresh_start():
    play = Play("x", on_complete="wait")
    a = play.up()
    saves(play, a, 1)
    play >> Asked(1, "stop", ("g",)) << Tell(a.conn, ANY)
    play.dies(a, 0).ignoring(HangUp, Answered)
    play >> Asked(2, "start", ("g",), fresh=True)
    b = play.spawned()
    play.ignoring(Answered)
    assert finds(play, b) is None
    play.ignoring(Answered) >> asks() << Tell(b.conn, ANY)
    play.dies(b, 0).ignoring(HangUp)
    c = play.spawned()
    assert bytes(finds(play, c).state) == b'{"page":1}'
    play << restored(2)


def test_a_worker_that_failed_for_its_damaged_checkpoints_is_started():
    play = Play("x")
    a = play.spawned()
    saves_of = play.store.states.setdefault("g-0", [(1, 1, "cursor/1", Raw(b'{"page":1}'))])
    play.store.damaged.add("g-0")
    play >> a.hello() << a.refused(NO_CHECKPOINT)
    play.ignoring(object)
    play.dies(a).ignoring(HangUp)
    assert play.state() == "failed"
    assert play.fleet.state.groups["g"].state.public == "failed"
    play.store.damaged.clear()  # an operator put a sound file back
    play >> asks()
    b = play.spawned()
    assert bytes(finds(play, b).state) == b'{"page":1}'
    play << restored(2)
    assert len(saves_of) == 2
    assert play.fleet.state.groups["g"].state.public == "running"
    play.gives(b, "x")


def test_a_stopped_worker_stays_stopped():
    play = Play("x")
    a = play.up()
    saves(play, a, 1)
    play >> Asked(1, "stop", ("g-0",)) << Tell(a.conn, ANY)
    play.dies(a, 0).ignoring(HangUp, Answered)
    play >> asks() << restored(2, "stopped")
    assert kept(play) == [b'{"page":1}', b'{"page":1}']


def test_one_that_is_ordered_to_stop_meanwhile_stops_with_its_state_restored():
    play = Play("x")
    a = play.up()
    saves(play, a, 1)
    play >> asks() << Tell(a.conn, ANY)
    play >> Asked(1, "stop", ("g-0",))
    play.dies(a, 0).ignoring(HangUp)
    play.seen.sort(key=lambda command: command.request)
    play << Answered(1, True, ANY) << restored(2, "stopped")


def test_a_drain_of_the_supervisor_waits_for_what_was_begun():
    play = Play("x")
    a = play.up()
    saves(play, a, 1)
    play >> asks() << Tell(a.conn, ANY)
    play >> Terminated("enough")
    play.hold()
    play >> a.exits() << a.buried()
    play.ignoring(HangUp) << writes(SaveState)
    play.silence() >> play.durable() << restored(2, "stopped")


def test_a_worker_that_cannot_be_started_again_is_told_of():
    play = Play("x", restart="never")
    a = play.up()
    saves(play, a, 1)
    play >> asks() << Tell(a.conn, ANY)
    play >> a.exits() << a.buried()
    play.ignoring(HangUp)
    spawn = play.seen.pop(0)
    play >> SpawnFailed("g-0", spawn.incarnation, "no such program")
    answer = play.seen.pop(0)
    assert (answer.request, answer.ok) == (7, False)
    assert "checkpoint 1 is restored as 2, but g-0 failed: no such program" in answer.document


@pytest.mark.parametrize("dies", ["death", "kill"])
def test_a_death_on_the_way_changes_nothing(dies):
    play = Play("x")
    a = play.up()
    saves(play, a, 1)
    saves(play, a, 2)
    play.gives(a, "x")
    play >> asks() << Tell(a.conn, ANY)
    play.dies(a, 1) if dies == "death" else play.dies(a, None, 9)
    play.ignoring(HangUp)
    b = play.spawned()
    assert bytes(finds(play, b).state) == b'{"page":1}'
    play << restored(3)


# ---- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (asks(name="g-9"), "no worker is named 'g-9'; known are: g-0"),
        (asks(name="g"), "no worker is named 'g'; known are: g-0"),
        (asks(generation=None), "expected one worker and a generation"),
        (Asked(7, "checkpoint.restore", generation=1), "expected one worker and a generation"),
    ],
)
def test_what_makes_no_sense_is_refused(event, why):
    play = Play()
    play.up()
    play >> event << Answered(7, False, why)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (StateLoaded("unknown", there=(5, 4)), "g-0 has no checkpoint 1; there are: 5, 4"),
        (StateLoaded("unknown"), "g-0 has no checkpoint 1; there are: none"),
        (StateLoaded("damaged", there=(5,)), "checkpoint 1 of g-0 is damaged and was moved to corrupt/; there are: 5"),
        (
            StateLoaded("newer", 1, reason="later", there=(5,)),
            "checkpoint 1 of g-0 cannot be used: later; there are: 5",
        ),
    ],
)
def test_a_generation_that_cannot_be_had_leaves_the_worker_alone(answer, why):
    play = Play("x")
    a = play.up()
    play.hold()
    play >> asks() << writes(LoadState)
    play >> Persisted(play.held.pop(), answer) << Answered(7, False, why)
    assert play.state() == "running"
    play.gives(a, "x")


def test_one_at_a_time():
    play = Play()
    a = play.up()
    saves(play, a, 1)
    play >> asks() << Tell(a.conn, ANY)
    play >> asks(request=8) << Answered(8, False, "checkpoint 1 of g-0 is being restored already")


def test_a_disk_that_refuses_is_told_and_the_worker_goes_on():
    play = Play("x")
    a = play.up()
    saves(play, a, 1)
    saves(play, a, 2)
    play.hold()
    play >> asks() << writes(LoadState)
    play >> play.lost() << Answered(7, False, "storage unavailable, nothing was restored: No space left on device")
    assert play.state() == "running"
    play.flow()
    play >> asks() << Tell(a.conn, ANY)
    play.hold()
    play >> a.exits() << a.buried()
    play.ignoring(HangUp)
    spawn = play.seen.pop(0)
    play << writes(SaveState)
    play >> PersistFailed(play.held.pop(), 28, "No space left on device") << Answered(7, False, ANY)
    play.flow()
    b = play.puppet(spawn)
    play >> b.runs()
    assert bytes(finds(play, b).state) == b'{"page":2}'


def test_who_does_not_wait_for_the_answer_gets_none():
    play = Play()
    a = play.up()
    saves(play, a, 1)
    play >> asks() << Tell(a.conn, ANY)
    play >> Withdrawn(7)
    play.dies(a, 0).ignoring(HangUp)
    play.up()
    play.silence()
    assert kept(play) == [b'{"page":1}', b'{"page":1}']
    assert not play.fleet.state_restores._under_way
