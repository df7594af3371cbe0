"""Items and workers that hang, in real processes: who is ended, how hard, when, and what it costs whom.

Most items that wait, wait for a gate, which opens when the hanging one was dealt with: no test rests on a pace.
"""

import sys
import time

import pytest
from harness import HERE, Refused

pytestmark = pytest.mark.slow


def hanging(daemons, function="scrape", *, hangs="", items=8, concurrency=4, browser=False, **group):
    env = {"E2E_HANGS": hangs, "E2E_ITEMS": str(items), "E2E_CONCURRENCY": str(concurrency)}
    env |= {"E2E_BROWSER": "1"} if browser else {}
    return daemons(
        {
            "workers": {"g": {"entrypoint": f"hanging:{function}", "directory": str(HERE), "env": env, **group}},
            "retry": {"default": {"base_delay": 0, "max_delay": 0, "max_attempts": 3}},
            "restart_policy": {"base_delay": 0, "max_delay": 0, "max_restarts": 0, "max_unstable": 0},
            "abort": {"enabled": False},
        }
    )


def attempts(daemon, key):
    """(outcome, signature) of each attempt that was recorded."""
    return [
        (one["data"]["outcome"], (one["data"]["failure"] or {}).get("signature"))
        for one in daemon.events("item_finished")
        if one["data"]["key"] == key
    ]


def charged(daemon):
    """Key to attempts of all items; an attempt that succeeded is one."""
    return {key: row.attempts for key, row in daemon.items("g").items()}


@pytest.mark.browser
def test_a_page_that_hangs_among_four_slots_is_ended_alone(daemons):
    daemon = hanging(daemons, hangs="item-0001=in_goto", browser=True, progress_timeout="60s")
    daemon.start("--once")
    daemon.wait(lambda: daemon.group("g")["items"]["done"] == 7, "the others go on beside it")
    (doing,) = daemon.worker("g-0")["doing"]
    assert (doing["key"], doing["attempt"]) == ("item-0001", 1)
    daemon.config["workers"]["g"]["progress_timeout"] = "5s"
    daemon.configure(daemon.config)
    daemon.control("reload")
    assert daemon.exit_code() == 0, daemon.log()
    assert attempts(daemon, "item-0001") == [("retry", "progress-timeout"), ("done", None)]
    assert charged(daemon) == {f"item-{number:04}": 2 if number == 1 else 1 for number in range(8)}
    assert len(daemon.trace()) == 1 + 8 + 1, "one process, and nobody but the stuck one began twice"
    assert daemon.events("cleanup_initiated", "browser_restarted", "worker_hung") == []


@pytest.mark.browser
def test_who_ignores_the_word_loses_its_browser_and_then_its_worker_and_its_neighbours_pay_nothing(daemons):
    daemon = hanging(daemons, hangs="item-0000=deaf_to_cancelling", items=3, concurrency=3, browser=True)
    (daemon.folder / "gate").touch()
    daemon.start("--once")
    daemon.wait(lambda: len([line for line in daemon.trace() if line[0] == "begin"]) == 3, "all are at work")
    pid = daemon.worker("g-0")["pid"]
    began = time.monotonic()
    daemon.control("items.cancel", names=["g"], keys=["item-0000"])
    cleanup = daemon.wait_event("cleanup_initiated")
    assert time.monotonic() - began > 9.0
    assert "item-0000" in cleanup["data"]["reason"]
    daemon.wait_event("browser_restarted", cause="hang", how="killed")
    hung = daemon.wait_event("worker_hung")
    assert time.monotonic() - began > 19.0
    assert "item-0000" in hung["data"]["reason"]
    exited = daemon.wait_event("worker_exited", signal=9)
    assert exited["data"]["charged"] == "item-0000"
    (daemon.folder / "gate").unlink()
    assert daemon.exit_code() == 0, daemon.log()
    assert attempts(daemon, "item-0000") == [("failed", "cancelled")]
    assert charged(daemon) == {"item-0000": 1, "item-0001": 1, "item-0002": 1}
    assert {(key, row.state) for key, row in daemon.items("g").items() if key != "item-0000"} == {
        ("item-0001", "done"),
        ("item-0002", "done"),
    }
    began = [line[1] for line in daemon.trace() if line[0] == "begin"]
    assert began.count("item-0001") == 3, "with the first browser, the second, and the second worker"
    assert pid not in [int(line[2]) for line in daemon.trace() if line[0] == "worker"][1:]


def test_who_ends_when_told_costs_nobody_else_anything(daemons):
    daemon = hanging(daemons, hangs="item-0000=done_when_cancelled", items=4, concurrency=2, item_timeout="1s")
    daemon.start("--once")
    assert daemon.exit_code() == 0, daemon.log()
    assert attempts(daemon, "item-0000") == [("retry", "item-timeout"), ("done", None)]
    assert daemon.events("worker_hung") == []
    assert len([line for line in daemon.trace() if line[0] == "worker"]) == 1


@pytest.mark.parametrize("how", ["in_a_call", "in_c_code"])
def test_where_a_loop_is_blocked_is_told_in_the_event_and_in_the_items_failure(daemons, how):
    daemon = hanging(
        daemons, hangs=f"item-0000={how}", items=2, concurrency=1, heartbeat_interval="200ms", heartbeat_timeout="2s"
    )
    daemon.start("--once")
    assert daemon.exit_code() == 0, daemon.log()
    (hung,) = daemon.events("worker_hung")
    blocked = hung["data"]["blocked"]
    assert blocked[-1].endswith(f" in {how}")
    assert "hanging.py" in blocked[-1]
    assert attempts(daemon, "item-0000") == [("retry", "heartbeat-timeout"), ("done", None)]
    failure = daemon.events("item_finished", key="item-0000", outcome="retry")[0]["data"]["failure"]
    assert failure["traceback"].endswith(blocked[-1])
    ids = {one["correlation_id"] for one in daemon.events("worker_hung", "worker_exited")[:2]}
    assert len(ids) == 1, "hang and exit are one incident"


def test_a_worker_without_the_sdk_that_hangs_is_killed_by_sigkill_alone(daemons, puppet_command, puppet_of):
    daemon = daemons(
        {"workers": {"g": {"command": puppet_command, "heartbeat_interval": "200ms", "heartbeat_timeout": "1s"}}}
    )
    daemon.start()
    line, _ = puppet_of(daemon, "g-0").hello()
    with line:
        line.tell("heartbeat", lag_ms=0)
        hung = daemon.wait_event("worker_hung")
        assert hung["data"]["blocked"] is None
        exited = daemon.wait_event("worker_exited")
        assert exited["data"]["signal"] == 9


def test_a_worker_that_asks_for_nothing_is_restarted_at_no_cost(daemons):
    daemon = hanging(daemons, "asks_for_nothing", progress_timeout="2s", on_complete="wait")
    daemon.start()
    daemon.wait_worker("g-0", state="running")
    daemon.control("items.add", names=["g"], keys=["a", "b"])
    hung = daemon.wait_event("worker_hung")
    assert "asked for no item" in hung["data"]["reason"]
    daemon.wait(lambda: daemon.group("g")["items"]["done"] == 2, "both are done")
    assert charged(daemon) == {"a": 1, "b": 1}
    assert daemon.wait_event("worker_exited")["data"]["charged"] is None


def test_status_of_a_worker_shows_all_in_its_hands_and_the_plain_one_five(daemons):
    daemon = hanging(daemons, concurrency=7, items=7)
    (daemon.folder / "gate").touch()
    daemon.start("--once")
    daemon.wait(lambda: daemon.worker("g-0")["items"]["in_flight"] == 7, "all are in hand")
    assert len(daemon.worker("g-0")["doing"]) == 5
    shown = daemon.control("status", names=["g-0"])["workers"][0]["doing"]
    assert sorted(one["key"] for one in shown) == [f"item-{number:04}" for number in range(7)]
    assert [one["seconds"] for one in shown] == sorted((one["seconds"] for one in shown), reverse=True)
    with pytest.raises(Refused):
        daemon.control("nonsense", names=["g-0"])
    (daemon.folder / "gate").unlink()
    assert daemon.exit_code() == 0


# ---- a set-up that is wrong

SAYS_SO = [sys.executable, "-S", "-E", "-c", "import sys; sys.stderr.write('no module scrapper\\n\\n'); sys.exit(78)"]


def test_a_daemon_whose_every_worker_is_set_up_wrong_exits_with_78(daemons):
    groups = {"g": {"command": SAYS_SO, "count": 2}, "h": {"command": SAYS_SO, "restart": "always"}}
    daemon = daemons({"workers": groups})
    daemon.launch()
    assert daemon.exit_code() == 78, daemon.log()
    failed = daemon.events("worker_failed")
    assert sorted(one["worker"] for one in failed) == ["g-0", "g-1", "h-0"]
    assert {one["data"]["reason"] for one in failed} == {"no module scrapper"}
    assert "no module scrapper" in daemon.log()
    assert len(daemon.events("worker_started")) <= 3, "nobody is tried again"


def test_one_worker_that_is_able_keeps_the_daemon_up(daemons):
    able = {"entrypoint": "scrapers:quick", "directory": str(HERE), "on_complete": "wait"}
    daemon = daemons({"workers": {"g": {"command": SAYS_SO}, "h": able}})
    daemon.start()
    daemon.wait_event("worker_failed", worker="g-0")
    daemon.wait(lambda: daemon.group("h")["items"]["done"] == 20, "the other works")
    assert daemon.worker("g-0")["last_failure"]["message"] == "no module scrapper"
    assert daemon.stop() == 0
