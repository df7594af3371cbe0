"""A site for members: sessions that end, logins that fail, cookies kept over kills, restarts and fresh runs."""

import json
import os
import signal
from collections import Counter

import pytest
from harness import HERE
from members import Members

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture
def members():
    """A function that opens the site, whose sessions are good for so many pages."""
    made = []

    def make(pages):
        made.append(Members(pages))
        return made[-1]

    yield make
    for site in made:
        site.close()


@pytest.fixture
def scraping(daemons):
    """A function that makes a daemon whose group `g` reads the site's pages."""

    def make(site, *, items=6, mode="login", concurrency=1, **group):
        env = {
            "E2E_SITE": site.url,
            "E2E_MODE": mode,
            "E2E_ITEMS": str(items),
            "E2E_CONCURRENCY": str(concurrency),
        }
        group = {"entrypoint": "members:scrape", "directory": str(HERE), "env": env, **group}
        return daemons(
            {
                "workers": {"g": group},
                "retry": {"default": {"base_delay": 0.05, "max_delay": 0.1, "max_attempts": 3}},
                "restart_policy": {"base_delay": 0.05, "max_delay": 0.1, "max_restarts": 0, "max_unstable": 0},
                "resources": {"host_memory_percent": "off"},
            }
        )

    return make


def outcomes(daemon):
    return Counter(event["data"]["outcome"] for event in daemon.events("item_finished"))


def slot(daemon):
    """The session as it was saved last."""
    files = sorted((daemon.state / "checkpoints" / "g-0" / "session").glob("checkpoint-*"))
    return json.loads(files[-1].read_bytes()) if files else None


def test_a_session_that_ends_costs_one_login_for_all_pages_and_no_item_an_attempt(members, scraping):
    site = members(pages=5)
    daemon = scraping(site, items=14, concurrency=3)
    daemon.start("--once")
    assert daemon.exit_code() == 0, daemon.log()
    assert outcomes(daemon) == {"done": 14}
    assert Counter(path for _, path in site.served) == {f"/page/{number}": 1 for number in range(14)}
    assert site.logins == ["g-0"] * 3
    assert [cookie["name"] for cookie in slot(daemon)["state"]["cookies"]] == ["session"]
    assert not daemon.events("failure_pattern_detected")


def test_the_session_is_kept_over_a_kill_a_new_start_and_a_fresh_run(members, scraping):
    site = members(pages=1000)
    daemon = scraping(site, items=24, restart="always")
    daemon.start("--once")
    daemon.wait(lambda: len(site.served) >= 5, "some pages are read")
    worker = daemon.worker("g-0")
    os.kill(worker["pid"], signal.SIGKILL)
    daemon.wait_event("worker_exited", worker="g-0", signal=9)
    read = len(site.served)
    daemon.wait(lambda: len(site.served) >= read + 3, "its successor reads")
    daemon.stop()
    daemon.start("--once")
    assert daemon.exit_code() == 0, daemon.log()
    daemon.start("--once", "--fresh")
    assert daemon.exit_code() == 0, daemon.log()
    assert site.logins == ["g-0"], "one login for all of it"
    assert len({session for session, _ in site.served}) == 1


def test_refused_credentials_are_told_and_tried_five_times_and_end_the_worker_for_good(members, scraping):
    site = members(pages=5)
    site.refuse = True
    daemon = scraping(site)
    daemon.start("--once")
    assert daemon.exit_code() in (1, 78), daemon.log()
    assert len(site.logins) == 5
    assert not site.served
    told = daemon.events("failure_pattern_detected")
    assert [event["data"]["failure"]["kind"] for event in told] == ["permanent"] * 5
    assert "the site refuses our credentials" in told[0]["data"]["failure"]["message"]
    (exited,) = daemon.events("worker_exited")
    assert (exited["data"]["code"], exited["data"]["charged"]) == (78, None)
    assert outcomes(daemon) == {}, "items are given back"
    assert {row.state for row in daemon.items("g").values()} == {"pending"}
    assert slot(daemon) is None


def test_a_login_after_which_nothing_can_be_read_counts_as_one_that_failed(members, scraping):
    site = members(pages=0)
    daemon = scraping(site, items=2, restart="never")
    daemon.start("--once")
    assert daemon.exit_code() == 1, daemon.log()
    assert len(site.logins) == 5
    told = daemon.events("failure_pattern_detected")
    assert [event["data"]["failure"]["signature"] for event in told] == ["login-in-vain"] * 5
    assert daemon.events("worker_exited")[-1]["data"]["code"] == 1
    assert outcomes(daemon) == {}


def test_an_item_whose_session_expires_again_after_a_login_is_a_failure_of_that_item(members, scraping):
    site = members(pages=50)
    site.closed["/page/1"] = 2
    daemon = scraping(site, items=3)
    daemon.start("--once")
    assert daemon.exit_code() == 0, daemon.log()
    assert outcomes(daemon) == {"done": 3, "retry": 1}
    (retried,) = daemon.events("item_finished", outcome="retry")
    failure = retried["data"]["failure"]
    assert (failure["kind"], failure["signature"]) == ("transient", "session-expired")
    assert site.logins == ["g-0"] * 2


def test_without_a_login_an_expired_session_is_permanent_and_names_it(members, scraping):
    site = members(pages=5)
    daemon = scraping(site, items=1, mode="none")
    daemon.start("--once")
    assert daemon.exit_code() == 0, daemon.log()
    (event,) = daemon.events("item_finished")
    failure = event["data"]["failure"]
    assert (event["data"]["outcome"], failure["kind"], failure["signature"]) == (
        "failed",
        "permanent",
        "session-expired",
    )
    assert "process(login=f)" in failure["message"]
    assert not (daemon.state / "checkpoints" / "g-0").exists()


def test_keep_session_keeps_cookies_without_a_login(members, scraping):
    site = members(pages=50)
    daemon = scraping(site, items=2, mode="keep")
    daemon.start("--once")
    assert daemon.exit_code() == 0, daemon.log()
    assert [cookie["name"] for cookie in slot(daemon)["state"]["cookies"]] == ["session"]
