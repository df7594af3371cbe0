"""One incident keeps one correlation id, from its detection to its end; another's is another."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.playbook import ANY, BLIP, GIB, Play, Puppet

from scraper_supervisor.core.config.settings import ResourceSettings
from scraper_supervisor.core.events import Asked, Due, HangUp, KillBrowser, KillTree, Replied, Sampled
from scraper_supervisor.core.measurements import BrowserSample, Sample
from scraper_worker.protocol import (
    BrowserStarted,
    BrowserStopped,
    Failure,
    Heartbeat,
    ItemDone,
    ItemFailed,
    ItemNext,
)

BROKEN = Failure("permanent", "external", "http-404", "not there", 404)


def ids(play: Play, *events: str, after: int = 0) -> dict[str, set[str]]:
    """The correlation ids of events, by their names."""
    found: dict[str, set[str]] = {}
    for one in play.log[after:]:
        if one.event in events:
            found.setdefault(one.event, set()).add(one.correlation_id)
    return found


def one_incident(play: Play, *events: str, after: int = 0) -> str:
    """All these events happened, and bear one correlation id."""
    found = ids(play, *events, after=after)
    assert found.keys() == set(events)
    (incident,) = set.union(*found.values())
    return incident


def measured(play: Play, *browsers: tuple[str, int], worker: int = 0, cpu: float = 1.0, host: float = 10.0) -> Sampled:
    found = tuple(BrowserSample(name, 500 + int(name[1:]), memory, 1.0, None) for name, memory in browsers)
    return Sampled((Sample(play.now, "g-0", worker, worker, cpu, 3, found),), host, 10**12)


def with_browser(*keys: str, **settings: Any) -> tuple[Play, Puppet]:
    play = Play(*keys, **settings)
    a = play.up()
    play >> a.notes(BrowserStarted("b1", 501))
    return play, a


def replaced(play: Play, a: Puppet, before: str, after: str, why: str) -> None:
    play >> a.notes(BrowserStopped(before, why))
    play >> a.notes(BrowserStarted(after, 500 + int(after[1:])))
    play.seen.clear()


@pytest.mark.parametrize(("memory", "why"), [(GIB + 1, "recycle"), (2 * GIB + 1, "crash")])
def test_breach_clean_up_restart_and_recovery_of_a_browser(memory: int, why: str) -> None:
    play, a = with_browser("x")
    play >> measured(play, ("b1", memory))
    call = play.seen.pop().call if why == "recycle" else None
    play.seen.clear()
    replaced(play, a, "b1", "b2", why)
    if call is not None:
        play >> Replied(a.conn, call, None)
    play.at(play.now + 1.0) >> measured(play, ("b2", 1000))
    names = ("threshold_breached", "cleanup_initiated", "browser_restarted", "threshold_recovered")
    first = one_incident(play, *names)
    mark = len(play.log)
    play.seen.clear()
    play.at(play.now + 100.0) >> measured(play, ("b2", 2 * GIB + 1))
    play.seen.clear()
    replaced(play, a, "b2", "b3", "crash")
    play.at(play.now + 1.0) >> measured(play, ("b3", 1000))
    assert one_incident(play, *names, after=mark) != first  # another browser's is another
    assert play.fleet.state.workers["g-0"].current.incidents == {}  # nothing is kept of what is over


def test_a_browser_that_is_not_replaced_in_time() -> None:
    play, a = with_browser("x")
    play >> measured(play, ("b1", GIB + 1))
    play.seen.clear()
    play.at(20.0) >> Due() << KillBrowser("g-0", 1, 501)
    replaced(play, a, "b1", "b2", "crash")
    play.at(21.0) >> measured(play, ("b2", 1000))
    one_incident(play, "threshold_breached", "cleanup_initiated", "browser_restarted", "threshold_recovered")


def test_a_lost_browser_whose_item_is_claimed_again_before_it_is_replaced() -> None:
    play, a = with_browser("x", "y")
    play >> measured(play, ("b1", 2 * GIB + 1)) << KillBrowser("g-0", 1, 501)
    play >> a.notes(BrowserStopped("b1", "crash"))
    play.gives(a)
    play >> a.notes(BrowserStarted("b2", 502))
    one_incident(play, "threshold_breached", "cleanup_initiated", "browser_restarted")


def test_a_short_host_and_the_browser_that_is_recycled_for_it() -> None:
    play, a = with_browser("x")
    play >> measured(play, ("b1", 1000), host=99.0)
    play.seen.clear()
    replaced(play, a, "b1", "b2", "recycle")
    play.at(20.0) >> Due()
    play.at(40.0) >> measured(play, ("b2", 1000), host=10.0)
    one_incident(play, "threshold_breached", "cleanup_initiated", "threshold_recovered")


def test_a_workers_own_limit_its_drain_exit_and_start() -> None:
    play = Play("x", "y")
    a = play.up()
    x = play.gives(a)
    play >> measured(play, worker=GIB + 1)
    play >> a(ItemDone("x", x.claim))  # which is progress, and ends no incident before the restart
    play.seen.clear()
    play.dies(a, 0).ignoring(HangUp)
    breached = next(index for index, one in enumerate(play.log) if one.event == "threshold_breached")
    b = play.up()
    incident = one_incident(
        play, "threshold_breached", "worker_exited", "worker_started", "worker_ready", after=breached
    )
    play.gives(b, "y")
    play.seen.clear()
    play.dies(b).seen.clear()
    assert one_incident(play, "worker_exited", after=breached + 5) != incident


@pytest.mark.parametrize("drained", [False, True])
def test_hang_kill_exit_and_start_of_a_worker(drained: bool) -> None:
    play = Play("x", "y", heartbeat_timeout=15.0, stop_timeout=900.0)
    a = play.up()
    play.gives(a)
    play >> a.notes(Heartbeat())
    mark = len(play.log)
    if drained:
        play >> Asked(1, "drain", ("g-0",), wait=False)
        play.seen.clear()
    play.until(15.0)
    assert any(isinstance(one, KillTree) for one in play.seen)
    play.seen.clear()
    play.dies(a, None, 9).ignoring(HangUp)
    hung = one_incident(play, "worker_hung", "worker_exited", after=mark)
    play.seen = [one for one in play.seen if type(one).__name__ == "Spawn"]
    if drained:
        play >> Asked(2, "start", ("g",), wait=False)
        play.seen = [one for one in play.seen if type(one).__name__ == "Spawn"]
    b = play.up()
    back = one_incident(play, "worker_ready", after=mark)
    assert (back == hung) is not drained  # what was stopped has nothing to recover from
    play.gives(b)
    play.seen.clear()
    play.dies(b).seen.clear()
    assert len(ids(play, "worker_exited", after=mark)["worker_exited"]) == 2


def test_an_items_attempts_from_its_first_failure_to_its_end() -> None:
    play = Play("x", "y")
    a = play.up()
    for _ in range(2):
        play.at(play.now + 10.0)
        x = play.gives(a, "x")
        play >> a(ItemFailed("x", BLIP, x.claim)) << a.gets(ANY)
        y = play.gives(a, "y")
        play >> a(ItemFailed("y", BLIP, y.claim)) << a.gets(ANY)
    play.at(play.now + 10.0)
    play >> a(ItemDone("x", play.gives(a, "x").claim)) << a.gets(ANY)
    play >> a(ItemFailed("y", BROKEN, play.gives(a, "y").claim)) << a.gets(ANY)
    by_key: dict[str, set[str]] = {}
    for one in play.log:
        if hasattr(one.data, "key"):
            by_key.setdefault(one.data.key, set()).add(one.correlation_id)
    assert {key: len(found) for key, found in by_key.items()} == {"x": 1, "y": 1}
    assert by_key["x"] != by_key["y"]
    assert {one.event for one in play.log if getattr(one.data, "key", None) == "x"} == {
        "item_finished", "retry_attempted", "retry_succeeded",
    }  # fmt: skip


def test_an_items_incident_goes_on_over_the_daemon_and_a_workers_death() -> None:
    play = Play("x")
    a = play.up()
    play.gives(a)
    play.dies(a).seen.clear()
    again = Play(store=play.store)
    b = again.up()
    again.until(60.0).seen.clear()
    again >> b(ItemNext())
    claim = again.seen.pop(0).result.claim
    again >> b(ItemDone("x", claim)) << b.gets(ANY)
    died = one_incident(play, "item_finished")
    assert one_incident(again, "item_finished") == died
    assert one_incident(play, "worker_exited") != died


def test_a_kill_is_no_recycle() -> None:
    play, a = with_browser("x", resources=ResourceSettings())
    play >> measured(play, ("b1", 2 * GIB + 1)) << KillBrowser("g-0", 1, 501)
    replaced(play, a, "b1", "b2", "crash")
    worker = play.fleet.state.workers["g-0"]
    assert (worker.recycles, worker.browser_kills, worker.browser_crashes) == (0, 1, 0)
    replaced(play, a, "b2", "b3", "crash")
    assert (worker.recycles, worker.browser_kills, worker.browser_crashes) == (0, 1, 1)
    play >> measured(play, ("b3", GIB + 1))
    play.seen.clear()
    play.at(play.now + 20.0) >> Due() << KillBrowser("g-0", 1, 503)
    replaced(play, a, "b3", "b4", "crash")
    assert (worker.recycles, worker.browser_kills, worker.browser_crashes) == (0, 2, 1)
