"""The daemon, or everything, stands still for longer than heartbeat_timeout: no worker is to blame for that."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from harness import wait_for

FREEZER = Path("/sys/fs/cgroup/freezer")
TIMEOUT = 1.5
STILL = 2.5 * TIMEOUT
WORKERS = 4
SCRAPER = """
import asyncio, time
async def scrape(worker):
    await worker.process([f"k-{number}" for number in range(100000)], handle, browser=False, concurrency=2)
async def handle(item):
    await asyncio.sleep(0.01)
"""


@pytest.fixture
def fleet(daemons):
    """A daemon whose SDK workers work, and what keeps track of them."""
    group = {
        "entrypoint": "still:scrape",
        "count": WORKERS,
        "heartbeat_interval": "200ms",
        "heartbeat_timeout": TIMEOUT,
        "item_timeout": 1.0,
        "stop_timeout": "5s",
    }
    daemon = daemons({"workers": {"w": group}, "abort": {"enabled": False}})
    (daemon.folder / "still.py").write_text(SCRAPER)
    return daemon


def work(daemon):
    """Wait until all work; worker to PID."""

    def all_work():
        workers = daemon.status()["workers"]
        return all(one["items"]["done"] for one in workers) and {one["name"]: one["pid"] for one in workers}

    return daemon.wait(all_work, "all work")


def unharmed(daemon, pids):
    """They go on, and were not even suspected."""
    before = daemon.group("w")["items"]["done"]
    daemon.wait(lambda: daemon.group("w")["items"]["done"] > before + 50, "they go on")
    time.sleep(TIMEOUT)  # whoever was to be judged by the gap would be judged by now
    assert daemon.pids() == pids
    assert not daemon.events("worker_hung", "worker_exited"), daemon.events("worker_hung", "worker_exited")
    assert not [one for one in daemon.events("item_finished") if one["data"]["outcome"] != "done"]


def test_the_daemon_alone_is_stopped(fleet):
    daemon = fleet.start()
    pids = work(daemon)
    daemon.send(signal.SIGSTOP)
    time.sleep(STILL)
    daemon.send(signal.SIGCONT)
    unharmed(daemon, pids)
    daemon.wait(lambda: "did not run" in (daemon.folder / "log").read_text(), "the log tells of it")


def test_all_are_stopped_and_go_on_one_after_another(fleet):
    """As a suspended machine: the daemon runs again before its workers do."""
    daemon = fleet.start()
    pids = work(daemon)
    everything = [daemon.pid, *daemon.processes()]
    for pid in everything:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(STILL)
    for pid in everything:
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.02)
    unharmed(daemon, pids)


def test_the_cgroup_is_frozen(fleet):
    """As `docker pause` does it."""
    box = FREEZER / f"e2e-{os.getpid()}"
    try:
        box.mkdir()
        (box / "freezer.state").write_text("THAWED")
    except OSError as error:
        pytest.skip(f"no freezer cgroup can be made here: {error}")
    daemon = fleet
    daemon.prefix = ["sh", "-c", f'echo $$ > {box}/cgroup.procs && exec "$@"', "sh"]
    try:
        daemon.start()
        pids = work(daemon)
        (box / "freezer.state").write_text("FROZEN")
        wait_for(lambda: (box / "freezer.state").read_text().strip() == "FROZEN", "all is frozen")
        time.sleep(STILL)
        (box / "freezer.state").write_text("THAWED")
        unharmed(daemon, pids)
    finally:
        with contextlib.suppress(OSError):
            (box / "freezer.state").write_text("THAWED")
        daemon.close()
        wait_for(lambda: not (box / "cgroup.procs").read_text(), "the cgroup is empty")
        box.rmdir()


def test_a_worker_that_is_stopped_by_itself_is_a_hang(fleet):
    daemon = fleet.start()
    pids = work(daemon)
    os.kill(pids["w-0"], signal.SIGSTOP)
    daemon.wait_event("worker_hung", worker="w-0")
    assert {one["worker"] for one in daemon.events("worker_hung")} == {"w-0"}
