"""RunImports with the daemon running: who may, what the disk is asked, and that no worker starts before its state."""

from unittest.mock import ANY

import pytest
from msgspec import Raw
from msgspec.structs import replace
from tests.core.playbook import Play, writes

from scraper_supervisor.core.config.settings import CheckpointSettings
from scraper_supervisor.core.events import (
    Answered,
    Asked,
    Due,
    HangUp,
    Persist,
    Persisted,
    PersistFailed,
    Reconfigured,
    Spawn,
    Terminated,
    Withdrawn,
)
from scraper_supervisor.core.ops.import_ops import (
    DropState,
    ImportBegin,
    ImportDrop,
    Imported,
    ImportFinish,
    ImportLines,
    StateTaken,
    TakeState,
)
from scraper_supervisor.core.ops.run_ops import OpenRun, Probe, SetIntent
from scraper_supervisor.core.ops.state_ops import LoadState, ProbeFolder, SaveState
from scraper_supervisor.core.states.group import GroupState
from scraper_worker.protocol import End, Goodbye, ItemDone, ItemNext

STATE = Raw(b'{"page":7}')


def group_state(play):
    return play.fleet.state.groups["g"].state.public


def ask(play, step, request, text=""):
    """A request of the import that was begun last."""
    return Asked(request, f"items.import.{step}", ("g",), text=text, token=getattr(play, "token", None))


def answered(play, answer):
    """The disk's answer to the oldest of what it was asked."""
    return Persisted(play.held.pop(0), answer)


def stopped(*keys, **settings):
    """A group that an operator stopped, and a disk that does not answer by itself."""
    play = Play(*keys, **settings)
    a = play.up()
    play >> Asked(1, "stop", ("g",))
    play.ignoring(object)
    play.dies(a, 0).ignoring(object)
    assert group_state(play) == "stopped"
    return play.hold()


def begun(play):
    play >> ask(play, "begin", 2) << Persist(ImportBegin(ANY, "g"))
    play.token = play.held[0].ticket
    play >> answered(play, Imported(9)) << Answered(2, True, {"token": play.token})
    return play


def image(play, *owed):
    """The run as the ledger has it once it is imported."""
    return replace(play.store._image("g"), run=2, run_id=9, fresh_from=2, owed=owed)


def finishing(play):
    play >> ask(play, "finish", 4) << Persist(ImportFinish(ANY, "g", 9))
    assert group_state(play) == "running"  # which is what a group is told to be whose run is being read
    return play


def test_a_run_is_imported_in_steps_and_the_group_stays_stopped():
    play = begun(stopped("x"))
    play >> ask(play, "lines", 3, "one\ntwo\nth") << Persist(ImportLines(ANY, "g", 9, b"one\ntwo\n"))
    play >> answered(play, Imported(9)) << Answered(3, True, {})
    play >> ask(play, "lines", 3, "re") << Answered(3, True, {})
    play >> ask(play, "lines", 3, "e\n") << Persist(ImportLines(ANY, "g", 9, b"three\n"))
    play >> answered(play, Imported(9)) << Answered(3, True, {})
    finishing(play)
    play >> answered(play, Imported(9, 2)) << writes(OpenRun)
    play >> answered(play, image(play)) << Answered(4, True, {"run": 2, "state": "stopped"})
    assert group_state(play) == "stopped"
    play >> Asked(5, "start", ("g",)) << writes(SetIntent) << Spawn("g-0", 2, ANY)


def test_states_become_checkpoints_before_anything_starts():
    play = begun(stopped("x", settings={"checkpoint": CheckpointSettings(compression="gzip", retention=3)}))
    finishing(play) >> answered(play, Imported(9, 2)) << writes(OpenRun)
    play >> answered(play, image(play, "g-0", "g-7")) << Persist(TakeState(ANY, "g", 9, "g-0"))
    play >> Asked(5, "start", ("g",)) << writes(SetIntent)  # it is started with its run, and not before
    play.held.pop()
    for worker, following in (("g-0", writes(TakeState)), ("g-7", writes(OpenRun))):
        play >> answered(play, StateTaken(2, "cursor/1", STATE)) << Persist(LoadState(ANY, worker, 2))
        play << Persist(SaveState(ANY, worker, 2, "cursor/1", STATE, 1, 0, 0, 3, "gzip"))
        play >> play.durable()
        play.silence() >> play.durable() << Persist(DropState(ANY, "g", 9, worker))
        play.silence() >> answered(play, None) << following
    play.silence() >> answered(play, image(play)) << Spawn("g-0", 2, ANY) << Answered(4, True, ANY)
    assert play.store.states["g-0"] == [(1, 2, "cursor/1", STATE)]


def test_a_supervisor_that_died_in_between_goes_on_with_the_states_at_its_start():
    store = stopped("x").store
    play = Play(store=HoldsStates(store))
    play << Spawn("g-0", 1, ANY)
    assert store.states["g-0"] == [(1, 1, "cursor/1", STATE)]


class HoldsStates:
    """A disk on which an imported state is still owed."""

    def __init__(self, store):
        self._store = store
        self._owed = ("g-0",)
        self.states, self.tries = store.states, 0
        store.intents.clear()

    def perform(self, op, now):
        match op:
            case TakeState():
                return StateTaken(1, "cursor/1", STATE)
            case DropState():
                assert self._store.states
                self._owed = ()
                return None
        answer = self._store.perform(op, now)
        return replace(answer, owed=self._owed) if isinstance(op, OpenRun) else answer


@pytest.mark.parametrize("refused", [TakeState, SaveState, DropState])
def test_a_disk_that_refuses_a_state_is_asked_again_when_it_works(refused):
    play = begun(stopped("x"))
    finishing(play) >> answered(play, Imported(9, 2)) << writes(OpenRun)
    play >> answered(play, image(play, "g-0")) << writes(TakeState)
    if refused is not TakeState:
        play >> answered(play, StateTaken(2, "cursor/1", STATE)) << writes(LoadState) << writes(SaveState)
        play >> play.durable()
    if refused is DropState:
        play >> play.durable() << writes(DropState)
    play >> play.lost()
    play.silence().deadline() >> Due() << writes(Probe)
    if refused is SaveState:  # it is the folder that is waited for
        play >> answered(play, None)
        play.silence().deadline() >> Due() << writes(ProbeFolder)
    play >> answered(play, None) << writes(OpenRun)
    play >> answered(play, image(play, "g-0")) << writes(TakeState)
    play >> answered(play, StateTaken(2, "cursor/1", STATE)) << writes(LoadState) << writes(SaveState)
    play >> play.durable()
    play >> play.durable() << writes(DropState)
    play >> answered(play, None) << writes(OpenRun)
    play >> answered(play, image(play)) << Answered(4, True, {"run": 2, "state": "stopped"})


@pytest.mark.parametrize("worker", ["g-0", "g-7"])  # g-7 is more than the group has
@pytest.mark.parametrize("unreadable", [False, True])
def test_a_folder_that_refuses_an_imported_state_is_tried_each_second_until_it_is_well(worker, unreadable):
    play = begun(stopped("x"))
    finishing(play) >> answered(play, Imported(9, 2)) << writes(OpenRun)
    play >> answered(play, image(play, worker)) << writes(TakeState)
    play >> answered(play, StateTaken(2, "cursor/1", STATE)) << writes(LoadState) << writes(SaveState)
    play >> (play.lost() if unreadable else play.durable())
    play >> play.lost()
    if not unreadable:  # it may be the whole disk
        play >> Due() << writes(Probe)
        play >> answered(play, None)
    probe = writes(LoadState if unreadable else ProbeFolder)
    for now in (1.0, 2.0, 3.0):
        play.silence().at(now - 0.001) >> Due()
        play.silence().at(now) >> Due() << probe
        play >> (play.lost() if now < 3.0 else play.durable())
    play << writes(OpenRun)
    assert play.published("storage_degraded", "storage_recovered") == ["storage_degraded", "storage_recovered"]
    play >> answered(play, image(play, worker)) << writes(TakeState)
    play >> answered(play, StateTaken(2, "cursor/1", STATE)) << writes(LoadState) << writes(SaveState)
    play >> play.durable()
    play >> play.durable() << writes(DropState)
    play >> answered(play, None) << writes(OpenRun)
    play >> answered(play, image(play)) << Answered(4, True, {"run": 2, "state": "stopped"})


class Refusing(Play):
    """The folders of checkpoints refuse for a while."""

    refuses = True

    def _take(self, commands):
        for command in commands:
            if self.refuses and isinstance(command, Persist) and isinstance(command.op, SaveState | ProbeFolder):
                self.store.tries += 1
                assert self.store.tries < 100, "it is tried without a pause"
                self._take(self.fleet.handle(PersistFailed(command.op, 13, "Permission denied"), self.now))
            else:
                super()._take([command])


def test_a_state_that_is_owed_at_the_start_is_waited_for_and_then_the_supervisor_is_up():
    play = Refusing(store=HoldsStates(stopped("x").store))
    play.until(5.5)
    assert (play.silence().fleet.state.phase, play.store.tries) == ("starting", 1 + 5)
    play.refuses = False
    play.until(7.0) << Spawn("g-0", 1, ANY)
    assert (play.now, play.fleet.state.phase) == (6.0, "running")
    assert play.store.states["g-0"] == [(1, 1, "cursor/1", STATE)]
    assert play.published("storage_degraded", "storage_recovered") == ["storage_degraded", "storage_recovered"]


def test_a_folder_is_nobodys_matter_once_the_group_that_waits_for_it_begins_afresh():
    play = begun(stopped("x"))
    finishing(play) >> answered(play, Imported(9, 2)) << writes(OpenRun)
    play >> answered(play, image(play, "g-7")) << writes(TakeState)
    play >> answered(play, StateTaken(2, "cursor/1", STATE)) << writes(LoadState) << writes(SaveState)
    play >> play.lost()
    play >> play.lost()
    play >> Asked(5, "start", ("g",), fresh=True) << writes(SetIntent) << writes(OpenRun)
    play.at(1.0) >> Due()
    play.silence()
    assert play.published("storage_degraded", "storage_recovered") == ["storage_degraded", "storage_recovered"]


@pytest.mark.parametrize("step", ["begin", "finish"])
def test_a_group_that_works_is_to_be_stopped_first(step):
    play = Play("x")
    if step == "finish":
        play = begun(stopped("x"))
        play.flow() >> Asked(5, "start", ("g",)) << Spawn("g-0", 2, ANY)
    play.ignoring(Spawn)
    play.hold() >> ask(play, step, 6)
    if step == "finish":
        play << Persist(ImportDrop(ANY, "g", 9))  # who asks for the end of an import does not come back to it
    play << Answered(6, False, "g is running; stop it first: stop g")


def test_what_was_not_begun_can_not_be_gone_on_with():
    play = stopped("x")
    for step in ("lines", "finish", "drop"):
        play >> ask(play, step, 2, "x\n") << Answered(2, False, ANY)
    play >> Asked(2, "items.import.begin", ("h",)) << Answered(2, False, "no group is named 'h'; known are: g")
    play >> Terminated("bye")
    play.ignoring(object) >> ask(play, "begin", 3) << Answered(3, False, ANY)


def completed(**settings):
    """A group whose only item is done, and a disk that does not answer by itself."""
    play = Play("x", **settings)
    a = play.up()
    x = play.gives(a)
    play >> a(ItemDone("x", x.claim)) << a.gets(ANY)
    play >> a(ItemNext()) << a.gets(End("complete"))
    play >> a(Goodbye("complete")) << a.gets(ANY)
    play.dies(a, 0).ignoring(HangUp)
    assert group_state(play) == "completed"
    return play.hold()


@pytest.mark.parametrize("how", ["problem", "lost"])
def test_a_completed_group_goes_on_as_it_was_after_an_import_that_failed(how):
    play = begun(completed(on_complete="repeat", repeat_delay=60.0))
    play >> ask(play, "finish", 4) << Persist(SetIntent(ANY, "g", "stopped")) << writes(ImportFinish)
    play >> play.durable()
    play >> (answered(play, Imported(9, 0, "seqs are missing")) if how == "problem" else play.lost())
    play << Persist(SetIntent(ANY, "g", None)) << writes(OpenRun) << Answered(4, False, ANY)
    play.flow()
    assert (group_state(play), play.store.intents) == ("completed", {})
    play.until(70.0) << Spawn("g-0", 2, ANY)


def test_an_aborted_group_is_not_started_by_an_import_that_failed():
    play = begun(stopped("x"))
    group = play.fleet.state.groups["g"]
    group.state = GroupState.ABORTED
    play.fleet.groups.set_intent("g", None)
    play >> ask(play, "finish", 4) << writes(SetIntent) << writes(SetIntent) << writes(ImportFinish)
    play.held[:2] = []
    play >> answered(play, Imported(9, 0, "seqs are missing")) << writes(OpenRun) << Answered(4, False, ANY)
    play >> play.durable()
    assert group_state(play.silence()) == "stopped"


def test_a_completed_group_is_stopped_by_an_import():
    play = begun(completed())
    play >> ask(play, "finish", 4) << writes(SetIntent) << writes(ImportFinish)
    play.held.pop(0)
    play >> answered(play, Imported(9, 2)) << writes(OpenRun)
    still_open = replace(image(play), state="running", waiting=1)
    play >> answered(play, still_open) << Answered(4, True, {"run": 2, "state": "stopped"})


@pytest.mark.parametrize("how", ["problem", "lost"])
def test_a_run_that_cannot_be_finished_leaves_the_group_with_the_old_one(how):
    play = finishing(begun(stopped("x")))
    play >> (answered(play, Imported(9, 0, "it was given up")) if how == "problem" else play.lost())
    play << writes(OpenRun) << Answered(4, False, ANY)
    play >> play.durable()
    assert (group_state(play), play.fleet.state.groups["g"].queue.image.run) == ("stopped", 1)
    play >> ask(play, "finish", 5) << Answered(5, False, ANY)


def test_two_imports_of_one_group_never_mix():
    play = begun(stopped("x"))
    play >> ask(play, "lines", 3, "mine\n") << writes(ImportLines)
    first, ours = play.token, play.held.pop(0)
    play >> ask(play, "begin", 4) << writes(ImportBegin)
    play.token = play.held[0].ticket
    play >> answered(play, Imported(10)) << Answered(4, True, {"token": play.token})
    play >> Persisted(ours, Imported(9, problem="it was given up")) << Answered(3, False, "g: it was given up")
    for step in ("lines", "finish", "drop"):
        other = Asked(5, f"items.import.{step}", ("g",), text="mine\n", token=first)
        play >> other << Answered(5, False, "g: no import is going on; another one may have taken its place")
    play >> ask(play, "lines", 6, "theirs\n") << Persist(ImportLines(ANY, "g", 10, b"theirs\n"))
    play >> answered(play, Imported(10)) << Answered(6, True, {})
    play >> ask(play, "finish", 7) << Persist(ImportFinish(ANY, "g", 10))


def test_an_import_that_cannot_begin_leaves_the_other_as_it_was():
    play = begun(stopped("x"))
    play >> ask(play, "begin", 3) << writes(ImportBegin)
    play >> play.lost() << Answered(3, False, ANY)
    finishing(play)


@pytest.mark.parametrize("step", ["begin", "lines"])
def test_an_import_whose_command_is_gone_is_given_up(step):
    play = stopped("x")
    if step == "lines":
        begun(play)
    play >> ask(play, step, 3, "x\n") << writes(ImportBegin if step == "begin" else ImportLines)
    play >> Withdrawn(3)
    play.silence() >> answered(play, Imported(9)) << Persist(ImportDrop(ANY, "g", 9))
    play >> answered(play, Imported(9))
    play.silence() >> ask(play, "lines", 4, "x\n") << Answered(4, False, ANY)


def test_an_import_that_is_dropped_is_forgotten():
    play = begun(stopped("x"))
    play >> ask(play, "drop", 3) << Persist(ImportDrop(ANY, "g", 9))
    play >> answered(play, Imported(9)) << Answered(3, True, {})
    play >> ask(play, "lines", 4, "x\n") << Answered(4, False, ANY)


def test_lines_that_are_refused_end_the_import():
    play = begun(stopped("x"))
    play >> ask(play, "lines", 3, "x\n") << writes(ImportLines)
    play >> answered(play, Imported(9, problem="item 'x' comes twice"))
    play << Answered(3, False, "g: item 'x' comes twice")
    play >> ask(play, "finish", 4) << Answered(4, False, ANY)


def test_a_line_that_is_cut_short_is_not_finished():
    play = begun(stopped("x"))
    play >> ask(play, "lines", 3, "half") << Answered(3, True, {})
    play >> ask(play, "finish", 4) << Persist(ImportDrop(ANY, "g", 9))
    play << Answered(4, False, "g: the last line of the import is cut short")
    play >> ask(play, "drop", 5) << Answered(5, False, ANY)


def test_start_fresh_while_an_import_is_being_finished_has_the_last_word():
    play = finishing(begun(stopped("x")))
    play >> Asked(5, "start", ("g",), fresh=True) << writes(SetIntent) << writes(OpenRun)
    play >> answered(play, Imported(9, 2))
    play.silence()
    play.held.pop(0)
    play >> play.durable() << Spawn("g-0", 2, ANY) << Answered(4, True, {"run": 2, "state": "running"})


def test_a_group_that_is_removed_meanwhile_is_told_of():
    play = finishing(begun(stopped("x")))
    play >> Reconfigured(replace(play.settings, groups={}))
    play.silence() >> answered(play, Imported(9, 2)) << Answered(4, True, {"run": 2, "state": None})
