"""Handlers and sources that misbehave, in real workers under a real daemon: what it costs, and whom."""

from collections import Counter

import pytest
from harness import HERE

pytestmark = pytest.mark.slow


def zoo(daemons, function="scrape", *, items=40, **group):
    env = {"E2E_ITEMS": str(items), **{name: str(value) for name, value in group.pop("env", {}).items()}}
    return daemons(
        {
            "workers": {"g": {"entrypoint": f"zoo:{function}", "directory": str(HERE), "env": env, **group}},
            "retry": {"default": {"base_delay": 0, "max_delay": 0, "max_attempts": 3}},
            "restart_policy": {"base_delay": 0, "max_delay": 0, "max_restarts": 0, "max_unstable": 0},
            "abort": {"enabled": False},
        }
    )


def check_ends(daemon, items):
    """Every item is done or failed, each once."""
    states = Counter(row.state for row in daemon.items("g").values())
    assert set(states) <= {"done", "failed"}
    assert sum(states.values()) == items
    ends = Counter(one["data"]["key"] for one in daemon.events("item_finished") if one["data"]["outcome"] != "retry")
    assert set(ends.values()) == {1}
    assert len(ends) == items
    return states


def check_pid_stayed(daemon):
    assert len([line for line in daemon.trace() if line[0] == "worker"]) == 1, daemon.events("worker_exited")
    (exited,) = daemon.events("worker_exited")
    assert (exited["data"]["code"], exited["data"]["charged"]) == (0, None)


@pytest.mark.parametrize("concurrency", [1, 2, 3, 4])
def test_whatever_handlers_do_every_item_ends_once_and_the_worker_lives(daemons, concurrency):
    daemon = zoo(daemons, items=150, env={"E2E_SEED": f"tame {concurrency}", "E2E_CONCURRENCY": concurrency})
    daemon.start("--once")
    daemon.exit_code(90)
    states = check_ends(daemon, 150)
    assert states["done"] > 0
    assert states["failed"] > 0
    check_pid_stayed(daemon)


@pytest.mark.browser
@pytest.mark.parametrize("concurrency", [1, 3])
def test_whatever_handlers_do_with_pages_every_item_ends_once_and_the_worker_lives(daemons, concurrency):
    env = {"E2E_SEED": f"paged {concurrency}", "E2E_CONCURRENCY": concurrency, "E2E_KINDS": "tame paged"}
    daemon = zoo(daemons, items=60, env=env)
    daemon.start("--once")
    daemon.exit_code(170)
    states = check_ends(daemon, 60)
    assert states["done"] > 0
    check_pid_stayed(daemon)
    assert daemon.events("browser_restarted") == []


def test_handlers_that_hang_end_alone_and_the_worker_lives(daemons):
    env = {"E2E_SEED": "hanging", "E2E_CONCURRENCY": 4, "E2E_KINDS": "hanging tame"}
    daemon = zoo(daemons, items=40, env=env, item_timeout="700ms", progress_timeout="500ms")
    daemon.start("--once")
    daemon.exit_code(120)
    states = check_ends(daemon, 40)
    assert states["done"] > 0
    check_pid_stayed(daemon)
    signatures = {(one["data"]["failure"] or {}).get("signature") for one in daemon.events("item_finished")}
    assert "progress-timeout" in signatures


@pytest.mark.parametrize("concurrency", [1, 4])
def test_handlers_that_end_the_process_cost_themselves_alone(daemons, concurrency):
    env = {"E2E_SEED": f"deadly {concurrency}", "E2E_CONCURRENCY": concurrency, "E2E_KINDS": "deadly"}
    daemon = zoo(daemons, items=12, env=env)
    daemon.start("--once")
    daemon.exit_code(120)
    check_ends(daemon, 12)


def test_a_source_that_fails_is_a_failure_of_the_worker(daemons):
    daemon = zoo(daemons, "broken_source", restart="never")
    daemon.start("--once")
    assert daemon.exit_code() == 1
    assert Counter(row.state for row in daemon.items("g").values()) == {"done": 6}
    assert daemon.events("worker_exited")[-1]["data"]["code"] == 1
    assert daemon.events("worker_failed")
    assert daemon.events("worker_completed") == []


def test_what_the_function_raises_after_its_items_is_a_failure_of_the_worker(daemons):
    daemon = zoo(daemons, "broken_end", restart="never")
    daemon.start("--once")
    daemon.exit_code()
    assert Counter(row.state for row in daemon.items("g").values()) == {"done": 6}
    assert daemon.events("worker_failed")
    assert daemon.events("worker_completed") == []


def test_a_source_that_blocks_is_no_hang_and_its_keys_are_worked_on_as_they_come(daemons):
    daemon = zoo(daemons, "slow_source", heartbeat_interval=0.2, heartbeat_timeout="2s")
    daemon.start("--once")
    assert daemon.exit_code() == 0, daemon.log()
    check_ends(daemon, 4)
    check_pid_stayed(daemon)
    first, *_, last = [event["time"] for event in daemon.events("item_finished")]
    assert first < last
