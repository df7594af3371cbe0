"""`events` and `checkpoint`: read from the files."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from click import ClickException
from msgspec import Raw

from scraper_supervisor.console import access as ledger_access
from scraper_supervisor.console.commands.watch import since_time
from scraper_supervisor.core.ops.item_ops import AddItems, NewItem
from scraper_supervisor.core.ops.run_ops import OpenRun
from scraper_supervisor.core.ops.state_ops import LoadState, SaveState
from scraper_supervisor.store.locks import FolderLock
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_supervisor.store.states.checkpoints import CheckpointFiles
from scraper_worker.jsonrpc import RpcError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result
    from tests.console.conftest import FakeDaemon

    Call = Callable[..., Result]


def line(number: int) -> bytes:
    return b'{"time":"2026-05-01T12:00:%02d.000000Z","event":"worker_ready","data":{"n":%d}}\n' % (number, number)


def test_events(project: Path, call: Call) -> None:
    absent = call("events")
    assert (absent.exit_code, absent.stdout) == (1, "")
    folder = project / "state"
    folder.mkdir()
    (folder / "events.jsonl.1").write_bytes(line(1))
    (folder / "events.jsonl").write_bytes(line(2) + b'{"torn\n' + line(3))
    shown = call("events", "--json")
    assert [json.loads(one)["data"]["n"] for one in shown.stdout.splitlines()] == [1, 2, 3]
    assert call("events", "--since", "2026-05-01T12:00:03Z").stdout == "2026-05-01T12:00:03Z  worker_ready  n 3\n"
    assert call("events", "--since", "yesterday").exit_code == 2


def test_since() -> None:
    now = datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert since_time("10m", now) == "2026-05-01T11:50:00.000000Z"
    assert since_time("90", now) == "2026-05-01T11:58:30.000000Z"
    assert since_time("2026-05-01T14:00:00+02:00", now) == "2026-05-01T12:00:00.000000Z"
    for wrong in ("", "10 parsecs", "2026-99-99", "999999999d"):
        with pytest.raises(ClickException):
            since_time(wrong, now)


def save(project: Path, worker: str, count: int) -> None:
    (project / "state").mkdir(exist_ok=True)
    Ledger.open(project / "state" / "ledger.db").close()  # checkpoints without a ledger are what damage leaves
    store = CheckpointFiles(project / "state")
    for number in range(count):
        store.perform(SaveState(0, worker, 1, "cursor/1", Raw(b'{"page":%d}' % number), 0, number, 0, 10, "none"))


def test_checkpoints(project: Path, call: Call) -> None:
    nothing = call("checkpoint", "list")
    assert (nothing.exit_code, "no state folder yet" in nothing.stderr) == (1, True)
    save(project, "matches-0", 2)
    save(project, "matches-1", 1)
    listed = json.loads(call("checkpoint", "list", "--json").stdout)["checkpoints"]
    assert [(one["worker"], one["generation"]) for one in listed] == [
        ("matches-0", 2), ("matches-0", 1), ("matches-1", 1),
    ]  # fmt: skip
    assert set(listed[0]) == {"worker", "generation", "schema", "saved_at", "bytes", "path"}
    assert "cursor/1" in call("checkpoint", "list", "matches-1").stdout
    shown = json.loads(call("checkpoint", "show", "matches-0", "--json").stdout)
    assert (shown["generation"], shown["state"], len(shown["sha256"])) == (2, {"page": 1}, 64)
    assert '"page": 0' in call("checkpoint", "show", "matches-0", "--generation", "1").stdout
    assert call("checkpoint", "show", "matches-0", "--generation", "9").exit_code == 1
    for name in ("", "nobody", "../state", "."):
        for command in ("list", "show", "verify"):
            refused = call("checkpoint", command, name)
            assert (refused.exit_code, "no worker of that name" in refused.stderr) == (1, True)


def test_verify(project: Path, call: Call) -> None:
    (project / "state").mkdir()
    Ledger.open(project / "state" / "ledger.db").close()
    save(project, "matches-0", 2)
    sound = call("checkpoint", "verify", "--json")
    document = json.loads(sound.stdout)
    assert (sound.exit_code, document["ok"], len(document["files"])) == (0, True, 3)
    assert set(document["files"][0]) == {"path", "kind", "worker", "generation", "ok", "reason"}
    assert set(document["files"][2]) == {"path", "kind", "ok", "reason"}
    newest = project / "state" / "checkpoints" / "matches-0" / "checkpoint-000000000002.json"
    newest.write_bytes(newest.read_bytes().replace(b'"page":1', b'"page":7'))
    damaged = call("checkpoint", "verify", "--json")
    document = json.loads(damaged.stdout)
    assert (damaged.exit_code, document["ok"]) == (4, False)
    assert [file["path"] for file in document["files"] if not file["ok"]] == [str(newest)]
    assert newest.exists()  # nothing is moved
    assert "3 files read, 1 damaged" in call("checkpoint", "verify").stdout
    assert call("checkpoint", "show", "matches-0").exit_code == 4
    newest.unlink()
    (project / "state" / "ledger.db").write_bytes(b"x" * 200)
    broken = json.loads(call("checkpoint", "verify", "--json").stdout)
    assert [file["kind"] for file in broken["files"] if not file["ok"]] == ["ledger"]
    assert call("checkpoint", "verify", "matches-0").exit_code == 0


# ---- restore ---------------------------------------------------------------------------------------------------------


def test_restore_with_a_daemon(call: Call, daemon: FakeDaemon) -> None:
    answer = {"worker": "matches-0", "restored": 1, "generation": 3, "state": "running"}
    daemon.answers["checkpoint.restore"] = answer
    shown = call("checkpoint", "restore", "matches-0", "--generation", "1")
    assert (shown.exit_code, shown.stdout) == (
        0,
        "matches-0: checkpoint 1 is restored as 3\nmatches-0: running\n",
    )
    assert json.loads(call("checkpoint", "restore", "matches-0", "--generation", "1", "--json").stdout) == answer
    assert daemon.requests[0] == ("checkpoint.restore", {"names": ["matches-0"], "generation": 1})
    daemon.answers["checkpoint.restore"] = RpcError(-32000, "matches-0 has no checkpoint 9; there are: 2, 1", None)
    refused = call("checkpoint", "restore", "matches-0", "--generation", "9")
    assert (refused.exit_code, refused.stderr) == (1, "error: matches-0 has no checkpoint 9; there are: 2, 1\n")


def test_restore_without_a_daemon(project: Path, call: Call) -> None:
    save(project, "matches-0", 3)
    restored = call("checkpoint", "restore", "matches-0", "--generation", "1", "--json")
    document = {"worker": "matches-0", "restored": 1, "generation": 4, "state": None}
    assert (restored.exit_code, json.loads(restored.stdout)) == (0, document)
    shown = json.loads(call("checkpoint", "show", "matches-0", "--json").stdout)
    assert (shown["generation"], shown["run"], shown["state"]) == (4, 1, {"page": 0})
    assert call("checkpoint", "restore", "matches-0", "--generation", "3").stdout == (
        "matches-0: checkpoint 3 is restored as 5\n"
    )
    assert call("checkpoint", "verify").exit_code == 0


def test_a_restored_state_belongs_to_the_newest_run(project: Path, call: Call) -> None:
    """Else a worker of a run that was begun afresh would not be given it."""
    save(project, "matches-0", 2)
    ledger = Ledger.open(project / "state" / "ledger.db")
    (run,) = ledger.perform([OpenRun(0, "matches", "continue", 5)])
    ledger.perform([AddItems(0, "matches", run.run_id, (NewItem("k", None, Raw(b"null"), 0),))])
    ledger.perform([OpenRun(0, "matches", "fresh", 5)])
    ledger.close()
    assert call("checkpoint", "restore", "matches-0", "--generation", "1").exit_code == 0
    found = CheckpointFiles(project / "state").perform(LoadState(0, "matches-0", 2))
    assert (found.found, found.generation, found.run, bytes(found.state)) == ("sound", 3, 2, b'{"page":0}')


def test_what_cannot_be_restored(project: Path, call: Call) -> None:
    nobody = call("checkpoint", "restore", "matches-0", "--generation", "1")
    assert (nobody.exit_code, nobody.stderr) == (
        1,
        "error: no worker named 'matches-0' has checkpoints; those that have: none\n",
    )
    save(project, "matches-0", 2)
    for name in ("matches-1", "../x", "."):
        wrong = call("checkpoint", "restore", name, "--generation", "1")
        assert wrong.exit_code == 1
        assert "those that have: matches-0" in wrong.stderr
    assert (
        "matches-0 has no checkpoint 9; there are: 2, 1"
        in call("checkpoint", "restore", "matches-0", "--generation", "9").stderr
    )
    for wrong_usage in (("matches-0",), ("--generation", "1"), ("matches-0", "--generation", "0")):
        assert call("checkpoint", "restore", *wrong_usage).exit_code == 2
    folder = project / "state" / "checkpoints" / "matches-0"
    (folder / "checkpoint-000000000001.json").write_bytes(b"")
    damaged = call("checkpoint", "restore", "matches-0", "--generation", "1")
    assert damaged.exit_code == 1
    assert "checkpoint 1 of matches-0 is damaged (it does not end in a checksum" in damaged.stderr
    assert "there are: 2\n" in damaged.stderr
    (project / "state" / "ledger.db").write_bytes(b"x" * 200)
    assert call("checkpoint", "restore", "matches-0", "--generation", "2").exit_code == 65


def test_a_daemon_that_does_not_answer_is_not_passed_over(
    project: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_access, "PATIENCE", 0.0)
    save(project, "matches-0", 1)
    with FolderLock(project / "state"):
        busy = call("checkpoint", "restore", "matches-0", "--generation", "1")
    assert busy.exit_code == 3
    assert "is using it, but does not answer" in busy.stderr
