"""What is held while a place of the store refuses, and what ends it: transcripts of the disk's room."""

from unittest.mock import ANY

import pytest
from msgspec import Raw
from tests.core.playbook import Play, writes

from scraper_supervisor.core.config.settings import ResourceSettings, RestartSettings
from scraper_supervisor.core.events import (
    Due,
    HangUp,
    Persist,
    Persisted,
    PersistFailed,
    Sampled,
    Spawn,
    SpawnFailed,
    StoreFaulted,
    StoreTold,
)
from scraper_supervisor.core.ops.item_ops import AddItems, Conclude
from scraper_supervisor.core.ops.run_ops import Probe
from scraper_supervisor.core.ops.state_ops import LoadState, ProbeFolder, SaveState
from scraper_supervisor.core.snapshot import Daemon, snapshot
from scraper_supervisor.core.storage_health import PROBE_ROOM
from scraper_worker.protocol import (
    STORAGE_UNAVAILABLE,
    CheckpointLoad,
    CheckpointSave,
    DoneAnswer,
    Granted,
    ItemDone,
    ItemNext,
    ItemsOffer,
    Saved,
)

STATE = CheckpointSave("cursor/1", Raw(b'{"page":3}'))
DAEMON = Daemon(1, "1", "then", None, "then", None, 0.0, 0.0)


def supervisor(play):
    return snapshot(play.fleet, DAEMON)["supervisor"]


def told(play):
    """The storage's events so far."""
    return play.published("storage_degraded", "storage_recovered")


def refused_save(play, a):
    """The worker's state cannot be written; both places are tried at once."""
    play >> a(STATE) << writes(SaveState)
    play >> play.lost() << a.refused(STORAGE_UNAVAILABLE, {"errno": 28, "retry_after": 1.0})
    play >> Due() << Persist(Probe(ANY, PROBE_ROOM)) << Persist(ProbeFolder(ANY, a.name, ANY))


def alone(play, a):
    """Only the worker's folder refuses, and that is known."""
    refused_save(play, a)
    play >> play.durable()
    play.silence() >> play.lost()
    play.silence()


def test_a_folder_that_refuses_holds_its_own_worker_alone():
    play = Play("x", "y", count=2)
    a, b = play.up("g-0"), play.up("g-1")
    play.hold()
    refused_save(play, a)
    play >> b(ItemNext())
    play >> a(ItemNext())
    play.silence()  # nobody knows yet whether it is the whole disk
    play >> play.durable() << b.gets(Granted("x", ANY, None, ANY, 1))
    play >> play.lost()
    play.silence()
    assert supervisor(play)["state"] == "degraded"
    reason = supervisor(play)["reason"]
    assert reason == "the checkpoints of g-0: No space left on device: g-0 is handed no item"
    assert told(play) == ["storage_degraded"]


def test_the_folder_is_tried_each_second_with_as_much_as_it_refused():
    play = Play("x")
    a = play.up()
    play.hold()
    alone(play, a)
    play >> a(ItemNext())
    waiting = a.call
    for now in (1.0, 2.0, 3.0):
        play.at(now - 0.001) >> Due()
        play.silence().at(now) >> Due() << Persist(ProbeFolder(ANY, "g-0", PROBE_ROOM + len(bytes(STATE.state))))
        play.silence() >> (play.lost() if now < 3.0 else play.durable())
    play << a.gets(Granted("x", ANY, None, ANY, 1), waiting)
    assert (supervisor(play)["state"], supervisor(play)["reason"]) == ("running", None)
    play >> a(STATE) << writes(SaveState)
    play >> play.durable() << a.gets(Saved(1, ANY))
    assert told(play) == ["storage_degraded", "storage_recovered"]
    assert len({one.correlation_id for one in play.log if one.event.startswith("storage")}) == 1


def test_a_save_that_is_refused_again_meanwhile_holds_nobody_else():
    play = Play("x", count=2)
    a, b = play.up("g-0"), play.up("g-1")
    play.hold()
    alone(play, a)
    play >> a(STATE) << writes(SaveState)
    play >> play.lost() << a.refused(STORAGE_UNAVAILABLE)
    play >> b(ItemNext()) << b.gets(Granted("x", ANY, None, ANY, 1))
    assert told(play) == ["storage_degraded"]


def test_a_disk_that_refuses_everywhere_is_one_incident():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play.hold()
    refused_save(play, a)
    play >> a(ItemDone("x", x.claim)) << writes(Conclude)
    play >> play.lost()
    play >> play.lost()
    play.silence() >> play.lost() << a.refused(STORAGE_UNAVAILABLE)
    assert supervisor(play)["reason"] == "No space left on device: no item is handed out"
    play.at(1.0) >> Due() << writes(Probe) << writes(ProbeFolder)
    play >> play.durable()
    assert told(play) == ["storage_degraded"]
    play >> play.durable()
    assert told(play) == ["storage_degraded", "storage_recovered"]
    assert len({one.correlation_id for one in play.log if one.event.startswith("storage")}) == 1


def test_a_disk_that_fails_while_a_folder_refuses_is_told_under_the_same_id():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play.hold()
    alone(play, a)
    play >> a(ItemDone("x", x.claim)) << writes(Conclude)
    play >> play.lost() << a.refused(STORAGE_UNAVAILABLE)
    assert told(play) == ["storage_degraded", "storage_degraded"]
    play.at(1.0) >> Due() << writes(Probe) << writes(ProbeFolder)
    play >> play.durable()
    play >> play.durable()
    assert told(play) == ["storage_degraded", "storage_degraded", "storage_recovered"]
    assert len({one.correlation_id for one in play.log if one.event.startswith("storage")}) == 1


def test_a_fault_that_the_store_tells_unasked_holds_everybody_until_a_probe_is_well():
    play = Play("x")
    a = play.up()
    play.hold()
    play >> StoreTold(StoreFaulted(5, "ledger.db was removed while it was open"))
    assert told(play) == ["storage_degraded"]
    assert supervisor(play)["reason"] == "ledger.db was removed while it was open: no item is handed out"
    play >> a(ItemNext())
    play.at(0.5) >> StoreTold(StoreFaulted(5, "still")) >> Due()
    assert told(play) == ["storage_degraded"]
    play.at(1.0) >> Due() << Persist(Probe(ANY, PROBE_ROOM))
    play >> play.durable() << a.gets(Granted("x", ANY, None, ANY, 1))
    assert told(play) == ["storage_degraded", "storage_recovered"]


def test_the_ledger_is_tried_with_room_for_what_it_refused():
    """Else a disk with a little room would be well and ill again with each repeated call."""
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play.hold()
    big = Raw(b'"' + b"x" * 1_000_000 + b'"')
    play >> a(ItemDone("x", x.claim, result=big)) << writes(Conclude)
    play >> play.lost() << a.refused(STORAGE_UNAVAILABLE)
    play.at(1.0) >> Due() << Persist(Probe(ANY, PROBE_ROOM + 2 * 1_000_002))


def test_the_clocks_of_whom_a_folder_holds_stand_still_and_the_others_run():
    play = Play("x", "y", count=2, item_timeout=20.0)
    a, b = play.up("g-0"), play.up("g-1")
    x, y = play.gives(a), play.gives(b)
    play.hold().at(15.0)
    alone(play, a)
    assert play.fleet.next_deadline() == 16.0
    play.at(20.0) >> Due()
    assert [command.message.key for command in play.seen if hasattr(command, "message")] == [y.key]
    play.seen.clear()
    play >> play.durable()
    play >> b(ItemDone(y.key, y.claim)) << writes(Conclude)
    play >> play.durable() << b.gets(DoneAnswer(1, False))
    assert play.fleet.next_deadline() == 25.0, "five seconds of item_timeout were left"
    play >> a(ItemDone(x.key, x.claim)) << writes(Conclude)
    play >> play.durable() << a.gets(DoneAnswer(2, False))


def test_clocks_that_two_faults_held_one_after_the_other_stood_still_all_the_time():
    play = Play("x", item_timeout=20.0)
    a = play.up()
    play.gives(a)
    play.hold().at(15.0)
    alone(play, a)
    play.at(16.0) >> a(ItemsOffer(["y"])) << writes(AddItems)
    play >> play.lost() << a.refused(STORAGE_UNAVAILABLE)
    play >> Due() << writes(ProbeFolder)
    play.at(30.0) >> play.durable()  # the folder is well, the ledger is not
    play >> Due() << writes(Probe)
    play.at(40.0) >> play.durable()
    assert play.fleet.next_deadline() == 45.0


def test_a_start_that_came_after_one_of_two_faults_keeps_its_whole_time():
    play = Play("x", start_timeout=30.0)
    a = play.up()
    play.hold().at(10.0)
    alone(play, a)
    play.at(11.0) >> Due() << writes(ProbeFolder)
    play.at(20.0) >> a(ItemsOffer(["y"])) << writes(AddItems)
    probing, offered = play.held
    play.held = [offered]
    play >> play.lost() << a.refused(STORAGE_UNAVAILABLE)
    play.at(21.0) >> Due() << writes(Probe)
    play.dies(a).ignoring(HangUp)
    b = play.puppet(play.seen.pop())
    play.at(50.0) >> b.runs()
    play.at(60.0) >> Persisted(probing, None)  # the folder is well, the ledger is not
    play.at(61.0) >> play.durable()
    assert play.fleet.next_deadline() == 61.0 + 30.0


def test_clocks_that_began_after_a_fault_are_not_moved_by_it():
    play = Play("x", item_timeout=20.0, progress_timeout=25.0)
    a = play.up()
    play.at(50.0)
    play.gives(a)
    assert play.fleet.next_deadline() == 70.0
    worker = play.fleet.state.workers["g-0"]
    worker.current.away_since = 50.0
    play.fleet.watchdog.stood_still(worker, 10.0, 20.0)
    assert (play.fleet.next_deadline(), worker.current.away_since) == (65.0, 50.0)
    worker.current.away_since = None
    assert play.fleet.next_deadline() == 70.0


def test_a_hello_whose_checkpoint_cannot_be_read_is_waited_for():
    play = Play("x", start_timeout=30.0, heartbeat_timeout=15.0, restart_policy=RestartSettings(max_restarts=1))
    a = play.spawned()
    play.hold()
    play.at(10.0) >> a.hello() << writes(LoadState)
    play >> play.lost() << a.refused(STORAGE_UNAVAILABLE, {"errno": 28, "retry_after": 1.0})
    for now in range(11, 100):
        play.at(float(now)) >> Due() << writes(LoadState)
        play >> (play.lost() if now < 99 else play.durable())
        play.silence()
    assert play.fleet.next_deadline() == 99.0 + 30.0, "start_timeout begins anew"
    assert play.published("checkpoint_loaded", "worker_hung") == []
    assert told(play) == ["storage_degraded", "storage_recovered"]
    play >> a.hello() << writes(LoadState)
    play >> play.durable() << a.gets(ANY)
    assert play.state() == "running"


def test_a_worker_whose_hello_is_refused_after_a_break_is_not_taken_for_lost():
    play = Play("x", heartbeat_timeout=15.0)
    a = play.up()
    play.hold().leaves(a)
    play >> a.hello() << writes(LoadState)
    play >> play.lost() << a.refused(STORAGE_UNAVAILABLE)
    for now in range(1, 60):
        play.at(float(now)) >> Due() << writes(LoadState)
        play >> (play.lost() if now < 59 else play.durable())
        play.silence()
    assert play.fleet.next_deadline() == 59.0 + 15.0


def test_the_folder_of_a_worker_that_was_removed_is_tried_no_more():
    play = Play()
    a = play.up()
    play.hold()
    alone(play, a)
    del play.fleet.state.workers["g-0"]
    play.fleet.state.groups["g"].workers.clear()
    play.at(1.0) >> Due()
    assert told(play) == ["storage_degraded", "storage_recovered"]
    assert supervisor(play)["state"] == "running"


@pytest.mark.parametrize("number", [28, 30, 5, 122])
def test_a_start_for_which_the_disk_has_no_room_is_no_death(number):
    play = Play("x", restart_policy=RestartSettings(max_restarts=1)).ignoring(Spawn)
    for incarnation in range(1, 20):
        play >> SpawnFailed("g-0", incarnation, "no room", number)
        assert play.state() == "backoff"
        play.silence().deadline() >> Due() << Spawn("g-0", incarnation + 1, ANY)
    assert play.published("worker_backoff") == ["worker_backoff"]
    assert play.fleet.state.workers["g-0"].restarts == 0
    a = play.puppet(Spawn("g-0", 20, ANY))
    play >> a.runs()
    play >> a.hello() << a.gets(ANY)


def test_an_operation_that_made_no_sense_is_no_fault_of_the_disk():
    play = Play()
    a = play.up()
    play.hold()
    play >> a(ItemsOffer(["x"])) << writes(AddItems)
    play >> PersistFailed(play.held.pop(), 22, "there is no such run") << a.refused(STORAGE_UNAVAILABLE)
    assert told(play) == []
    assert play.fleet.next_deadline() != 1.0


def test_a_probe_that_makes_no_sense_to_the_disk_is_made_again():
    play = Play()
    a = play.up()
    play.hold()
    play >> a(ItemsOffer(["x"])) << writes(AddItems)
    play >> play.lost() << a.refused(STORAGE_UNAVAILABLE)
    for now in (1.0, 2.0):
        play.at(now) >> Due() << writes(Probe)
        play >> PersistFailed(play.held.pop(), 22, "Invalid argument")
    play.silence().at(3.0) >> Due() << writes(Probe)
    play >> play.durable()
    assert told(play) == ["storage_degraded", "storage_recovered"]


def test_an_old_generation_that_cannot_be_read_holds_nobody():
    play = Play("x")
    a = play.up()
    play.hold()
    play >> a(CheckpointLoad(generation=1)) << Persist(LoadState(ANY, "g-0", ANY, 1))
    play >> PersistFailed(play.held.pop(), 5, "Input/output error")
    play << a.refused(STORAGE_UNAVAILABLE, {"errno": 5, "retry_after": 1.0})
    play >> a(ItemNext()) << a.gets(Granted("x", ANY, None, ANY, 1))
    assert (told(play), supervisor(play)["state"]) == ([], "running")


def free(play, bytes_free):
    return Sampled((), 50.0, bytes_free)


def test_a_disk_that_fills_up_is_one_incident():
    play = Play("x", settings={"resources": ResourceSettings(disk_free=1000)})
    a = play.up()
    x = play.gives(a)
    play >> free(play, 999)
    play.hold() >> a(ItemDone("x", x.claim)) << writes(Conclude)
    play >> play.lost() << a.refused(STORAGE_UNAVAILABLE)
    play.at(1.0) >> Due() << writes(Probe)
    play >> play.durable()
    assert supervisor(play)["state"] == "degraded"
    assert told(play) == ["storage_degraded", "storage_degraded"], "it became worse"
    play >> free(play, 1099)
    assert told(play) == ["storage_degraded", "storage_degraded"]
    play >> free(play, 1100)
    assert told(play) == ["storage_degraded", "storage_degraded", "storage_recovered"]
    assert len({one.correlation_id for one in play.log if one.event.startswith("storage")}) == 1


def test_a_full_disk_is_not_told_once_more_for_being_low():
    play = Play("x", settings={"resources": ResourceSettings(disk_free=1000)})
    a = play.up()
    x = play.gives(a)
    play.hold() >> a(ItemDone("x", x.claim)) << writes(Conclude)
    play >> play.lost() << a.refused(STORAGE_UNAVAILABLE)
    play >> free(play, 0)
    play.at(1.0) >> Due() << writes(Probe)
    play >> play.durable()
    play >> free(play, 10**9)
    assert told(play) == ["storage_degraded", "storage_recovered"]
