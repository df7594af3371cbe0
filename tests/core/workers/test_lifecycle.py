"""Workers' lives: deaths and what they cost, hangs to the millisecond, restarts, and when it is too much."""

from signal import SIGTERM

import pytest
from msgspec.structs import replace
from tests.core.playbook import ANY, BLIP, PLAIN_RETRY, Play, Some, writes

from scraper_supervisor.core.config.settings import AbortSettings, RestartSettings
from scraper_supervisor.core.events import (
    Asked,
    Due,
    Exited,
    HangUp,
    Persist,
    Signal,
    Spawn,
    SpawnFailed,
    Tell,
)
from scraper_supervisor.core.ops.item_ops import AddItems, Conclude
from scraper_worker.protocol import (
    DoneAnswer,
    Drain,
    FailedAnswer,
    Failure,
    Goodbye,
    Granted,
    Heartbeat,
    ItemDone,
    ItemFailed,
    ItemNext,
    ItemRelease,
    ItemsOffer,
    Nothing,
)

PATIENT = replace(PLAIN_RETRY, max_attempts=50)


# ---- deaths ----------------------------------------------------------------------------------------------------------


def test_a_death_with_one_item_in_hand_charges_it():
    play = Play("x")
    a = play.up()
    play.gives(a)
    play.dies(a, None, 11).ignoring(HangUp) << Spawn("g-0", 2, ANY)
    assert (play.row("x").state, play.row("x").attempts) == ("open", 1)
    exited = next(one for one in play.log if one.event == "worker_exited")
    assert (exited.data.signal, exited.data.charged, exited.data.ordered) == (11, "x", False)


def test_a_death_with_several_charges_none_and_each_is_then_handed_out_alone():
    play = Play("x", "y")
    a = play.up()
    play.gives(a), play.gives(a)
    play.dies(a).ignoring(HangUp)
    assert [(play.row(key).attempts, play.row(key).alone) for key in "xy"] == [(0, True), (0, True)]
    b = play.up()
    x = play.gives(b, "x")
    play >> b(ItemNext())
    waiting = b.call
    play.silence()
    (
        play
        >> b(ItemDone("x", x.claim))
        << b.gets(DoneAnswer(1, False))
        << b.gets(Granted("y", ANY, None, ANY, 1), waiting)
    )


def test_alone_also_means_to_a_worker_that_holds_nothing_else():
    play = Play("x", "y")
    a = play.up()
    play.gives(a), play.gives(a)
    play.dies(a).ignoring(HangUp)
    b = play.up()
    play >> b(ItemsOffer(["z"])) << b.gets(ANY)
    for key in ("x", "y"):
        item = play.gives(b, key)
        play >> b(ItemFailed(key, BLIP, item.claim)) << b.gets(ANY)
    z = play.gives(b, "z")
    play.at(5.0) >> b(ItemNext())
    play.silence()
    play >> b(ItemRelease("z", z.claim)) << b.gets(Nothing()) << b.gets(Granted("x", ANY, None, ANY, 2), b.call - 1)


def test_a_poisoned_item_ends_as_failed_and_its_neighbours_pay_nothing():
    play = Play("good", "poison", "fine", restart_policy=RestartSettings(max_restarts=0))
    a = play.up()
    for key in ("good", "poison", "fine"):
        play.gives(a, key)
    play.dies(a).ignoring(HangUp)
    while play.row("poison").state != "failed":
        play.until(play.now + 100.0)
        a = play.up()
        for _ in range(3):
            play.until(play.now + 5.0) >> a(ItemNext())
            granted = play.seen.pop(0).result if play.seen else None
            if isinstance(granted, Granted) and granted.key != "poison":
                play >> a(ItemDone(granted.key, granted.claim)) << a.gets(ANY)
        play.dies(a).ignoring(HangUp)
    assert (play.row("good").state, play.row("fine").attempts) == ("done", 0)
    play.until(play.now + 100.0)
    assert play.gives(play.up(), "fine").attempt == 1


def test_a_death_beside_items_on_their_way_to_the_disk_charges_only_what_was_not_told():
    play = Play("x", "y")
    a = play.up()
    x, _ = play.gives(a), play.gives(a)
    play.hold()
    play >> a(ItemDone("x", x.claim)) << writes(Conclude)
    play.dies(a).ignoring(HangUp, Persist, Spawn).flow().ignoring(type(None))
    assert (play.row("x").state, play.row("y").attempts) == ("done", 1)


def test_a_death_while_the_disk_refuses_is_charged_when_it_heals():
    play = Play("x")
    a = play.up()
    play.gives(a)
    play.hold()
    play >> a(ItemsOffer(["y"])) << writes(AddItems)
    play >> play.lost() << ANY
    play.dies(a).ignoring(HangUp, Spawn) << writes(Conclude)
    play >> play.lost()
    play.at(1.0) >> Due() << ANY
    play >> play.durable() << writes(Conclude)
    play >> play.durable()
    assert play.row("x").attempts == 1


def test_deaths_that_were_ordered_are_free():
    play = Play("x")
    a = play.up()
    play.gives(a)
    play >> Asked(1, "restart", ("g-0",)) << Tell(a.conn, Drain(ANY, 30.0))
    play.dies(a, None, 9).ignoring(HangUp) << Spawn("g-0", 2, ANY)
    assert play.row("x").attempts == 0
    assert play.fleet.state.workers["g-0"].restarts == 0


# ---- hangs -----------------------------------------------------------------------------------------------------------


def test_no_hello_within_start_timeout_is_a_hang():
    play = Play()
    a = play.spawned()
    play.at(29.999) >> Due()
    play.silence().deadline() >> Due() << a.buried()
    play.at(30.5).dies(a, None, 9) << Spawn("g-0", 2, ANY)
    assert "worker_hung" in play.published()


def test_silence_counts_from_the_first_heartbeat_on_and_any_line_ends_it():
    play = Play("x", progress_timeout=5000.0)
    a = play.up()
    play.at(1000.0) >> Due()
    play.silence() >> a.notes(Heartbeat())
    play.at(1010.0) >> a(ItemNext()) << ANY
    play.at(1024.999) >> Due()
    play.silence().deadline() >> Due() << a.buried()
    assert play.now == 1025.0
    play.at(1026.0).dies(a, None, 9).ignoring(HangUp, Spawn)
    assert play.row("x").attempts == 1, "killed as hung is a death"
    assert play.fleet.state.workers["g-0"].last_failure.signature == "heartbeat-timeout"


def test_a_closed_connection_must_be_back_within_heartbeat_timeout():
    play = Play("x")
    a = play.up()
    play.leaves(a)
    play.at(14.999) >> Due()
    play.silence()
    b = play.back(a)
    play << b.gets(ANY)
    play.at(20.0).leaves(b)
    play.deadline() >> Due() << a.buried()
    assert play.now == 35.0


def test_after_goodbye_silence_is_no_hang_but_the_process_owes_an_end():
    play = Play("x", stop_timeout=60.0)
    a = play.up()
    play >> a.notes(Heartbeat())
    play >> a(Goodbye("complete")) << a.gets(ANY)
    play.at(59.999) >> Due()
    play.silence().deadline() >> Due() << Signal("g-0", 1, SIGTERM)


def test_a_killed_worker_that_still_says_goodbye_is_not_waited_for_in_a_loop():
    play = Play("x")
    a = play.up()
    play >> a.notes(Heartbeat())
    play.deadline() >> Due() << a.buried()
    play >> a(Goodbye("complete")) << a.gets(ANY)
    play.at(play.now + 100.0) >> Due()
    deadline = play.fleet.next_deadline()
    assert deadline is None or deadline > play.now


def test_clocks_stand_still_while_the_disk_refuses():
    play = Play("x", item_timeout=20.0, progress_timeout=25.0)
    a = play.up()
    x = play.gives(a)
    play.hold().at(15.0)
    play >> a(ItemDone("x", x.claim)) << writes(Conclude)
    play >> play.lost() << ANY
    for now in range(16, 100):
        play.at(float(now)) >> Due() << ANY
        play >> (play.lost() if now < 99 else play.durable())
        play.silence()
    assert play.fleet.next_deadline() == 99.0 + 5.0, "five seconds of item_timeout were left"
    play >> a(ItemDone("x", x.claim)) << writes(Conclude)
    play >> play.durable() << a.gets(DoneAnswer(1, False))


def test_the_disk_is_probed_once_at_a_time_however_slow_it_is():
    play = Play()
    a = play.up()
    play.hold()
    play >> a(ItemsOffer(["x"])) << writes(AddItems)
    play >> play.lost() << ANY
    play.at(1.0) >> Due() << ANY
    play.at(50.0) >> Due()
    play.silence() >> play.lost()
    play.at(50.999) >> Due()
    play.silence().at(51.0) >> Due() << ANY


# ---- restarts --------------------------------------------------------------------------------------------------------


def test_the_first_restart_is_immediate_the_next_wait_and_too_many_fail():
    play = Play("x", restart_policy=RestartSettings(max_restarts=3))
    play.dies(play.up()).ignoring(HangUp)
    for _ in range(2):
        play.dies(play.up()).ignoring(HangUp)
        assert play.state() == "backoff"
        play.deadline(-0.001) >> Due()
        play.silence().deadline() >> Due()
    play.dies(play.up()).ignoring(HangUp).silence()
    assert play.state() == "failed"
    assert play.fleet.state.groups["g"].state.public == "failed"
    assert play.published("worker_failed") == ["worker_failed"]


def test_deaths_charged_to_one_item_count_once():
    play = Play("x", restart_policy=RestartSettings(max_restarts=1), settings={"retry": {"default": PATIENT}})
    for _ in range(5):
        a = play.up()
        play.until(play.now + 100.0)
        play.gives(a, "x")
        play.dies(a).ignoring(HangUp)
        play.until(play.now + 100.0)
    assert play.state() == "starting"


def test_what_cannot_be_started_counts_like_a_death():
    play = Play(restart_policy=RestartSettings(max_restarts=1))
    play.ignoring(Spawn) >> SpawnFailed("g-0", 1, "no such file") << Spawn("g-0", 2, ANY)
    play >> SpawnFailed("g-0", 2, "no such file")
    play.silence()
    assert play.state() == "failed"
    assert "no such file" in play.fleet.state.workers["g-0"].last_failure.message


@pytest.mark.parametrize("word", ["spawned", "exited", "spawn failed", "hello"])
def test_stale_words_change_nothing(word):
    play = Play("x")
    a = play.up()
    play.dies(a).ignoring(HangUp)
    b = play.up()
    before = play.fleet.lifecycle.public(play.fleet.state.workers["g-0"])
    (
        play
        >> {
            "spawned": a.runs(),
            "exited": a.exits(1),
            "spawn failed": SpawnFailed("g-0", 1, "late"),
            "hello": Exited("g-9", 1, 1, None),
        }[word]
    )
    play.silence()
    assert play.fleet.lifecycle.public(play.fleet.state.workers["g-0"]) == before
    assert play.gives(b, "x")


def test_an_exit_that_is_told_twice_counts_once():
    play = Play("x")
    a = play.up()
    play.dies(a).ignoring(HangUp) << Spawn("g-0", 2, ANY)
    b = play.puppet(Spawn("g-0", 2, ANY))
    play >> b.runs()
    play.dies(b)
    assert play.state() == "backoff"
    play >> b.exits(1)
    play.silence()
    assert play.fleet.state.workers["g-0"].restarts == 2


# ---- the abort policy ------------------------------------------------------------------------------------------------


def test_deaths_with_no_item_done_between_them_abort_the_group():
    abort = AbortSettings(consecutive_crashes=3)
    play = Play("x", settings={"abort": abort}, restart_policy=RestartSettings(max_restarts=0))
    for _ in range(3):
        play.until(play.now + 100.0)
        play.dies(play.up()).ignoring(HangUp)
    assert play.seen.pop(0).code == 69
    triggered, executed = [one for one in play.log if one.component == "abort"]
    assert (triggered.event, executed.event) == ("abort_triggered", "abort_executed")
    assert (executed.data.scope, executed.data.key, executed.data.group, executed.group) == ("group", "g", "g", "g")
    assert "3 deaths" in executed.data.reason
    assert play.store.newest("g").state == "aborted"


def test_too_many_failures_abort_everything_and_the_items_wait_for_an_operator():
    keys = [f"k{index}" for index in range(60)]
    play = Play(*keys, settings={"abort": AbortSettings(confirm_after=10.0)})
    a = play.up()
    gone = Failure("permanent", "application", "gone", "gone")
    for _ in range(30):
        granted = Some()
        play >> a(ItemNext()) << a.gets(granted)
        (
            play
            >> a(ItemFailed(granted.value.key, gone, granted.value.claim))
            << a.gets(FailedAnswer("final", 1, None, ANY))
        )
    play.until(10.0) << Tell(a.conn, Drain(ANY, 30.0))
    play >> a(Goodbye("drained")) << ANY
    play.dies(a, 0).ignoring(HangUp)
    assert play.seen.pop(0).code == 69
    counts = play.fleet.state.groups["g"].queue.counts(play.now)
    assert counts.parked + counts.pending == 30
    assert (counts.in_flight, counts.waiting, counts.failed) == (0, 0, 30)
