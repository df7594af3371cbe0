"""The abort policy, from outside: a site that answers 500 to everything, workers that die at once."""

import json
import signal
import subprocess
import time

import pytest
from harness import HERE

pytestmark = pytest.mark.slow


def failing(on_abort="exit", **abort):
    env = {"E2E_ITEMS": "200", "E2E_SECONDS": "0.02", "E2E_CONCURRENCY": "4", "E2E_SITE": "http://127.0.0.1:9"}
    return {
        "supervisor": {"on_abort": on_abort},
        "workers": {"g": {"entrypoint": "scrapers:failing", "directory": str(HERE), "env": env}},
        "retry": {"default": {"base_delay": 0.1, "max_delay": 0.2, "max_attempts": 100}},
        "abort": {"confirm_after": 1.5, **abort},
    }


def test_a_site_that_answers_500_to_everything_ends_with_69(daemons, on_this_machine):
    daemon = daemons(failing())
    (daemon.folder / "gate").touch()
    begin = time.monotonic()
    daemon.start("--once")
    daemon.wait_event("abort_triggered")
    confirmed = time.monotonic() - begin
    assert 1.5 <= confirmed < on_this_machine(1.5 + 8)
    assert daemon.status()["supervisor"]["state"] in ("aborting", "aborted")
    daemon.wait(lambda: daemon.group("g")["items"]["in_flight"] == 1, "the slow item is still in hand")
    assert daemon.process.poll() is None
    (daemon.folder / "gate").unlink()
    assert daemon.exit_code() == 69, daemon.log()
    results = daemon.results("g")
    assert [key.rsplit("/", 1)[1] for key in results] == ["3"]
    done = daemon.events("item_finished", outcome="done")[0]
    assert done["time"] >= daemon.events("abort_triggered")[0]["time"]
    newest = max((daemon.state / "checkpoints" / "g-0").glob("checkpoint-*"))
    document = json.loads(newest.read_bytes())
    assert document["state"] == {"begun": True}
    assert document["items"]["done"] == 1, "the state was written again with the progress since"
    told = subprocess.run(
        ["sh", "-c", 'head -c -78 "$1" | sha256sum', "-", newest], capture_output=True, text=True, check=True
    )
    assert told.stdout.split()[0] == document["sha256"]
    assert daemon.events("abort_executed")
    assert daemon.none_left()
    told = json.loads(daemon.command("abort", "status", "--json"))
    assert told["state"] == "aborted"
    assert any("items failed" in scope["reason"] for scope in told["scopes"])


def test_a_notify_command_is_told_of_an_abort(daemons):
    config = failing()
    daemon = daemons(config)
    notices = daemon.folder / "notices"
    daemon.configure({**config, "notify": {"command": ["sh", "-c", f"cat >> {notices}; echo >> {notices}"]}})
    daemon.start("--once")
    assert daemon.exit_code() == 69, daemon.log()
    told = [json.loads(line) for line in notices.read_text().splitlines()]
    assert "abort_executed" in [notice["event"] for notice in told]


def test_on_abort_hold_stays_up_until_an_operator_clears_it(daemons):
    daemon = daemons(failing(on_abort="hold")).start()
    daemon.wait(lambda: daemon.status()["supervisor"]["state"] == "aborted", "aborted")
    status = daemon.status()
    assert status["groups"][0]["state"] == "aborted"
    assert status["abort"]["state"] == "aborted"
    assert status["groups"][0]["items"]["parked"] > 0
    assert any(scope["state"] == "aborted" and scope["reason"] for scope in status["abort"]["scopes"])
    daemon.wait(lambda: not any(daemon.pids().values()), "its workers are gone")
    parked = json.loads(daemon.command("items", "list", "g", "--state", "parked", "--json"))["items"]
    assert len(parked) == daemon.group("g")["items"]["parked"]
    daemon.control("abort.clear")
    daemon.wait(lambda: daemon.status()["supervisor"]["state"] == "running", "running again")
    daemon.wait_worker("g-0", state="running")
    assert daemon.stop() == 0
    assert daemon.none_left()


def test_deaths_with_nothing_done_between_them_end_with_69(daemons):
    config = failing(consecutive_crashes=4)
    config["workers"]["g"]["entrypoint"] = "scrapers:crash"
    config["restart_policy"] = {"base_delay": 0, "max_delay": 0, "max_restarts": 0, "max_unstable": 0}
    daemon = daemons(config)
    daemon.launch()
    assert daemon.exit_code() == 69, daemon.log()
    assert len(daemon.events("worker_exited", signal=9)) == 4
    assert "4 deaths" in str(daemon.events("abort_triggered")[0]["data"])
    assert daemon.none_left()


def test_a_blip_shorter_than_confirm_after_aborts_nothing(daemons):
    config = failing(confirm_after=20)
    daemon = daemons(config).start()
    daemon.wait(lambda: daemon.events("hold_started") or daemon.events("abort_evaluated"), "a suspicion")
    assert daemon.stop(signal.SIGTERM) == 0
    assert not daemon.events("abort_triggered")


def test_a_worker_that_keeps_dying_is_given_up(daemons):
    config = failing(consecutive_crashes=100)
    config["workers"]["g"]["entrypoint"] = "scrapers:crash"
    config["restart_policy"] = {"base_delay": 0.05, "max_delay": 0.1, "max_restarts": 3, "within": "5m"}
    daemon = daemons(config)
    daemon.launch("--once")
    assert daemon.exit_code() == 1, daemon.log()
    assert len(daemon.events("worker_started")) == 4
    assert len(daemon.events("worker_failed")) == 1
