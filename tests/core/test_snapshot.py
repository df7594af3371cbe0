"""The figures of `status` that follow from what happened."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.core.playbook import ANY, BLIP, DAEMON, Play, Puppet

from scraper_supervisor.core.events import Asked, Sampled
from scraper_supervisor.core.snapshot import snapshot
from scraper_worker.protocol import Failure, ItemDone, ItemFailed

BROKEN = Failure("permanent", "external", "http-404", "not there", 404)


def group(play: Play) -> dict[str, Any]:
    found: dict[str, Any] = snapshot(play.fleet, replace(DAEMON, now=play.now))["groups"][0]
    return found


def at_work(*, done: int = 0, failed: int = 0, left: int = 10) -> tuple[Play, Puppet]:
    """A group that has been at it for half a minute."""
    play = Play(*(f"k{number}" for number in range(done + failed + left)))
    a = play.up()
    for number in range(done + failed):
        play.at(30.0 * number / (done + failed - 1))
        item = play.gives(a)
        call = ItemDone(item.key, item.claim) if number % 2 < done else ItemFailed(item.key, BROKEN, item.claim)
        play >> a(call) << a.gets(ANY)
    return play, a


def test_the_eta_is_that_of_items_done() -> None:
    play, _ = at_work(done=5)
    assert group(play)["rate_per_minute"] == pytest.approx(10.0)
    assert group(play)["eta_seconds"] == pytest.approx(60.0)


def test_failures_are_no_progress() -> None:
    play, _ = at_work(failed=5)
    found = group(play)
    assert (found["items"]["failed"], found["rate_per_minute"], found["eta_seconds"]) == (5, None, None)


@pytest.mark.parametrize("names", [(), ("g",), ("g-0",)])
def test_what_is_paused_has_no_eta(names: tuple[str, ...]) -> None:
    play, _ = at_work(done=5)
    play >> Asked(1, "pause", names) << ANY
    assert group(play)["eta_seconds"] is None
    play >> Asked(2, "resume", names) << ANY
    assert group(play)["eta_seconds"] is not None


def test_what_a_full_disk_holds_has_no_eta() -> None:
    play, _ = at_work(done=5)
    play >> Sampled((), 10.0, 0)
    assert group(play)["eta_seconds"] is None
    play >> Sampled((), 10.0, 2**40)
    assert group(play)["eta_seconds"] is not None


def test_what_is_drained_has_no_eta() -> None:
    play, a = at_work(done=5)
    item = play.gives(a)
    play >> Asked(1, "drain", ("g",)) << ANY
    assert group(play)["eta_seconds"] is None
    play >> a(ItemFailed(item.key, BLIP, item.claim)) << a.gets(ANY)
