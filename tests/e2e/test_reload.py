"""SIGHUP: one threshold, one worker more, another environment, a broken file."""

import copy
import signal
from pathlib import Path

import pytest
from harness import HERE

pytestmark = pytest.mark.slow


def base(**changes):
    group = {
        "entrypoint": "scrapers:quick",
        "directory": str(HERE),
        "count": 3,
        "on_complete": "wait",
        # More than is done while a test looks on: whoever waits for more to be done must find more to do.
        "env": {"E2E_ITEMS": "6000", "E2E_SECONDS": "0.05"},
        "resources": {"browser_memory": "900MiB"},
    }
    other = {"command": ["sleep", "1000"]}
    return {"workers": {"g": {**group, **changes}, "other": other}}


@pytest.fixture
def daemon(daemons):
    daemon = daemons(base()).start()
    daemon.wait(lambda: daemon.group("g")["items"]["done"] >= 3, "it is busy")
    daemon.wait(lambda: len(daemon.events("worker_ready", incarnation=1)) == 3, "all are up, and that is written")
    return daemon


def hup(daemon, event, config=None):
    """Send SIGHUP after writing `config`; the event that follows."""
    count = len(daemon.events(event))
    if config is not None:
        daemon.configure(config)
    daemon.send(signal.SIGHUP)
    daemon.wait(lambda: len(daemon.events(event)) > count, event)
    return daemon.events(event)[-1]


def changed(daemon, **changes):
    config = copy.deepcopy(daemon.config)
    config["workers"]["g"] |= changes
    return config


def test_a_changed_threshold_restarts_nothing(daemon):
    before, loaded_at = daemon.pids(), daemon.status()["supervisor"]["config"]["loaded_at"]
    event = hup(daemon, "config_reloaded", changed(daemon, resources={"browser_memory": "800MiB"}))
    assert daemon.pids() == before
    assert "browser_memory" in str(event["data"])
    done = daemon.group("g")["items"]["done"]
    daemon.wait(lambda: daemon.group("g")["items"]["done"] > done + 5, "it goes on")
    assert daemon.pids() == before
    assert daemon.status()["supervisor"]["config"]["loaded_at"] > loaded_at
    hup(daemon, "config_reloaded")  # nothing differs
    assert daemon.pids() == before
    assert not daemon.events("worker_exited")


def test_a_threshold_changed_by_reload_is_in_force(daemon):
    before = daemon.pids()
    hup(daemon, "config_reloaded", changed(daemon, resources={"worker_memory": "1MiB", "worker_memory_max": "2GiB"}))
    daemon.wait(lambda: len(daemon.events("threshold_breached")) >= 3, "the new limit is crossed")
    daemon.wait(lambda: daemon.pids()["g-0"] not in (None, before["g-0"]), "restarted at an item boundary")
    assert daemon.pids()["other-0"] == before["other-0"]
    assert not daemon.events("item_finished", outcome="retry")


def test_a_broken_file_changes_nothing_and_names_every_bad_key(daemon):
    before = daemon.pids()
    config = changed(daemon, count=-1, heartbeat_timeout="soon", cuont=4)
    config["abort"] = {"failure_limit": "half"}
    config["resorces"] = {}
    event = hup(daemon, "config_rejected", config)
    problems = {problem["path"]: problem["message"] for problem in event["data"]["problems"]}
    assert set(problems) == {
        "workers.g.count", "workers.g.heartbeat_timeout", "workers.g.cuont", "abort.failure_limit", "resorces",
    }  # fmt: skip
    assert "duration" in problems["workers.g.heartbeat_timeout"]
    assert "1" in problems["workers.g.count"]
    assert "count" in problems["workers.g.cuont"]
    assert "resources" in problems["resorces"]
    error = daemon.status()["supervisor"]["config"]["error"]
    assert all(path in error for path in problems)
    daemon.configure("[workers.g\n")
    daemon.send(signal.SIGHUP)
    daemon.wait(lambda: "TOML" in daemon.status()["supervisor"]["config"]["error"], "the syntax error is told")
    assert daemon.pids() == before
    done = daemon.group("g")["items"]["done"]
    daemon.wait(lambda: daemon.group("g")["items"]["done"] > done + 5, "it goes on with the old configuration")
    hup(daemon, "config_reloaded", base())
    assert daemon.status()["supervisor"]["config"]["error"] is None
    assert daemon.pids() == before


def test_the_logs_level_and_form_change_while_it_runs(daemon):
    log = daemon.folder / "log"

    def reload_to(**supervisor):
        size = log.stat().st_size
        hup(daemon, "config_reloaded", {**daemon.config, "supervisor": supervisor})
        return lambda: log.read_text()[size:]

    since = reload_to(log_level="debug")
    daemon.wait(lambda: '"level":"debug"' in since(), "what is below info is told")
    daemon.wait(lambda: '"event":"config_reloaded"' in since(), "the reload is told")
    since = reload_to(log_level="info", log_format="console")
    daemon.wait(lambda: "config_reloaded" in since(), "the reload itself is told in the new form")
    assert '"event":"config_reloaded"' not in since()
    reload_to(log_level="error", log_format="json")
    since = reload_to(log_level="info")
    daemon.wait(lambda: '"event":"config_reloaded"' in since(), "the reload to a lower level is told")
    told = [line for line in log.read_text().splitlines() if "config_reloaded" in line]
    assert len(told) == 3, "of four reloads all but the one to errors alone"


def test_folders_and_identity_are_refused(daemon):
    config = {**daemon.config, "supervisor": {"instance": "other", "lease": 90, "log_level": "debug"}}
    event = hup(daemon, "config_rejected", config)
    assert {problem["path"] for problem in event["data"]["problems"]} == {"supervisor.instance", "supervisor.lease"}


def test_state_dir_is_refused(daemon):
    config = {**daemon.config, "supervisor": {"state_dir": str(daemon.folder / "elsewhere")}}
    event = hup(daemon, "config_rejected", config)
    assert [problem["path"] for problem in event["data"]["problems"]] == ["supervisor.state_dir"]
    assert "needs a daemon restart" in event["data"]["problems"][0]["message"]


def test_count_raised_by_one_starts_exactly_one_process(daemon):
    before = daemon.pids()
    hup(daemon, "config_reloaded", changed(daemon, count=4))
    daemon.wait(lambda: daemon.pids().get("g-3"), "the fourth worker")
    after = daemon.pids()
    new_pid = after.pop("g-3")
    assert after == before
    assert new_pid not in before.values()
    daemon.wait_event("worker_ready", worker="g-3")
    hup(daemon, "config_reloaded", changed(daemon, count=3))
    daemon.wait(lambda: "g-3" not in daemon.pids(), "the highest index is drained and gone")
    assert daemon.pids() == before
    assert daemon.wait_event("worker_exited", worker="g-3")["data"]["code"] == 0


def test_groups_are_added_and_removed(daemon):
    before = daemon.pids()
    config = copy.deepcopy(daemon.config)
    config["workers"]["new"] = {"command": ["sleep", "1000"]}
    del config["workers"]["other"]
    hup(daemon, "config_reloaded", config)
    daemon.wait_worker("new-0", state="running")
    daemon.wait(lambda: "other-0" not in daemon.pids(), "the removed group drains")
    after = daemon.pids()
    assert {name: pid for name, pid in after.items() if name.startswith("g-")} == {
        name: pid for name, pid in before.items() if name.startswith("g-")
    }


@pytest.mark.parametrize("how", ["env", "entrypoint", "env_file"])
def test_what_workers_start_with_is_changed_by_a_rolling_restart(daemon, how):
    env_file = daemon.folder / "more.env"
    env_file.write_text("MORE=1\n")
    if how == "env_file":
        hup(daemon, "config_reloaded", changed(daemon, env_file=str(env_file)))
        wait_rolled(daemon, 2)
        env_file.write_text("MORE=2\n")
        change = {}
    elif how == "env":
        change = {"env": {**daemon.config["workers"]["g"]["env"], "MORE": "2"}}
    else:
        change = {"entrypoint": "scrapers:remember"}
    incarnation = max(worker["incarnation"] for worker in daemon.status()["workers"]) + 1
    wait_ready(daemon, incarnation - 1)
    before = daemon.pids()
    seen = len(daemon.events())
    hup(daemon, "config_reloaded", changed(daemon, **change))
    wait_rolled(daemon, incarnation)
    wait_ready(daemon, incarnation)
    after = daemon.pids()
    assert after["other-0"] == before["other-0"]
    assert not {after[f"g-{index}"] for index in range(3)} & set(before.values())
    names = ("worker_exited", "worker_ready")
    story = [(event["event"], event["worker"]) for event in daemon.events()[seen:] if event["event"] in names]
    assert [event for event, _ in story] == list(names) * 3, "one after the other"
    assert [story[index][1] == story[index + 1][1] for index in (0, 2, 4)] == [True] * 3
    assert not daemon.events("item_finished", outcome="retry"), "at item boundaries"
    if how != "entrypoint":
        environ = Path(f"/proc/{after['g-1']}/environ").read_bytes().split(b"\0")
        assert b"MORE=2" in environ


def wait_ready(daemon, incarnation):
    """Until the event log tells that all of g are ready as this incarnation; it follows the status."""

    def ready():
        return {event["worker"] for event in daemon.events("worker_ready", group="g", incarnation=incarnation)}

    daemon.wait(lambda: len(ready()) == 3, f"all of g are told to be ready as incarnation {incarnation}")


def wait_rolled(daemon, incarnation):
    def rolled():
        workers = [worker for worker in daemon.status()["workers"] if worker["group"] == "g"]
        return all((worker["state"], worker["incarnation"]) == ("running", incarnation) for worker in workers)

    daemon.wait(rolled, f"all of g run as incarnation {incarnation}")
    for index in range(3):
        daemon.wait_event("worker_ready", worker=f"g-{index}", incarnation=incarnation)
