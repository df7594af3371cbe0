"""The fleet as a whole: runs that end, repeat and begin again, an abort, the status document."""

import msgspec
import pytest
from tests.core.playbook import ANY, BLIP, DAEMON, Play, finish, group_state, writes

from scraper_supervisor.core.config.settings import AbortSettings, SupervisorSettings
from scraper_supervisor.core.events import Answered, Asked, Due, HangUp, Leave, Signal, Spawn, SpawnFailed, Terminated
from scraper_supervisor.core.ops.run_ops import CompleteRun, LoadIntents, OpenRun
from scraper_supervisor.core.queue.queue import QueueCounts
from scraper_supervisor.core.snapshot import snapshot
from scraper_worker.protocol import DoneAnswer, End, FailureReport, ItemDone, ItemFailed, ItemNext, Nothing

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


def test_a_signal_during_the_start_ends_it():
    play = Play()
    a = play.spawned()
    play >> Terminated("SIGINT") << Signal("g-0", 1, 15)
    play.dies(a, None, 15) << Leave(0, "drained")


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


# ---- the status document ---------------------------------------------------------------------------------------------

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
