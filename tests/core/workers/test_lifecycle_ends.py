"""Workers' ends in good order and bad: drains, what an exit means, and when a group is complete."""

from signal import SIGTERM

import pytest
from msgspec.structs import replace
from tests.core.playbook import ANY, BLIP, Play, a_group, writes

from scraper_supervisor.core.events import (
    Asked,
    Due,
    HangUp,
    KillTree,
    Leave,
    Persist,
    Signal,
    Tell,
    Terminated,
    TreeEnded,
)
from scraper_supervisor.core.ops.item_ops import Conclude
from scraper_supervisor.core.states.group import GroupState
from scraper_worker.protocol import (
    DoneAnswer,
    Drain,
    End,
    Goodbye,
    Granted,
    ItemDone,
    ItemFailed,
    ItemNext,
    ItemRelease,
    ItemsOffer,
    Nothing,
    Offered,
)

# ---- drain -----------------------------------------------------------------------------------------------------------


def test_a_drain_answers_open_calls_lets_hands_finish_and_sends_no_signal():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play >> a(ItemNext())
    waiting = a.call
    play >> Terminated("SIGTERM")
    play << Tell(a.conn, Drain("SIGTERM", 30.0)) << a.gets(End("draining"), waiting)
    play >> a(ItemNext()) << a.gets(End("draining"))
    play >> a(ItemDone("x", x.claim)) << a.gets(DoneAnswer(1, False))
    play >> a(Goodbye("drained")) << a.gets(Nothing())
    play >> a.exits(0) << a.buried() << HangUp(a.conn)
    play >> TreeEnded("g-0", 1, 0) << Leave(0, "drained")


def test_a_drain_in_vain_is_sigterm_at_stop_timeout_and_sigkill_five_seconds_later():
    play = Play("x")
    a = play.up()
    play.gives(a)
    play >> Terminated("SIGTERM") << Tell(a.conn, ANY)
    play.at(29.999) >> Due()
    play.silence().deadline() >> Due() << Signal("g-0", 1, SIGTERM)
    assert play.now == 30.0
    play.at(34.999) >> Due()
    play.silence().deadline() >> Due() << KillTree("g-0", 1, ())
    play >> a.exits(None, 9) << a.buried() << HangUp(a.conn)
    assert play.row("x").attempts == 0, "we ordered it"
    play >> TreeEnded("g-0", 1, 0) << Leave(0, "drained")


def test_a_worker_never_introduced_gets_sigterm_at_once_and_sigkill_at_stop_timeout():
    play = Play()
    a = play.spawned()
    play >> Terminated("SIGTERM") << Signal("g-0", 1, SIGTERM)
    play.at(29.999) >> Due()
    play.silence().deadline() >> Due() << a.buried()


def test_a_second_signal_kills_what_is_left_and_loses_nothing_acknowledged():
    play = Play("x", "y", count=2)
    a = play.up("g-0")
    b = play.puppet(play.seen.pop(0))
    x = play.gives(a)
    play.hold()
    play >> a(ItemDone("x", x.claim)) << writes(Conclude)
    play >> Terminated("SIGTERM") << Tell(a.conn, ANY)
    play >> Terminated("SIGTERM", at_once=True) << a.buried()
    play >> b.runs() << Signal("g-1", 1, SIGTERM) << b.buried()
    play >> a.exits(None, 9) << a.buried() << HangUp(a.conn)
    play >> b.exits(None, 9) << b.buried()
    play >> TreeEnded("g-0", 1, 2)
    play >> TreeEnded("g-1", 1, 0)
    play.silence() >> play.durable() << ANY << Leave(0, "drained")


def test_a_drain_does_not_wait_for_a_disk_that_refuses():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play.hold()
    play >> a(ItemDone("x", x.claim)) << writes(Conclude)
    play >> Terminated("SIGTERM") << Tell(a.conn, ANY)
    play >> play.lost() << ANY
    play >> a.exits(0) << a.buried() << HangUp(a.conn)
    play >> TreeEnded("g-0", 1, 0) << Leave(0, "drained")


def test_nothing_leaves_before_every_tree_is_cleared_away():
    play = Play(once=True)
    a = play.up()
    play >> a(ItemNext()) << a.gets(End("complete"))
    play >> a(Goodbye("complete")) << a.gets(ANY)
    play >> a.exits(0) << a.buried() << HangUp(a.conn)
    play.silence() >> TreeEnded("g-0", 1, 0) << Leave(0, "every group completed")


# ---- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goodbye", "code", "state"),
    [
        ("complete", 0, "completed"),
        ("complete", 1, "starting"),
        ("drained", 0, "starting"),
        (None, 0, "starting"),
        (None, 1, "starting"),
    ],
)
def test_an_introduced_worker_ends_well_with_goodbye_complete_and_exit_0_alone(goodbye, code, state):
    play = Play("x", count=2)
    a = play.up("g-0")
    play.ignoring(object)
    if goodbye:
        play >> a(Goodbye(goodbye)) << a.gets(ANY)
    play.dies(a, code).ignoring(HangUp)
    assert play.state("g-0") == state


def test_exit_0_without_hello_is_an_end_as_well():
    play = Play(entrypoint=None, command=("x",), once=True)
    a = play.spawned()
    assert play.state() == "running", "from its spawn"
    play.dies(a, 0) << Leave(0, "every group completed")


def test_an_exit_with_nothing_left_to_do_is_no_failure():
    play = Play("x")
    a = play.up()
    play >> a(ItemsOffer(["x"])) << a.gets(Offered(0, 1))
    x = play.gives(a)
    play >> a(ItemDone("x", x.claim)) << a.gets(ANY)
    play.dies(a, 3).ignoring(HangUp).silence()
    assert play.state() == "completed"


def test_an_exit_before_the_source_was_offered_to_its_end_is_a_failure():
    play = Play()
    a = play.up()
    play >> a(ItemsOffer(["x"], more=True)) << a.gets(Offered(1, 0))
    x = play.gives(a)
    play >> a(ItemDone("x", x.claim)) << a.gets(ANY)
    play.dies(a, 3).ignoring(HangUp)
    assert play.state() == "starting", "what else it would have offered nobody knows"


@pytest.mark.parametrize("restart", ["always", "on-failure", "never"])
def test_a_worker_whose_set_up_is_wrong_is_failed_at_once_and_nobody_pays(restart):
    play = Play("x", "y", count=2, restart=restart)
    a, b = play.up("g-0"), play.up("g-1")
    x = play.gives(a)
    play.dies(a, 78).ignoring(HangUp).silence()
    assert play.state("g-0") == "failed"
    assert "78" in play.fleet.state.workers["g-0"].last_failure.message
    again = play.gives(b)
    assert (again.key, again.attempt) == (x.key, 1)
    assert len(play.published("worker_failed")) == 1


def test_what_such_a_worker_said_last_is_the_reason():
    play = Play("x", count=2)
    a, _ = play.up("g-0"), play.up("g-1")
    play >> a.exits(78, last_line="  no module 'scrapper'") << a.buried()
    assert play.fleet.state.workers["g-0"].last_failure.message == "no module 'scrapper'"
    assert [one.data.reason for one in play.log if one.event == "worker_failed"] == ["no module 'scrapper'"]


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("ended", [None, "released", "retried", "done", "failed"])
def test_the_daemon_exits_78_if_that_is_all_that_a_start_brings(once, ended):
    play = Play("x", "y", once=once, groups=(a_group("g"), a_group("h", count=2)))
    a, b, c = play.up("g-0"), play.up("h-0"), play.up("h-1")
    if ended is not None:
        x = play.gives(a, "x")
        words = {
            "released": ItemRelease("x", x.claim),
            "retried": ItemFailed("x", BLIP, x.claim),
            "done": ItemDone("x", x.claim),
            "failed": ItemFailed("x", replace(BLIP, kind="permanent"), x.claim),
        }
        play >> a(words[ended]) << ANY
    for puppet in (b, a, c):
        play.silence().dies(puppet, 78).ignoring(HangUp)
    if ended in ("done", "failed"):
        assert [command.code for command in play.seen] == ([1] if once else []), "later it stays"
    else:
        (leave,) = play.seen
        assert (leave.code, "g-0" in leave.reason, "h-1" in leave.reason) == (78, True, True)


def test_one_worker_that_is_able_keeps_the_daemon_up():
    play = Play("x", count=2)
    a, b = play.up("g-0"), play.up("g-1")
    play.dies(a, 78).ignoring(HangUp).silence()
    play.dies(b, 1).ignoring(HangUp)
    play.up("g-1")
    assert (play.state("g-0"), play.state("g-1")) == ("failed", "running")


def test_an_ordered_end_is_none_of_a_wrong_set_up():
    play = Play("x")
    a = play.up()
    play >> Asked(1, "stop", ("g",), wait=False) << ANY
    play.ignoring(object)
    play.dies(a, 78)
    assert play.state() == "stopped"


@pytest.mark.parametrize("offered", [False, True])
def test_a_group_whose_workers_all_failed_is_complete_only_if_the_source_was_offered_to_its_end(offered):
    play = Play(count=2, restart="never")
    a, b = play.up("g-0"), play.up("g-1")
    play >> b(ItemsOffer(["x"], more=not offered)) << b.gets(Offered(1, 0))
    x, _ = play.gives(a), play.dies(b, 1)
    play.ignoring(HangUp) >> a(ItemDone("x", x.claim)) << a.gets(ANY)
    play.dies(a, 1).ignoring(HangUp)
    assert play.state("g-1") == "failed"
    assert play.fleet.state.groups["g"].state.public == ("completed" if offered else "failed")


@pytest.mark.parametrize(
    ("restart", "state"), [("never", "failed"), ("on-failure", "starting"), ("always", "starting")]
)
def test_restart_decides_about_a_failure(restart, state):
    play = Play("x", restart=restart)
    play.dies(play.up()).ignoring(HangUp)
    assert play.state() == state


# ---- completion ------------------------------------------------------------------------------------------------------


def test_a_group_is_complete_when_all_wait_with_empty_hands():
    play = Play("x", count=2)
    a, b = play.up("g-0"), play.up("g-1")
    x = play.gives(a)
    play >> b(ItemNext())
    waiting = b.call
    play.silence()
    play >> a(ItemDone("x", x.claim)) << a.gets(DoneAnswer(1, False))
    play >> a(ItemNext()) << a.gets(End("complete")) << b.gets(End("complete"), waiting)
    assert play.store.newest("g").state == "completed"
    play >> a(ItemNext()) << a.gets(End("complete"))


def test_a_worker_that_said_more_can_still_offer():
    play = Play()
    a = play.up()
    play >> a(ItemsOffer(["x"], more=True)) << a.gets(ANY)
    x = play.gives(a)
    play >> a(ItemDone("x", x.claim)) << a.gets(ANY)
    play >> a(ItemNext())
    waiting = a.call
    play.silence() >> a(ItemsOffer([])) << a.gets(ANY) << a.gets(End("complete"), waiting)


def test_a_worker_that_ends_in_the_middle_of_its_source_has_failed_though_no_item_is_left():
    play = Play(restart="never")
    a = play.up()
    play >> a(ItemsOffer(["x"], more=True)) << a.gets(ANY)
    x = play.gives(a)
    play >> a(ItemDone("x", x.claim)) << a.gets(ANY)
    play.ignoring(Persist).dies(a)
    assert play.state() == "failed"
    assert play.fleet.state.groups["g"].state is GroupState.FAILED


def test_a_worker_that_is_starting_can_still_offer():
    play = Play("x", count=2)
    a = play.up("g-0")
    b = play.puppet(play.seen.pop(0))
    play >> a(ItemsOffer(["x"])) << a.gets(Offered(0, 1))
    x = play.gives(a)
    play >> a(ItemDone("x", x.claim)) << a.gets(ANY)
    play >> a(ItemNext())
    waiting = a.call
    play.silence() >> b.runs()
    play.silence() >> b.exits(1) << b.buried() << a.gets(End("complete"), waiting)


def test_a_waiting_retry_keeps_the_group_going():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play >> a(ItemFailed("x", BLIP, x.claim)) << a.gets(ANY)
    play >> a(ItemNext())
    play.silence().until(10.0) << a.gets(Granted("x", ANY, None, ANY, 2))


def test_a_group_whose_last_item_is_not_yet_durable_is_not_complete():
    play = Play("x", count=2)
    a, b = play.up("g-0"), play.up("g-1")
    x = play.gives(a)
    play >> b(ItemNext())
    play.hold()
    play >> a(ItemDone("x", x.claim)) << writes(Conclude)
    play >> a(ItemNext())
    play.silence()
    play >> play.lost() << ANY
    play.silence().at(1.0) >> Due() << ANY
    play >> play.durable()
    play.silence()
