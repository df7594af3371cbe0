"""checkpoint.save and load: slots, and who may save."""

import pytest
from msgspec import Raw
from tests.core.playbook import ANY, Play, Some, writes

from scraper_supervisor.core.events import Asked, Due, HangUp, Persist, Persisted, Tell
from scraper_supervisor.core.ops.run_ops import Probe
from scraper_supervisor.core.ops.state_ops import ProbeFolder, SaveState, SlotsFull
from scraper_worker.protocol import (
    BAD_PARAMS,
    NO_CHECKPOINT,
    STORAGE_UNAVAILABLE,
    CheckpointLoad,
    CheckpointSave,
)


def save(slot=None, page=1):
    return CheckpointSave("cursor/1", Raw(b'{"page":%d}' % page), slot)


def loaded(play, puppet, slot=None):
    some = Some()
    play >> puppet(CheckpointLoad(slot=slot)) << puppet.gets(some)
    return None if some.value is None else bytes(some.value.state)


def test_slots_are_states_of_their_own_and_hello_answers_the_main_one():
    play = Play("x")
    a = play.up()
    play >> a(save()) << a.gets(ANY)
    play >> a(save("session", 2)) << a.gets(ANY)
    assert play.fleet.state.workers["g-0"].saved[0] == 1
    assert (loaded(play, a), loaded(play, a, "session"), loaded(play, a, "other")) == (
        b'{"page":1}',
        b'{"page":2}',
        None,
    )
    play.dies(a).ignoring(HangUp)
    b, some = play.spawned(), Some()
    play >> b.hello() << b.gets(some)
    assert bytes(some.value.checkpoint.state) == b'{"page":1}'


@pytest.mark.parametrize("slot", ["corrupt", "A", "", "a" * 17, "../x"])
def test_a_slot_that_can_be_none_is_refused(slot):
    play = Play("x")
    a = play.up()
    play >> a(save(slot)) << a.refused(BAD_PARAMS)
    play >> a(CheckpointLoad(slot=slot)) << a.refused(BAD_PARAMS)


def test_only_the_session_outlives_a_fresh_run():
    play = Play("x", on_complete="wait")
    a = play.up()
    for slot in (None, "cursor", "session"):
        play >> a(save(slot)) << a.gets(ANY)
    play.ignoring(object)
    play >> Asked(1, "stop", ("g",))
    play.ignoring(Tell).dies(a, 0)
    play.ignoring(object) >> Asked(2, "start", ("g",), fresh=True)
    b = play.spawned()
    play >> b.hello() << b.gets(ANY)
    play.ignoring(object)
    assert [loaded(play, b, slot) for slot in (None, "cursor", "session")] == [None, None, b'{"page":1}']


def test_a_slot_without_a_sound_generation_fails_no_worker():
    play = Play("x")
    a = play.up()
    play.store.damaged.add("g-0/session")
    play >> a(CheckpointLoad(slot="session")) << a.refused(NO_CHECKPOINT)
    assert play.state() == "running"


def test_interval_writes_the_main_state_alone_again():
    play = Play("x")
    a = play.up()
    play >> a(save("session")) << a.gets(ANY)
    assert play.fleet.state.workers["g-0"].state is None


def test_a_disk_that_refuses_a_slot_is_tried_there():
    play = Play("x")
    a = play.up()
    play.hold()
    play >> a(save("session")) << writes(SaveState)
    play >> play.lost() << a.refused(STORAGE_UNAVAILABLE)
    play.silence() >> Due() << writes(Probe) << Persist(ProbeFolder(ANY, "g-0", ANY, "session"))


def test_one_slot_too_many_is_the_caller_s_fault():
    play = Play("x")
    a = play.up()
    play.hold()
    play >> a(save("more")) << writes(SaveState)
    (op,) = play.held
    play >> Persisted(op, SlotsFull(("a", "b"))) << a.refused(BAD_PARAMS, {"path": "slot"})
    assert play.state() == "running"


def test_a_restore_names_the_slot():
    play = Play("x")
    a = play.up()
    play >> a(save("session", 1)) << a.gets(ANY)
    play >> a(save("session", 2)) << a.gets(ANY)
    play.ignoring(object)
    play >> Asked(7, "checkpoint.restore", ("g-0",), generation=1, slot="session")
    play.ignoring(Tell).dies(a, 0)
    assert [bytes(state) for _, _, _, state in play.store.states["g-0/session"]] == [
        b'{"page":1}',
        b'{"page":2}',
        b'{"page":1}',
    ]
