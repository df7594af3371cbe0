"""Faults of the disk as a server meets them: failing, slow, taken away. Seen from outside, with real workers."""

import contextlib
import os
import shutil
import signal
import subprocess
import time

import pytest
from faulty import SYNCS, WRITES, Faults, possible
from harness import PATIENCE, wait_for
from rig import STATE, WORKERS, Rig, crash

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def filters():
    why_not = possible()
    if why_not is not None:
        pytest.skip(why_not)


@pytest.fixture
def faults(daemons, filters):
    """A function that makes a rig and the faults that its daemon may meet."""
    made = []

    def make(groups=None, **settings):
        daemon = daemons({})
        made.append(Faults(daemon.folder))
        daemon.prefix = made[-1].prefix
        return Rig(daemon, groups, **settings), made[-1]

    yield make
    for one in made:
        one.close()


# ---- a failing one ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "number"),
    [(WRITES, 5), (WRITES, 28), (WRITES, 30), (SYNCS, 5), (SYNCS, 28)],
    ids=["EIO", "ENOSPC", "EROFS", "EIO at the sync", "ENOSPC at the sync"],
)
def test_a_ledger_that_cannot_be_written_is_waited_for(faults, calls, number, on_this_machine):
    rig, disk = faults()
    rig.start()
    pids = rig.daemon.pids()
    disk.fail("/ledger.db-wal", number, calls)
    rig.degraded("ledger")
    rig.refused()
    rig.unharmed(pids)
    disk.clear()
    rig.healed(timeout=on_this_machine(3.0))
    rig.works()
    rig.unharmed(pids)
    rig.finish()
    rig.one_incident()
    assert disk.struck > 2
    assert rig.daemon.stop() == 0


def test_after_a_failed_sync_and_a_kill_nothing_is_half_there(faults):
    """What was written and not synced may be found again, as a whole; what was acknowledged before must be."""
    rig, disk = faults()
    rig.start()
    for _ in range(3):
        disk.fail("/ledger.db-wal", 5)
        rig.degraded()
        rig.daemon.kill()
        rig.daemon.census.kill()
        disk.clear()
        rig.start()
        rig.audit.compare(everything=True)
    rig.finish()


def test_a_log_that_cannot_be_folded_back_loses_nothing(faults):
    """The ledger's own file cannot be synced: commits go on in its log, and are there after a kill."""
    rig, disk = faults()
    rig.start()
    disk.fail("/ledger.db", 5)
    rig.works()
    rig.daemon.kill()
    rig.daemon.census.kill()
    rig.daemon.start()  # it cannot make the ledger whole, and goes on when it can
    rig.degraded("disk I/O error")
    disk.clear()
    rig.healed()
    rig.works()
    rig.finish()


# ---- a slow one ------------------------------------------------------------------------------------------------------


def patient(command):
    """A group of puppets that are killed when they are silent for two seconds."""
    return {"command": command, "heartbeat_timeout": "2s", "heartbeat_interval": "200ms", "stop_timeout": "1s"}


def answered(line, number, beat=0.1):
    """Wait for an answer with heartbeats meanwhile."""
    line.sock.settimeout(beat)
    try:
        while True:
            line.tell("heartbeat", lag_ms=0, pages={})
            with contextlib.suppress(TimeoutError):
                return line.wait(number)
    finally:
        line.sock.settimeout(PATIENCE)


def test_a_ledger_that_takes_seconds_stops_nothing_else(faults, line_of, puppet_command, on_this_machine):
    rig, disk = faults({"p": patient(puppet_command)})
    daemon = rig.start().daemon
    line = line_of(daemon)
    line.call("items.offer", items=["a"])
    a = line.call("item.next")
    disk.slow("/ledger.db-wal", 3.0)
    pid = daemon.pids()["p-0"]
    posted = time.monotonic()
    waiting = line.post("item.done", key="a", claim=a["claim"])
    delays = []
    wait_for(lambda: disk.struck or disk.asked, "a sync")
    for _ in range(20):
        began = time.monotonic()
        assert daemon.status()["supervisor"]["state"] == "running", "a slow disk is no failing one"
        delays.append(time.monotonic() - began)
        line.tell("heartbeat", lag_ms=0, pages={})
    assert sorted(delays)[10] < on_this_machine(0.2), "something on the loop waits for the disk"
    assert answered(line, waiting)["seq"] == 1
    assert time.monotonic() - posted > 2.9, "it was acknowledged before it was durable"
    assert daemon.pids()["p-0"] == pid
    assert not daemon.events("worker_hung", worker="p-0")
    disk.clear()
    rig.works()


def test_a_checkpoint_that_takes_seconds_delays_no_item(faults, line_of, puppet_command):
    rig, disk = faults({"p": patient(puppet_command)})
    daemon = rig.start().daemon
    line = line_of(daemon)
    line.call("items.offer", items=["a", "b"])
    a, b = line.call("item.next"), line.call("item.next")
    disk.slow(".json.tmp", 3.0)
    saving = line.post("checkpoint.save", **STATE)
    line.call("item.done", key="a", claim=a["claim"])
    line.call("item.done", key="b", claim=b["claim"])
    assert not [one for one in line.kept if one.get("id") == saving], "the items waited for the state"
    assert answered(line, saving)["generation"] == 1
    disk.clear()
    rig.finish()


# ---- folders and files that are taken away ---------------------------------------------------------------------------


def test_a_checkpoint_folder_that_is_none_holds_its_own_worker_alone(daemons):
    rig = Rig(daemons({}))
    daemon = rig.start().daemon
    pids = daemon.pids()
    folder = daemon.state / "checkpoints" / f"{crash.GROUP}-0"
    daemon.wait(folder.exists, "it saved a state")
    folder.rename(folder.with_name("aside"))
    folder.write_bytes(b"")  # root, too, can write no file into a file
    rig.degraded(f"{crash.GROUP}-0")
    daemon.wait(lambda: "is handed no item" in daemon.status()["supervisor"]["reason"], "it is known whom that holds")
    rig.works()
    rig.works()
    held = daemon.worker(f"{crash.GROUP}-0")["items"]["done"]
    rig.works()
    assert daemon.worker(f"{crash.GROUP}-0")["items"]["done"] == held
    rig.unharmed(pids)

    os.kill(pids[f"{crash.GROUP}-0"], signal.SIGKILL)
    daemon.wait_worker(f"{crash.GROUP}-0", incarnation=2)
    rig.works()
    assert daemon.worker(f"{crash.GROUP}-0")["restarts"] == 1

    folder.unlink()
    folder.with_name("aside").rename(folder)
    rig.healed()
    daemon.wait(lambda: daemon.worker(f"{crash.GROUP}-0")["items"]["done"] > held, "it works again")
    assert daemon.worker(f"{crash.GROUP}-0")["restarts"] == 1
    assert not daemon.events("worker_hung", "worker_failed")
    rig.one_incident()
    rig.finish()


def test_a_checkpoint_folder_that_was_deleted_is_made_again(daemons):
    rig = Rig(daemons({}))
    daemon = rig.start().daemon
    folder = daemon.state / "checkpoints"
    daemon.wait(lambda: len(list(folder.glob("*/checkpoint-*"))) > 3 * WORKERS - 1, "states were saved")
    last = max(folder.glob("*/checkpoint-*"), key=lambda path: path.name)
    shutil.rmtree(folder, ignore_errors=True)
    again = folder / last.parent.name
    daemon.wait(lambda: any(path.name > last.name for path in again.glob("checkpoint-*")), "a later generation")
    rig.healed()
    rig.finish()
    assert not daemon.events("worker_hung", "worker_failed", "worker_exited", died=True)


def test_a_state_folder_without_permission_is_waited_for(daemons):
    rig = Rig(daemons({}))
    daemon = rig.daemon
    if os.geteuid() == 0:  # whom no permission stops, while it has these capabilities
        daemon.prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
        probe = [*daemon.prefix, "true"]
        if shutil.which("setpriv") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
            pytest.skip("root cannot be made to heed permissions here")
    rig.start()
    pids = daemon.pids()
    folder = daemon.state / "checkpoints"
    folder.chmod(0)
    rig.degraded("Permission denied")
    rig.refused()
    rig.unharmed(pids)
    folder.chmod(0o700)
    rig.healed()
    rig.works()
    rig.unharmed(pids)
    rig.finish()


@pytest.mark.parametrize(
    ("when", "gone"),
    [
        ("busy", ["ledger.db"]),
        ("busy", ["ledger.db-wal"]),
        ("idle", ["ledger.db", "ledger.db-wal", "ledger.db-shm"]),
        ("stopping", ["ledger.db", "ledger.db-wal", "ledger.db-shm"]),
    ],
)
def test_a_ledger_that_was_deleted_under_the_daemon_comes_back(daemons, gone, when):
    """SQLite would go on writing into a file that nobody finds again: all of it would be lost with the process."""
    rig = Rig(daemons({}))
    daemon = rig.start().daemon
    if when != "busy":
        daemon.control("pause", names=[crash.GROUP])
        daemon.wait(lambda: daemon.group(crash.GROUP)["items"]["in_flight"] == 0, "hands are empty")
        rig.audit.read()
    for name in gone:
        (daemon.state / name).unlink()
    if when == "stopping":
        assert daemon.stop() == 0
    else:
        assert "was removed while it was open" in daemon.wait_event("storage_degraded")["data"]["reason"]
        rig.healed()
        daemon.kill()
        daemon.census.kill()
    assert (daemon.state / "ledger.db").exists()
    rig.audit.read()
    daemon.start()
    daemon.control("resume", names=[crash.GROUP])
    rig.works()
    rig.audit.compare(everything=True)
    rig.finish()


def test_a_ledger_that_was_replaced_is_left_alone_and_the_one_in_use_is_kept(daemons):
    rig = Rig(daemons({}))
    daemon = rig.start().daemon
    ledger = daemon.state / "ledger.db"
    other = ledger.with_name("other")
    other.write_bytes(b"somebody else's")
    other.rename(ledger)
    rig.degraded("was replaced by another file", "ledger.db.rescued")
    rig.refused()
    assert daemon.stop() == 0
    assert ledger.read_bytes() == b"somebody else's"
    for leftover in daemon.state.glob("ledger.db-*"):
        leftover.unlink()
    ledger.with_name("ledger.db.rescued").rename(ledger)
    rig.start()
    rig.audit.compare(everything=True)
    rig.finish()
