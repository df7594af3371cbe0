from __future__ import annotations

import sys

from scraper_supervisor.core.config.settings import GroupSettings
from scraper_supervisor.core.events import Spawn
from scraper_supervisor.daemon.processes.spawning import environment_for_workers, spec_of
from scraper_worker.protocol import ENV_NAME, ENV_SOCKET, ENV_TOKEN


def test_workers_hear_nothing_of_the_manager() -> None:
    assert environment_for_workers({"NOTIFY_SOCKET": "/x", "WATCHDOG_PID": "1", "PATH": "/bin"}) == {"PATH": "/bin"}


def test_what_a_worker_is_started_with() -> None:
    group = GroupSettings(name="g", directory="/d", entrypoint="a:b", env={"X": "2"}, file_env={"X": "1", "Y": "1"})
    ours = {"PATH": "/bin", ENV_TOKEN: "ours"}
    spec = spec_of(Spawn("g-0", 3, group), "/run/worker.sock", ours)
    assert (spec.worker, spec.incarnation, spec.cwd) == ("g-0", 3, "/d")
    assert spec.argv == (sys.executable, "-P", "-m", "scraper_worker", "a:b")
    assert spec.env == {
        "PATH": "/bin",
        "X": "2",
        "Y": "1",
        "PYTHONUNBUFFERED": "1",
        ENV_SOCKET: "/run/worker.sock",
        ENV_NAME: "g-0",
    }
    plain = spec_of(Spawn("p-0", 1, GroupSettings(name="p", directory="/", command=("x", "y"))), "/s", {})
    assert plain.argv == ("x", "y")
    assert "PYTHONUNBUFFERED" not in plain.env
