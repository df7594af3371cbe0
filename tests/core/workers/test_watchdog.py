"""Items and workers that take too long: the ladder, what it costs whom, and workers that ask for nothing."""

import pytest
from tests.core.playbook import ANY, BLIP, Play, Some, writes

from scraper_supervisor.core.config.settings import RestartSettings
from scraper_supervisor.core.events import Asked, Due, HangUp, KillBrowser, KillTree, Spawn, Tell
from scraper_supervisor.core.formats.worker_payloads import BrowserRestarted
from scraper_supervisor.core.ops.item_ops import Conclude
from scraper_worker.protocol import (
    BrowserStarted,
    BrowserStopped,
    CheckpointSave,
    Claim,
    DoneAnswer,
    FailedAnswer,
    Failure,
    Heartbeat,
    ItemCancel,
    ItemDone,
    ItemFailed,
    ItemNext,
    ItemProgress,
    ItemRelease,
    ItemsOffer,
)

DIED = Failure("infrastructure", "browser", "browser-died", "the browser died")
TOLD = {"item": "item_timeout of 20 s", "progress": "progress_timeout of 20 s", "cancel": "cancelled by an operator"}
WAYS = ("item", "progress", "cancel")


def stuck(way, *others, browser=True, **group):
    """A worker whose item x is at the first rung, for whatever reason; it holds `others` besides."""
    limit = {"item": "item_timeout", "progress": "progress_timeout"}.get(way)
    play = Play("x", *others, **({limit: 20.0} if limit else {}), **group)
    a = play.up()
    if browser:
        play >> a.notes(BrowserStarted("b1", 500))
    x = play.gives(a, "x")
    play.at(19.0)  # the others come late, and are young still at the ladder's end
    held = {key: play.gives(a, key) for key in others}
    if limit:
        play.at(19.999) >> Due()
        play.silence().deadline() >> Due()
        assert play.now == 20.0
    else:
        play.at(20.0) >> Asked(1, "items.cancel", ("g",), ("x",))
    told = play.seen.pop(0)
    assert told == Tell(a.conn, ItemCancel("x", x.claim, TOLD[way], 10.0))
    play.seen.clear()
    return play, a, x, held


def signature(play, key):
    """What the latest attempt at the item failed of."""
    ends = [one.data for one in play.log if one.event == "item_finished" and one.data.key == key]
    return ends[-1].failure and ends[-1].failure.signature


# ---- the ladder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_the_ladder_is_a_word_then_the_browsers_then_the_worker(way):
    play, a, _, _ = stuck(way)
    play.at(29.999) >> Due()
    play.silence().at(30.0) >> Due() << KillBrowser("g-0", 1, 500)
    cleanup = next(one.data for one in play.log if one.event == "cleanup_initiated")
    assert (cleanup.browser, cleanup.killed) == ("b1", 1)
    assert "'x'" in cleanup.reason
    play.at(39.999) >> Due()
    play.silence().at(40.0) >> Due() << a.buried()
    hung = next(one.data for one in play.log if one.event == "worker_hung")
    assert "'x'" in hung.reason
    assert TOLD[way] in hung.reason
    play.dies(a, None, 9).ignoring(HangUp, Spawn)
    row = play.row("x")
    assert (row.state, row.attempts) == (("failed", 1) if way == "cancel" else ("open", 1))
    assert signature(play, "x") == {"item": "item-timeout", "progress": "progress-timeout", "cancel": "cancelled"}[way]


@pytest.mark.parametrize("way", WAYS)
def test_the_others_of_a_worker_that_was_killed_for_an_item_pay_nothing_and_are_not_handed_out_alone(way):
    play, a, _, _ = stuck(way, "y", "z")
    play.at(30.0) >> Due() << KillBrowser("g-0", 1, 500)
    play.at(38.9)
    for key in "yz":
        play >> a.notes(ItemProgress(key))
    play.at(40.0) >> Due()
    play.ignoring(Tell) << a.buried()
    play.dies(a, None, 9).ignoring(HangUp)
    assert [(play.row(key).attempts, play.row(key).alone) for key in "yz"] == [(0, False), (0, False)]
    exited = next(one.data for one in play.log if one.event == "worker_exited")
    assert exited.charged == "x"
    b = play.up()
    play.gives(b, "y"), play.gives(b, "z")


@pytest.mark.parametrize("now", [20.0, 29.9, 35.0, 39.9])
@pytest.mark.parametrize("way", WAYS)
def test_a_done_that_comes_before_the_ladders_end_counts(way, now):
    play, a, x, _ = stuck(way)
    play.at(min(30.0, now)) >> Due()
    play.seen.clear()
    play.at(now) >> a(ItemDone("x", x.claim)) << a.gets(DoneAnswer(1, False))
    play.ignoring(HangUp).until(100.0).silence()
    assert (play.row("x").state, play.state()) == ("done", "running")


@pytest.mark.parametrize("kind", ["transient", "permanent", "blocked", "infrastructure"])
@pytest.mark.parametrize("way", ["item", "progress"])
def test_whatever_failure_a_worker_tells_of_a_stuck_item_it_is_charged_for_its_time(way, kind):
    play, a, x, _ = stuck(way)
    failure = Failure(kind, "network", "blip", "it went away", 429, 5.0, "where it stood")
    answer = Some()
    play >> a(ItemFailed("x", failure, x.claim)) << a.gets(answer)
    assert (answer.value.action, answer.value.attempt) == ("retry", 1)
    assert answer.value.delay < 5.0, "it is not the site that asked for time"
    end = [one.data for one in play.log if one.event == "item_finished"][-1]
    assert (end.failure.kind, end.failure.signature, end.failure.message) == ("transient", f"{way}-timeout", TOLD[way])
    assert end.failure.traceback == "where it stood"
    assert (play.row("x").attempts, play.state()) == (1, "running")


@pytest.mark.parametrize("way", WAYS)
def test_a_stuck_item_that_is_given_back_is_charged_all_the_same(way):
    play, a, x, _ = stuck(way)
    play >> a(ItemRelease("x", x.claim)) << a.gets(ANY)
    assert (play.row("x").state, play.row("x").attempts) == ("failed" if way == "cancel" else "open", 1)
    play.until(100.0).silence()
    assert play.state() == "running"


@pytest.mark.parametrize("way", WAYS)
def test_at_a_death_of_another_cause_nobody_knows_who_held_up_whom(way):
    play, a, _, _ = stuck(way, "y")
    play.dies(a).ignoring(HangUp, Spawn)
    x, y = play.row("x"), play.row("y")
    assert (x.state, x.attempts, x.alone) == (("failed", 1, False) if way == "cancel" else ("open", 0, True))
    assert (y.state, y.attempts, y.alone) == ("open", 0, True)


def test_a_death_with_the_stuck_item_alone_charges_it_for_its_time():
    play, a, _, _ = stuck("item")
    play.dies(a).ignoring(HangUp, Spawn)
    assert (play.row("x").attempts, signature(play, "x")) == (1, "item-timeout")


def test_a_blocked_loop_that_lets_every_item_run_out_of_time_charges_no_neighbour():
    play = Play("x", "y", item_timeout=10.0, heartbeat_timeout=15.0)
    a = play.up()
    play.gives(a, "x"), play.gives(a, "y")
    play >> a.notes(Heartbeat())
    play.at(10.0) >> Due() << ANY << ANY
    play.at(15.0) >> Due() << a.buried()
    play.dies(a, None, 9).ignoring(HangUp, Spawn)
    assert [(play.row(key).attempts, play.row(key).alone) for key in "xy"] == [(0, True), (0, True)]


def test_two_items_at_the_end_of_their_ladders_are_both_charged():
    play = Play("x", "y", "z", item_timeout=20.0)
    a = play.up()
    play.gives(a, "x"), play.gives(a, "y")
    play.at(15.0)
    play.gives(a, "z")
    play.at(20.0) >> Due() << ANY << ANY
    play.at(30.0) >> Due()
    play.silence().at(35.0) >> Due() << Tell(a.conn, ItemCancel("z", ANY, ANY, ANY))
    play.at(40.0) >> Due() << a.buried()
    play.dies(a, None, 9).ignoring(HangUp, Spawn)
    assert [(play.row(key).attempts, play.row(key).alone) for key in "xyz"] == [(1, False), (1, False), (0, False)]


# ---- neighbours and their browser ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["stuck first", "neighbour first"])
def test_what_a_neighbour_loses_with_a_killed_browser_uses_none_of_its_free_tries(order):
    play, a, x, held = stuck("item", "y")
    play.at(30.0) >> Due() << KillBrowser("g-0", 1, 500)
    play >> a.notes(BrowserStopped("b1", "crash"))
    ends = [a(ItemFailed("x", DIED, x.claim)), a(ItemFailed("y", DIED, held["y"].claim))]
    for end in ends if order == "stuck first" else reversed(ends):
        play >> end
        play.seen.clear()
    play >> a.notes(BrowserStarted("b2", 501))
    assert [(play.row(key).attempts, play.row(key).infrastructure) for key in "xy"] == [(1, 0), (0, 0)]
    assert [one.data for one in play.log if one.event == "browser_restarted"] == [
        BrowserRestarted("b1", "hang", "killed", 0.0)
    ]
    play.until(200.0).silence()
    assert play.state() == "running"


def test_a_neighbour_that_was_handed_out_after_the_word_is_spared_too():
    """The SDK ends a browser by itself that does not give up a page."""
    play, a, x, _ = stuck("item")
    play >> a(ItemsOffer(["y"]))
    play.seen.clear()
    y = play.gives(a, "y")
    play >> a(ItemFailed("y", DIED, y.claim))
    play.seen.clear()
    play >> a(ItemFailed("x", DIED, x.claim)) << a.gets(ANY)
    assert (play.row("y").attempts, play.row("y").infrastructure) == (0, 0)


def test_a_neighbours_own_failure_is_its_own():
    play, a, _, held = stuck("item", "y")
    play >> a(ItemFailed("y", BLIP, held["y"].claim)) << a.gets(FailedAnswer("retry", 1, 1.0, ANY))
    assert play.row("y").attempts == 1


def test_without_a_stuck_item_a_lost_browser_is_one_of_three():
    play = Play("y")
    a = play.up()
    y = play.gives(a, "y")
    play >> a(ItemFailed("y", DIED, y.claim)) << ANY
    assert (play.row("y").attempts, play.row("y").infrastructure) == (0, 1)


def test_a_second_stuck_item_does_not_cost_the_browser_that_came_after_the_first():
    play = Play("x", "y", item_timeout=20.0)
    a = play.up()
    play >> a.notes(BrowserStarted("b1", 500))
    play.gives(a, "x")
    play.at(1.0)
    play.gives(a, "y")
    play.at(20.0) >> Due() << ANY
    play.at(21.0) >> Due() << ANY
    play.at(30.0) >> Due() << KillBrowser("g-0", 1, 500)
    play.at(30.5) >> a.notes(BrowserStopped("b1", "crash"))
    play >> a.notes(BrowserStarted("b2", 501))
    play.at(31.0) >> Due()
    play.silence()


# ---- clocks ----------------------------------------------------------------------------------------------------------


def test_an_items_progress_is_its_own():
    play = Play("x", "y", progress_timeout=60.0)
    a = play.up()
    x, y = play.gives(a, "x"), play.gives(a, "y")
    play.at(50.0) >> a.notes(ItemProgress("x", x.claim))
    play.at(55.0) >> a.notes(ItemProgress("y", x.claim))  # not that claim's key
    play.at(60.0) >> Due() << Tell(a.conn, ItemCancel("y", y.claim, "progress_timeout of 60 s", 10.0))
    play >> a(ItemDone("y", y.claim)) << a.gets(ANY)
    play.at(109.999) >> Due()
    play.silence().deadline() >> Due() << Tell(a.conn, ItemCancel("x", x.claim, ANY, 10.0))
    assert play.now == 110.0


def test_progress_puts_no_item_timeout_off():
    play = Play("x", item_timeout=20.0, progress_timeout=15.0)
    a = play.up()
    x = play.gives(a, "x")
    play.at(14.0) >> a.notes(ItemProgress("x", x.claim))
    play.silence().deadline() >> Due() << Tell(a.conn, ItemCancel("x", x.claim, "item_timeout of 20 s", 10.0))
    assert play.now == 20.0
    play.at(21.0) >> a.notes(ItemProgress("x", x.claim))
    play.at(40.0) >> Due()
    play.at(50.0) >> Due() << a.buried()


def test_items_handed_out_together_after_a_long_rest_begin_their_progress_together():
    play = Play(count=2, progress_timeout=60.0)
    a, b = play.up("g-0"), play.up("g-1")
    play >> b(ItemsOffer(["x"])) << ANY
    x = play.gives(a)
    play >> a(ItemDone("x", x.claim)) << ANY
    play >> a(ItemNext())
    play >> a(ItemNext())
    play.at(1000.0) >> b(ItemsOffer(["y", "z"])) << ANY << ANY << ANY
    play >> Due()
    play.silence()
    assert play.fleet.next_deadline() == 1060.0


def test_a_worker_that_comes_back_is_reminded_of_what_it_was_to_cancel():
    play = Play("x", item_timeout=20.0)
    a = play.up()
    x = play.gives(a)
    play.leaves(a)
    play.at(14.0)
    b = play.back(a, Claim("x", x.claim))
    play << b.gets(ANY)
    play.at(20.0).leaves(b)
    play >> Due()
    play.at(24.0)
    c = play.back(a, Claim("x", x.claim))
    play << c.gets(ANY) << Tell(c.conn, ItemCancel("x", x.claim, "item_timeout of 20 s", 6.0))
    play.leaves(c)
    play.at(33.0) >> Due()
    d = play.back(a, Claim("x", x.claim))
    play << d.gets(ANY) << Tell(d.conn, ItemCancel("x", x.claim, ANY, 10.0))


def test_the_ladders_clock_stands_still_while_the_disk_refuses():
    play, a, x, _ = stuck("item")
    play.hold().at(25.0) >> a(ItemDone("x", x.claim)) << writes(Conclude)
    play >> play.lost() << ANY
    for now in range(26, 100):
        play.at(float(now)) >> Due() << ANY
        play >> (play.lost() if now < 99 else play.durable())
        play.silence()
    assert play.fleet.next_deadline() == 99.0 + 5.0, "five seconds of the first rung were left"
    play.deadline() >> Due() << KillBrowser("g-0", 1, 500)
    play.deadline() >> Due() << a.buried()
    assert play.now == 99.0 + 15.0


def test_an_operator_may_cancel_what_takes_too_long_already():
    play, a, x, _ = stuck("item")
    play.at(25.0) >> Asked(1, "items.cancel", ("g",), ("x",))
    assert all(not isinstance(command, Tell) for command in play.seen), "its worker knows"
    play.seen.clear()
    play.at(30.0) >> Due() << KillBrowser("g-0", 1, 500)
    play >> a(ItemFailed("x", BLIP, x.claim)) << ANY
    assert (play.row("x").state, signature(play, "x")) == ("failed", "cancelled")


def test_a_stop_charges_no_stuck_item():
    play, a, _, _ = stuck("item")
    play >> Asked(1, "stop", ("g-0",), (), wait=False)
    play.seen.clear()
    play.dies(a, 0).ignoring(HangUp)
    assert (play.row("x").state, play.row("x").attempts) == ("open", 0)


# ---- workers that ask for nothing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("beats", [False, True])
def test_a_worker_that_could_be_handed_an_item_and_neither_has_nor_wants_one_is_restarted(beats):
    play = Play("x", progress_timeout=60.0, heartbeat_timeout=50.0, restart_policy=RestartSettings())
    a = play.up()
    for now in (20.0, 40.0, 59.999):
        play.at(now) >> (a.notes(Heartbeat()) if beats else Due())
    play.silence().at(60.0) >> Due() << a.buried()
    play.dies(a, None, 9).ignoring(HangUp) << Spawn("g-0", 2, ANY)
    assert (play.row("x").attempts, play.row("x").alone) == (0, False)
    exited = next(one.data for one in play.log if one.event == "worker_exited")
    assert exited.charged is None
    assert play.published("worker_hung") == ["worker_hung"]


@pytest.mark.parametrize("word", ["offer", "next", "progress", "browser"])
def test_any_other_word_is_a_sign_of_work(word):
    play = Play("x", progress_timeout=60.0)
    a = play.up()
    messages = {
        "offer": a.notes(ItemsOffer(["y"])),
        "next": a(ItemNext(0.0)),
        "progress": a.notes(ItemProgress("none")),
        "browser": a.notes(BrowserStopped("b1", "close")),
    }
    play.at(50.0)
    if word == "next":
        x = play.gives(a, "x")
        play >> a(ItemRelease("x", x.claim)) << ANY
    else:
        play >> messages[word]
    play.silence().at(109.999) >> Due()
    play.silence().at(110.0) >> Due() << a.buried()


def test_a_worker_for_which_there_is_nothing_may_be_quiet_and_has_its_time_once_there_is():
    play = Play("x", count=2, progress_timeout=60.0)
    a, b = play.up("g-0"), play.up("g-1")
    x = play.gives(b, "x")
    play.at(50.0) >> b.notes(ItemProgress("x"))
    play.at(100.0) >> b.notes(ItemProgress("x"))
    play.at(110.0) >> b(ItemDone("x", x.claim)) << ANY
    play.at(1000.0) >> b(ItemNext())
    play.silence() >> b(ItemsOffer(["y", "z"])) << ANY << ANY
    play.at(1059.0) >> b.notes(ItemProgress("y"))
    play.silence().at(1060.0) >> Due() << a.buried()
    assert a.name == "g-0"


def test_a_pause_is_not_the_workers_time():
    play = Play("x", progress_timeout=60.0)
    a = play.up()
    play.at(10.0) >> Asked(1, "pause", ("g",), wait=False) << ANY
    play.at(500.0) >> Due()
    play.silence() >> Asked(2, "resume", ("g",), wait=False) << ANY
    play.at(559.999) >> Due()
    play.silence().at(560.0) >> Due() << a.buried()


def test_a_call_that_waits_for_the_disk_is_not_the_workers_time():
    play = Play("x", progress_timeout=60.0)
    a = play.up()
    play.hold() >> a(CheckpointSave("s/1", b"{}"))
    play.seen.clear()
    play.at(500.0) >> Due()
    play.silence()


def test_who_waits_for_an_item_is_not_idle():
    play = Play("x", count=2, progress_timeout=60.0)
    a, b = play.up("g-0"), play.up("g-1")
    x = play.gives(a, "x")
    play >> b(ItemNext())
    for now in range(50, 1000, 50):
        play.at(float(now)) >> a.notes(ItemProgress("x", x.claim))
    play.silence()
    assert (play.state("g-0"), play.state("g-1")) == ("running", "running")


# ---- where it stood --------------------------------------------------------------------------------------------------


def test_where_a_hung_worker_stood_is_told_in_the_event_and_in_the_failure():
    play = Play("x", heartbeat_timeout=15.0)
    play.stands = ('  File "scraper.py", line 7 in handle', '  File "scraper.py", line 3 in wait_for_ever')
    a = play.up()
    play.gives(a, "x")
    play >> a.notes(Heartbeat())
    play.at(15.0) >> Due() << KillTree("g-0", 1, (), ask=True)
    hung = next(one for one in play.log if one.event == "worker_hung")
    assert hung.data.blocked == play.stands
    play.dies(a, None, 9).ignoring(HangUp, Spawn)
    failure = next(one.data.failure for one in play.log if one.event == "item_finished")
    assert failure.traceback.splitlines()[1:] == list(play.stands)
    exited = next(one for one in play.log if one.event == "worker_exited")
    assert hung.correlation_id == exited.correlation_id, "one incident"


def test_a_hang_is_told_also_where_nothing_is_heard_of_its_place():
    play = Play("x", heartbeat_timeout=15.0)
    play.tells = False
    a = play.up()
    play >> a.notes(Heartbeat())
    play.at(15.0) >> Due() << a.buried()
    assert play.published("worker_hung") == []
    play.dies(a, None, 9).ignoring(HangUp, Spawn)
    assert [one.data.blocked for one in play.log if one.event == "worker_hung"] == [None]
    assert play.published("worker_hung", "worker_exited") == ["worker_hung", "worker_exited"]


def test_an_item_at_the_end_of_its_ladder_tells_where_its_worker_stood():
    play, a, _, _ = stuck("item")
    play.stands = ('  File "scraper.py", line 7 in handle',)
    play.at(30.0) >> Due() << KillBrowser("g-0", 1, 500)
    play.at(40.0) >> Due() << a.buried()
    play.dies(a, None, 9).ignoring(HangUp, Spawn)
    failure = next(one.data.failure for one in play.log if one.event == "item_finished")
    assert (failure.signature, "line 7 in handle" in failure.traceback) == ("item-timeout", True)


def test_who_is_killed_for_its_memory_is_not_asked():
    play = Play("x")
    play.up()
    play.fleet.lifecycle.kill(play.fleet.state.workers["g-0"], "too fat", "worker-memory", play.now)
    assert play.fleet.outbox.commands[-1] == KillTree("g-0", 1, ())
