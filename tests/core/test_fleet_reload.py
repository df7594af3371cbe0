"""The fleet and a reload: what changes at once, what is moved, what is left alone."""

import pytest
from msgspec.structs import replace
from tests.core.playbook import ANY, GIB, Play, a_group, group_state, writes

from scraper_supervisor.core.config.settings import ResourceSettings, RestartSettings
from scraper_supervisor.core.events import Asked, HangUp, KillBrowser, Reconfigured, Signal, Spawn, Tell, Watch
from scraper_supervisor.core.ops.run_ops import LoadIntents, OpenRun
from scraper_supervisor.core.workers.readiness import STEADY
from scraper_worker.protocol import BrowserRecycle, BrowserStarted, Drain, End, Goodbye, Heartbeat, ItemDone, ItemNext


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
        play.silence().until(play.now + STEADY)
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
