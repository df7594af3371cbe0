"""A full disk as a server meets it. Seen from outside, with real workers."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time

import pytest
from rig import STATE, WORKERS, Rig, crash
from talking import FAILURE, refusal

pytestmark = pytest.mark.slow

_CLONE_NEWNS = 0x00020000


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
    free = os.statvfs(daemon.state)
    with ballast.open("ab") as file:  # a twentieth above, whatever was written meanwhile; a tenth is needed
        file.truncate(ballast.stat().st_size - (limit + limit // 20 - free.f_bavail * free.f_frsize))
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
