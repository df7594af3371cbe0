"""The example in JavaScript is a worker like any other: killed, cut off, cancelled and drained, it loses nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from harness import HERE

NODE = shutil.which("node")


def too_old():
    """Why there is no Node.js that the example runs with; None if there is."""
    if NODE is None:
        return "there is no node"
    version = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return None if int(version.lstrip("v").split(".")[0]) >= 18 else f"node is {version}, the example wants 18"


pytestmark = [pytest.mark.slow, pytest.mark.skipif(too_old() is not None, reason=str(too_old()))]

EXAMPLE = Path(__file__).parents[2] / "examples" / "worker.mjs"


def scraping(*prefix, items=60, seconds=0.05, **group):
    env = {"ITEMS": str(items), "SECONDS": str(seconds)}
    return {
        "workers": {"pages": {"command": [*prefix, NODE, str(EXAMPLE)], "env": env, **group}},
        "retry": {"default": {"base_delay": 0.05, "max_delay": 0.1}},
        "restart_policy": {"base_delay": 0, "max_delay": 0, "max_restarts": 0, "max_unstable": 0},
    }


def keys(items=60):
    return {f"page-{number}" for number in range(items)} | {"page-0/more", "page-0/late"}


def done(daemon):
    return daemon.group("pages")["items"]["done"]


def outcomes(daemon):
    return Counter((event["data"]["key"], event["data"]["outcome"]) for event in daemon.events("item_finished"))


def whole(daemon):
    """Every item is done, each once; what failed was tried again."""
    results = daemon.results("pages")
    assert set(results) == keys()
    assert all(json.loads(bytes(row.result)) == {"length": len(key)} for key, row in results.items())
    counted = outcomes(daemon)
    assert {key: counted[key, "done"] for key in keys()} == dict.fromkeys(keys(), 1)
    assert counted["page-3", "retry"] >= 1
    return counted


def state(daemon):
    files = sorted((daemon.state / "checkpoints" / "pages-0").glob("checkpoint-*.json"))
    return json.loads(files[-1].read_bytes())["state"]


def test_a_whole_run_with_a_kill_9_in_the_middle(daemons):
    daemon = daemons(scraping())
    daemon.start("--once")
    daemon.wait(lambda: done(daemon) >= 15, "some items are done")
    pid = daemon.worker("pages-0")["pid"]
    os.kill(pid, signal.SIGKILL)
    daemon.wait_event("worker_exited", worker="pages-0", signal=9)
    assert daemon.exit_code() == 0, daemon.log()
    whole(daemon)
    ended = [event["data"] for event in daemon.events("worker_exited")]
    assert [(one["incarnation"], one["code"], one["signal"]) for one in ended] == [(1, None, 9), (2, 0, None)]
    assert 15 <= state(daemon)["done"] <= len(keys()), "it went on from the state that it had saved"
    assert daemon.none_left()


def test_cut_off_it_comes_back_with_what_is_in_its_hands(daemons):
    daemon = daemons(scraping(sys.executable, str(HERE / "cutting_proxy.py")))
    daemon.start("--once")
    for number in range(1, 4):
        daemon.wait(lambda goal=12 * number: done(daemon) >= goal, "some items are done")
        os.kill(daemon.worker("pages-0")["pid"], signal.SIGUSR1)
        daemon.wait(lambda count=number: len(daemon.trace()) >= count, "its connection is cut")
    assert daemon.exit_code() == 0, daemon.log()
    assert daemon.trace() == [["cut", "1"]] * 3
    assert set(whole(daemon).values()) == {1}, "nothing was done or failed twice"
    assert state(daemon) == {"done": len(keys())}
    ended = [event["data"] for event in daemon.events("worker_exited")]
    assert [(one["incarnation"], one["code"]) for one in ended] == [(1, 0)]


def test_it_ends_an_item_that_is_cancelled_and_drains(daemons):
    daemon = daemons(scraping(items=4, seconds=600))
    daemon.start()
    daemon.wait(lambda: daemon.worker("pages-0")["items"]["in_flight"] == 2, "its hands are full")
    first, second = daemon.wait(
        lambda: (
            [one for one in daemon.worker("pages-0")["doing"] if one["message"] == "reading"][1:2]
            and daemon.worker("pages-0")["doing"]
        ),
        "it tells how far it is",
    )
    assert (first["done"], first["total"]) == (0, 1)
    daemon.control("items.cancel", names=["pages"], keys=[first["key"]])
    daemon.wait(lambda: daemon.items("pages")[first["key"]].state == "failed", "the cancelled item has failed")
    assert daemon.worker("pages-0")["incarnation"] == 1
    daemon.wait(lambda: daemon.worker("pages-0")["items"]["in_flight"] == 2, "its hands are full again")
    os.kill(daemon.worker("pages-0")["pid"], signal.SIGTERM)
    ended = daemon.wait_event("worker_exited", worker="pages-0")["data"]
    assert ended["code"] == 0
    assert daemon.items("pages")[second["key"]].attempts == 0, "it was given back"
