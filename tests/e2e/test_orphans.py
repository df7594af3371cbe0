"""What a worker leaves behind without a mark: no environment, a session of its own."""

import os
import signal
import time
from pathlib import Path

from harness import alive, wait_for

LEAVES = 'env -i setsid sh -c "echo \\$\\$ >> left; exec sleep 4242" & sleep 1.5; exit 1'


def left(daemon):
    path = daemon.folder / "left"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def config(**group):
    policy = {"max_restarts": 0, "base_delay": "100ms", "max_delay": "100ms", "max_unstable": 0}
    workers = {"p": {"command": ["sh", "-c", LEAVES], "restart_policy": policy, "stop_timeout": "2s", **group}}
    return {"workers": workers, "abort": {"enabled": False}, "resources": {"sample_interval": "200ms"}}


def test_each_death_takes_along_what_was_started_without_a_mark(daemons):
    """Each left a sleep behind, after the stop too."""
    daemon = daemons(config(count=2))
    daemon.start()
    daemon.wait(lambda: len(left(daemon)) >= 6, "some died")
    first = left(daemon)[:2]
    wait_for(lambda: not any(map(alive, first)), "what the first ones left is ended")
    assert daemon.stop() == 0
    assert not [pid for pid in left(daemon) if alive(pid)]


def test_what_a_worker_that_lives_on_started_is_left_alone(daemons):
    lives = 'env -i setsid sh -c "echo \\$\\$ >> left; exec sleep 4242" & exec sleep 1000'
    daemon = daemons(config())
    mine = {"command": ["sh", "-c", lives], "stop_timeout": "2s"}
    daemon.configure({**daemon.config, "workers": {"a": mine, "b": {"command": ["sleep", "1000"]}}})
    daemon.start()
    daemon.wait(lambda: left(daemon), "it started one")
    time.sleep(0.5)  # of samples
    os.kill(daemon.wait(lambda: daemon.pids()["b-0"], "b runs"), signal.SIGKILL)
    daemon.wait_worker("b-0", state="running", restarts=1)
    assert all(map(alive, left(daemon)))
    assert daemon.stop() == 0
    assert not any(map(alive, left(daemon)))
    assert not Path(f"/proc/{left(daemon)[0]}").exists() or not alive(left(daemon)[0])


def test_what_ran_before_the_daemon_is_none_of_its_own(daemons):
    """An entrypoint script starts a helper and executes the daemon, whose child it is then."""
    daemon = daemons({"workers": {"p": {"command": ["sleep", "1000"], "stop_timeout": "2s"}}})
    script = f'sh -c "sleep 4243 & echo \\$! > {daemon.folder}/left; wait" & exec "$@"'
    daemon.prefix = ["sh", "-c", script, "sh"]
    daemon.start()
    daemon.wait(lambda: left(daemon), "the helper runs")
    pid = daemon.wait(lambda: daemon.pids()["p-0"], "p runs")
    os.kill(pid, signal.SIGKILL)
    daemon.wait_worker("p-0", state="running", restarts=1)
    assert daemon.stop() == 0
    assert all(map(alive, left(daemon)))
