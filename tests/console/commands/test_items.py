"""`items` and `results`: with the ledger alone, and beside a daemon."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec import Raw
from tests.console.conftest import make_ledger

from scraper_supervisor.console import access as ledger_access
from scraper_supervisor.console.commands import items as queue_commands
from scraper_supervisor.core.formats.redaction import Redactor
from scraper_supervisor.core.ops.item_ops import Conclude, Front, LeaseFresh
from scraper_supervisor.core.ops.run_ops import OpenRun, SetRunState
from scraper_supervisor.store.locks import FolderLock
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_worker.jsonrpc import RpcError
from scraper_worker.protocol import Failure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result
    from tests.console.conftest import FakeDaemon

    Call = Callable[..., Result]

FAILURE = Raw(msgspec.json.encode(Failure("permanent", "external", "http-404", "not \x1b[31m there", 404)))


def rows(call: Call, *more: str) -> dict[str, dict[str, Any]]:
    result = call("items", "list", "matches", "--json", *more)
    assert (result.exit_code, result.stderr) == (0, "")
    return {row["key"]: row for row in json.loads(result.stdout)["items"]}


def conclude(folder: Path, **outcomes: str) -> None:
    """Ends items as a daemon would: done, failed, or retry in an hour."""
    ledger = Ledger.open(folder / "state" / "ledger.db")
    (run,) = ledger.perform([OpenRun(0, "matches", "continue", 5)])
    (open_items,) = ledger.perform([LeaseFresh(0, "matches", run.run_id, (Front(None, None),), 100)])
    for claim, item in enumerate(open_items.items, 1):
        if item.key not in outcomes:
            continue
        outcome = outcomes[item.key]
        values: dict[str, Any] = {"result": Raw(b'{"n":"%s"}' % item.key.encode())} if outcome == "done" else {}
        if outcome != "done":
            values = {"failure": FAILURE, "delay": 3600.0 if outcome == "retry" else None}
        ledger.perform(
            [Conclude(0, "matches", run.run_id, item.id, item.key, claim, "matches-0", outcome, 1, **values)]
        )
    ledger.close()


def test_without_a_ledger(call: Call) -> None:
    assert rows(call) == {}
    assert call("results", "matches").output == ""
    unknown = call("items", "list", "nope")
    assert (unknown.exit_code, unknown.stdout) == (1, "")


def test_the_queue_without_a_daemon(project: Path, ledger: Path, call: Call) -> None:
    assert call("items", "add", "matches", "a", "b", "c").output == "matches: 3 added, 0 known already\n"
    assert call("items", "add", "matches", input="c\n\nd\r\n").output == "matches: 1 added, 1 known already\n"
    assert (project / "state").stat().st_mode & 0o777 == 0o700
    conclude(project, a="done", b="failed", c="retry")
    found = rows(call)
    assert {key: row["state"] for key, row in found.items()} == {
        "a": "done", "b": "failed", "c": "waiting", "d": "pending",
    }  # fmt: skip
    assert found["b"]["last_failure"]["signature"] == "http-404"
    assert set(found["d"]) == {"key", "state", "attempts", "target", "not_before", "worker", "last_failure"}
    assert found["c"]["not_before"].endswith("Z")
    for state, key in (("done", "a"), ("failed", "b"), ("waiting", "c"), ("pending", "d")):
        assert list(rows(call, "--state", state)) == [key]
    assert rows(call, "--state", "in_flight") == {}
    heading, *plain = call("items", "list", "matches").stdout.splitlines()
    assert heading.split("\t") == ["KEY", "STATE", "ATTEMPTS", "WORKER", "LAST FAILURE"]
    assert plain[0].split("\t") == ["a", "done", "1", "matches-0", "-"]
    assert plain[1].endswith("permanent: http-404: not \\x1b[31m there")

    assert call("items", "requeue", "matches", "--failed").output == "matches: 1 requeued\n"
    assert rows(call)["b"]["state"] == "pending"
    cancelled = call("items", "cancel", "matches", "d", "a")
    assert (cancelled.exit_code, cancelled.stdout) == (1, "matches: 1 cancelled\n")
    assert "done or failed already): a" in cancelled.stderr
    assert rows(call)["d"]["state"] == "failed"
    assert call("items", "requeue", "matches", "--failed").output == "matches: 0 requeued\n"  # it was cancelled
    assert call("items", "requeue", "matches", "d").output == "matches: 1 requeued\n"


@pytest.mark.parametrize(
    "arguments",
    [("items", "add", "matches", "a"), ("items", "requeue", "matches", "a"), ("items", "cancel", "matches", "a")],
)
def test_no_ledger_is_made_and_it_is_said_where_it_was_looked_for(
    project: Path, call: Call, arguments: tuple[str, ...]
) -> None:
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{project / 'state' / 'ledger.db'}: there is no ledger ({project / 'supervisor.toml'})" in result.stderr
    assert not (project / "state").exists()


def test_what_has_a_run_is_known_without_a_configuration(
    project: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As after `run sc:basic`: no file, and the group is the run's.
    (project / "supervisor.toml").unlink()
    path = make_ledger(project / ".scraper-supervisor")
    ledger = Ledger.open(path)
    ledger.perform([OpenRun(0, "basic", "continue", 5)])
    ledger.close()
    assert call("items", "add", "basic", "k").stdout == "basic: 1 added, 0 known already\n"
    assert call("items", "add", "matches", "k").stderr == "error: no group is named 'matches'; known are: basic\n"


def test_what_is_added_to_a_completed_run_reopens_it(project: Path, ledger: Path, call: Call) -> None:
    call("items", "add", "matches", "a")
    conclude(project, a="done")
    for expected, key in (("completed", "a"), ("running", "b")):
        ledger = Ledger.open(project / "state" / "ledger.db")
        (run,) = ledger.perform([OpenRun(0, "matches", "continue", 5)])
        if key == "a":
            ledger.perform([SetRunState(0, "matches", run.run_id, "completed")])
        ledger.close()
        call("items", "add", "matches", key)
        ledger = Ledger.open(project / "state" / "ledger.db")
        (run,) = ledger.perform([OpenRun(0, "matches", "continue", 5)])
        ledger.close()
        assert (run.run, run.state) == (1, expected)


def test_what_is_no_key_is_refused(ledger: Path, call: Call) -> None:
    for keys in ("ok\na\x07b\n", b"ok\n\xff\xfe\n", "ok\n" + "x" * 5000):
        result = call("items", "add", "matches", input=keys)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "key 2" in result.stderr
    assert call("items", "add", "nope", "a").exit_code == 1
    assert call("items", "requeue", "matches").exit_code == 2


@pytest.mark.parametrize(
    ("holder", "code", "why"),
    [(None, 3, "is using it, but does not answer"), ("items import", 1, "(items import) is using it; try again")],
)
def test_a_folder_in_use_that_does_not_become_free(
    project: Path, ledger: Path, call: Call, monkeypatch: pytest.MonkeyPatch, holder: str | None, code: int, why: str
) -> None:
    call("items", "add", "matches", "a")
    monkeypatch.setattr(ledger_access, "PATIENCE", 0.0)
    with FolderLock(project / "state", command=holder):
        result = call("items", "add", "matches", "b")
    assert (result.exit_code, result.stdout) == (code, "")
    assert f"process {os.getpid()} " in result.stderr
    assert why in result.stderr
    assert list(rows(call)) == ["a"]


def test_a_daemon_that_is_starting_is_waited_for(
    project: Path, ledger: Path, call: Call, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening = project / "state" / "run" / "control.sock"
    aside = listening.rename(listening.with_name("aside"))
    monkeypatch.setattr(ledger_access.time, "sleep", lambda _: aside.rename(listening))
    daemon.answers["items.add"] = {"added": 1, "known": 0}
    with FolderLock(project / "state"):  # as a daemon does before it listens
        result = call("items", "add", "matches", "b")
    assert (result.exit_code, result.stdout) == (0, "matches: 1 added, 0 known already\n")
    assert result.stderr.endswith(f"process {os.getpid()} is using it; waiting for it\n")


def test_another_command_is_waited_for(
    project: Path, ledger: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("items", "add", "matches", "a")
    other = FolderLock(project / "state", command="items requeue")
    monkeypatch.setattr(ledger_access.time, "sleep", lambda _: other.close())
    result = call("items", "add", "matches", "b")
    assert (result.exit_code, result.stdout) == (0, "matches: 1 added, 0 known already\n")
    assert "(items requeue) is using it; waiting for it" in result.stderr
    assert list(rows(call)) == ["a", "b"]


@pytest.mark.parametrize(
    "arguments", [("items", "list", "matches"), ("items", "add", "matches", "a"), ("results", "matches")]
)
def test_a_ledger_that_does_not_open_is_65(ledger: Path, call: Call, arguments: tuple[str, ...]) -> None:
    ledger.write_bytes(b"no database" * 100)
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (65, "")
    assert "ledger.db" in result.stderr


def test_results(project: Path, ledger: Path, call: Call) -> None:
    call("items", "add", "matches", "a", "b")
    conclude(project, a="done", b="done")
    lines = [json.loads(line) for line in call("results", "matches").stdout.splitlines()]
    assert [(line["seq"], line["key"], line["result"], line["attempts"]) for line in lines] == [
        (1, "a", {"n": "a"}, 1),
        (2, "b", {"n": "b"}, 1),
    ]
    assert set(lines[0]) == {"seq", "key", "result", "attempts", "finished_at"}
    after = call("results", "matches", "--run", "1", "--after", "1").stdout
    assert [json.loads(line)["key"] for line in after.splitlines()] == ["b"]
    absent = call("results", "matches", "--run", "7")
    assert (absent.exit_code, "it has: 1" in absent.stderr) == (1, True)


def test_following_the_results_of_a_run_ends_when_the_run_is_removed(
    project: Path, ledger: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("items", "add", "matches", "a")
    conclude(project, a="done")
    polls: list[float] = []

    def meanwhile(seconds: float) -> None:
        polls.append(seconds)
        ledger = Ledger.open(project / "state" / "ledger.db")
        ledger.perform([OpenRun(0, "matches", "fresh", 2)])
        assert ledger.idle(lambda: False) is None
        ledger.close()

    monkeypatch.setattr(queue_commands.time, "sleep", meanwhile)
    result = call("results", "matches", "--follow")
    assert [json.loads(line)["key"] for line in result.stdout.splitlines()] == ["a"]
    assert (result.exit_code, result.stderr) == (1, "error: the ledger has no run 1 of group 'matches'\n")
    assert len(polls) == 2


def test_beside_a_daemon(project: Path, ledger: Path, call: Call, daemon: FakeDaemon) -> None:
    # The ledger is there from before; from now on every change is the daemon's.
    daemon_socket = project / "state" / "run" / "control.sock"
    aside = daemon_socket.rename(daemon_socket.with_name("aside"))
    call("items", "add", "matches", "a", "b")
    aside.rename(daemon_socket)
    daemon.answers |= {
        "claims": [["a", "matches-1", 7], ["b", "others-0", 1]],
        "items.add": {"added": 1, "known": 0},
        "items.requeue": {"changed": 2, "untouched": []},
        "items.cancel": {"changed": 0, "untouched": []},
    }
    found = rows(call)
    assert (found["a"]["state"], found["a"]["worker"]) == ("in_flight", "matches-1")
    assert found["b"]["state"] == "pending"
    assert list(rows(call, "--state", "in_flight")) == ["a"]
    assert list(rows(call, "--state", "pending")) == ["b"]
    many = "\n".join(f"k{number}" for number in range(2500))
    assert call("items", "add", "matches", input=many).output == "matches: 3 added, 0 known already\n"
    sent = [params["keys"] for method, params in daemon.requests if method == "items.add"]
    assert [len(keys) for keys in sent] == [1000, 1000, 500]
    assert call("items", "requeue", "matches", "--parked").output == "matches: 2 requeued\n"
    assert daemon.requests[-1][1] == {"names": ["matches"], "keys": [], "failed": False, "parked": True}
    assert call("items", "cancel", "matches", "a").output == "matches: 0 cancelled, 1 in flight are being cancelled\n"
    daemon.answers["items.add"] = RpcError(-32000, "storage unavailable: no space left")
    refused = call("items", "add", "matches", "z")
    assert (refused.exit_code, refused.stderr) == (1, "error: storage unavailable: no space left\n")


def test_an_invalid_file_does_not_hide_a_running_daemon(
    project: Path, ledger: Path, call: Call, daemon: FakeDaemon, document: dict[str, Any]
) -> None:
    daemon.answers["status"] = document
    for broken in ("[workers.matches]\ncuont = 1\n", "this is no TOML ["):
        (project / "supervisor.toml").write_text(f'[supervisor]\nstate_dir = "state"\n{broken}', encoding="utf-8")
        assert call("status", "--json").exit_code == 0


def test_the_list_is_filtered_and_paged(ledger: Path, call: Call) -> None:
    call("items", "add", "matches", *(f"match-{number}" for number in range(30)), "other_1", "other%1")
    assert list(rows(call, "--key", "match-1")) == ["match-1", *(f"match-{number}" for number in range(10, 20))]
    assert list(rows(call, "--key", "_")) == ["other_1"]
    assert list(rows(call, "--key", "%")) == ["other%1"]
    assert list(rows(call, "--key", "MATCH")) == []
    seen: list[str] = []
    while page := list(rows(call, "--state", "pending", "--limit", "7", *(("--after", seen[-1]) if seen else ()))):
        assert len(page) <= 7
        seen += page
    assert seen == list(rows(call))
    assert list(rows(call, "--key", "9", "--after", "match-9", "--limit", "1")) == ["match-19"]
    unknown = call("items", "list", "matches", "--after", "nope")
    assert (unknown.exit_code, "no item 'nope'" in unknown.stderr) == (1, True)
    assert call("items", "list", "matches", "--limit", "0").exit_code == 2


@pytest.mark.parametrize("after", [2**63, 10**30, -1])
def test_a_number_that_no_result_can_have_is_wrong_usage(call: Call, after: int) -> None:
    call("items", "add", "matches", "a")
    result = call("results", "matches", "--after", str(after))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--after" in result.stderr
    assert call("results", "matches", "--after", str(2**63 - 1)).exit_code == 0


def test_a_key_is_taken_as_it_is_shown_where_that_is_unique(ledger: Path, call: Call) -> None:
    secret = "https://u:sesame@h/x"
    call("items", "add", "matches", secret, "https://u:sesame@h/y", "https://v:sesame@h/x", "#\U0001f642")
    shown = Redactor().key(secret)
    assert "sesame" not in shown
    assert call("items", "cancel", "matches", shown).output == "matches: 1 cancelled\n"
    assert {key for key, row in rows(call).items() if row["state"] == "failed"} == {secret}
    assert call("items", "requeue", "matches", shown).output == "matches: 1 requeued\n"
    unknown = call("items", "cancel", "matches", "https://u:***@h/x#00000000")
    assert (unknown.exit_code, unknown.stdout) == (1, "matches: 0 cancelled\n")
