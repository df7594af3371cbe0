"""Faults of the disk as a server meets them: full, failing, slow, taken away. Seen from outside, with real workers."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty import SYNCS, WRITES, Faults, possible
from harness import PATIENCE, Refused, wait_for

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import crash

pytestmark = pytest.mark.slow

WORKERS = 3
FAILURE = {"kind": "transient", "category": "external", "signature": "busy", "message": "busy"}
STATE = {"schema": "s/1", "state": {"page": 1}}
_CLONE_NEWNS = 0x00020000


class Rig:
    """A daemon whose workers note what was acknowledged; more groups may stand beside them."""

    def __init__(self, daemon, groups=None, **settings):
        self.daemon = daemon
        self.audit = crash.Audit(daemon.folder)
        env = {"CRASH_FOLDER": str(daemon.folder), "CRASH_PAUSE": "0.005"}
        group = {
            "command": [sys.executable, "-S", "-E", str(crash.WORKER)],
            "count": WORKERS,
            "env": env,
            # Short enough to strike during a fault, if its clocks did not stand still.
            "item_timeout": "2s",
            "progress_timeout": "2s",
            "stop_timeout": "2s",
            "restart_policy": {"max_restarts": 0},
        }
        daemon.configure(
            {
                "workers": {crash.GROUP: group, **(groups or {})},
                "retry": {"default": {"base_delay": 0.02, "max_delay": 0.05, "jitter": "none"}},
                "resources": {"disk_free": 0, "sample_interval": "100ms"},
                "checkpoint": {"retention": crash.RETENTION},
                "abort": {"enabled": False},
                **settings,
            }
        )

    def start(self):
        self.daemon.start()
        self.works()
        return self

    def works(self):
        """Wait until more is acknowledged."""
        self.audit.read()
        before = self.audit.counts["done"] + 20
        self.more("done", before)

    def more(self, what, number):
        self.daemon.wait(lambda: self.audit.read() and self.audit.counts[what] >= number, f"{number} {what}")

    def refused(self):
        """Wait until the workers were refused for longer than their clocks allow."""
        self.audit.read()
        self.more("refused", self.audit.counts["refused"] + 4 * WORKERS)

    def degraded(self, *words):
        """Wait until `status` says so, and with these words why."""

        def said():
            supervisor = self.daemon.status()["supervisor"]
            return supervisor["state"] == "degraded" and all(word in supervisor["reason"] for word in words)

        self.daemon.wait(said, f"degraded, with {words}: {self.daemon.status()['supervisor']}")

    def healed(self, timeout=PATIENCE):
        self.daemon.wait(lambda: self.daemon.status()["supervisor"]["state"] == "running", "it runs", timeout)
        assert self.daemon.status()["supervisor"]["reason"] is None

    def finish(self):
        """Everything that was offered is ended, once, and nothing acknowledged is missing."""
        (self.daemon.folder / "enough").touch()
        try:
            self.daemon.wait(lambda: self.daemon.group(crash.GROUP)["state"] == "completed", "all is done")
        except AssertionError as error:
            error.add_note(f"{self.daemon.group(crash.GROUP)} {self.daemon.status()['workers']} {self.audit.counts}")
            raise
        self.audit.read()
        self.audit.compare(everything=True)

    def unharmed(self, pids):
        """No worker was restarted, or even suspected."""
        assert self.daemon.pids() == pids
        assert not self.daemon.events("worker_hung", "worker_exited", "worker_failed")

    def one_incident(self, degraded=1):
        self.daemon.wait_event("storage_recovered")  # the event log is written behind the status
        told = self.daemon.events("storage_degraded", "storage_recovered")
        assert [one["event"] for one in told] == ["storage_degraded"] * degraded + ["storage_recovered"], told
        assert len({one["correlation_id"] for one in told}) == 1
        return told


@pytest.fixture(scope="module")
def mount_space():
    """The tests' process gets a name space of its own, with which all mounts end."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
        pytest.skip("no mount name space of its own can be made here")
    private = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, text=True, check=False)
    if private.returncode != 0:
        pytest.skip(f"mounts cannot be kept private here: {private.stderr.strip()}")


@pytest.fixture
def small(daemons, mount_space):
    """A function that makes a rig whose state is on a small file system."""
    made = []

    def make(groups=None, mebibytes=32, **settings):
        daemon = daemons({})
        daemon.state.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=700", "tmpfs", str(daemon.state)]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        if mounted.returncode != 0:
            pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
        made.append(daemon.state)
        return Rig(daemon, groups, **settings)

    yield make
    for path in made:
        subprocess.run(["umount", "--lazy", str(path)], check=True)  # whoever has files open there is ended next


@pytest.fixture
def line_of(puppet_of):
    """A function that gives a connection of the puppet p-0 that said hello."""
    puppets = []

    def meet(daemon):
        puppets.append(puppet_of(daemon, "p-0"))
        return puppets[-1].hello()[0]

    yield meet
    for puppet in puppets:
        puppet.close()


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


def fill(folder, leave=0):
    """A file that leaves so many bytes free, or none."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        found = os.statvfs(folder)
        while leave == 0 or found.f_bavail * found.f_frsize > leave:
            file.write(bytes(16 * 1024 if leave == 0 else min(1 << 20, found.f_bavail * found.f_frsize - leave)))
            found = os.statvfs(folder)
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while leave == 0:
            file.write(bytes(4096))
    return ballast


def refusal(line, method, **params):
    with pytest.raises(Refused) as caught:
        line.call(method, **params)
    return caught.value


# ---- a full disk -----------------------------------------------------------------------------------------------------


def test_a_full_disk_holds_the_workers_and_heals(small, line_of, puppet_command, on_this_machine):
    rig = small({"p": {"command": puppet_command, "stop_timeout": "1s"}}).start()
    daemon = rig.daemon
    line = line_of(daemon)
    line.call("items.offer", items=["a", "b", "c"])
    a, b, c = (line.call("item.next") for _ in range(3))
    pids = daemon.pids()

    ballast = fill(daemon.state)
    rig.degraded("full")
    for method, params in {
        "items.offer": {"items": ["d"]},
        "item.done": {"key": "a", "claim": a["claim"]},
        "item.failed": {"key": "b", "claim": b["claim"], "failure": FAILURE},
        "checkpoint.save": STATE,
    }.items():
        refused = refusal(line, method, **params)
        assert (refused.code, refused.data["errno"]) == (-32001, 28), method
        assert 0 < refused.data["retry_after"] <= 5
    assert line.call("item.release", key="c", claim=c["claim"], reason="not now") == {}
    waiting = line.post("item.next")
    rig.refused()
    assert refusal(line, "checkpoint.save", **STATE).code == -32001
    assert not [one for one in line.kept if one.get("id") == waiting], "an item was handed out"
    rig.unharmed(pids)
    assert daemon.status()["supervisor"]["state"] == "degraded"

    ballast.unlink()
    began = time.monotonic()
    rig.healed()
    assert time.monotonic() - began < on_this_machine(2.5)
    assert line.wait(waiting)["key"] == "c"
    assert line.call("item.done", key="a", claim=a["claim"]) == {"seq": 1, "duplicate": False}
    assert line.call("item.failed", key="b", claim=b["claim"], failure=FAILURE)["action"] == "retry"
    assert line.call("checkpoint.save", **STATE)["generation"] > 1
    rig.works()
    rig.finish()
    assert daemon.pids()["p-0"] == pids["p-0"]
    assert not daemon.events("worker_hung", "worker_failed", "worker_backoff")
    degraded, recovered = rig.one_incident()
    assert degraded["data"]["errno"] == 28
    assert recovered["data"]["seconds"] > 2
    assert daemon.stop() == 0


@pytest.mark.parametrize("before", ["nothing", "work"])
def test_a_daemon_that_starts_on_a_full_disk_waits_for_room(small, before):
    rig = small()
    daemon = rig.daemon
    if before == "work":
        rig.start()
        daemon.kill()
        daemon.census.kill()
    ballast = fill(daemon.state)
    daemon.start()
    rig.degraded()
    assert daemon.status()["supervisor"]["state"] == "degraded"
    ballast.unlink()
    rig.healed()
    rig.works()
    rig.finish()
    assert not daemon.events("worker_failed")
    rig.one_incident()
    assert daemon.stop() == 0


@pytest.mark.parametrize("signals", [1, 2])
def test_a_drain_on_a_full_disk_ends(small, signals):
    rig = small().start()
    daemon = rig.daemon
    ballast = fill(daemon.state)
    rig.degraded()
    daemon.send(signal.SIGTERM)
    if signals == 2:
        daemon.wait(lambda: daemon.status()["supervisor"]["state"] == "draining", "it drains")
        again = lambda: daemon.send(signal.SIGTERM) or "stopping at once" in daemon.log()  # noqa: E731
        daemon.wait(again, "it stops at once")  # what comes within half a second is the same signal
    assert daemon.exit_code() == 0
    assert daemon.none_left()
    ballast.unlink()
    rig.start().finish()
    assert daemon.stop() == 0


def test_a_reload_on_a_full_disk_takes_effect(small):
    rig = small().start()
    daemon = rig.daemon
    pids = daemon.pids()
    ballast = fill(daemon.state)
    rig.degraded()
    config = daemon.config
    config["workers"][crash.GROUP]["count"] = WORKERS + 1
    daemon.configure(config)
    daemon.send(signal.SIGHUP)
    daemon.wait(lambda: len(daemon.status()["workers"]) == WORKERS + 1, "the new worker is there")
    rig.refused()
    assert daemon.pids().items() >= pids.items()
    ballast.unlink()
    rig.healed()
    daemon.wait_worker(f"{crash.GROUP}-{WORKERS}", state="running")
    rig.finish()
    rig.one_incident()
    assert daemon.stop() == 0


def test_below_disk_free_only_item_next_is_held(small, line_of, puppet_command):
    limit = 16 * 1024 * 1024
    resources = {"disk_free": limit, "sample_interval": "100ms"}
    rig = small({"p": {"command": puppet_command, "stop_timeout": "1s"}}, mebibytes=48, resources=resources).start()
    daemon = rig.daemon
    line = line_of(daemon)
    line.call("items.offer", items=["a", "b", "c"])
    a, b = line.call("item.next"), line.call("item.next")
    ballast = fill(daemon.state, leave=limit * 3 // 4)
    rig.degraded("disk_free")
    waiting = line.post("item.next")
    assert line.call("item.done", key="a", claim=a["claim"])["seq"] == 1
    assert line.call("item.failed", key="b", claim=b["claim"], failure=FAILURE)["action"] == "retry"
    assert line.call("items.offer", items=["d"])["added"] == 1
    assert line.call("checkpoint.save", **STATE)["generation"] >= 1
    daemon.wait(lambda: daemon.group(crash.GROUP)["items"]["in_flight"] == 0, "hands are empty")
    with ballast.open("ab") as file:
        file.truncate(ballast.stat().st_size - limit // 4 - limit // 20)  # a twentieth above; a tenth is needed
    found = lambda: daemon.status()["supervisor"]["host"]["disk_free"]  # noqa: E731
    daemon.wait(lambda: found() > limit, "it was measured")
    assert found() < limit * 1.1
    assert daemon.status()["supervisor"]["state"] == "degraded"
    assert not [one for one in line.kept if one.get("id") == waiting]
    ballast.unlink()
    rig.healed()
    assert line.wait(waiting)["key"] in "bcd"
    rig.works()
    rig.finish()
    rig.one_incident()
    assert not rig.audit.counts["refused"]


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
