"""Backups: of one moment, whatever is written meanwhile; whole and sound, or not there."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import threading
from typing import TYPE_CHECKING

import pytest
from tests.store.sqlite.ledger_writer import contents, killed

from scraper_supervisor.core.ops.run_ops import Probe, SetIntent
from scraper_supervisor.store.errors import BackupStopped, LedgerUnreadable
from scraper_supervisor.store.sqlite.backups import backup
from scraper_supervisor.store.sqlite.backups.backup import back_up, backups, changed_since, prune, remove_unfinished
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_supervisor.store.sqlite.reader import LedgerReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NEVER = threading.Event()
START = 1_777_636_800.0  # 2026-05-01T12:00:00Z


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    killed(tmp_path / "ledger.db", 40)
    ledger = Ledger.open(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


def test_a_backup_is_a_ledger_with_a_seal_in_one_file(ledger: Ledger, tmp_path: Path) -> None:
    made = back_up(tmp_path, NEVER, lambda: START + 0.25)
    assert made.path == tmp_path / "backups" / "ledger-20260501T120000.250Z.db"
    assert backups(tmp_path) == [made]
    assert made.at == START + 0.25
    assert stat.S_IMODE(made.path.parent.stat().st_mode) == 0o700
    for file in made.path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert contents(made.path) == contents(tmp_path / "ledger.db") != {}
    assert {file.name for file in made.path.parent.iterdir()} == {made.path.name, f"{made.path.name}.sha256"}


def test_a_ledger_that_is_closed_is_backed_up_without_a_trace(ledger: Ledger, tmp_path: Path) -> None:
    ledger.close()
    before = {file.name: file.read_bytes() for file in tmp_path.glob("ledger*")}
    made = back_up(tmp_path, NEVER)
    assert {file.name: file.read_bytes() for file in tmp_path.glob("ledger*")} == before
    assert contents(made.path) == contents(tmp_path / "ledger.db")


def test_a_backup_is_of_one_moment_though_the_writer_goes_on(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each step of the copy the writer commits; the log is folded back and begins anew as far as it may."""
    monkeypatch.setattr(backup, "_STEP", 2)
    ledger._db.execute("PRAGMA wal_autocheckpoint = 5")
    ledger.perform([SetIntent(1, f"name-{number}", "paused") for number in range(2000)])
    steps = []

    class Writing(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            ledger.perform([Probe(1), SetIntent(1, f"later-{len(steps)}", "paused")])
            steps.append(timeout)
            return False

    made = back_up(tmp_path, Writing())
    assert len(steps) > 10
    with LedgerReader(made.path) as reader:
        assert reader.verify() is None
        assert reader._db.execute("SELECT count(*), max(name) FROM intents").fetchone() == (2000, "name-999")
        assert reader._db.execute("SELECT count(*) FROM probes").fetchone() == (0,)


def test_a_backup_that_is_stopped_leaves_nothing(ledger: Ledger, tmp_path: Path) -> None:
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(BackupStopped, match="stopped before it was whole"):
        back_up(tmp_path, stopping)
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_backup_gives_up_before_the_log_grows_too_long(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.perform([Probe(1)])
    monkeypatch.setattr(backup, "LOG_BOUND", 1000)
    with pytest.raises(BackupStopped, match="its log grew over 1000 bytes"):
        back_up(tmp_path, NEVER)
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_damaged_ledger_is_not_kept_as_a_backup(ledger: Ledger, tmp_path: Path) -> None:
    ledger._db.execute("UPDATE results SET result = '{}' WHERE seq = 2")
    with pytest.raises(LedgerUnreadable, match=r"its backup is not sound: .*the checksum of result 2 does not fit"):
        back_up(tmp_path, NEVER)
    assert list((tmp_path / "backups").iterdir()) == []


def test_the_newest_sound_ones_are_kept(ledger: Ledger, tmp_path: Path) -> None:
    made = [back_up(tmp_path, NEVER, lambda n=n: START + n) for n in range(5)]  # type: ignore[misc]  # bound at once
    made[3].path.write_bytes(b"damaged")
    assert prune(tmp_path) == [tmp_path / "corrupt" / made[3].path.name]
    assert [one.at for one in backups(tmp_path)] == [START + 4, START + 2]
    assert {file.name for file in (tmp_path / "corrupt").iterdir()} == {
        made[3].path.name,
        f"{made[3].path.name}.sha256",
    }
    assert len(list((tmp_path / "backups").iterdir())) == 4
    assert prune(tmp_path) == []


@pytest.mark.parametrize("seal", [None, b"", b"nonsense\n" * 2])
def test_without_a_seal_a_backup_is_read_before_it_counts(ledger: Ledger, tmp_path: Path, seal: bytes | None) -> None:
    made = [back_up(tmp_path, NEVER, lambda n=n: START + n) for n in range(6)]  # type: ignore[misc]  # bound at once
    for one in made[2:]:
        path = one.path.with_name(f"{one.path.name}.sha256")
        path.unlink() if seal is None else path.write_bytes(seal)
    made[5].path.write_bytes(b"damaged")
    made[4].path.write_bytes(made[4].path.read_bytes()[:-4096])
    db = sqlite3.connect(made[3].path, isolation_level=None)
    db.execute("PRAGMA user_version = 77")
    db.close()
    assert prune(tmp_path) == [tmp_path / "corrupt" / one.path.name for one in (made[5], made[4])]
    assert [one.at for one in backups(tmp_path)] == [START + 3, START + 2, START + 1], "a later version's counts not"
    assert contents(made[2].path) == contents(made[1].path) != {}


def test_what_is_unfinished_is_removed(ledger: Ledger, tmp_path: Path) -> None:
    made = back_up(tmp_path, NEVER, lambda: START)
    folder = made.path.parent
    for name in ("ledger-20260501T130000.000Z.db.new", "ledger-20260501T130000.000Z.db.sha256"):
        (folder / name).write_bytes(b"")
    shutil.copy(made.path, folder / "ledger-20260501T130000.000Z.db.new-journal")
    remove_unfinished(tmp_path)
    assert {file.name for file in folder.iterdir()} == {made.path.name, f"{made.path.name}.sha256"}
    assert backups(tmp_path) == [made]


def test_whether_something_changed(ledger: Ledger, tmp_path: Path) -> None:
    made = back_up(tmp_path, NEVER)
    for name in ("ledger.db", "ledger.db-wal"):
        os.utime(tmp_path / name, (made.at - 1, made.at - 1))
    assert not changed_since(tmp_path, made.at)
    ledger.perform([Probe(1)])
    assert changed_since(tmp_path, made.at)
