"""`status`: every key of the contract, with a value that others confirm."""

import datetime as dt
import importlib.metadata
import json
import os
import subprocess

import psutil
import pytest
from harness import HERE, SUPERVISOR, Refused

pytestmark = pytest.mark.slow

GROUP = {"name", "run", "state", "items", "rate_per_minute", "eta_seconds"}
ITEMS = {"pending", "in_flight", "waiting", "parked", "done", "failed", "total"}
WORKER = {
    "name", "group", "index", "state", "pid", "incarnation", "restarts", "started_at", "memory", "cpu_percent",
    "processes", "browsers", "idle_reason", "recycles", "items", "checkpoint", "last_failure",
}  # fmt: skip
SLO = {
    "availability", "recoveries", "recovery_p90_seconds", "recovery_max_seconds", "checkpoint_p99_seconds",
    "items_lost",
}  # fmt: skip
SCOPE = {
    "scope", "key", "group", "state", "since", "next_probe_at", "items", "failures", "rate", "limit", "reason",
}  # fmt: skip


@pytest.fixture(scope="module")
def daemon(shared_daemons):
    env = {
        "E2E_ITEMS": "10",
        "E2E_TRANSIENT": "item-0002",
        "E2E_PERMANENT": "item-0004",
    }
    group = {"entrypoint": "scrapers:remember", "directory": str(HERE), "env": env, "retry": "slow"}
    plain = {"command": ["sh", "-c", "sleep 1000 & sleep 1001 & wait"], "count": 2}
    config = {
        "workers": {"g": group, "plain": plain},
        "retry": {"slow": {"base_delay": 60, "jitter": "none"}},
        "resources": {"sample_interval": 0.2},
    }
    daemon = shared_daemons(config)
    (daemon.folder / "gate-item-0008").touch()
    daemon.start()
    daemon.wait(lambda: daemon.group("g")["items"]["done"] == 6, "six are done")
    daemon.wait(lambda: daemon.group("g")["items"]["in_flight"] == 1, "one waits at its gate")
    daemon.wait(lambda: all(one["processes"] and one["cpu_percent"] is not None for one in
                            daemon.status()["workers"]), "all are measured")  # fmt: skip
    return daemon


@pytest.fixture
def status(daemon):
    return daemon.status()


def is_recent(text):
    assert text.endswith("Z")
    age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(text)
    return dt.timedelta(0) <= age < dt.timedelta(minutes=2)


def test_the_supervisor_tells_of_itself_and_the_host(daemon, status):
    supervisor = status["supervisor"]
    assert {"pid", "version", "state", "started_at", "config", "host"} <= set(supervisor)
    assert supervisor["pid"] == daemon.pid
    assert supervisor["version"] == importlib.metadata.version("scraper-supervisor")
    assert supervisor["state"] == "running"
    assert is_recent(supervisor["started_at"])
    assert supervisor["config"]["path"] == str(daemon.config_path)
    assert is_recent(supervisor["config"]["loaded_at"])
    assert supervisor["config"]["error"] is None
    stat = os.statvfs(daemon.state)
    assert supervisor["host"]["disk_free"] == pytest.approx(stat.f_bavail * stat.f_frsize, rel=0.05)
    assert 0 < supervisor["host"]["memory_percent"] <= 100


def test_a_group_counts_what_the_ledger_holds(daemon, status):
    group = next(group for group in status["groups"] if group["name"] == "g")
    assert set(group) >= GROUP
    assert (group["run"], group["state"]) == (1, "running")
    assert set(group["items"]) == ITEMS
    counts = group["items"]
    assert counts == {
        "pending": 1, "in_flight": 1, "waiting": 1, "parked": 0, "done": 6, "failed": 1, "total": 10,
    }  # fmt: skip
    states = [row.state for row in daemon.items("g").values()]
    assert states.count("done") == counts["done"]
    assert states.count("failed") == counts["failed"]
    assert states.count("waiting") == counts["waiting"]
    assert len(states) == counts["total"]
    assert len(daemon.results("g")) == 6
    assert group["rate_per_minute"] > 0
    assert group["eta_seconds"] == pytest.approx(3 / group["rate_per_minute"] * 60)


def test_a_worker_is_what_the_system_says_it_is(daemon, status):
    worker = next(worker for worker in status["workers"] if worker["name"] == "g-0")
    assert set(worker) >= WORKER
    process = psutil.Process(worker["pid"])
    assert "scraper_worker" in process.cmdline()
    assert worker["memory"]["rss"] == pytest.approx(process.memory_info().rss, rel=0.2)
    # Far from its limit, PSS is measured every five seconds only, and the first time when it had hardly begun.
    own = process.memory_full_info().pss
    daemon.wait(lambda: daemon.worker("g-0")["memory"]["pss"] == pytest.approx(own, rel=0.3), f"a PSS near {own}")
    assert worker["memory"]["pss"] <= worker["memory"]["rss"]
    assert worker["processes"] == 1
    assert worker["browsers"] == []
    assert (worker["group"], worker["index"], worker["state"]) == ("g", 0, "running")
    assert (worker["incarnation"], worker["restarts"], worker["recycles"]) == (1, 0, 0)
    started = dt.datetime.fromisoformat(worker["started_at"]).timestamp()
    assert started == pytest.approx(process.create_time(), abs=1.5)
    assert worker["items"] == {"done": 6, "failed": 1, "in_flight": 1}
    assert worker["last_failure"]["message"] == "never"


def test_its_checkpoint_is_the_newest_file(daemon, status):
    worker = next(worker for worker in status["workers"] if worker["name"] == "g-0")
    newest = max((daemon.state / "checkpoints" / "g-0").glob("checkpoint-*"))
    document = json.loads(newest.read_bytes())
    assert worker["checkpoint"] == {"generation": document["generation"], "saved_at": document["saved_at"]}


def test_a_plain_command_is_measured_with_its_whole_tree(daemon, status):
    for worker in (worker for worker in status["workers"] if worker["group"] == "plain"):
        tree = [psutil.Process(worker["pid"]), *psutil.Process(worker["pid"]).children(recursive=True)]
        assert worker["processes"] == len(tree) == 3
        assert worker["memory"]["rss"] == pytest.approx(sum(one.memory_info().rss for one in tree), rel=0.2)
        assert worker["state"] == "running"
        assert worker["checkpoint"] is None
        assert worker["last_failure"] is None
    plain = next(group for group in status["groups"] if group["name"] == "plain")
    assert plain["items"]["total"] == 0
    assert (plain["rate_per_minute"], plain["eta_seconds"]) == (None, None)


def test_the_abort_window_and_the_service_levels_are_told(status):
    abort, slo = status["abort"], status["slo"]
    assert set(abort) == {"state", "window_seconds", "scopes"}
    assert (abort["state"], abort["window_seconds"]) == ("normal", 300)
    scopes = {(scope["scope"], scope["key"]): scope for scope in abort["scopes"]}
    assert all(set(scope) == SCOPE for scope in scopes.values())
    own = scopes["group", "g"]
    assert (own["state"], own["items"], own["failures"]) == ("normal", 8, 2)
    assert own["rate"] == pytest.approx(2 / 8)
    assert set(slo) == SLO
    assert 0 < slo["availability"] <= 1
    assert (slo["recoveries"], slo["recovery_p90_seconds"], slo["recovery_max_seconds"]) == (0, None, None)
    assert 0 < slo["checkpoint_p99_seconds"] < 5
    assert slo["items_lost"] == 0


def test_control_refuses_what_it_does_not_know(daemon):
    for method, params in (("nonsense", {}), ("pause", {"names": ["nobody"]}), ("pause", {"nmaes": []})):
        with pytest.raises(Refused):
            daemon.control(method, **params)


def test_the_command_line_prints_the_same_document_and_nothing_else(daemon, status):
    def shape(value):
        if isinstance(value, dict):
            return {key: shape(inner) for key, inner in value.items()}
        return [shape(inner) for inner in value] if isinstance(value, list) else None

    command = [*SUPERVISOR, "status", "--json", "--config", str(daemon.config_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stderr == ""
    assert shape(json.loads(told.stdout)) == shape(status)
    stranger = [*SUPERVISOR, "status", "--json", "--config", str(daemon.folder / "none.toml")]
    refused = subprocess.run(stranger, capture_output=True, text=True, check=False)
    assert refused.returncode in (2, 78)
    assert "none.toml" in refused.stderr
    assert "Traceback" not in refused.stderr
