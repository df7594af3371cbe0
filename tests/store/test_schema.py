from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from scraper_supervisor.core.records import Probe
from scraper_supervisor.store.faults import LedgerDamaged, LedgerTooNew, LedgerUnusable, NetworkFileSystem
from scraper_supervisor.store.ledger import Ledger
from scraper_supervisor.store.mounts import network_mount
from scraper_supervisor.store.queries import LedgerReader

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def test_the_file_is_private_and_as_the_contract_says(path: Path) -> None:
    ledger = Ledger.open(path)
    assert ledger.perform([Probe(1)]) == [None]
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert ledger._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert ledger._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert ledger._db.execute("PRAGMA foreign_keys").fetchone() == (1,)
    assert ledger._db.execute("PRAGMA user_version").fetchone() == (1,)
    ledger.close()


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 50, b"SQLite format 3\0" + b"\xff" * 4080])
def test_a_file_that_is_no_database_stays_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(LedgerUnusable, match="the ledger does not open"):
        Ledger.open(path)
    with pytest.raises(LedgerUnusable):
        LedgerReader(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_refused(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE users (name)")
    db.commit()
    db.close()
    with pytest.raises(LedgerDamaged, match="not a ledger of this program"):
        Ledger.open(path)


def test_a_later_versions_ledger_is_left_untouched(path: Path) -> None:
    Ledger.open(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 2")
    db.close()
    content = path.read_bytes()
    with pytest.raises(LedgerTooNew, match="schema version 2, this program knows versions up to 1"):
        Ledger.open(path)
    assert path.read_bytes() == content


def test_a_reader_takes_no_lock_from_the_writer_of_its_process(path: Path) -> None:
    ledger = Ledger.open(path)
    ledger.perform([Probe(1)])
    LedgerReader(path).close()
    other = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('SELECT * FROM probes'); db.close()"
    # Were the lock gone, the other process would find itself the last one, and take the log away.
    subprocess.run([sys.executable, "-c", other, str(path)], check=True)
    assert path.with_name("ledger.db-wal").stat().st_size > 0
    ledger.close()


def test_a_missing_ledger_beside_its_log_is_damage(path: Path) -> None:
    path.with_name("ledger.db-wal").write_bytes(b"frames")
    with pytest.raises(LedgerDamaged, match=r"ledger\.db-wal is still there"):
        Ledger.open(path)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnusable, match="No such file"):
        Ledger.open(tmp_path / "none" / "ledger.db")


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /srv/my\\040data rw - nfs4 server:/export rw
31 22 0:41 / /srv/my\\040data/local rw - xfs /dev/vdb rw
32 22 0:42 / /mnt/ssh rw - fuse.sshfs host: rw
33 22 0:43 / /mnt/ntfs rw - fuseblk /dev/sdc rw
34 22 0:44 / /mnt/twice rw - cifs //host/share rw
35 22 0:45 / /mnt/twice rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/lib/x", None),
        ("/srv/my data", "nfs4"),
        ("/srv/my data/deep/er", "nfs4"),
        ("/srv/my database", None),
        ("/srv/my data/local/x", None),
        ("/mnt/ssh/x", "fuse.sshfs"),
        ("/mnt/ntfs/x", None),
        ("/mnt/twice/x", None),
    ],
)
def test_network_file_systems_are_told_by_the_mount_table(folder: str, kind: str | None) -> None:
    assert network_mount(MOUNTS, folder) == kind


def test_a_network_file_system_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scraper_supervisor.store.mounts.network_mount", lambda *_: "nfs4")
    with pytest.raises(NetworkFileSystem, match=r"on a network file system \(nfs4\)"):
        Ledger.open(path)
    assert not path.exists()
