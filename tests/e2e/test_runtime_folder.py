"""What is removed under the daemon: its sockets, its runtime folder, its event log."""

import os
import shutil
import signal

import pytest
from harness import wait_for


@pytest.fixture
def daemon(daemons, puppet_command):
    config = {
        "workers": {"p": {"command": puppet_command, "count": 2, "stop_timeout": "2s"}},
        "abort": {"enabled": False},
    }
    daemon = daemons(config).start()
    daemon.wait(lambda: all(daemon.pids().values()), "all run")
    return daemon


def remove_sockets(daemon):
    for path in daemon.runtime.glob("*.sock"):
        path.unlink()


def remove_folder(daemon):
    shutil.rmtree(daemon.runtime)


def rename_folder(daemon):
    daemon.runtime.rename(daemon.folder / "elsewhere")


def answers(daemon):
    try:
        return daemon.status()
    except OSError:
        return None


@pytest.mark.parametrize("remove", [remove_sockets, remove_folder, rename_folder])
def test_what_commands_and_workers_need_is_there_again_within_seconds(daemon, puppet_of, remove):
    """No command ever got an answer again, a death became a crash loop, and workers failed."""
    before = daemon.pids()
    told = puppet_of(daemon, "p-1")
    line, _ = told.hello()
    remove(daemon)
    os.kill(before["p-0"], signal.SIGKILL)
    wait_for(lambda: answers(daemon), "it answers again", timeout=20)
    daemon.wait_worker("p-0", state="running")
    assert daemon.pids()["p-1"] == before["p-1"]
    assert line.call("items.offer", items=["x"])["added"] == 1, "an open connection stays"
    told.hello()
    assert daemon.worker("p-0")["restarts"] == 1
    assert not daemon.events("worker_failed")
    daemon.wait_event("storage_recovered")
    degraded, recovered = daemon.events("storage_degraded", "storage_recovered")
    assert degraded["correlation_id"] == recovered["correlation_id"]
    assert "sock" in degraded["data"]["reason"]
    assert (daemon.runtime / "control.sock").stat().st_mode & 0o777 == 0o600
    assert (daemon.runtime / "worker.sock").stat().st_mode & 0o777 == 0o660
    told.close()
    assert daemon.stop() == 0


def test_the_folder_is_locked_again(daemon, daemons):
    remove_folder(daemon)
    wait_for(lambda: answers(daemon), "it answers again", timeout=20)
    other = daemons(daemon.config)
    other.runtime = daemon.runtime
    other.configure({"workers": daemon.config["workers"]})
    assert other.launch().exit_code() == 1
    assert str(daemon.pid) in other.log()


@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_an_event_log_that_is_taken_away_is_begun_anew_and_told(daemon, how):
    path = daemon.state / "events.jsonl"
    daemon.wait_event("worker_started", worker="p-0")
    path.unlink() if how == "removed" else path.rename(path.with_name("events.old"))
    os.kill(daemon.pids()["p-0"], signal.SIGKILL)
    daemon.wait_event("worker_exited", worker="p-0")
    daemon.wait(lambda: "was removed or renamed" in (daemon.folder / "log").read_text(), "the log tells of it")
