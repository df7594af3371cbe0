"""When the daemon ends by itself, with and without `once`, and with which code."""

import pytest
from tests.core.playbook import ANY, Play, a_group, finish, group_state

from scraper_supervisor.core.config.settings import AbortSettings
from scraper_supervisor.core.events import Answered, Asked, HangUp, Leave, Signal, Spawn, SpawnFailed, Tell
from scraper_supervisor.core.formats.event_payloads import AbortTriggered
from scraper_supervisor.core.snapshot import at_rest
from scraper_worker.protocol import End, Goodbye, ItemDone, ItemNext, ItemsOffer, Offered

CRASHY = {"abort": AbortSettings(consecutive_crashes=1)}
TWO = (a_group("g"), a_group("h"))


def two(*, once=False, settings=None):
    """Groups g and h, without items."""
    return Play(groups=TWO, settings=settings or {}, once=once)


def aborts(play, puppet):
    """The group's worker dies, which is one death too many."""
    play.dies(puppet).ignoring(HangUp)
    spawn = play.seen.pop(0)
    assert isinstance(spawn, Spawn)
    play.silence() >> SpawnFailed(puppet.name, spawn.incarnation, "it was ordered to stop before it began")


def stops(play, puppet, group):
    play >> Asked(1, "stop", (group,)) << Tell(puppet.conn, ANY)
    play >> puppet(Goodbye("drained")) << puppet.gets(ANY)
    play.dies(puppet, 0).ignoring(HangUp, Answered)


@pytest.mark.parametrize("on_complete", ["wait", "repeat"])
def test_once_ends_whatever_on_complete_says(on_complete):
    play = Play("x", once=True, on_complete=on_complete)
    finish(play, play.up(), "x") << Leave(0, "every group completed")
    assert group_state(play) == "completed"


def test_wait_is_still_waited_for_without_once():
    play = Play("x", on_complete="wait")
    a = play.up()
    x = play.gives(a)
    play >> a(ItemDone("x", x.claim)) << a.gets(ANY)
    play >> a(ItemNext())
    play.silence()
    assert group_state(play) == "running"


def test_one_group_stopped_and_another_aborted_keeps_the_daemon_up():
    play = two(settings=CRASHY)
    g, h = play.up("g-0"), play.up("h-0")
    stops(play, h, "h")
    aborts(play, g)
    play.silence()
    assert (group_state(play), group_state(play, "h"), play.fleet.state.phase) == ("aborted", "stopped", "running")


def test_one_group_completed_and_another_aborted_ends_with_69():
    play = two(settings=CRASHY)
    g, h = play.up("g-0"), play.up("h-0")
    play >> h(ItemNext()) << h.gets(End("complete"))
    play >> h(Goodbye("complete")) << h.gets(ANY)
    play.dies(h, 0).ignoring(HangUp)
    aborts(play, g)
    (leave,) = play.seen
    assert (leave.code, "g: " in leave.reason) == (69, True)


def test_with_once_what_an_operator_stopped_counts_by_its_open_items():
    for items, code in ((["x"], 1), ([], 0)):
        play = two(once=True)
        g, h = play.up("g-0"), play.up("h-0")
        if items:
            play >> h(ItemsOffer(items)) << h.gets(Offered(1, 0))
        stops(play, h, "h")
        play >> g(ItemNext()) << g.gets(End("complete"))
        play >> g(Goodbye("complete")) << g.gets(ANY)
        play.dies(g, 0).ignoring(HangUp)
        (leave,) = play.seen
        assert (leave.code, "h is stopped with 1 open items" in leave.reason) == (code, code == 1)


def test_with_once_1_goes_before_69():
    play = two(once=True, settings=CRASHY)
    g, h = play.up("g-0"), play.up("h-0")
    play >> h(ItemsOffer(["x"])) << h.gets(Offered(1, 0))
    stops(play, h, "h")
    aborts(play, g)
    (leave,) = play.seen
    assert leave.code == 1


def test_with_once_a_paused_group_is_ended_when_all_others_have():
    play = two(once=True)
    g, h = play.up("g-0"), play.up("h-0")
    play >> h(ItemsOffer(["x"])) << h.gets(Offered(1, 0))
    play >> Asked(1, "pause", ("h",)) << Answered(1, True, ANY)
    play >> g(ItemNext()) << g.gets(End("complete")) << Tell(h.conn, ANY)
    play >> g(Goodbye("complete")) << g.gets(ANY)
    play.dies(g, 0).ignoring(HangUp)
    play >> h(Goodbye("drained")) << h.gets(ANY)
    play.dies(h, 0).ignoring(HangUp) << Leave(1, "an operator holds items back: h is paused with 1 open items")


def test_with_once_a_pause_from_before_the_start_is_not_waited_for():
    first = Play("x")
    first.up()
    first >> Asked(1, "pause", ("g",)) << Answered(1, True, ANY)
    again = Play(once=True, store=first.store)
    a = again.spawned()
    again << Signal("g-0", a.incarnation, 15)
    again.dies(a, None, 15).ignoring(HangUp)
    (leave,) = again.seen
    assert leave.code == 1


def test_with_once_a_pause_of_everything_is_waited_for():
    play = Play("x", once=True)
    a = play.up()
    play >> Asked(1, "pause", ("g",)) << Answered(1, True, ANY)
    play >> a(ItemNext())
    play.silence()
    play >> Asked(2, "resume", ("g",)) << a.gets(ANY) << Answered(2, True, ANY)


def test_a_completed_group_that_gets_items_while_it_is_stopped_reads_stopped():
    play = Play("x")
    finish(play, play.up(), "x")
    play >> Asked(1, "stop", ("g",)) << Answered(1, True, ANY)
    assert group_state(play) == "completed"
    play >> Asked(2, "items.add", ("g",), ("y",)) << Answered(2, True, ANY)
    assert group_state(play) == "stopped"
    play >> Asked(3, "start", ("g",), wait=False)
    assert isinstance(play.seen[0], Spawn)
    assert play.store.newest("g").run == 1, "it goes on with the run"


def test_a_group_that_fails_leaves_the_others_alone():
    play = two(settings=CRASHY)
    g, h = play.up("g-0"), play.up("h-0")
    aborts(play, g)
    told = [one.data for one in play.log if isinstance(one.data, AbortTriggered)]
    assert [(one.scope, one.key) for one in told] == [("group", "g")]
    play >> h(ItemsOffer(["x"])) << h.gets(Offered(1, 0))
    assert play.gives(h).key == "x"


def test_a_daemon_that_finds_nothing_to_do_says_how_it_goes_on():
    first = Play("x")
    finish(first, first.up(), "x")
    again = Play(store=first.store)
    assert at_rest(again.fleet) == [
        "g: run 1 is completed, so nothing is to be done; a new run begins with: scraper-supervisor start g"
    ]
    stopped = Play("x")
    stopped.up()
    assert at_rest(stopped.fleet) == []
    stopped >> Asked(1, "pause", ("g",)) << Answered(1, True, ANY)
    assert at_rest(stopped.fleet) == ["g: an operator paused it; it goes on with: scraper-supervisor resume g"]
