"""Aborts of a group or of everything: what becomes of its items, one truth about them, and another chance."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.core.playbook import ANY, BLIP, DAEMON, Play, a_group, group_state

from scraper_supervisor.core.config.settings import AbortSettings, SupervisorSettings
from scraper_supervisor.core.events import Answered, Asked, HangUp, Signal, Spawn, SpawnFailed, Tell
from scraper_supervisor.core.snapshot import snapshot
from scraper_worker.protocol import Failure, ItemDone, ItemFailed, ItemNext

BROKEN = Failure("permanent", "external", "http-500", "it is down", 500)
CRASHES = {"abort": AbortSettings(consecutive_crashes=1), "supervisor": SupervisorSettings(on_abort="hold")}


def counted(play: Play) -> dict[str, int]:
    """What `status` tells of the group's items, after the ledger was found to tell the same."""
    items: dict[str, int] = snapshot(play.fleet, replace(DAEMON, now=play.now))["groups"][0]["items"]
    states = [row.state for row in play.store.newest("g").items.values()]
    told = {"open": items["pending"] + items["in_flight"] + items["waiting"]}
    told |= {state: items[state] for state in ("parked", "done", "failed")}
    assert told == {state: states.count(state) for state in told}
    return items


def aborted(*keys: str, **more: Any) -> Play:
    """A group that was aborted by a death, and has nobody up any more; another group, where there is one, runs on."""
    play = Play(settings=CRASHES, **more)
    if keys:
        play = Play(*keys, settings=CRASHES, store=play.store, **more)
    play.dies(play.up()).ignoring(HangUp, Spawn, Tell, Signal, Answered)
    return play


def gone(play: Play, name: str = "g-0") -> Play:
    """The replacement that was being started when the group was aborted is no more."""
    worker = play.fleet.state.workers[name]
    play.seen.clear()
    play >> SpawnFailed(name, worker.life.incarnation, "it was ordered to stop before it began")
    play.seen.clear()
    return play


def test_what_is_open_in_an_aborted_group_is_parked_in_the_ledger() -> None:
    play = gone(aborted("x", "y", "z"))
    assert group_state(play) == "aborted"
    items = counted(play)
    assert (items["parked"], items["pending"], items["total"]) == (3, 0, 3)


def test_nothing_is_parked_while_a_worker_holds_an_item() -> None:
    play = Play("x", "y", groups=(a_group("g", count=2),), settings=CRASHES)
    a, b = play.up("g-0"), play.up("g-1")
    held = play.gives(b)
    play.dies(a).ignoring(HangUp, Spawn, Tell)
    assert group_state(play) == "aborted"
    assert counted(play)["in_flight"] == 1
    play >> b(ItemFailed(held.key, BLIP, held.claim)) << b.gets(ANY)
    play.until(play.now)
    gone(play)
    play.dies(b, 0).seen.clear()
    assert counted(play)["parked"] == 2


def test_what_comes_later_is_parked_too_and_waits_for_the_operator() -> None:
    play = gone(aborted("x"))
    play >> Asked(1, "items.add", ("g",), ("new",)) << Answered(1, True, ANY)
    assert counted(play)["parked"] == 2
    assert group_state(play) == "aborted"


@pytest.mark.parametrize(
    "asked",
    [
        Asked(1, "abort.clear"),
        Asked(1, "abort.clear", ("g",)),
        Asked(1, "items.requeue", ("g",), parked=True),
        Asked(1, "items.requeue", ("g",), ("x",)),
        Asked(1, "start", ("g",), wait=False),
    ],
)
def test_another_chance_takes_up_all_that_was_parked(asked: Asked) -> None:
    play = gone(aborted("x", "y"))
    play >> asked
    assert [type(one) for one in play.seen if isinstance(one, Spawn)] == [Spawn]
    play.ignoring(Answered)
    assert group_state(play) == "running"
    assert counted(play) | {"total": 2} == {
        "pending": 2, "in_flight": 0, "waiting": 0, "parked": 0, "done": 0, "failed": 0, "total": 2,
    }  # fmt: skip
    assert play.store.newest("g").state == "running"
    a = play.up()
    play.gives(a, "x" if asked.method != "items.requeue" or asked.parked else ANY)


def test_a_requeue_of_failed_items_does_not_take_up_what_was_parked() -> None:
    play = Play("x", "y", settings=CRASHES)
    a = play.up()
    x = play.gives(a)
    play >> a(ItemFailed("x", BROKEN, x.claim)) << a.gets(ANY)
    play.dies(a).seen.clear()
    gone(play)
    play >> Asked(1, "items.requeue", ("g",), failed=True) << Answered(1, True, ANY)
    play.silence()
    assert group_state(play) == "aborted"
    assert counted(play)["parked"] == 2


def test_the_next_daemon_takes_up_what_was_parked() -> None:
    play = gone(aborted("x", "y"))
    again = Play(store=play.store, settings=CRASHES)
    a = again.up()
    again.gives(a, "x")
    assert counted(again)["pending"] == 1


def test_retries_are_taken_up_where_they_were() -> None:
    play = Play("x", settings=CRASHES)
    a = play.up()
    x = play.gives(a)
    play >> a(ItemFailed("x", BLIP, x.claim)) << a.gets(ANY)
    play.dies(a).seen.clear()
    gone(play)
    assert counted(play)["parked"] == 1
    play >> Asked(1, "abort.clear")
    b = play.ignoring(Answered).up()
    assert play.row("x").attempts == 1
    play.until(play.now + 60.0) >> b(ItemNext())
    assert play.seen.pop(0).result.attempt == 2


# ---- abort clear -----------------------------------------------------------------------------------------------------


def suspected(play: Play, confirm: float) -> float:
    """Fourteen failures of fourteen: suspected, and due to be aborted when the clock has run; the time of that."""
    a = play.up()
    for _ in range(14):
        item = play.gives(a)
        play >> a(ItemFailed(item.key, BROKEN, item.claim)) << a.gets(ANY)
    assert "abort_evaluated" in play.published()
    return play.now + confirm


def test_clear_with_nothing_aborted_says_so_and_resets_no_clock() -> None:
    settings = {"abort": AbortSettings(confirm_after=60.0), "supervisor": SupervisorSettings(on_abort="hold")}
    play = Play(*(f"k{number}" for number in range(40)), settings=settings)
    due = suspected(play, 60.0)
    before = len(play.log)
    play.at(due - 1.0) >> Asked(1, "abort.clear") << Answered(1, True, {"cleared": []})
    assert play.published("abort_evaluated") == [
        one.event for one in play.log[:before] if one.event == "abort_evaluated"
    ]
    play.until(due)
    assert "abort_triggered" in play.published()


def test_clear_of_one_group_leaves_the_others_clocks_alone() -> None:
    play = Play(groups=(a_group("g"), a_group("h")), settings=CRASHES)
    play.fill("h", *(f"h{number}" for number in range(3)))
    play.seen.clear()
    play >> Asked(9, "abort.clear", ("nope",)) << Answered(9, False, ANY)
    play >> Asked(1, "abort.clear", ("h",)) << Answered(1, True, {"cleared": []})


# ---- one incident ----------------------------------------------------------------------------------------------------


def test_suspicion_abort_and_clearing_of_a_scope_are_one_incident() -> None:
    settings = {"abort": AbortSettings(confirm_after=60.0), "supervisor": SupervisorSettings(on_abort="hold")}
    play = Play(*(f"k{number}" for number in range(40)), settings=settings)
    play.until(suspected(play, 60.0)).seen.clear()
    told = [one for one in play.log if one.event.startswith("abort_")]
    scopes = {(one.data.scope, one.data.key) for one in told}
    for scope in scopes:
        mine = [one for one in told if (one.data.scope, one.data.key) == scope]
        assert {one.event for one in mine} >= {"abort_evaluated", "abort_triggered", "abort_executed"}
        assert len({one.correlation_id for one in mine}) == 1
    assert len({one.correlation_id for one in told}) == len(scopes)
    view = snapshot(play.fleet, replace(DAEMON, now=play.now))["abort"]
    assert {one["since"] is not None for one in view["scopes"] if one["state"] == "aborted"} == {True}
    a = play.fleet.state.workers["g-0"]
    assert a.life.up
    play >> Asked(1, "abort.clear")
    play.seen.clear()
    cleared = [one for one in play.log if one.event == "abort_evaluated" and one.data.action == "cleared"]
    assert {one.correlation_id for one in cleared} <= {one.correlation_id for one in told}
    assert cleared


def test_an_item_done_after_the_abort_counts() -> None:
    play = Play("x", "y", groups=(a_group("g", count=2),), settings=CRASHES)
    a, b = play.up("g-0"), play.up("g-1")
    held = play.gives(b)
    play.dies(a).ignoring(HangUp, Spawn, Tell)
    play >> b(ItemDone(held.key, held.claim)) << b.gets(ANY)
    gone(play)
    play.dies(b, 0).seen.clear()
    items = counted(play)
    assert (items["done"], items["parked"]) == (1, 1)
