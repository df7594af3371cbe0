"""What operators order, against a stand-in for the daemon on a real socket."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from scraper_supervisor.console.client import Client, Denied, NoDaemon
from scraper_worker.jsonrpc import RpcError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result
    from tests.console.conftest import FakeDaemon

    Call = Callable[..., Result]

CLEARED = {"cleared": [{"scope": "group", "key": "matches", "group": "matches"}]}


@pytest.mark.parametrize("method", ["pause", "resume", "drain", "start", "restart", "recycle", "stop"])
def test_orders_name_groups_and_workers(call: Call, daemon: FakeDaemon, method: str) -> None:
    daemon.answers[method] = {"workers": {"matches-1": "running", "matches-0": "paused"}}
    result = call(method, "matches-0", "matches")
    assert (result.exit_code, result.output) == (0, "matches-0: paused\nmatches-1: running\n")
    asked, params = daemon.requests[-1]
    assert asked == method
    assert (params["names"], params["wait"]) == (["matches-0", "matches"], True)


def test_no_wait(call: Call, daemon: FakeDaemon) -> None:
    daemon.answers["restart"] = {"workers": ["matches-0"]}
    result = call("restart", "--no-wait")
    assert (result.exit_code, result.output) == (0, "restart: ordered for matches-0\n")
    assert daemon.requests[-1][1]["wait"] is False


def test_start_fresh(call: Call, daemon: FakeDaemon) -> None:
    daemon.answers["start"] = {"workers": {}}
    assert call("start", "matches", "--fresh").exit_code == 0
    assert daemon.requests[-1][1]["fresh"] is True


def test_a_refusal_is_told(call: Call, daemon: FakeDaemon) -> None:
    daemon.answers["pause"] = RpcError(-32000, "no group or worker is named 'x'; known are: matches")
    result = call("pause", "x")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: no group or worker is named 'x'; known are: matches\n"


def test_reload(call: Call, daemon: FakeDaemon) -> None:
    daemon.answers["reload"] = {"summary": "matches: count 1 → 2"}
    assert call("reload").output == "matches: count 1 → 2\n"
    problems = [{"path": "workers.a.count", "message": "expected 1"}, {"path": "", "message": "is no TOML"}]
    daemon.answers["reload"] = RpcError(-32000, "rejected: …", {"problems": problems})
    result = call("reload")
    assert (result.exit_code, result.stdout) == (78, "")
    assert result.stderr.splitlines()[1:] == ["  workers.a.count: expected 1", "  is no TOML"]


def test_a_reload_whose_restarts_fail_is_1_with_the_reason(call: Call, daemon: FakeDaemon) -> None:
    daemon.answers |= {
        "reload": {"summary": "matches: restarts workers one by one"},
        "reload.settle": RpcError(-32000, "matches-0: no module 'scrapper'; matches-1 stay as they are"),
    }
    result = call("reload")
    assert (result.exit_code, result.stdout) == (1, "matches: restarts workers one by one\n")
    assert result.stderr == (
        "error: the new configuration is in force, but a restart failed: "
        "matches-0: no module 'scrapper'; matches-1 stay as they are\n"
    )


def test_stop_waits_for_the_end_of_the_daemon(call: Call, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    # The stand-in lives in this very process, whose end is not to be waited for.
    monkeypatch.setattr("scraper_supervisor.console.client._process", lambda _: None)
    daemon.answers["stop"] = {}
    result = call("stop", "--no-wait")
    assert (result.exit_code, result.stderr) == (0, "the daemon is draining\n")
    daemon.leaves = True
    result = call("stop")
    assert (result.exit_code, result.stderr) == (0, "the daemon has stopped\n")
    assert daemon.requests == [("stop", {}), ("stop", {})]


def test_abort(call: Call, daemon: FakeDaemon, document: dict[str, Any]) -> None:
    daemon.answers |= {"status": document, "abort.clear": CLEARED}
    assert json.loads(call("abort", "status", "--json").stdout) == document["abort"]
    shown = call("abort", "status").stdout
    assert "target example.com" in shown
    assert "15 of 20 failed" in shown
    assert json.loads(call("abort", "clear", "--json").stdout) == CLEARED
    assert call("abort", "clear").output == "cleared: group matches\n"
    assert call("abort", "clear", "--group", "matches").exit_code == 0
    assert daemon.requests[-1] == ("abort.clear", {"names": ["matches"]})
    daemon.answers["abort.clear"] = {"cleared": []}
    assert call("abort", "clear").output == "nothing is aborted: nothing was changed\n"


def test_a_daemon_that_hangs_up_or_is_silent(project: Path, daemon: FakeDaemon) -> None:
    path = str(project / "state" / "run" / "control.sock")
    daemon.answers["status"] = None
    with Client(path) as client, pytest.raises(NoDaemon, match="ended before it answered"):
        client.call("status")
    daemon.answers["status"] = {"n": 1}
    with Client(path) as client:
        assert [client.call("status") for _ in range(3)] == [{"n": 1}] * 3
        daemon.answers["x"] = RpcError(-32000, "no", {"why": 1})
        with pytest.raises(Denied, match="no") as denied:
            client.call("x")
        assert denied.value.data == {"why": 1}


def test_a_timeout_is_told(project: Path, daemon: FakeDaemon) -> None:
    release = threading.Event()
    daemon.answers["status"] = lambda _: {} if release.wait(60) else None
    with Client(str(project / "state" / "run" / "control.sock")) as client:
        with pytest.raises(NoDaemon, match=r"did not answer within 0\.05 s"):
            client.call("status", timeout=0.05)
        release.set()
