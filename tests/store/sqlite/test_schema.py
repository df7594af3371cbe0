from __future__ import annotations

import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from scraper_supervisor.core.ops.item_ops import ReserveClaims, Reserved
from scraper_supervisor.core.ops.run_ops import LoadRun, Probe, RunImage
from scraper_supervisor.store.errors import LedgerDamaged, LedgerTooNew, LedgerUnusable, NetworkFileSystem
from scraper_supervisor.store.mounts import network_mount
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_supervisor.store.sqlite.reader import LedgerReader

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
    assert ledger._db.execute("PRAGMA user_version").fetchone() == (4,)
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


@pytest.mark.parametrize("with_log", [False, True])
def test_a_later_versions_ledger_is_left_untouched(path: Path, with_log: bool) -> None:
    Ledger.open(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 5")
    if with_log:  # it has not been folded back: the file itself still says 3
        copy = path.parent / "later"
        copy.mkdir()
        for file in ("ledger.db", "ledger.db-wal", "ledger.db.sha256"):
            shutil.copy(path.with_name(file), copy)
        (copy / "ledger.db.sha256").unlink()
    db.close()
    path = copy / "ledger.db" if with_log else path
    before = {file.name: file.read_bytes() for file in path.parent.glob("ledger*")}
    assert ("ledger.db-wal" in before) == with_log
    with pytest.raises(LedgerTooNew, match="schema version 5, this program knows versions up to 4"):
        Ledger.open(path)
    with pytest.raises(LedgerTooNew):
        LedgerReader(path)
    after = {file.name: file.read_bytes() for file in path.parent.glob("ledger*")}
    assert {name: content for name, content in after.items() if not with_log or name != "ledger.db-shm"} == before


def test_a_reader_takes_no_lock_from_the_writer_of_its_process(path: Path) -> None:
    ledger = Ledger.open(path)
    ledger.perform([Probe(1)])
    LedgerReader(path).close()
    other = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('SELECT * FROM probes'); db.close()"
    # Were the lock gone, the other process would find itself the last one, and take the log away.
    subprocess.run([sys.executable, "-c", other, str(path)], check=True)
    assert path.with_name("ledger.db-wal").stat().st_size > 0
    ledger.close()


@pytest.mark.parametrize(
    "left",
    [
        "ledger.db-wal",
        "ledger.db-journal",
        "ledger.db.sha256",
        "backups/ledger-20260501T120000Z.db",
        "checkpoints/matches-0/checkpoint-000000000001.json",
    ],
)
def test_a_missing_ledger_beside_what_it_left_is_damage(path: Path, left: str) -> None:
    (path.parent / left).parent.mkdir(parents=True, exist_ok=True)
    (path.parent / left).write_bytes(b"bytes")
    with pytest.raises(LedgerDamaged, match=f"it is missing, while {re.escape(left)} is still there"):
        Ledger.open(path)
    assert not path.exists()


# ---- deaths ----------------------------------------------------------------------------------------------------------

DYING = """
import os, sys
from pathlib import Path
from scraper_supervisor.store.sqlite.ledger import Ledger
left = int(sys.argv[2])
def step(frame, event, argument):
    global left
    left -= event in ("c_call", "c_return")
    if left <= 0:
        os._exit(9)
sys.setprofile(step)
Ledger.open(Path(sys.argv[1]))
sys.setprofile(None)
os._exit(0)
"""


def open_and_die(path: Path, step: int) -> int:
    """Open a ledger in a process that dies at that step, and tell its exit code: 9, or 0 if there are fewer steps."""
    return subprocess.run([sys.executable, "-c", DYING, str(path), str(step)], check=False).returncode


def uses_log(path: Path) -> bool:
    """Whether the file itself says so: SQLite changes nothing else to make it say so, by way of a journal."""
    return path.read_bytes()[18:20] == b"\2\2"


@pytest.mark.slow
def test_a_ledger_whose_making_ends_anywhere_opens(path: Path) -> None:
    """The process dies at each of its steps in turn: the ledger has its name when it is whole and uses the log."""
    code, step, seen = 9, 1, set()
    while code == 9:
        for file in path.parent.iterdir():
            file.unlink()
        code = open_and_die(path, step)
        seen_new = path.with_name("ledger.db.new").exists()
        seen.add((path.exists(), seen_new))
        assert not path.exists() or uses_log(path)
        ledger = Ledger.open(path)
        assert ledger.perform([Probe(1)]) == [None]
        ledger.close()
        assert {file.name for file in path.parent.iterdir()} == {"ledger.db", "ledger.db.sha256"}
        step += 4 if seen_new else 40
    assert (seen, code) == ({(False, False), (False, True), (True, False)}, 0)


def test_what_a_making_that_died_left_is_not_taken_for_its_own(path: Path) -> None:
    for ending in ("", "-journal", "-wal", "-shm"):
        path.with_name(f"ledger.db.new{ending}").write_bytes(b"x" * 8192)
    Ledger.open(path).close()
    assert uses_log(path)
    assert {file.name for file in path.parent.iterdir()} == {"ledger.db", "ledger.db.sha256"}


def die_in_a_transaction(path: Path) -> None:
    """Change a ledger that is to use no log, and die with some of its pages written: a journal has what they were."""
    program = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode = DELETE")
db.executescript("PRAGMA cache_size = 1; PRAGMA cache_spill = 1; BEGIN; UPDATE items SET attempts = 77;")
db.executemany("INSERT INTO intents VALUES (?, 'paused')", [(f"name {number}" * 9,) for number in range(1000)])
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 9
    assert path.with_name("ledger.db-journal").stat().st_size > 0


def test_what_a_death_left_in_a_journal_is_undone(path: Path) -> None:
    """Of a copy that was put in its place by hand: SQLite changes it by way of a journal to have it use the log."""
    make_version_1(path).close()
    die_in_a_transaction(path)
    with pytest.raises(LedgerUnusable):
        LedgerReader(path)  # it may not write
    Ledger.open(path).close()
    assert not path.with_name("ledger.db-journal").exists()
    assert read(path) == OLD_ROWS == read(path.with_name("ledger.db.v1"))


def test_a_journal_that_is_not_its_own_changes_nothing(path: Path) -> None:
    Ledger.open(path).close()
    before = path.read_bytes()
    other = path.parent / "other" / "ledger.db"
    other.parent.mkdir()
    make_version_1(other).close()
    die_in_a_transaction(other)
    journal = path.with_name("ledger.db-journal")
    shutil.copy(other.with_name(journal.name), journal)
    with pytest.raises(
        LedgerDamaged, match=r"it was closed, and ledger\.db-journal that is not its own lies beside it"
    ):
        Ledger.open(path)
    assert path.read_bytes() == before
    journal.unlink()
    Ledger.open(path).close()


# ---- versions --------------------------------------------------------------------------------------------------------

VERSION_1 = """
CREATE TABLE groups (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    next_claim INTEGER NOT NULL DEFAULT 1
);
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    group_id INTEGER NOT NULL REFERENCES groups (id),
    run INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'completed', 'aborted')),
    fresh_from INTEGER NOT NULL,
    done INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    parked INTEGER NOT NULL DEFAULT 0,
    waiting INTEGER NOT NULL DEFAULT 0,
    next_order INTEGER NOT NULL DEFAULT 1,
    started_at TEXT NOT NULL,
    finished_at TEXT,
    removed INTEGER NOT NULL DEFAULT 0,
    UNIQUE (group_id, run)
);
CREATE TABLE items (
    id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL REFERENCES runs (id),
    key TEXT NOT NULL,
    target TEXT,
    data TEXT,
    rank INTEGER NOT NULL,
    ord REAL NOT NULL,
    state TEXT NOT NULL DEFAULT 'open',
    not_before REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    infrastructure INTEGER NOT NULL DEFAULT 0,
    blocked INTEGER NOT NULL DEFAULT 0,
    alone INTEGER NOT NULL DEFAULT 0,
    last_claim INTEGER,
    last_outcome TEXT,
    last_answer TEXT,
    last_failure TEXT,
    worker TEXT,
    seq INTEGER,
    UNIQUE (run_id, key)
);
CREATE INDEX items_lane ON items (run_id, target, rank, ord) WHERE state = 'open' AND not_before IS NULL;
CREATE INDEX items_waiting ON items (run_id, not_before) WHERE state = 'open' AND not_before IS NOT NULL;
CREATE INDEX items_stopped ON items (run_id, state) WHERE state IN ('failed', 'parked');
CREATE TABLE results (
    run_id INTEGER NOT NULL REFERENCES runs (id),
    seq INTEGER NOT NULL,
    item_id INTEGER NOT NULL,
    result TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    finished_at TEXT NOT NULL,
    PRIMARY KEY (run_id, seq)
) WITHOUT ROWID;
CREATE TABLE lanes (
    run_id INTEGER NOT NULL REFERENCES runs (id),
    target TEXT,
    open INTEGER NOT NULL
);
CREATE INDEX lanes_target ON lanes (run_id, target);
CREATE TABLE totals (
    run_id INTEGER NOT NULL REFERENCES runs (id),
    worker TEXT NOT NULL,
    done INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    PRIMARY KEY (run_id, worker)
) WITHOUT ROWID;
CREATE TABLE intents (name TEXT PRIMARY KEY, intent TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE probes (id INTEGER PRIMARY KEY CHECK (id = 1), count INTEGER NOT NULL);
INSERT INTO groups VALUES (1, 'matches', 1025);
INSERT INTO runs VALUES
    (1, 1, 1, 'running', 1, 1, 1, 0, 1, 5, '2026-05-01T12:00:00.000Z', NULL, 0);
INSERT INTO items VALUES
    (1, 1, 'a', 'a.test', NULL, 0, 1.0, 'done', NULL, 1, 0, 0, 0, 7, 'done', NULL, NULL, 'matches-0', 1),
    (2, 1, 'b', 'a.test', '{"n":1}', 0, 2.0, 'failed', NULL, 5, 0, 0, 0, 8, 'failed', NULL, '{}', 'matches-0', NULL),
    (3, 1, 'c', 'a.test', NULL, -3, 3.0, 'open', 1777636860.5, 2, 0, 0, 1, 9, 'retry', NULL, '{}', 'matches-0', NULL),
    (4, 1, 'd', NULL, NULL, 0, 4.0, 'open', NULL, 0, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO results VALUES (1, 1, 1, '{"x":1}',
    '5041bf1f713df204784353e82f6a4a535931cb64f1f4b4a5aeaffcb720918b22', 1, '2026-05-01T12:00:01.000Z');
INSERT INTO lanes VALUES (1, NULL, 1);
INSERT INTO totals VALUES (1, 'matches-0', 1, 1);
PRAGMA user_version = 1;
"""


def make_version_1(path: Path, more: str = "") -> sqlite3.Connection:
    """As the first release made it; what is in `more` stays in its log."""
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(f"PRAGMA journal_mode = MEMORY; {VERSION_1}; PRAGMA journal_mode = WAL; {more}")
    return db


def read(path: Path) -> dict[str, tuple[object, ...]]:
    with LedgerReader(path) as reader:
        assert reader.verify() is None
        rows = {row.key: (row.state, row.attempts, row.target, row.not_before) for row in reader.items("matches")}
        results = [(row.seq, row.key, bytes(row.result)) for row in reader.results("matches")]
        assert results == [(1, "a", b'{"x":1}')]
        return rows


OLD_ROWS = {
    "a": ("done", 1, "a.test", None),
    "b": ("failed", 5, "a.test", None),
    "c": ("waiting", 2, "a.test", "2026-05-01T12:01:00.500Z"),
    "d": ("pending", 0, None, None),
}


def schema(path: Path) -> dict[str, str]:
    db = sqlite3.connect(path)
    rows = dict(db.execute("SELECT name, sql FROM sqlite_schema").fetchall())
    db.close()
    return rows


def test_an_older_ledger_is_read_as_it_is_and_migrated_when_written_to(path: Path) -> None:
    make_version_1(path).close()
    before = path.read_bytes()
    assert read(path) == OLD_ROWS
    assert path.read_bytes() == before
    ledger = Ledger.open(path)
    image = ledger.perform([LoadRun(1, "matches")])[0]
    assert isinstance(image, RunImage)
    assert (image.done, image.failed, image.waiting) == (1, 1, 1)
    assert ledger.perform([ReserveClaims(1, "matches", 5)]) == [Reserved(1025, 1030)]
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        ledger._db.execute("UPDATE items SET state = 'openn'")
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        ledger._db.execute("UPDATE items SET last_outcome = ''")
    ledger.close()
    assert read(path) == OLD_ROWS == read(path.with_name("ledger.db.v1"))
    assert stat.S_IMODE(path.with_name("ledger.db.v1").stat().st_mode) == 0o600
    fresh = path.parent / "fresh" / "ledger.db"
    fresh.parent.mkdir()
    Ledger.open(fresh).close()
    assert schema(path) == schema(fresh)
    db = sqlite3.connect(path.with_name("ledger.db.v1"))
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    db.close()


def test_the_copy_of_an_older_ledger_holds_what_was_in_its_log(path: Path) -> None:
    db = make_version_1(path, "UPDATE items SET attempts = 4 WHERE key = 'd'")
    copy = path.parent / "killed"
    copy.mkdir()
    for name in ("ledger.db", "ledger.db-wal"):
        shutil.copy(path.with_name(name), copy)
    db.close()
    path = copy / "ledger.db"
    Ledger.open(path).close()
    expected = OLD_ROWS | {"d": ("pending", 4, None, None)}
    assert read(path) == expected == read(path.with_name("ledger.db.v1"))


@pytest.mark.slow
def test_a_migration_that_ends_anywhere_leaves_the_old_or_the_new(path: Path) -> None:
    """The process dies at each of its steps in turn; the next one opens what is left."""
    make_version_1(path).close()
    origin = path.read_bytes()
    seen, code, step = set(), 9, 1
    while code == 9:
        for file in path.parent.iterdir():
            file.unlink()
        path.write_bytes(origin)
        code = open_and_die(path, step)
        db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        (version,) = db.execute("PRAGMA user_version").fetchone()
        db.close()
        seen.add(version)
        assert read(path) == OLD_ROWS
        assert version == 1 or read(path.with_name("ledger.db.v1")) == OLD_ROWS
        Ledger.open(path).close()
        assert read(path) == OLD_ROWS
        step += 30
    assert (seen, code) == ({1, 4}, 0)


def test_an_older_ledger_that_is_not_what_it_says_stays_as_it_is(path: Path) -> None:
    make_version_1(path, "UPDATE items SET state = 'opem' WHERE key = 'd'").close()
    for _ in range(2):
        with pytest.raises(LedgerDamaged, match="can't be migrated from schema version 1: item 'd' is in no state"):
            Ledger.open(path)
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    assert db.execute("SELECT count(*) FROM items WHERE state = 'opem'").fetchone() == (1,)
    db.close()


# ---- where it is -----------------------------------------------------------------------------------------------------


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
