"""The ledger's tables, and how its file is made and opened."""

from __future__ import annotations

import os
import sqlite3
from errno import EIO
from typing import TYPE_CHECKING, Final

from scraper_supervisor.store.faults import LedgerDamaged, LedgerTooNew, LedgerUnusable, LedgerUnwritable, disk_fault
from scraper_supervisor.store.mounts import refuse_network

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME: Final = "ledger.db"
VERSION: Final = 1  # PRAGMA user_version

_BUSY: Final = 5.0  # seconds to wait for another process's transaction (a backup, an operator's sqlite3)
_CACHE: Final = 16_384  # KiB
_WAL_PAGES: Final = 4_000  # copied back into the file when the log has grown to this many
_WAL_LIMIT: Final = 64 * 1024 * 1024  # bytes that the log keeps on disk after it was larger

# items.state is open, parked, done or failed; who holds an open item is the daemon's knowledge. `rank` is the priority
# negated and `ord` the place within it (see records.Entry), so that (rank, ord) > (?, ?) is one range of an index.
# An open item with a not_before is waiting, also when that time has passed. lanes, totals and the counts in runs are
# kept in the transaction that changes the items: starting with a million of them counts none.
_TABLES: Final = """
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
"""


def open_ledger(path: Path) -> sqlite3.Connection:
    """Open the ledger for writing; it is made if there is none.

    Raises:
        NetworkFileSystem: The file would be on one.
        LedgerDamaged: The file is no ledger, or is not whole. It stays in place.
        LedgerTooNew: A later version wrote it. It is left untouched.
        LedgerUnusable: It cannot be opened, by its permissions or the disk.
        LedgerUnwritable: It is sound, and the disk refuses what has to be written before it can be used.
    """
    refuse_network(path.parent)
    try:
        if not path.exists():
            _create(path)
        open_reader(path).close()  # looks at the version without writing, as the next line might
        return _connect(path)
    except sqlite3.DatabaseError as error:
        raise _refusal(path, error) from error
    except OSError as error:
        raise LedgerUnusable(path, error.strerror or str(error), error.errno or EIO) from error


def open_reader(path: Path) -> sqlite3.Connection:
    """Open an existing ledger for reading only, whoever else has it open.

    Raises:
        FileNotFoundError: There is none.
        LedgerDamaged, LedgerTooNew, LedgerUnusable: As with `open_ledger`.
    """
    # The file is looked at through SQLite alone: closing a descriptor of our own would drop the locks that SQLite holds
    # on it for another connection of this process (they are POSIX locks).
    if path.stat().st_size == 0:
        raise LedgerDamaged(path, "it is empty")
    try:
        db = sqlite3.connect(_uri(path, "ro"), uri=True, isolation_level=None, timeout=_BUSY)
        try:
            _check_version(path, db)
        except BaseException:
            db.close()
            raise
    except sqlite3.DatabaseError as error:
        raise _refusal(path, error) from error
    return db


def _refusal(path: Path, error: sqlite3.DatabaseError) -> LedgerUnusable:
    damaged = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
    if damaged:
        return LedgerDamaged(path, str(error))
    fault = disk_fault(error)
    return LedgerUnusable(path, str(error), EIO if fault is None else fault.errno)


def _create(path: Path) -> None:
    """Make the file under another name and rename it: an empty ledger is then always a damaged one."""
    if path.with_name(path.name + "-wal").exists():
        raise LedgerDamaged(path, f"it is missing, while its log {path.name}-wal is still there")
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        db = sqlite3.connect(_uri(new, "rw"), uri=True, isolation_level=None)
        try:
            db.executescript(f"PRAGMA journal_mode = MEMORY; BEGIN; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
        finally:
            db.close()
        os.fsync(fd)
    finally:
        os.close(fd)
    new.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _connect(path: Path) -> sqlite3.Connection:
    # Opened by the thread that starts the daemon, used by the writer's thread alone.
    db = sqlite3.connect(_uri(path, "rw"), uri=True, isolation_level=None, timeout=_BUSY, check_same_thread=False)
    try:
        _check_version(path, db)
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise LedgerUnusable(path, f"its journal mode is {mode}, expected wal")
        db.executescript(
            "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY;"
            f"PRAGMA cache_size = -{_CACHE}; PRAGMA wal_autocheckpoint = {_WAL_PAGES};"
            f"PRAGMA journal_size_limit = {_WAL_LIMIT};"
        )
        # What is in the log may never have reached the disk, though it can be read: a sync that failed before the
        # process ended would leave it so, and what is appended behind it would be lost with it. Written once more:
        try:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError as error:
            fault = disk_fault(error)
            raise LedgerUnwritable(path, str(error), EIO if fault is None else fault.errno) from error
    except BaseException:
        db.close()
        raise
    return db


def _check_version(path: Path, db: sqlite3.Connection) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise LedgerTooNew(path, version, VERSION)
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    missing = {"groups", "runs", "items", "results", "lanes", "totals", "intents", "probes"} - tables
    if version < 1 or missing:
        raise LedgerDamaged(path, "it is an SQLite database, but not a ledger of this program")


def _uri(path: Path, mode: str) -> str:
    return f"{path.absolute().as_uri()}?mode={mode}"
