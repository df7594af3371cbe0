"""`checkpoint restore --ledger`, `verify` of ledger and backups, and what other commands say of a damaged ledger."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import pytest
from msgspec import Raw

from scraper_supervisor.core.ops.item_ops import AddItems, Conclude, NewItem
from scraper_supervisor.core.ops.run_ops import OpenRun
from scraper_supervisor.store.locks import FolderLock
from scraper_supervisor.store.sqlite.backups import backup as backup_module
from scraper_supervisor.store.sqlite.backups.backup import Backup, back_up, backups
from scraper_supervisor.store.sqlite.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Call = Callable[..., Result]

NEVER = threading.Event()


@pytest.fixture
def backup(project: Path) -> Backup:
    """Of a ledger in which one item was done before and one after."""
    (project / "state").mkdir()
    ledger = Ledger.open(project / "state" / "ledger.db")
    items = tuple(NewItem(key, None, Raw(b"null"), 0) for key in ("a", "b"))
    ledger.perform([OpenRun(1, "matches", "continue", 5), AddItems(1, "matches", 1, items)])
    done = [Conclude(1, "matches", 1, id_, "k", id_, "matches-0", "done", 1, result=Raw(b"%d" % id_)) for id_ in (1, 2)]
    ledger.perform(done[:1])
    backup = back_up(project / "state", NEVER)
    ledger.perform(done[1:])
    ledger.close()
    return backup


def damage(project: Path) -> None:
    path = project / "state" / "ledger.db"
    path.write_bytes(path.read_bytes().replace(b"matches-0", b"matches-1"))


def test_restoring(project: Path, call: Call, backup: Backup) -> None:
    sound = call("checkpoint", "restore", "--ledger")
    assert (sound.exit_code, "the ledger is sound" in sound.stderr, sound.stdout) == (1, True, "")
    damage(project)
    assert call("checkpoint", "verify").exit_code == 4
    refused = call("items", "add", "matches", "c")
    assert (refused.exit_code, "its SHA-256 is another" in refused.stderr) == (65, True)
    told = call("checkpoint", "restore", "--ledger")
    assert told.exit_code == 0
    assert f"restored from {backup.path}" in told.stdout
    assert "1 items are missing" in told.stdout
    assert "matches\t1\tb\tdone\tyes\n" in told.stdout
    assert call("checkpoint", "verify").exit_code == 0
    assert call("items", "add", "matches", "c").stdout == "matches: 1 added, 0 known already\n"


def test_the_document(project: Path, call: Call, backup: Backup) -> None:
    damage(project)
    document = json.loads(call("checkpoint", "restore", "--ledger", "--json").stdout)
    assert document["backup"] == str(backup.path)
    assert document["missing"] == [
        {"group": "matches", "run": 1, "key": "b", "outcome": "done", "recoverable": True, "result": 2}
    ]
    assert document["moved"][0].endswith("/ledger.db")


def test_no_restoring_beside_a_daemon(project: Path, call: Call, backup: Backup) -> None:
    damage(project)
    before = (project / "state" / "ledger.db").read_bytes()
    with FolderLock(project / "state"):
        refused = call("checkpoint", "restore", "--ledger")
    assert refused.exit_code == 1
    assert "process " in refused.stderr
    assert "'scraper-supervisor stop' first" in refused.stderr
    assert (project / "state" / "ledger.db").read_bytes() == before


def test_nothing_to_restore(project: Path, call: Call) -> None:
    assert call("checkpoint", "restore").exit_code == 2
    none = call("checkpoint", "restore", "--ledger")
    assert (none.exit_code, "there is no state folder yet" in none.stderr) == (1, True)
    (project / "state").mkdir()
    (project / "state" / "ledger.db").write_bytes(b"x")
    none = call("checkpoint", "restore", "--ledger")
    assert (none.exit_code, "there is no backup of the ledger" in none.stderr) == (1, True)
    assert (project / "state" / "ledger.db").read_bytes() == b"x"


def test_a_backup_that_is_removed_while_it_is_verified_is_no_damage(
    project: Path, call: Call, backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a daemon does that has made a newer one; when the list of them was already read."""
    gone = Backup(backup.path.with_name("ledger-20260501T120000.000Z.db"), 0.0)
    monkeypatch.setattr(backup_module, "backups", lambda state_dir: [*backups(state_dir), gone])
    verified = call("checkpoint", "verify", "--json")
    assert verified.exit_code == 0
    files = [file["path"] for file in json.loads(verified.stdout)["files"]]
    assert str(backup.path) in files
    assert str(gone.path) not in files


def test_verifying_reads_the_backups_too(project: Path, call: Call, backup: Backup) -> None:
    def verified() -> dict[str, str | None]:
        files = json.loads(call("checkpoint", "verify", "--json").stdout)["files"]
        return {file["path"]: file["reason"] for file in files if file["kind"] == "ledger"}

    ledger = project / "state" / "ledger.db"
    assert verified() == {str(ledger): None, str(backup.path): None}
    content = backup.path.read_bytes()
    backup.path.write_bytes(content[:-1] + b"\x01")
    assert "its SHA-256 is another" in str(verified()[str(backup.path)])
    backup.path.write_bytes(content)
    seal = ledger.with_name("ledger.db.sha256")
    seal.write_bytes(seal.read_bytes().replace(b"ledger.db\n", b"ledger.dx\n", 1))
    assert "it is damaged" in str(verified()[str(seal)])
    ledger.unlink()
    assert verified()[str(ledger)] == "it is missing"
    assert call("checkpoint", "verify").exit_code == 4
    refused = call("items", "add", "matches", "c")
    assert refused.exit_code == 65
    assert "it is missing, while" in refused.stderr
