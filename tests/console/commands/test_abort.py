"""`abort` without a daemon: what the last one aborted, and another chance for it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from scraper_supervisor.core.ops.item_ops import Park
from scraper_supervisor.core.ops.run_ops import OpenRun, SetRunState
from scraper_supervisor.store.sqlite.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Call = Callable[..., Result]

TRIGGERED = {
    "scope": "group", "key": "matches", "group": "matches", "items": 20, "failures": 20, "rate": 1.0, "limit": 0.5,
    "reason": "group matches: 20 of the last 20 items failed (100%)", "next_probe_at": None,
}  # fmt: skip


def line(event: str, time: str = "2026-05-01T12:00:00.000000Z", **data: Any) -> str:
    return msgspec.json.encode({"time": time, "event": event, "correlation_id": "a-1", "data": data}).decode() + "\n"


@pytest.fixture
def aborted(project: Path, ledger: Path, call: Call) -> Path:
    """A state folder whose daemon ended with 69: two items parked."""
    call("items", "add", "matches", "a", "b")
    opened = Ledger.open(ledger)
    (run,) = opened.perform([OpenRun(0, "matches", "continue", 5)])
    opened.perform([SetRunState(0, "matches", run.run_id, "aborted"), Park(0, "matches", run.run_id, 99)])
    opened.close()
    log = [line("supervisor_started"), line("abort_triggered", **TRIGGERED), line("supervisor_stopped", code=69)]
    (project / "state" / "events.jsonl").write_text("".join(log), encoding="utf-8")
    return project


def status(call: Call) -> Any:
    result = call("abort", "status", "--json")
    assert result.exit_code == 0
    return json.loads(result.stdout)


def test_after_69_it_still_says_what_was_aborted_and_why(aborted: Path, call: Call) -> None:
    document = status(call)
    assert (document["state"], document["window_seconds"]) == ("aborted", 300.0)
    assert document["scopes"] == [TRIGGERED | {"state": "aborted", "since": "2026-05-01T12:00:00.000000Z"}]
    shown = call("abort", "status")
    assert "20 of the last 20 items failed" in shown.stdout
    assert "no daemon answers" in shown.stderr


def test_everything_at_once_is_told_as_that(aborted: Path, call: Call) -> None:
    with (aborted / "state" / "events.jsonl").open("a", encoding="utf-8") as log:
        log.write(line("supervisor_started"))
        log.write(line("abort_triggered", **TRIGGERED | {"scope": "global", "key": "", "group": None}))
    (scope,) = status(call)["scopes"]
    assert (scope["scope"], scope["group"]) == ("global", None)


def test_without_the_event_log_the_ledger_still_knows_what(aborted: Path, call: Call) -> None:
    (aborted / "state" / "events.jsonl").unlink()
    (scope,) = status(call)["scopes"]
    assert (scope["key"], scope["since"], scope["items"]) == ("matches", None, None)
    assert "does not say why" in scope["reason"]


@pytest.mark.parametrize("then", ["supervisor_started", "abort_evaluated"])
def test_what_was_taken_back_is_not_told(aborted: Path, call: Call, then: str) -> None:
    with (aborted / "state" / "events.jsonl").open("a", encoding="utf-8") as log:
        log.write(line(then, **TRIGGERED, action="cleared"))
    assert "does not say why" in status(call)["scopes"][0]["reason"]  # the ledger's word alone
    assert call("abort", "clear").exit_code == 0
    assert status(call) == {"state": "normal", "window_seconds": 300.0, "scopes": []}


def test_status_list_and_requeue_agree_on_what_is_parked(aborted: Path, call: Call) -> None:
    listed = json.loads(call("items", "list", "matches", "--state", "parked", "--json").stdout)["items"]
    assert [row["key"] for row in listed] == ["a", "b"]
    assert call("items", "requeue", "matches", "--parked").output == "matches: 2 requeued\n"
    assert status(call)["state"] == "normal"


def test_one_parked_item_requeued_takes_the_others_along(aborted: Path, call: Call) -> None:
    assert call("items", "requeue", "matches", "b").output == "matches: 1 requeued\n"
    listed = json.loads(call("items", "list", "matches", "--json").stdout)["items"]
    assert [(row["key"], row["state"]) for row in listed] == [("a", "pending"), ("b", "pending")]


def test_adding_to_an_aborted_run_clears_nothing(aborted: Path, call: Call) -> None:
    assert call("items", "add", "matches", "c").exit_code == 0
    assert status(call)["state"] == "aborted"


def test_clear_without_a_daemon(aborted: Path, call: Call) -> None:
    unknown = call("abort", "clear", "--group", "nope")
    assert (unknown.exit_code, "known are: matches" in unknown.stderr) == (1, True)
    assert call("abort", "clear", "--group", "matches").output == "cleared: group matches\n"
    assert call("abort", "clear").output == "nothing is aborted: nothing was changed\n"
    listed = json.loads(call("items", "list", "matches", "--json").stdout)["items"]
    assert [row["state"] for row in listed] == ["pending", "pending"]


@pytest.mark.parametrize("command", ["status", "clear"])
def test_where_nothing_ever_ran_it_says_where_it_looked(project: Path, call: Call, command: str) -> None:
    result = call("abort", command)
    assert (result.exit_code, result.stdout) == (1, "")
    assert str(project / "state" / "ledger.db") in result.stderr
    assert not (project / "state").exists()


def acts(project: Path) -> list[dict[str, Any]]:
    events = [json.loads(one) for one in (project / "state" / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(one["component"] == "operators" for one in events if one["event"] == "operator_acted")
    return [one["data"] for one in events if one["event"] == "operator_acted"]


def test_what_is_done_without_a_daemon_is_told_too(aborted: Path, call: Call) -> None:
    secret = "https://u:sesame@h/x"
    call("items", "add", "matches", secret)
    call("items", "cancel", "matches", secret)
    call("items", "requeue", "matches", "--failed")
    call("abort", "clear", "--group", "matches")
    call("items", "list", "matches")
    told = acts(aborted)
    assert {one["uid"] for one in told} == {os.geteuid()}
    assert [(one["command"], one["names"], one["options"]) for one in told[-4:]] == [
        ("items add", ["matches"], []),
        ("items cancel", ["matches"], []),
        ("items requeue", ["matches"], ["--failed"]),
        ("abort clear", ["matches"], []),
    ]
    assert "sesame" not in (aborted / "state" / "events.jsonl").read_text(encoding="utf-8")
    assert told[-4]["keys"][0].startswith("https://u:***@h/x#")


def test_an_event_log_that_cannot_be_written_undoes_nothing(aborted: Path, call: Call) -> None:
    (aborted / "state" / "events.jsonl").unlink()
    (aborted / "state" / "events.jsonl").mkdir()
    result = call("items", "add", "matches", "z")
    assert (result.exit_code, result.stdout) == (0, "matches: 1 added, 0 known already\n")
    assert "the event log was not written" in result.stderr
