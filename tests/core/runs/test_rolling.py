"""Restarts one by one, by an order and by a reload, and what a broken program does to them."""

from msgspec.structs import replace
from tests.core.playbook import ANY, Play, group_state

from scraper_supervisor.core.events import Answered, Asked, HangUp, Reconfigured, Spawn, Tell
from scraper_worker.protocol import Goodbye, ItemDone, ItemNext, Nothing

TOLD = "no module 'scrapper' for scrapper:scrape"


def goes(play, puppet):
    """A worker that was told to drain ends, and its next process is wanted."""
    play >> puppet(Goodbye("drained")) << puppet.gets(Nothing())
    play.dies(puppet, 0).ignoring(HangUp)


def breaks(play, name, code=78, line=TOLD):
    """The worker's new process ends before its hello."""
    puppet = play.spawned(name)
    play >> puppet.exits(code, last_line=line) << puppet.buried()
    return puppet


def test_a_restart_of_a_broken_deploy_ends_with_the_first_worker_and_says_why():
    play = Play("x", count=3)
    a, b, c = (play.up(f"g-{index}") for index in range(3))
    play >> Asked(1, "restart", ("g",)) << Tell(a.conn, ANY)
    goes(play, a)
    breaks(play, "g-0")
    play << Answered(1, False, f"g-0: {TOLD}; g-1, g-2 stay as they are")
    play.silence()
    assert [play.state(f"g-{index}") for index in range(3)] == ["failed", "running", "running"]
    for puppet in (b, c):
        assert play.fleet.state.workers[puppet.name].life.incarnation == 1


def test_the_daemon_stays_though_every_worker_of_a_deploy_is_broken():
    play = Play("x")
    a = play.up()
    play >> Asked(1, "restart", ("g",)) << Tell(a.conn, ANY)
    goes(play, a)
    breaks(play, "g-0")
    play << Answered(1, False, f"g-0: {TOLD}")
    play.silence()
    assert (group_state(play), play.fleet.state.phase) == ("failed", "running")
    play >> Asked(2, "restart", ("g",)) << Spawn("g-0", 3, ANY), "which begins a failed group anew"
    b = play.spawned() if play.seen else None
    assert b is None or b.incarnation == 3


def test_a_worker_that_is_not_up_within_start_timeout_is_failed_and_the_rest_stay():
    play = Play("x", count=2, start_timeout=5.0)
    a, _ = play.up("g-0"), play.up("g-1")
    play >> Asked(1, "restart", ("g",)) << Tell(a.conn, ANY)
    goes(play, a)
    breaks(play, "g-0", 1, "scraper_worker: g-0: a:b raised OSError: no database")
    while play.state("g-0") != "failed":
        play.until(play.now + 5.0)
        if play.seen and isinstance(play.seen[0], Spawn):
            breaks(play, "g-0", 1, "scraper_worker: g-0: a:b raised OSError: no database")
    (answered,) = play.seen
    assert answered.ok is False
    assert answered.document.startswith("g-0: not up within start_timeout (5s) after a restart: the worker exited")
    assert answered.document.endswith("; g-1 stay as they are")
    assert play.now == 5.0
    assert play.state("g-1") == "running"


def test_a_reload_is_waited_for_and_says_what_broke():
    play = Play("x", count=2)
    a, _ = play.up("g-0"), play.up("g-1")
    group = replace(play.settings.groups["g"], entrypoint="scrapper:scrape")
    play.settings = replace(play.settings, groups={"g": group})
    play >> Reconfigured(play.settings) << Tell(a.conn, ANY)
    play >> Asked(1, "reload.settle")
    play.silence()
    goes(play, a)
    breaks(play, "g-0")
    play << Answered(1, False, f"g-0: {TOLD}; g-1 stay as they are")
    play >> Asked(2, "reload.settle") << Answered(2, False, ANY)
    play >> Reconfigured(play.settings)
    play >> Asked(3, "reload.settle") << Answered(3, True, {"workers": {}})


def test_a_restart_goes_on_when_the_one_before_asks_for_items():
    play = Play("x", "y", count=2)
    a, b = play.up("g-0"), play.up("g-1")
    x = play.gives(a)
    play >> Asked(1, "restart", ("g",)) << Tell(a.conn, ANY)
    play >> a(ItemDone("x", x.claim)) << a.gets(ANY)
    goes(play, a)
    fresh = play.up("g-0")
    play.silence() >> fresh(ItemNext()) << fresh.gets(ANY) << Tell(b.conn, ANY)
    goes(play, b)
    again = play.up("g-1")
    play.silence() >> again(ItemNext()) << Answered(1, True, {"workers": {"g-0": "running", "g-1": "running"}})


def test_a_start_of_a_crash_loop_says_what_became_of_it():
    play = Play("x")
    a = play.up()
    play >> Asked(1, "stop", ("g",), wait=False) << Tell(a.conn, ANY) << Answered(1, True, ANY)
    goes(play, a)
    play >> Asked(2, "start", ("g",))
    for _ in range(2):  # the first restart is at once, after the second death it waits
        b = play.spawned()
        play >> b.hello() << b.gets(ANY)
        play.dies(b, 1).ignoring(HangUp)
    (answered,) = play.seen
    assert answered.ok is False
    assert answered.document.startswith("g-0 ended again and again, the next try is under way: the worker exited")
    assert play.now == 0.0


def test_a_start_that_hangs_is_answered_at_start_timeout():
    play = Play("x", start_timeout=4.0)
    a = play.up()
    play >> Asked(1, "stop", ("g",), wait=False) << Tell(a.conn, ANY) << Answered(1, True, ANY)
    goes(play, a)
    play >> Asked(2, "start", ("g",))
    b = play.spawned()
    play.until(10.0)
    answers = [one for one in play.seen if isinstance(one, Answered)]
    assert (play.now, len(answers), answers[0].ok) == (4.0, 1, False)
    assert b.incarnation == 2


def test_a_restart_of_one_worker_leaves_the_others():
    play = Play("x", count=2)
    play.up("g-0")
    b = play.up("g-1")
    play >> Asked(1, "restart", ("g-1",), wait=False)
    play << Answered(1, True, {"workers": ["g-1"]}) << Tell(b.conn, ANY)
    goes(play, b)
    again = play.up("g-1")
    play.silence() >> again(ItemNext())
    assert play.state("g-0") == "running"


def test_a_process_that_is_not_there_yet_is_not_late():
    """It was failed while it was being started, and an order started a second process beside the first."""
    play = Play("x", count=2, start_timeout=5.0)
    a, _ = play.up("g-0"), play.up("g-1")
    play >> Asked(1, "restart", ("g-0",)) << Tell(a.conn, ANY)
    goes(play, a)
    (spawn,) = play.seen
    play.seen = []
    play.until(20.0).silence()
    assert (play.now, play.state("g-0")) == (20.0, "starting")
    again = play.puppet(spawn)
    play >> again.runs()
    play.until(24.0).silence()
    play >> again.hello() << again.gets(ANY)
    play.until(26.0) << Answered(1, True, ANY)
