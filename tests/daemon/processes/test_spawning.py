from __future__ import annotations

from scraper_supervisor.daemon.processes.spawning import environment_for_workers


def test_workers_hear_nothing_of_the_manager() -> None:
    assert environment_for_workers({"NOTIFY_SOCKET": "/x", "WATCHDOG_PID": "1", "PATH": "/bin"}) == {"PATH": "/bin"}
