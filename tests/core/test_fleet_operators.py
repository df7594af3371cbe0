"""The fleet and its operators: pause, stop, start, and items added, requeued and cancelled."""

import pytest
from msgspec.structs import replace
from tests.core.playbook import ANY, BLIP, Play, Some, finish, group_state, writes

from scraper_supervisor.core.events import Answered, Asked, HangUp, Persist, Refuse, Reply, Spawn, Tell, Withdrawn
from scraper_supervisor.core.formats.redaction import Redactor
from scraper_supervisor.core.ops.item_ops import AddItems, Cancel, Conclude, FindKeys
from scraper_supervisor.core.ops.run_ops import LoadRun, OpenRun, SetIntent, SetRunState
from scraper_supervisor.core.queue.queue import QueueCounts
from scraper_supervisor.core.workers.readiness import STEADY
from scraper_worker.protocol import (
    DoneAnswer,
    End,
    Goodbye,
    Granted,
    ItemCancel,
    ItemDone,
    ItemFailed,
    ItemNext,
    ItemsOffer,
)


def test_pause_lets_hands_finish_and_resume_goes_on():
    play = Play("x", "y")
    a = play.up()
    x = play.gives(a)
    play >> Asked(1, "pause", ("g",)) << Answered(1, True, ANY)
    play >> a(ItemDone("x", x.claim)) << a.gets(ANY)
    play >> a(ItemNext())
    play.silence()
    assert (play.state(), group_state(play), play.store.intents) == ("paused", "paused", {"g": "paused"})
    play >> Asked(2, "resume", ("g",)) << a.gets(Granted("y", ANY, None, ANY, 1)) << Answered(2, True, ANY)
    assert play.store.intents == {}


def test_a_pause_outlives_the_daemon():
    play = Play("x")
    play.up()
    play >> Asked(1, "pause", ("g-0",)) << ANY
    again = Play(store=play.store)
    a = again.up()
    again >> a(ItemNext())
    again.silence()
    assert again.state() == "paused"


def test_resume_ends_a_pause_and_no_stop():
    play = Play("x")
    a = play.up()
    play >> Asked(1, "stop", ("g-0",)) << Tell(a.conn, ANY)
    play.dies(a, 0).ignoring(HangUp, Answered)
    play >> Asked(2, "resume", ("g-0",)) << Answered(2, True, ANY)
    assert play.store.intents == {"g-0": "stopped"}


def test_stop_is_answered_when_done_and_outlives_the_daemon():
    play = Play("x")
    a = play.up()
    play >> Asked(1, "stop", ("g",)) << Tell(a.conn, ANY)
    play.silence().dies(a, 0).ignoring(HangUp) << Answered(1, True, {"workers": {"g-0": "stopped"}})
    assert group_state(play) == "stopped"
    again = Play(store=play.store)
    again.silence() >> Asked(1, "start", ("g",)) << Spawn("g-0", 1, ANY)
    assert again.store.intents == {}


def test_a_stop_that_is_overtaken_by_a_start_is_answered():
    play = Play("x")
    a = play.up()
    play >> Asked(1, "stop", ("g",)) << Tell(a.conn, ANY)
    play >> Asked(2, "start", ("g",))
    play << Answered(1, False, "started again meanwhile: g-0")
    play.silence().dies(a, 0).ignoring(HangUp)
    b = play.spawned()
    play >> b.hello() << b.gets(ANY)
    play.silence().until(STEADY) << Answered(2, True, {"workers": {"g-0": "running"}})


def test_start_gives_a_failed_worker_another_chance():
    play = Play("x", restart="never")
    play.dies(play.up()).ignoring(HangUp)
    assert group_state(play) == "failed"
    play >> Asked(1, "start", ("g",), wait=False) << Spawn("g-0", 2, ANY) << Answered(1, True, ANY)
    assert group_state(play) == "running"


def test_start_of_a_completed_group_begins_a_new_run_and_waits_for_its_workers():
    play = Play("x")
    finish(play, play.up(), "x")
    play >> Asked(1, "start", ("g",))
    b = play.spawned()
    play.silence() >> b.hello() << b.gets(ANY)
    play >> b(ItemsOffer(["y"])) << b.gets(ANY)
    play >> b(ItemNext()) << b.gets(ANY) << Answered(1, True, ANY)
    assert play.store.newest("g").run == 2


def test_nothing_starts_while_a_new_run_is_being_opened():
    play = Play("x")
    finish(play, play.up(), "x")
    play.hold()
    play >> Asked(1, "start", ("g",)) << writes(OpenRun)
    play >> Asked(2, "start", ("g-0",))
    play >> Asked(3, "restart", ("g-0",)) << Answered(3, True, ANY)
    play >> Asked(4, "stop", ("g",)) << writes(SetIntent) << Answered(4, True, ANY)
    play >> Asked(5, "start", ("g",)) << writes(SetIntent)
    play.silence().flow() << Spawn("g-0", 2, ANY)
    play.silence()


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (Asked(1, "stop", ("nobody",)), "no group or worker is named 'nobody'; known are: g, g-0"),
        (Asked(1, "dance", ()), "unknown request 'dance'"),
        (Asked(1, "items.add", ("h",), ("x",)), "no group is named 'h'; known are: g"),
        (Asked(1, "items.add", ("g",), ("",)), "a key is 1 to 4096 bytes of UTF-8, this one has 0"),
        (Asked(1, "start", ("g",), fresh=True), "g has workers running; stop it first: stop g"),
    ],
)
def test_what_cannot_be_done_is_told_with_the_remedy(asked, why):
    play = Play("x")
    play.up()
    play >> asked << Answered(1, False, why)


def test_a_withdrawn_request_is_not_answered():
    play = Play("x")
    a = play.up()
    play >> Asked(1, "stop", ("g",)) << Tell(a.conn, ANY)
    play >> Withdrawn(1)
    play.dies(a, 0).ignoring(HangUp).silence()


def test_items_added_to_a_completed_group_start_its_workers_in_the_same_run():
    play = Play("x")
    finish(play, play.up(), "x")
    play >> Asked(1, "items.add", ("g",), ("y", "x"))
    play << Answered(1, True, {"added": 1, "known": 1}) << Spawn("g-0", 2, ANY)
    run = play.store.newest("g")
    assert (run.run, run.state) == (1, "running")
    again = Play(store=play.store)
    assert again.gives(again.up(), "y")


@pytest.mark.parametrize("outcome", ["known", "lost"])
def test_who_asks_while_an_offer_that_brings_nothing_is_on_its_way_is_told_that_all_is_complete(outcome):
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play >> a(ItemDone("x", x.claim)) << a.gets(DoneAnswer(1, False))
    play >> a(ItemNext()) << a.gets(End("complete"))
    assert group_state(play) == "completed"
    play.hold()
    play >> Asked(1, "items.add", ("g",), ("x",)) << writes(AddItems)
    play >> a(ItemNext())
    play.silence() >> (play.durable() if outcome == "known" else play.lost())
    play << Answered(1, outcome == "known", ANY) << a.gets(End("complete"))
    assert group_state(play) == "completed"


def test_who_asks_while_an_offer_to_a_completed_run_is_on_its_way_gets_what_is_new():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play >> a(ItemDone("x", x.claim)) << a.gets(DoneAnswer(1, False))
    play >> a(ItemNext()) << a.gets(End("complete"))
    play.hold()
    play >> Asked(1, "items.add", ("g",), ("x", "y")) << writes(AddItems)
    play >> a(ItemNext())
    play.silence() >> play.durable() << Answered(1, True, ANY)
    play.flow() << writes(SetRunState) << a.gets(Granted("y", ANY, None, ANY, 1))


def test_requeued_items_start_a_completed_group_too():
    play = Play("x")
    a = play.up()
    gone = replace(BLIP, kind="permanent")
    x = play.gives(a)
    play >> a(ItemFailed("x", gone, x.claim)) << a.gets(ANY)
    finish(play, a)
    play >> Asked(1, "items.requeue", ("g",), failed=True) << Answered(1, True, ANY)
    assert play.gives(play.up(), "x").attempt == 1


def test_a_requeue_that_changes_nothing_starts_nobody():
    play = Play("x")
    finish(play, play.up(), "x")
    play >> Asked(1, "items.requeue", ("g",), ("x",)) << Answered(1, True, ANY)
    play.silence()
    assert group_state(play) == "completed"


def test_a_cancelled_item_that_nobody_holds_is_never_handed_out():
    play = Play("x", "y", count=2)
    a, _ = play.up("g-0"), play.up("g-1")
    play.hold()
    play >> Asked(1, "items.cancel", ("g",), ("x",)) << writes(Cancel)
    play >> a(ItemNext())
    play.silence() >> play.durable()
    play << Answered(1, True, {"changed": 1, "untouched": (), "cancelling": ()}) << writes(LoadRun)
    play.flow() << a.gets(Granted("y", ANY, None, ANY, 1))
    assert play.row("x").state == "failed"


def test_a_cancelled_item_in_a_workers_hands_ends_as_failed_whatever_the_worker_says():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play >> Asked(1, "items.cancel", ("g",), ("x",))
    play << Tell(a.conn, ItemCancel("x", x.claim, "cancelled by an operator", 10.0))
    play << Answered(1, True, {"changed": 0, "untouched": (), "cancelling": ("x",)})
    answer = Some()
    play >> a(ItemFailed("x", BLIP, x.claim)) << a.gets(answer)
    assert (answer.value.action, play.row("x").state) == ("final", "failed")


@pytest.mark.parametrize("how", ["dies", "says goodbye"])
def test_a_cancelled_item_is_failed_also_where_its_worker_goes(how):
    play = Play("x", "y")
    a = play.up()
    play.gives(a, "x"), play.gives(a, "y")
    play >> Asked(1, "items.cancel", ("g",), ("x",)) << ANY << ANY
    if how == "dies":
        play.dies(a).ignoring(HangUp, Spawn)
    else:
        play >> a(Goodbye("drained")) << a.gets(ANY)
    assert [play.row(key).state for key in "xy"] == ["failed", "open"]
    assert play.row("y").alone == (how == "dies")


def test_a_disk_that_refuses_an_operator_is_told():
    play = Play("x")
    play.up()
    play.hold()
    play >> Asked(1, "items.add", ("g",), ("y",)) << writes(AddItems)
    play >> play.lost() << Answered(1, False, "storage unavailable: No space left on device")


@pytest.mark.parametrize("disk", ["works", "refuses"])
def test_an_item_that_is_cancelled_while_its_failure_is_being_written_is_not_tried_again(disk):
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play.hold()
    play >> a(ItemFailed("x", BLIP, x.claim)) << writes(Conclude)
    play >> Asked(1, "items.cancel", ("g",), ("x",)) << writes(Cancel)
    if disk == "works":
        play >> play.durable() << a.gets(ANY) << writes(Conclude)
    else:
        play >> play.lost() << ANY
        play >> a(ItemFailed("x", BLIP, x.claim)) << writes(Conclude)
    play.flow().ignoring(Answered, Refuse, Reply, Persist)
    assert play.row("x").state == "failed"
    assert play.fleet.state.groups["g"].queue.counts(play.now) == QueueCounts(0, 0, 0, 0, 0, 1)


def test_an_item_is_cancelled_by_the_key_that_is_shown_of_it():
    keys = ("https://u:sesame@h/x", "https://u:other@h/x", "plain")
    shown = [Redactor().key(key) for key in keys]
    play = Play(*keys)
    a = play.up()
    held = play.gives(a, keys[0])
    play >> Asked(1, "items.cancel", ("g",), (*shown[:2], "https://u:***@h/x#00000000"))
    play << Tell(a.conn, ItemCancel(keys[0], held.claim, "cancelled by an operator", ANY))
    document = {"changed": 1, "untouched": ("https://u:***@h/x#00000000",), "cancelling": (keys[0],)}
    play << Answered(1, True, document)
    assert (play.row(keys[1]).state, play.row("plain").state) == ("failed", "open")


def test_a_key_that_cannot_be_looked_up_is_told():
    play = Play("https://u:sesame@h/x")
    play.up()
    play.hold() >> Asked(1, "items.requeue", ("g",), (Redactor().key("https://u:sesame@h/x"),)) << writes(FindKeys)
    play >> play.lost() << Answered(1, False, "storage unavailable: No space left on device")
