"""The fleet and what is measured: browsers recycled and killed, fat workers, a disk nearly full."""

from tests.core.playbook import ANY, DAEMON, GIB, Play

from scraper_supervisor.core.events import (
    Answered,
    Asked,
    Due,
    HangUp,
    KillBrowser,
    KillTree,
    Replied,
    Said,
    Sampled,
    Spawn,
    Tell,
    TreeEnded,
)
from scraper_supervisor.core.formats.worker_payloads import BrowserRestarted
from scraper_supervisor.core.measurements import BrowserSample, Sample
from scraper_supervisor.core.snapshot import snapshot
from scraper_worker.jsonrpc import RpcError
from scraper_worker.protocol import (
    BrowserRecycle,
    BrowserStarted,
    BrowserStopped,
    DoneAnswer,
    Drain,
    End,
    Goodbye,
    Granted,
    Heartbeat,
    ItemDone,
    ItemNext,
    ItemRelease,
    ItemsOffer,
)


def with_browser(play, name="b1", pid=500):
    a = play.up()
    play >> a.notes(BrowserStarted(name, pid))
    return a


def sample(play, browser=None, worker=0, free=10**12):
    browsers = (BrowserSample("b1", 500, browser, 1.0, None),) if browser is not None else ()
    return Sampled((Sample(play.now, "g-0", worker, worker, 1.0, 3, browsers),), 10.0, free)


def test_a_browser_that_is_none_of_the_worker_s_own_processes_is_refused_told_and_never_watched():
    play = Play("x")
    a = play.up()
    for number, ancestry in enumerate(((500, 77, 1), ())):  # another's, and one that is not there
        play >> Said(a.conn, 100 + number, BrowserStarted("b1", 500), ancestry)
        play << a.refused(-32005, {"path": "pid"}, call=100 + number)
        failure = play.log[-1].data.failure
        assert (play.log[-1].data.EVENT, failure.signature) == ("failure_pattern_detected", "browser-not-its-own")
        assert "500" in failure.message
    play.silence()
    assert snapshot(play.fleet, DAEMON)["workers"][0]["browsers"] == []


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
