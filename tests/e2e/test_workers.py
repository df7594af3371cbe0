"""Workers that die, poison, hang on, know no protocol; supervisors that die and are told to stop. No browsers here."""

import os
import signal
import stat
import time
from collections import Counter

import psutil
import pytest
from harness import HERE, alive, wait_for

pytestmark = pytest.mark.slow

QUICK_RESTARTS = {"base_delay": 0, "max_delay": 0, "max_restarts": 0, "max_unstable": 0}


def scraping(function="quick", *, items=20, env=None, **group):
    """A configuration of one group, `g`."""
    env = {"E2E_ITEMS": str(items), **(env or {})}
    return {
        "workers": {"g": {"entrypoint": f"scrapers:{function}", "directory": str(HERE), "env": env, **group}},
        "retry": {"default": {"base_delay": 0.05, "max_delay": 0.1, "max_attempts": 3}},
        "restart_policy": QUICK_RESTARTS,
    }


def keys(count):
    return {f"item-{number:04}" for number in range(count)}


def outcomes(daemon):
    """(key, outcome) to how many item_finished events say so."""
    return Counter((event["data"]["key"], event["data"]["outcome"]) for event in daemon.events("item_finished"))


def begun(daemon):
    return [line for line in daemon.trace() if line[0] == "begin"]


# ---- workers that die


def test_kill_9_of_workers_in_the_middle_every_item_is_done_exactly_once(daemons):
    daemon = daemons(scraping(items=60, count=2, env={"E2E_SECONDS": "0.02", "E2E_CONCURRENCY": "2"}))
    daemon.start("--once")
    for number in range(4):
        name = f"g-{number % 2}"
        done = daemon.group("g")["items"]["done"]
        daemon.wait(lambda goal=done + 8: daemon.group("g")["items"]["done"] >= goal, "more items are done")
        pid = daemon.worker(name)["pid"]
        os.kill(pid, signal.SIGKILL)
        daemon.wait_event("worker_exited", worker=name, signal=9)
        daemon.wait(lambda name=name, pid=pid: daemon.worker(name)["pid"] not in (None, pid), f"{name} is replaced")
    assert daemon.exit_code() == 0, daemon.log()
    assert set(daemon.results("g")) == keys(60)
    assert {pair: count for pair, count in outcomes(daemon).items() if pair[1] == "done"} == {
        (key, "done"): 1 for key in keys(60)
    }
    # What was acknowledged was not begun again: a key is begun once more only where a worker died with it.
    ends = Counter(line[1] for line in daemon.trace() if line[0] == "end")
    assert sum(ends.values()) - 60 <= 4 * 2
    assert daemon.none_left()


def test_an_item_that_kills_its_worker_every_time_ends_as_failed(daemons):
    daemon = daemons(scraping(env={"E2E_POISON": "item-0003"}))
    daemon.launch("--once")
    assert daemon.exit_code() == 0, daemon.log()
    items = daemon.items("g")
    assert set(daemon.results("g")) == keys(20) - {"item-0003"}
    assert (items["item-0003"].state, items["item-0003"].attempts) == ("failed", 3)
    assert b"worker-died" in bytes(items["item-0003"].last_failure)
    assert {line[2] for line in begun(daemon) if line[1] == "item-0003"} == {"1", "2", "3"}


@pytest.mark.parametrize("count", [1, 2])
def test_the_neighbours_of_a_poisoned_item_pay_nothing(daemons, count):
    env = {"E2E_POISON": "item-0003 item-0011", "E2E_CONCURRENCY": "4", "E2E_SECONDS": "0.02"}
    daemon = daemons(scraping(items=30, env=env, count=count))
    daemon.launch("--once")
    assert daemon.exit_code() == 0, daemon.log()
    results, items = daemon.results("g"), daemon.items("g")
    poisoned = {"item-0003", "item-0011"}
    assert set(results) == keys(30) - poisoned
    assert {key: (items[key].state, items[key].attempts) for key in poisoned} == dict.fromkeys(poisoned, ("failed", 3))
    assert {row.attempts for row in results.values()} == {1}
    # Each death that was charged had the item alone in the worker's hands.
    assert sum(count for (_, outcome), count in outcomes(daemon).items() if outcome in ("retry", "failed")) == 6


def test_a_command_without_the_sdk_is_supervised(daemons):
    group = {"command": ["sleep", "1000"], "restart": "always", "stop_timeout": "1h"}
    daemon = daemons({"workers": {"plain": group}}).start()
    worker = daemon.wait_worker("plain-0", state="running")
    assert psutil.Process(worker["pid"]).cmdline() == ["sleep", "1000"]
    daemon.wait(lambda: daemon.worker("plain-0")["memory"]["rss"], "it is measured")
    os.kill(worker["pid"], signal.SIGKILL)
    daemon.wait(lambda: daemon.worker("plain-0")["pid"] not in (None, worker["pid"]), "it is restarted")
    again = daemon.wait_worker("plain-0", state="running", restarts=1, incarnation=2)
    daemon.control("stop", names=["plain"])  # not introduced, it gets SIGTERM at once and not at stop_timeout
    assert not alive(again["pid"])
    assert daemon.worker("plain-0")["state"] == "stopped"
    daemon.control("start", names=["plain"])
    daemon.wait_worker("plain-0", state="running")
    assert daemon.stop() == 0
    assert daemon.none_left()


# ---- supervisors that die


def test_kill_9_of_the_supervisor_nothing_acknowledged_is_lost_or_repeated(daemons):
    daemon = daemons(scraping(items=80, count=2, env={"E2E_SECONDS": "0.02", "E2E_CONCURRENCY": "3"}))
    left_behind = set()
    known = {}
    for goal in (15, 40):
        daemon.start("--once")
        daemon.wait(lambda goal=goal: daemon.group("g")["items"]["done"] >= goal, "items are done")
        left_behind |= set(daemon.pids().values())
        daemon.kill()
        before = daemon.results("g")
        assert len(before) >= goal
        assert all(before[key] == row for key, row in known.items()), "an acknowledged result changed"
        known = before
        (daemon.folder / "must-be-gone").write_text(" ".join(map(str, left_behind)))
        (daemon.folder / "trace").rename(daemon.folder / f"trace-{goal}")
    daemon.launch("--once")
    assert daemon.exit_code() == 0, daemon.log()
    after = daemon.results("g")
    assert set(after) == keys(80)
    assert all(after[key] == row for key, row in known.items())
    assert not set(known) & {line[1] for line in begun(daemon)}, "what was done was begun again"
    assert {row.attempts for row in after.values()} == {1}, "the supervisor's death was charged to items"
    assert not [line for line in daemon.trace() if line[0] == "undead"]
    assert daemon.none_left()


def test_what_a_dead_supervisor_left_is_ended_even_if_it_does_nothing(daemons):
    stubborn = ["sh", "-c", "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000 & wait' & wait"]
    daemon = daemons({"workers": {"plain": {"command": stubborn, "stop_timeout": "200ms"}}}).start()
    daemon.wait(lambda: len(daemon.processes()) >= 3, "it has a family")
    family = daemon.processes()
    daemon.kill()
    assert all(alive(pid) for pid in family)
    daemon.start()
    daemon.wait_worker("plain-0", state="running")
    assert not any(alive(pid) for pid in family)
    daemon.control("stop")
    assert daemon.exit_code() == 0
    assert daemon.none_left(), "what ignores SIGTERM is killed at stop_timeout"


# ---- told to stop


def test_sigterm_while_busy_running_items_finish(daemons):
    daemon = daemons(scraping(count=2, env={"E2E_CONCURRENCY": "3"}))
    (daemon.folder / "gate").touch()
    daemon.start()
    daemon.wait(lambda: daemon.group("g")["items"]["in_flight"] == 6, "all hands are full")
    daemon.send(signal.SIGTERM)
    daemon.send(signal.SIGTERM)  # repeated at once, as systemd or a shell may: it is the same one
    daemon.wait(lambda: daemon.status()["supervisor"]["state"] == "draining", "it drains")
    assert daemon.group("g")["items"]["in_flight"] == 6
    (daemon.folder / "gate").unlink()
    assert daemon.exit_code() == 0
    assert len(daemon.results("g")) == 6
    assert len(begun(daemon)) == 6, "items were begun during the drain"
    assert daemon.none_left()
    daemon.launch("--once")
    assert daemon.exit_code() == 0
    assert set(daemon.results("g")) == keys(20)
    assert {row.attempts for row in daemon.results("g").values()} == {1}


def test_a_second_sigterm_stops_at_once_and_loses_nothing_acknowledged(daemons):
    daemon = daemons(scraping(items=12, env={"E2E_CONCURRENCY": "3"}, stop_timeout="1h"))
    for number in (4, 5, 6):
        (daemon.folder / f"gate-item-{number:04}").touch()
    daemon.start()
    daemon.wait(
        lambda: daemon.group("g")["items"] | {"done": 4, "in_flight": 3} == daemon.group("g")["items"], "4 done"
    )
    daemon.send(signal.SIGTERM)
    sent = time.monotonic()
    daemon.wait(lambda: daemon.status()["supervisor"]["state"] == "draining", "it drains")
    wait_for(lambda: time.monotonic() > sent + 0.6, "a signal of its own")
    before = daemon.results("g")
    daemon.send(signal.SIGINT)
    assert daemon.exit_code() == 0
    assert daemon.results("g") == before
    assert set(before) == keys(4)
    assert daemon.none_left()
    for number in (4, 5, 6):
        (daemon.folder / f"gate-item-{number:04}").unlink()
    daemon.launch("--once")
    assert daemon.exit_code() == 0
    assert set(daemon.results("g")) == keys(12)
    assert {row.attempts for row in daemon.results("g").values()} == {1}, "our own stop was charged to items"


def test_a_worker_that_ignores_the_drain_is_ended_after_stop_timeout(daemons, on_this_machine):
    daemon = daemons(scraping(stop_timeout="500ms"))
    (daemon.folder / "gate").touch()
    daemon.start()
    daemon.wait(lambda: daemon.group("g")["items"]["in_flight"] == 1, "an item is in hand")
    begin = time.monotonic()
    assert daemon.stop() == 0
    assert 0.5 < time.monotonic() - begin < on_this_machine(8)
    assert daemon.none_left()
    assert daemon.results("g") == {}


# ---- its folders, its memory


def test_a_second_daemon_on_the_same_folders_is_refused_naming_the_first(daemons):
    config = {"workers": {"plain": {"command": ["sleep", "1000"]}}}
    first = daemons(config).start()
    second, third = daemons(config), daemons(config)
    second.configure({**config, "supervisor": {"state_dir": str(first.state)}})
    third.configure({**config, "supervisor": {"runtime_dir": str(first.runtime)}})
    for other in (second, third):
        other.launch()
        assert other.exit_code() not in (0, None)
        assert str(first.pid) in other.log()
        assert "Traceback" not in other.log()
    assert first.wait_worker("plain-0", state="running")
    assert first.stop() == 0


def test_folders_files_and_sockets_are_private(daemons):
    daemon = daemons(scraping("remember", items=3))
    before = os.umask(0o022)
    try:
        daemon.start()
    finally:
        os.umask(before)
    daemon.wait(lambda: daemon.group("g")["items"]["done"] == 3, "done")
    modes = {}
    for top in (daemon.state, daemon.runtime):
        for folder, names, files in os.walk(top):
            for name in (".", *names, *files):
                path = os.path.normpath(os.path.join(folder, name))
                if "/tmp/" not in path.removeprefix(str(daemon.folder)):
                    modes[path] = os.lstat(path).st_mode
    sockets = {os.path.basename(path): oct(mode & 0o777) for path, mode in modes.items() if stat.S_ISSOCK(mode)}
    assert sockets == {"worker.sock": "0o660", "control.sock": "0o600"}
    assert {oct(mode & 0o777) for mode in modes.values() if stat.S_ISDIR(mode)} == {"0o700"}
    odd = {p: oct(m) for p, m in modes.items() if not stat.S_ISDIR(m) and not stat.S_ISSOCK(m) and m & 0o777 != 0o600}
    assert odd == {}
    assert any("checkpoint-" in path for path in modes)


def test_the_daemon_does_not_grow_over_five_thousand_items(daemons):
    env = {"E2E_CONCURRENCY": "20", "E2E_SILENT": "1"}
    daemon = daemons(scraping(items=6500, env=env)).start()
    process = psutil.Process(daemon.pid)
    daemon.wait(lambda: daemon.group("g")["items"]["done"] >= 1500, "warm")
    before = process.memory_info().rss
    daemon.wait(lambda: daemon.group("g")["items"]["done"] >= 6500, "all are done", timeout=180)
    grown = process.memory_info().rss - before
    assert grown < 16 * 2**20, f"{grown / 2**20:.1f} MiB for 5,000 items"
    assert daemon.stop() == 0


def test_the_harness_finds_what_a_daemon_left(daemons):
    daemon = daemons({"workers": {"plain": {"command": ["sh", "-c", "setsid sleep 1000 & wait"]}}}).start()
    daemon.wait(lambda: len(daemon.processes()) == 2, "the worker and its child")
    found = daemon.processes()
    daemon.close()
    assert not any(alive(pid) for pid in (*found, daemon.pid))
