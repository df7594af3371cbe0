"""What workers say after their hello, apart from the queue's own rules: signs of life, and what is answered to what."""

import pytest
from msgspec import Raw
from tests.core.playbook import ANY, BLIP, DAEMON, Play

from scraper_supervisor.core.config.settings import AbortSettings
from scraper_supervisor.core.events import HangUp, Heard, Replied, Spawn, Tell
from scraper_supervisor.core.snapshot import Daemon, snapshot
from scraper_worker.protocol import (
    NOT_INTRODUCED,
    REFUSED,
    BrowserStarted,
    BrowserStopped,
    CheckpointSave,
    FailedAnswer,
    FailureReport,
    Goodbye,
    Heartbeat,
    ItemFailed,
    ItemNext,
    ItemProgress,
    Nothing,
)

NOTES = (
    Heartbeat(1.5, {"b1": 2}),
    ItemProgress("x", message="half of it"),
    ItemProgress("unheard of"),
    BrowserStarted("b1", 500),
    BrowserStopped("b1", "close"),
)


@pytest.mark.parametrize("note", NOTES, ids=lambda note: type(note).__name__)
def test_a_notification_that_asks_for_an_answer_gets_an_empty_one(note):
    play = Play("x")
    a = play.up()
    play >> a(note) << a.gets(Nothing())
    play.silence() >> a.notes(note)
    play.silence()


@pytest.mark.parametrize("line", [Heard, lambda conn: Replied(conn, 4711, None)])
def test_any_line_is_a_sign_of_life_from_the_first_heartbeat_on(line):
    play = Play("x", heartbeat_timeout=15.0)
    a = play.up()
    play >> a.notes(Heartbeat())
    play.silence().at(10.0) >> line(a.conn)
    play.silence().until(24.9)
    assert play.state() == "running"
    play.until(25.1) << a.buried()
    assert "worker_hung" in play.published()


def test_a_line_of_a_stranger_or_of_who_left_is_no_sign_of_life():
    play = Play("x", heartbeat_timeout=15.0)
    a = play.up()
    play >> a.notes(Heartbeat())
    play.silence().at(10.0) >> Heard(a.conn + 1)
    play.silence().until(15.1) << a.buried()


def test_after_goodbye_nothing_is_taken():
    play = Play("x")
    a = play.up()
    play >> a(Goodbye("drained")) << a.gets(Nothing())
    for word in (ItemNext(), Heartbeat(), ItemProgress("x")):
        play.silence() >> a(word) << a.refused(NOT_INTRODUCED)


def test_a_state_of_an_incarnation_that_is_over_is_refused_as_what_it_is():
    play = Play("x")
    a = play.up()
    play >> a.exits(1) << a.buried() << HangUp(a.conn)
    play.ignoring(Spawn)
    play >> a(CheckpointSave("s/1", Raw(b"{}"))) << a.refused(REFUSED)
    play >> a(ItemNext()) << a.refused(NOT_INTRODUCED)
    play.leaves(a)
    play >> a(CheckpointSave("s/1", Raw(b"{}"))) << a.refused(NOT_INTRODUCED)
    assert play.fleet.state.conns == {}


def test_nobody_knows_when_an_item_of_an_aborted_group_comes_again():
    play = Play("x", "y", count=2, settings={"abort": AbortSettings(consecutive_crashes=1)})
    a, b = play.up("g-0"), play.up("g-1")
    x = play.gives(a, "x")
    play.dies(b).ignoring(HangUp, Tell, Spawn)
    play >> a(ItemFailed("x", BLIP, x.claim)) << a.gets(FailedAnswer("retry", 1, None, ANY))


def test_a_worker_that_is_asked_for_by_name_shows_all_in_its_hands():
    play = Play(*"abcdefgh")
    a = play.up()
    for _ in range(8):
        play.gives(a)
    shown = [snapshot(play.fleet, DAEMON, whole)["workers"][0]["doing"] for whole in ((), ("g-0",), ("g-1",))]
    assert [len(one) for one in shown] == [5, 8, 5]


def test_status_tells_what_is_in_hand_and_how_far_it_is():
    play = Play("x", "y")
    a = play.up()
    x, y = play.gives(a), play.gives(a)
    play.at(7.0) >> a.notes(ItemProgress("y", None, "z" * 300, 3, 7.5))
    daemon = Daemon(1, "0", "", None, "", None, 10.0, 0.0)
    assert snapshot(play.fleet, daemon)["workers"][0]["doing"] == [
        {
            "key": "x", "claim": x.claim, "target": None, "seconds": 10.0, "attempt": 1,
            "message": None, "done": None, "total": None,
        },
        {
            "key": "y", "claim": y.claim, "target": None, "seconds": 10.0, "attempt": 1,
            "message": "z" * 200, "done": 3, "total": 7.5,
        },
    ]  # fmt: skip


def test_a_reported_failure_is_told_and_is_no_vote():
    play = Play("x", settings={"abort": AbortSettings()})
    a = play.up()
    for _ in range(50):
        play >> a(FailureReport(BLIP, "login.test")) << a.gets(Nothing())
    assert len(play.published("failure_pattern_detected")) == 50
    assert play.fleet.state.workers["g-0"].last_failure == BLIP
    assert not play.fleet.abort.scopes(play.now)


def test_who_has_one_attempt_left_is_told():
    play = Play("x")  # three attempts
    a = play.up()
    lasts = []
    for _ in range(3):
        play.until(play.now + 10.0)
        x = play.gives(a)
        lasts.append(x.last)
        play >> a(ItemFailed("x", BLIP, x.claim))
        play.seen.clear()
    assert lasts == [False, False, True]
