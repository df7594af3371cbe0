"""Why a worker is handed nothing now: the sentence that decides is the one that `status` shows."""

import pytest
from tests.core.playbook import ANY, BLIP, Play

from scraper_supervisor.core.config.settings import TargetSettings
from scraper_supervisor.core.events import Asked, Tell
from scraper_supervisor.core.snapshot import Daemon, snapshot
from scraper_supervisor.core.workers.readiness import idle_reason, why_not_ready
from scraper_worker.protocol import BrowserStarted, Goodbye, ItemFailed, ItemNext, ItemsOffer

WALL = 1_750_000_000.0


def reason(play, name="g-0"):
    return idle_reason(play.fleet.state, play.fleet.state.workers[name], play.now, WALL + play.now)


def shown(play, name="g-0"):
    daemon = Daemon(1, "0", "", None, "", None, play.now, WALL + play.now)
    return next(one["idle_reason"] for one in snapshot(play.fleet, daemon)["workers"] if one["name"] == name)


def test_a_worker_at_work_has_no_reason():
    play = Play("x", "y")
    a = play.up()
    assert reason(play) == "it has not asked for an item"
    play.gives(a)
    assert reason(play) is None
    assert shown(play) is None


def test_before_hello_and_after_goodbye():
    play = Play("x")
    assert reason(play) == "its process is being started"
    a = play.spawned()
    assert reason(play) == "it has not said hello yet"
    play >> a.hello() << ANY
    play >> a(Goodbye("drained")) << ANY
    assert reason(play) == "it has said goodbye"


@pytest.mark.parametrize(
    ("names", "sentence"), [(("g",), "an operator paused it"), (("g-0",), "an operator paused it")]
)
def test_paused(names, sentence):
    play = Play("x")
    a = play.up()
    play >> Asked(1, "pause", names)
    play.ignoring(object) >> a(ItemNext())
    play.silence()
    expected = sentence if names == ("g-0",) else "its group is paused"
    assert reason(play) == shown(play) == expected


def test_draining():
    play = Play("x")
    a = play.up()
    play.gives(a)
    play >> Asked(1, "drain", ("g-0",)) << Tell(a.conn, ANY)
    assert reason(play) == "it is draining"


def test_its_browser_is_being_replaced():
    play = Play("x")
    a = play.up()
    play >> a(BrowserStarted("b", 77, None, "chromium", "1")) << a.gets(ANY)
    play >> Asked(1, "recycle", ("g-0",)) << ANY
    assert reason(play) == "its browser is being replaced: an operator ordered it"
    play >> a(ItemNext())
    play.silence()


def test_the_disk():
    play = Play("x")
    a = play.up()
    play.hold()
    play >> a(ItemsOffer(["y"])) << ANY
    play >> play.lost()
    assert reason(play) == "No space left on device: no item is handed out"


def test_nothing_is_due_before_a_time():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play >> a(ItemFailed("x", BLIP, x.claim)) << a.gets(ANY)
    play >> a(ItemNext())
    assert reason(play) == "nothing is due before 2025-06-15T15:06:41.000Z"


def test_everything_is_in_others_hands_or_nothing_is_there():
    play = Play("x", count=2)
    a, b = play.up("g-0"), play.up("g-1")
    play.gives(a)
    play >> b(ItemNext())
    assert reason(play, "g-1") == "every open item is in a worker's hands"
    play = Play(on_complete="wait")
    play >> play.up()(ItemNext())
    assert reason(play) == "there is no open item"


def test_a_host_at_its_limit():
    play = Play(settings={"targets": {"h": TargetSettings(max_in_flight=1)}})
    a = play.up()
    play >> a(ItemsOffer(["http://h/1", "http://h/2"])) << ANY
    play.gives(a)
    play >> a(ItemNext())
    assert reason(play) == "every host that has items is at its limit"


def test_who_is_handed_something_is_who_has_no_reason():
    play = Play("x", count=2)
    a, b = play.up("g-0"), play.up("g-1")
    play >> Asked(1, "pause", ("g-0",))
    play.ignoring(object) >> a(ItemNext())
    play.silence() >> b(ItemNext()) << b.gets(ANY)
    state = play.fleet.state
    assert why_not_ready(state, state.workers["g-0"]) is not None
    assert why_not_ready(state, state.workers["g-1"]) is None
