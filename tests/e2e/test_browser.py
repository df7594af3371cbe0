"""Real Chromium: killed, leaking, frozen, left behind. The site's own access log is compared with the ledger."""

import json
import os
import shutil
import signal
import time
from collections import Counter

import pytest
from harness import HERE, alive

from scraper_supervisor.console.demo.site import DemoSite, Knobs

pytestmark = [pytest.mark.slow, pytest.mark.browser]

MIB = 2**20


@pytest.fixture
def site():
    with DemoSite(Knobs(matches=500)) as site:
        yield site


@pytest.fixture
def browsing(daemons, site):
    """A function that makes a daemon whose group `g` browses the site."""

    def make(items, *, concurrency=1, resources=None, env=(), **group):
        env = {"E2E_ITEMS": str(items), "E2E_SITE": site.url, "E2E_CONCURRENCY": str(concurrency), **dict(env)}
        workers = {"g": {"entrypoint": "scrapers:browse", "directory": str(HERE), "env": env, **group}}
        config = {
            "workers": workers,
            "retry": {"default": {"base_delay": 0.1, "max_delay": 0.2}},
            "restart_policy": {"base_delay": 0, "max_delay": 0, "max_restarts": 0, "max_unstable": 0},
            "resources": {"sample_interval": 0.2, "host_memory_percent": "off", **(resources or {})},
        }
        return daemons(config)

    return make


@pytest.fixture(params=["chromium", "chromium-headless-shell"])
def kind(request):
    """Each kind of headless browser that is here, as the environment of a group."""
    if shutil.which(request.param) is None:
        pytest.skip(f"no {request.param} on PATH")
    return {"SCRAPER_WORKER_CHROMIUM": request.param}


def number(key):
    return int(key.rsplit("/", 1)[1])


def check_truth(daemon, site, items):
    """Every match is done, once, with the score that the site tells; the site served every result."""
    results = {number(key): json.loads(bytes(row.result)) for key, row in daemon.results("g").items()}
    assert set(results) == set(range(1, items + 1))
    assert {one: result["score"] for one, result in results.items()} == {one: site.match(one).score for one in results}
    served = Counter(access.path for access in site.accesses() if access.path.startswith("/match/"))
    assert set(served) == {f"/match/{one}" for one in results}
    done = Counter(event["data"]["key"] for event in daemon.events("item_finished", outcome="done"))
    assert set(done.values()) == {1}
    return served


def browser_of(daemon, name="g-0"):
    """The worker's browser, once there is one."""

    def there():
        worker = daemon.worker(name)
        return worker["browsers"][0] if worker and worker["browsers"] else None

    return daemon.wait(there, f"{name} has a browser")


def test_kill_9_of_workers_with_browsers_each_result_exactly_once(browsing, site):
    site.knobs = Knobs(matches=500, latency=(0.05, 0.15))
    daemon = browsing(30, concurrency=2, count=2).start("--once")
    for name, goal in (("g-0", 5), ("g-1", 12)):
        daemon.wait(lambda goal=goal: daemon.group("g")["items"]["done"] >= goal, "items are done")
        chromium = browser_of(daemon, name)["pid"]
        pid = daemon.worker(name)["pid"]
        os.kill(pid, signal.SIGKILL)
        daemon.wait(lambda chromium=chromium: not alive(chromium), "its browser is ended too")
        daemon.wait(lambda name=name, pid=pid: daemon.worker(name)["pid"] not in (None, pid), "it is replaced")
    assert daemon.exit_code(120) == 0, daemon.log()
    served = check_truth(daemon, site, 30)
    repeated = {path: count for path, count in served.items() if count > 1}
    begun = Counter(line[1] for line in daemon.trace() if line[0] == "begin")
    assert len(repeated) <= 4, "only what was in a dead worker's hands was fetched again"
    assert {path.rsplit("/", 1)[1] for path in repeated} <= {key.rsplit("/", 1)[1] for key in begun if begun[key] > 1}
    assert daemon.none_left()


def test_kill_9_of_the_browser_it_is_replaced_and_the_item_loses_no_attempt(browsing, site, on_this_machine):
    daemon = browsing(6, concurrency=2)
    (daemon.folder / "gate").touch()
    daemon.start("--once")
    browser, pid = browser_of(daemon), daemon.pids()["g-0"]
    daemon.wait(lambda: len(site.accesses()) >= 2, "both items are on their pages")
    os.kill(browser["pid"], signal.SIGKILL)
    killed = time.monotonic()
    daemon.wait(lambda: browser_of(daemon)["pid"] != browser["pid"], "a new browser")
    assert time.monotonic() - killed < on_this_machine(5)
    assert daemon.pids()["g-0"] == pid
    (daemon.folder / "gate").unlink()
    daemon.wait_event("worker_completed")
    assert daemon.exit_code() == 0, daemon.log()
    check_truth(daemon, site, 6)
    assert {row.attempts for row in daemon.results("g").values()} == {1}
    lost = daemon.events("item_finished", outcome="retry")
    assert {event["data"]["failure"]["kind"] for event in lost} == {"infrastructure"}
    assert len(lost) == 2
    assert [event["data"]["cause"] for event in daemon.events("browser_restarted")] == ["crash"]
    assert not daemon.events("worker_exited", signal=9)
    assert daemon.none_left()


def test_kill_9_of_the_driver_it_is_replaced_and_the_item_loses_no_attempt(browsing, site, on_this_machine):
    daemon = browsing(4)
    (daemon.folder / "gate").touch()
    daemon.start("--once")
    browser, pid = browser_of(daemon), daemon.pids()["g-0"]
    daemon.wait(lambda: site.accesses(), "an item is on its page")
    driver = next(one for one in daemon.processes().values() if "run-driver" in one.cmdline())
    files = [file for file in daemon.runtime.glob("tmp/*/*") if file.is_dir()]
    assert files
    driver.kill()
    killed = time.monotonic()
    daemon.wait(lambda: not any(file.exists() for file in files), f"what it left is removed: {files}")
    assert time.monotonic() - killed < on_this_machine(2)
    daemon.wait(lambda: browser_of(daemon)["pid"] != browser["pid"], "a new browser")
    assert daemon.pids()["g-0"] == pid
    (daemon.folder / "gate").unlink()
    assert daemon.exit_code() == 0, daemon.log()
    check_truth(daemon, site, 4)
    assert {row.attempts for row in daemon.results("g").values()} == {1}
    assert daemon.none_left()


def test_a_wrong_option_is_the_worker_s_set_up_which_is_not_started_again_and_says_so(browsing):
    daemon = browsing(1, entrypoint="scrapers:wrong_options", restart="always")
    daemon.launch("--once")
    assert daemon.exit_code() == 78, daemon.log()
    assert len(daemon.events("worker_started")) == 1
    (failed,) = daemon.events("worker_failed")
    assert "launch= has no option 'useragent'" in failed["data"]["reason"]


def test_kill_9_of_the_supervisor_its_workers_and_browsers_are_ended_before_the_first_item(browsing, site):
    site.knobs = Knobs(matches=500, latency=(0.05, 0.15))
    daemon = browsing(24, concurrency=2).start("--once")
    daemon.wait(lambda: daemon.group("g")["items"]["done"] >= 6, "items are done")
    left_behind = daemon.processes()
    assert len(left_behind) > 5
    daemon.kill()
    known = daemon.results("g")
    served = len(site.accesses())
    (daemon.folder / "must-be-gone").write_text(" ".join(map(str, left_behind)))
    daemon.launch("--once")
    assert daemon.exit_code(120) == 0, daemon.log()
    assert not [line for line in daemon.trace() if line[0] == "undead"]
    assert not any(alive(pid) for pid in left_behind)
    check_truth(daemon, site, 24)
    assert all(daemon.results("g")[key] == row for key, row in known.items())
    again = {access.path for access in site.accesses()[served:]}
    # Workers without a supervisor may end what they began, so a page may be served; a result known is not made again.
    assert not again & {f"/match/{number(key)}" for key in known}
    assert daemon.none_left()


def test_sigterm_while_busy_leaves_no_browser_and_no_driver(browsing, site):
    daemon = browsing(20, concurrency=2, count=2)
    (daemon.folder / "gate").touch()
    daemon.start()
    daemon.wait(lambda: len(site.accesses()) >= 4, "four pages are open")
    daemon.send(signal.SIGTERM)
    daemon.wait(lambda: daemon.status()["supervisor"]["state"] == "draining", "it drains")
    (daemon.folder / "gate").unlink()
    assert daemon.exit_code() == 0
    assert daemon.none_left()
    assert len(daemon.results("g")) == 4
    assert {row.attempts for row in daemon.results("g").values()} == {1}
    assert not list((daemon.runtime).glob("tmp/*")), "profiles are left"


def test_a_leaking_page_has_its_browser_recycled_between_items_with_cookies_kept(browsing, site, on_this_machine, kind):
    daemon = browsing(400, env=kind, resources={"browser_memory": "2GiB", "browser_memory_max": "4GiB"})
    (daemon.folder / "gate").touch()
    daemon.start()
    first = browser_of(daemon)
    usual = daemon.wait(lambda: browser_of(daemon)["memory"], "its browser is measured")
    site.knobs = Knobs(matches=500, leak=1.0, leak_mib=16, latency=(0.1, 0.1))
    limit = usual + 150 * MIB
    config = {**daemon.config, "resources": {**daemon.config["resources"], "browser_memory": limit}}
    daemon.configure(config)
    daemon.send(signal.SIGHUP)
    daemon.wait_event("config_reloaded")
    (daemon.folder / "gate").unlink()
    breach = daemon.wait_event("threshold_breached", worker="g-0")
    assert breach["data"]["value"] > limit
    restarted = daemon.wait_event("browser_restarted", how="asked", worker="g-0")
    assert restarted["data"]["seconds"] < on_this_machine(15)
    worker = daemon.worker("g-0")
    assert worker["recycles"] >= 1
    assert browser_of(daemon)["pid"] != first["pid"]
    assert not alive(first["pid"])
    done = daemon.group("g")["items"]["done"]
    daemon.wait(lambda: daemon.group("g")["items"]["done"] >= done + 3, "it goes on")
    assert daemon.stop() == 0
    results = [json.loads(bytes(row.result))["first"] for row in daemon.results("g").values()]
    assert results[0] is None
    assert set(results[1:]) == {"1"}, "the cookie that the first page set is still there after the recycle"
    assert not daemon.events("item_finished", outcome="retry"), "at an item boundary"
    assert {row.attempts for row in daemon.results("g").values()} == {1}
    assert daemon.none_left()


def test_a_browser_over_browser_memory_max_is_killed_at_once_and_replaced(browsing, site):
    daemon = browsing(6, resources={"browser_memory": "2GiB", "browser_memory_max": "4GiB"})
    (daemon.folder / "gate").touch()
    daemon.start("--once")
    first, pid = browser_of(daemon), daemon.pids()["g-0"]
    usual = daemon.wait(lambda: browser_of(daemon)["memory"], "its browser is measured")
    limit = usual - 20 * MIB  # it is over, with an item in hand that will not end by itself
    config = {
        **daemon.config,
        "resources": {**daemon.config["resources"], "browser_memory": limit, "browser_memory_max": limit},
    }
    daemon.configure(config)
    daemon.send(signal.SIGHUP)
    daemon.wait(lambda: not alive(first["pid"]), "it is killed")
    config = {**config, "resources": {**config["resources"], "browser_memory": "2GiB", "browser_memory_max": "4GiB"}}
    daemon.configure(config)
    daemon.send(signal.SIGHUP)
    daemon.wait(lambda: len(daemon.events("config_reloaded")) == 2, "the limit is lifted")
    daemon.wait(lambda: browser_of(daemon)["pid"] != first["pid"], "a new browser")
    (daemon.folder / "gate").unlink()
    assert daemon.exit_code() == 0, daemon.log()
    check_truth(daemon, site, 6)
    assert {row.attempts for row in daemon.results("g").values()} == {1}
    assert daemon.events("threshold_breached")
    assert {event["data"]["pid"] for event in daemon.events("worker_started")} == {pid}
    assert daemon.none_left()


def test_a_frozen_browser_is_killed_after_recycle_deadline(browsing, site, on_this_machine, kind):
    daemon = browsing(3, env=kind, resources={"recycle_deadline": "1s"}, on_complete="wait").start()
    daemon.wait(lambda: daemon.group("g")["items"]["done"] == 3, "nothing is in hand")
    browser, pid = browser_of(daemon), daemon.pids()["g-0"]
    for process in daemon.processes().values():
        if os.getsid(process.pid) == browser["pid"]:
            os.kill(process.pid, signal.SIGSTOP)
    begin = time.monotonic()
    daemon.control("recycle", names=["g-0"], wait=False)
    daemon.wait(lambda: not alive(browser["pid"]), "it is killed")
    assert 0.9 < time.monotonic() - begin < on_this_machine(5)
    daemon.wait(lambda: browser_of(daemon)["pid"] != browser["pid"], "a new browser")
    assert daemon.pids()["g-0"] == pid
    daemon.control("items.add", names=["g"], keys=[f"{site.url}/match/4"])
    daemon.wait(lambda: daemon.group("g")["items"]["done"] == 4, "it works with the new one")
    cookie = json.loads(bytes(daemon.results("g")[f"{site.url}/match/4"].result))["first"]
    assert cookie == "1", "cookies survive the kill of a browser, too"
    assert daemon.stop() == 0
    assert daemon.none_left()
