"""The fleet as a whole: runs that end, repeat and begin again, reloads, operators, browsers, the status document."""

import msgspec
import pytest
from msgspec.structs import replace
from tests.core.playbook import ANY, BLIP, Play, Some, a_group, writes

from scraper_supervisor.core.config.settings import AbortSettings, ResourceSettings, RestartSettings, SupervisorSettings
from scraper_supervisor.core.events import (
    Answered,
    Asked,
    Due,
    HangUp,
    KillBrowser,
    KillTree,
    Leave,
    Persist,
    Reconfigured,
    Refuse,
    Replied,
    Reply,
    Sampled,
    Signal,
    Spawn,
    SpawnFailed,
    Tell,
    Terminated,
    TreeEnded,
    Watch,
    Withdrawn,
)
from scraper_supervisor.core.formats.worker_payloads import BrowserRestarted
from scraper_supervisor.core.measurements import BrowserSample, Sample
from scraper_supervisor.core.ops.item_ops import AddItems, Cancel, Conclude
from scraper_supervisor.core.ops.run_ops import CompleteRun, LoadIntents, LoadRun, OpenRun, SetIntent, SetRunState
from scraper_supervisor.core.queue.queue import QueueCounts
from scraper_supervisor.core.snapshot import Daemon, snapshot
from scraper_worker.protocol import (
    BrowserRecycle,
    BrowserStarted,
    BrowserStopped,
    DoneAnswer,
    Drain,
    End,
    FailureReport,
    Goodbye,
    Granted,
    Heartbeat,
    ItemCancel,
    ItemDone,
    ItemFailed,
    ItemNext,
    ItemRelease,
    ItemsOffer,
    Nothing,
    RpcError,
)

GIB = 2**30


def finish(play, a, *keys):
    """The worker does these items, is told that all is done, and ends well."""
    for key in keys:
        item = play.gives(a, key)
        play >> a(ItemDone(key, item.claim)) << a.gets(ANY)
    play >> a(ItemNext()) << a.gets(End("complete"))
    play >> a(Goodbye("complete")) << a.gets(Nothing())
    return play.dies(a, 0).ignoring(HangUp)


def group_state(play, name="g"):
    return play.fleet.state.groups[name].state.public


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_once_ends_with_0_when_every_group_is_completed():
    play = Play("x", once=True)
    finish(play, play.up(), "x") << Leave(0, "every group completed")


def test_once_ends_with_1_when_items_are_left_and_no_worker_is_able():
    play = Play("x", once=True, restart="never")
    play.dies(play.up()).ignoring(HangUp)
    leave = play.seen.pop(0)
    assert leave.code == 1
    assert "g-0 failed" in leave.reason


def test_without_once_a_completed_group_stays_completed_over_restarts_too():
    play = Play("x")
    finish(play, play.up(), "x").silence()
    again = Play(store=play.store)
    again.silence().until(10_000.0).silence()
    assert group_state(again) == "completed"


def test_a_restarted_supervisor_goes_on_where_the_ledger_stands_with_new_claims():
    play = Play("x", "y")
    a = play.up()
    x = play.gives(a)
    play >> a(ItemDone("x", x.claim)) << a.gets(DoneAnswer(1, False))
    y = play.gives(a)
    again = Play(store=play.store)
    b = again.up()
    assert again.gives(b, "y").claim > y.claim


def test_on_complete_repeat_begins_a_new_run_after_the_delay():
    play = Play("x", on_complete="repeat", repeat_delay=60.0)
    finish(play, play.up(), "x")
    play.at(59.999) >> Due()
    play.silence().deadline() >> Due() << Spawn("g-0", 2, ANY)
    assert play.store.newest("g").run == 2
    assert group_state(play) == "running"


def test_a_stopped_group_does_not_repeat():
    play = Play("x", on_complete="repeat", repeat_delay=60.0)
    finish(play, play.up(), "x")
    play >> Asked(1, "stop", ("g",)) << Answered(1, True, ANY)
    play.until(10_000.0).silence()


def test_on_complete_wait_leaves_item_next_open():
    play = Play("x", on_complete="wait")
    a = play.up()
    x = play.gives(a)
    play >> a(ItemDone("x", x.claim)) << a.gets(ANY)
    play >> a(ItemNext())
    play.silence() >> Asked(1, "items.add", ("g",), ("y",))
    assert [type(command) for command in play.seen] == [Answered, type(a.gets(None))]


def test_workers_that_end_well_and_leave_items_are_replaced():
    play = Play("x", entrypoint=None, command=("x",))
    play.dies(play.spawned(), 0) << Spawn("g-0", 2, ANY)


def test_a_run_is_completed_again_only_when_the_ledger_says_so():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play >> a(ItemDone("x", x.claim)) << a.gets(ANY)
    play.hold()
    play >> a(ItemNext()) << writes(CompleteRun)
    assert group_state(play) == "running"
    play >> play.lost()
    play.silence().at(1.0) >> Due() << ANY
    play >> play.durable() << writes(CompleteRun)
    play.silence() >> play.durable() << a.gets(End("complete"))
    assert group_state(play) == "completed"
    assert play.store.newest("g").state == "completed"


def test_a_disk_that_refuses_the_very_first_words_is_asked_again():
    play = Play()
    first = play.fleet.__class__(play.settings, "boot2")
    play.fleet, play.seen = first, []
    play.hold()
    play._take(first.start(0.0))
    play << writes(LoadIntents)
    play >> play.lost()
    play.silence().at(1.0) >> Due() << ANY
    play >> play.durable() << writes(LoadIntents)
    play >> play.durable() << writes(OpenRun)
    play >> play.durable() << Spawn("g-0", 1, ANY)


# ---- abort -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_abort", ["exit", "hold"])
def test_an_abort_exits_or_holds(on_abort):
    settings = {
        "abort": AbortSettings(consecutive_crashes=1),
        "supervisor": SupervisorSettings(on_abort=on_abort),
    }
    play = Play("x", settings=settings)
    play.dies(play.up()).ignoring(HangUp, Spawn)
    play >> SpawnFailed("g-0", 2, "it was ordered to stop before it began")
    if on_abort == "exit":
        assert play.seen.pop(0).code == 69
    play.silence()
    assert group_state(play) == "aborted"


def test_abort_clear_goes_on():
    settings = {"abort": AbortSettings(consecutive_crashes=1), "supervisor": SupervisorSettings(on_abort="hold")}
    play = Play("x", settings=settings)
    play.dies(play.up()).ignoring(HangUp, Spawn)
    play >> SpawnFailed("g-0", 2, "it was ordered to stop before it began")
    play.silence()
    assert play.fleet.state.phase == "aborted"
    play >> Asked(1, "abort.clear") << Spawn("g-0", 3, ANY) << Answered(1, True, ANY)
    assert (group_state(play), play.fleet.state.phase) == ("running", "running")
    assert play.store.newest("g").state == "running"


# ---- reload ----------------------------------------------------------------------------------------------------------


def reloaded(play, *, settings=None, **changes):
    group = replace(play.settings.groups["g"], **changes)
    play.settings = replace(play.settings, groups=play.settings.groups | {"g": group}, **(settings or {}))
    return Reconfigured(play.settings)


def test_a_raised_count_is_exactly_one_spawn():
    play = Play("x")
    play.up()
    play >> reloaded(play, count=2) << Spawn("g-1", 1, ANY)
    play.silence()


def test_a_lowered_count_drains_the_highest_index():
    play = Play("x", count=2)
    play.up("g-0")
    b = play.up("g-1")
    play >> reloaded(play, count=1) << Tell(b.conn, Drain("count was lowered", 30.0))
    play >> b(Goodbye("drained")) << b.gets(ANY)
    play.dies(b, 0).ignoring(HangUp).silence()
    assert list(play.fleet.state.workers) == ["g-0"]


def test_a_worker_that_is_wanted_again_before_it_is_down_starts_anew():
    play = Play("x", count=2)
    play.up("g-0")
    b = play.up("g-1")
    play >> reloaded(play, count=1) << Tell(b.conn, ANY)
    play >> reloaded(play, count=2)
    play.silence().dies(b, 0).ignoring(HangUp) << Spawn("g-1", 2, ANY)


@pytest.mark.parametrize(
    "change",
    [
        {"heartbeat_timeout": 20.0},
        {"resources": ResourceSettings(browser_memory=GIB // 2)},
        {"stop_timeout": 1.0},
        {"retry": "default", "item_timeout": 5.0},
    ],
)
def test_a_changed_threshold_touches_no_process(change):
    play = Play("x")
    play.up()
    play >> reloaded(play, **change)
    play.silence()


def test_a_changed_program_restarts_the_workers_one_by_one():
    play = Play("x", count=3)
    workers = [play.up(f"g-{index}") for index in range(3)]
    play >> reloaded(play, entrypoint="a:c")
    for index, worker in enumerate(workers):
        play << Tell(worker.conn, Drain("the configuration of its program changed", 30.0))
        play.silence()
        play >> worker(Goodbye("drained")) << worker.gets(ANY)
        play.dies(worker, 0).ignoring(HangUp)
        spawn = play.seen.pop(0)
        assert (spawn.worker, spawn.incarnation, spawn.group.entrypoint) == (f"g-{index}", 2, "a:c")
        fresh = play.puppet(spawn)
        play.silence() >> fresh.runs()
        play >> fresh.hello()
        assert play.seen.pop(0) == fresh.gets(ANY)
    play.silence()


def test_what_is_watched_closely_follows_the_limits_at_once():
    def watched(commands):
        return [command for command in commands if isinstance(command, Watch)]

    play = Play("x", count=2)
    a = play.up()
    play.ignoring(Spawn) >> a.notes(BrowserStarted("b", 77, None, "chromium", "1"))
    lower = ResourceSettings(browser_memory=GIB // 2, worker_memory=None, worker_memory_max=GIB // 4)
    expected = Watch("g-0", 1, a.pid, (("b", 77),), GIB // 2, GIB // 4)
    assert watched(play.fleet.handle(reloaded(play, resources=lower), 0.0)) == [expected], "g-1 has no process yet"
    assert watched(play.fleet.handle(reloaded(play, stop_timeout=9.0), 0.0)) == []
    off = replace(lower, browser_memory=None, browser_memory_max=None, worker_memory_max=None)
    assert watched(play.fleet.handle(reloaded(play, resources=off), 0.0)) == [Watch("g-0", 1, a.pid, (("b", 77),))]


def test_groups_come_and_go():
    play = Play("x")
    a = play.up()
    play.settings = replace(play.settings, groups={"h": a_group("h")})
    play >> Reconfigured(play.settings) << Tell(a.conn, ANY) << Spawn("h-0", 1, ANY)
    play >> a(Goodbye("drained")) << a.gets(ANY)
    play.dies(a, 0).ignoring(HangUp)
    assert list(play.fleet.state.groups) == ["h"]
    assert list(play.fleet.state.workers) == ["h-0"]


def test_a_group_that_is_removed_and_comes_back_before_it_is_down_goes_on():
    play = Play("x")
    a = play.up()
    whole = play.settings
    play >> Reconfigured(replace(whole, groups={})) << Tell(a.conn, ANY)
    play >> Reconfigured(whole)
    play.silence().dies(a, 0).ignoring(HangUp) << Spawn("g-0", 2, ANY)
    assert group_state(play) == "running"


def test_a_reload_moves_the_end_of_a_drain_under_way_and_tells_the_worker():
    play = Play("x", stop_timeout=30.0)
    a = play.up()
    play.gives(a)
    play >> Asked(1, "drain", ("g",)) << Tell(a.conn, Drain(ANY, 30.0))
    play.at(4.0) >> reloaded(play, stop_timeout=10.0) << Tell(a.conn, Drain(ANY, 6.0))
    play.until(9.99).silence()
    play.until(10.0) << Signal("g-0", 1, 15)


def test_a_reload_moves_the_end_of_a_start_under_way():
    play = Play(start_timeout=30.0)
    a = play.spawned()
    play.at(1.0) >> reloaded(play, start_timeout=5.0)
    play.until(4.99).silence()
    play.until(5.0) << a.buried()


def test_a_reload_moves_the_next_start_of_a_worker_that_waits():
    policy = RestartSettings(base_delay=40.0, max_delay=60.0)
    play = Play("x", "y", restart_policy=policy)
    play.dies(play.up()).ignoring(HangUp)
    play.dies(play.up()).ignoring(HangUp)
    assert 20.0 <= play.fleet.next_deadline() < 41.0
    play >> reloaded(play, restart_policy=RestartSettings(base_delay=2.0))
    play.until(2.0) << Spawn("g-0", 3, ANY)


def test_a_reload_moves_a_repeat():
    play = Play("x", on_complete="repeat", repeat_delay=600.0)
    a = play.up()
    x = play.gives(a)
    play >> a(ItemDone("x", x.claim)) << a.gets(ANY)
    play >> a(ItemNext()) << a.gets(End("complete"))
    play >> a(Goodbye("complete")) << a.gets(ANY)
    play.dies(a, 0).ignoring(HangUp)
    play.until(100.0).silence() >> reloaded(play, repeat_delay=150.0)
    play.until(149.0).silence()
    play.until(151.0) << Spawn("g-0", 2, ANY)


def test_other_heartbeats_count_from_the_next_hello():
    play = Play("x", heartbeat_interval=3.0, heartbeat_timeout=15.0)
    a = play.up()
    play >> a.notes(Heartbeat())
    play >> reloaded(play, heartbeat_interval=0.5, heartbeat_timeout=2.0)
    play.until(14.9).silence()
    play >> a.notes(Heartbeat())
    play.leaves(a)
    a = play.back(a)
    play << a.gets(ANY)
    play >> a.notes(Heartbeat())
    play.until(16.8).silence()
    play.until(16.9) << a.buried()


def test_a_shorter_silence_alone_counts_at_once():
    play = Play("x", heartbeat_interval=1.0, heartbeat_timeout=15.0)
    a = play.up()
    play >> a.notes(Heartbeat())
    play >> reloaded(play, heartbeat_timeout=4.0)
    play.until(3.9).silence()
    play.until(4.0) << a.buried()


def test_a_reload_moves_the_deadline_of_a_recycle_under_way():
    play = Play(resources=ResourceSettings(browser_pages=1, recycle_deadline=60.0))
    a = play.up()
    play >> a(BrowserStarted("b", 77, None, "chromium", "1")) << a.gets(ANY)
    play >> Asked(1, "recycle", ("g-0",)) << Tell(a.conn, BrowserRecycle("b", ANY, 60.0), ANY)
    play.at(5.0) >> reloaded(play, resources=ResourceSettings(recycle_deadline=10.0))
    play.until(9.9).silence()
    play.until(10.0) << KillBrowser("g-0", 1, 77)


def test_a_reload_before_the_ledger_answered_makes_each_group_once():
    play = Play()
    play.fleet, play.seen = play.fleet.__class__(play.settings, "boot2"), []
    play.hold()
    play._take(play.fleet.start(0.0))
    play << writes(LoadIntents)
    play >> Reconfigured(replace(play.settings, groups=play.settings.groups | {"h": a_group("h")}))
    play.silence() >> play.durable() << writes(OpenRun) << writes(OpenRun)
    play.silence()


# ---- operators -------------------------------------------------------------------------------------------------------


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
    play >> b.hello() << b.gets(ANY) << Answered(2, True, {"workers": {"g-0": "running"}})


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
    play.silence() >> b.hello() << b.gets(ANY) << Answered(1, True, ANY)
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
    play << Tell(a.conn, ItemCancel("x", x.claim, "an operator cancelled it", 10.0))
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


# ---- browsers and memory ---------------------------------------------------------------------------------------------


def with_browser(play, name="b1", pid=500):
    a = play.up()
    play >> a.notes(BrowserStarted(name, pid))
    return a


def sample(play, browser=None, worker=0, free=10**12):
    browsers = (BrowserSample("b1", 500, browser, 1.0, None),) if browser is not None else ()
    return Sampled((Sample(play.now, "g-0", worker, worker, 1.0, 3, browsers),), 10.0, free)


def test_a_fat_browser_is_recycled_when_nothing_is_in_its_hands():
    play = Play("x", "y")
    a = with_browser(play)
    x = play.gives(a)
    play >> sample(play, GIB + 1)
    play.silence() >> a(ItemNext())
    waiting = a.call
    play.silence().at(7.0) >> a(ItemDone("x", x.claim)) << a.gets(ANY)
    told = play.seen.pop(0)
    assert told == Tell(a.conn, BrowserRecycle("b1", ANY, 20.0), ANY)
    play >> a.notes(BrowserStopped("b1", "recycle"))
    play >> a.notes(BrowserStarted("b2", 501))
    play.silence() >> Replied(a.conn, told.call, None) << a.gets(Granted("y", ANY, None, ANY, 1), waiting)
    assert play.fleet.state.workers["g-0"].recycles == 1
    assert replaced(play) == [BrowserRestarted("b1", "browser_memory", "asked", 0.0)]


def replaced(play):
    return [one.data for one in play.log if one.event == "browser_restarted"]


def test_a_browser_that_is_not_replaced_by_the_deadline_is_killed():
    play = Play("x")
    a = with_browser(play)
    play >> sample(play, GIB + 1) << Tell(a.conn, BrowserRecycle("b1", ANY, 20.0), ANY)
    play.at(19.999) >> Due()
    play.silence().deadline() >> Due() << KillBrowser("g-0", 1, 500)
    play >> a(ItemNext())
    play.silence() >> a.notes(BrowserStopped("b1", "crash"))
    play >> a.notes(BrowserStarted("b2", 501)) << a.gets(Granted("x", ANY, None, ANY, 1))
    assert replaced(play) == [BrowserRestarted("b1", "browser_memory", "killed", 20.0)]


def test_a_worker_whose_killed_browser_never_comes_back_gets_items_again():
    play = Play("x")
    a = with_browser(play)
    play >> sample(play, GIB + 1) << ANY
    play.at(20.0) >> Due() << KillBrowser("g-0", 1, 500)
    play >> a(ItemNext())
    play.silence().deadline() >> Due() << a.gets(Granted("x", ANY, None, ANY, 1))


def test_an_error_instead_of_a_new_browser_kills_the_old_one():
    play = Play("x")
    a = with_browser(play)
    play >> sample(play, GIB + 1)
    told = play.seen.pop(0)
    play >> Replied(a.conn, told.call, RpcError(-32000, "no")) << KillBrowser("g-0", 1, 500)


def test_a_recycle_is_asked_again_on_a_new_connection_with_what_is_left_of_the_deadline():
    play = Play("x")
    a = with_browser(play)
    play >> sample(play, GIB + 1) << ANY
    play.at(5.0).leaves(a)
    b = play.back(a)
    play << b.gets(ANY) << Tell(b.conn, BrowserRecycle("b1", ANY, 15.0), ANY)


def test_a_dead_workers_browser_is_never_killed_by_its_number():
    """The number may be somebody else's by then."""
    play = Play("x", restart="never")
    a = with_browser(play)
    play >> sample(play, GIB + 1) << ANY
    play >> a.exits(1) << KillTree("g-0", 1, (500,)) << HangUp(a.conn)
    play >> TreeEnded("g-0", 1, 1)
    play.until(1000.0).silence()


def test_a_browser_over_its_hard_limit_is_killed_at_once():
    play = Play("x")
    a = with_browser(play)
    play.gives(a)
    play >> sample(play, 2 * GIB + 1) << KillBrowser("g-0", 1, 500)
    play.at(play.now + 1.0) >> a.notes(BrowserStopped("b1", "crash"))
    play.at(play.now + 2.0) >> a.notes(BrowserStarted("b2", 501))
    assert replaced(play) == [BrowserRestarted("b1", "browser_memory_max", "killed", 3.0)]


def test_a_browser_that_grows_on_while_its_recycle_waits_is_told_of_by_the_limit_that_ended_it():
    play = Play("x")
    a = with_browser(play)
    x = play.gives(a)
    play >> sample(play, GIB + 1)
    play.silence() >> sample(play, 2 * GIB + 1) << KillBrowser("g-0", 1, 500)
    play >> a.notes(BrowserStopped("b1", "crash"))
    play >> a(ItemRelease("x", x.claim, "its browser died")) << a.gets(ANY)
    told = play.seen.pop(0)
    assert told == Tell(a.conn, BrowserRecycle("b1", ANY, 20.0), ANY)
    play >> a.notes(BrowserStarted("b2", 501))
    play >> Replied(a.conn, told.call, None)
    assert replaced(play) == [BrowserRestarted("b1", "browser_memory_max", "killed", 0.0)]


def test_a_browser_that_crashed_was_neither_asked_nor_killed():
    play = Play("x")
    a = with_browser(play)
    play >> a.notes(BrowserStopped("b1", "crash"))
    play.at(play.now + 2.0) >> a.notes(BrowserStarted("b2", 501))
    assert replaced(play) == [BrowserRestarted("b1", "crash", None, 2.0)]


def test_a_fat_worker_is_restarted_when_its_hands_are_empty():
    play = Play("x", "y")
    a = play.up()
    x = play.gives(a)
    play >> sample(play, worker=GIB + 1)
    play.silence() >> a(ItemNext())
    play.silence() >> a(ItemDone("x", x.claim)) << a.gets(ANY) << Tell(a.conn, Drain(ANY, 30.0))
    play << a.gets(End("draining"), a.call - 1)
    play >> a(Goodbye("drained")) << a.gets(ANY)
    play.dies(a, 0).ignoring(HangUp) << Spawn("g-0", 2, ANY)
    assert play.fleet.state.workers["g-0"].restarts == 1, "it counts like any other"


def test_a_worker_over_its_hard_limit_is_killed_and_its_item_charged():
    play = Play("x")
    a = play.up()
    play.gives(a)
    play >> sample(play, worker=2 * GIB + 1) << a.buried()
    play.dies(a, None, 9).ignoring(HangUp, Spawn)
    assert play.row("x").attempts == 1


def test_below_disk_free_only_item_next_is_held():
    play = Play("x", "y")
    a = play.up()
    x = play.gives(a)
    play >> sample(play, free=10**6)
    play >> a(ItemNext())
    waiting = a.call
    play.silence() >> a(ItemDone("x", x.claim)) << a.gets(DoneAnswer(1, False))
    play >> a(ItemsOffer(["z"])) << a.gets(ANY)
    assert snapshot(play.fleet, DAEMON)["supervisor"]["state"] == "degraded"
    play >> sample(play, free=10**12) << a.gets(Granted("y", ANY, None, ANY, 1), waiting)
    assert play.published("storage_degraded", "storage_recovered") == ["storage_degraded", "storage_recovered"]


def test_operators_recycle_is_answered_when_the_new_browser_is_up():
    play = Play("x")
    a = with_browser(play)
    play >> Asked(1, "recycle", ("g-0",))
    told = play.seen.pop(0)
    assert told == Tell(a.conn, BrowserRecycle("b1", "an operator ordered it", 20.0), ANY)
    play.silence() >> Replied(a.conn, told.call, None) << Answered(1, True, ANY)


def test_pages_come_with_the_heartbeat():
    play = Play("x")
    a = with_browser(play)
    play >> a.notes(Heartbeat(1.0, {"b1": 7, "unknown": 3}))
    play >> sample(play, 100)
    assert snapshot(play.fleet, DAEMON)["workers"][0]["browsers"] == [
        {"id": "b1", "pid": 500, "memory": 100, "age_seconds": 50.0, "pages": 7}
    ]


# ---- the status document ---------------------------------------------------------------------------------------------

DAEMON = Daemon(4711, "0", "2026-01-01T00:00:00.000Z", None, "2026-01-01T00:00:00.000Z", None, 50.0, 1000.0)
KEYS = {
    "supervisor": {"pid", "version", "state", "started_at", "config", "host"},
    "groups": {"name", "run", "state", "items", "rate_per_minute", "eta_seconds"},
    "workers": {
        "name", "group", "index", "state", "pid", "incarnation", "restarts", "started_at", "memory", "cpu_percent",
        "processes", "browsers", "idle_reason", "recycles", "items", "checkpoint", "last_failure",
    },
    "abort": {"state", "window_seconds", "scopes"},
    "slo": {
        "availability", "recoveries", "recovery_p90_seconds", "recovery_max_seconds", "checkpoint_p99_seconds",
        "items_lost",
    },
}  # fmt: skip


def test_the_snapshot_has_every_key_of_the_contract():
    play = Play("x", "y")
    a = play.up()
    x = play.gives(a)
    play >> a(ItemDone("x", x.claim)) << a.gets(ANY)
    document = msgspec.json.decode(msgspec.json.encode(snapshot(play.fleet, DAEMON)))
    assert set(document) == set(KEYS)
    for name, keys in KEYS.items():
        part = document[name][0] if isinstance(document[name], list) else document[name]
        assert keys <= set(part), name
    assert document["groups"][0]["items"] == {
        "pending": 1, "in_flight": 0, "waiting": 0, "parked": 0, "done": 1, "failed": 0, "total": 2,
    }  # fmt: skip
    assert document["workers"][0]["memory"] == {"rss": None, "pss": None}, "unknown is null, never 0"
    assert document["workers"][0]["items"] == {"done": 1, "failed": 0, "in_flight": 0}
    assert document["workers"][0]["last_failure"] is None


def test_counts_tell_pending_in_flight_and_waiting_apart():
    play = Play("x", "y", "z")
    a = play.up()
    x, _ = play.gives(a), play.gives(a)
    play >> a(ItemFailed("x", BLIP, x.claim)) << a.gets(ANY)
    assert play.fleet.state.groups["g"].queue.counts(play.now) == QueueCounts(1, 1, 1, 0, 0, 0)


def test_a_failure_outside_any_item_is_shown_and_has_no_vote():
    play = Play("x")
    a = play.up()
    play >> a(FailureReport(BLIP, "x.example")) << a.gets(Nothing())
    assert play.published("failure_pattern_detected") == ["failure_pattern_detected"]
    assert play.fleet.state.workers["g-0"].last_failure == BLIP
    assert play.fleet.abort.scopes(0.0) == []


def test_a_signal_during_the_start_ends_it():
    play = Play()
    a = play.spawned()
    play >> Terminated("SIGINT") << Signal("g-0", 1, 15)
    play.dies(a, None, 15) << Leave(0, "drained")


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


def test_a_reload_may_remove_a_group_of_which_the_ledger_has_not_told_yet():
    play = Play()
    play.fleet, play.seen = play.fleet.__class__(play.settings, "boot2"), []
    play.hold()
    play._take(play.fleet.start(0.0))
    play << writes(LoadIntents)
    play >> Reconfigured(replace(play.settings, groups={}))
    play.silence() >> play.durable()
    play.silence()
    assert play.fleet.state.phase == "running"
