"""The ledger's tables, and how its file is made and opened."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, contextmanager
from errno import EBUSY, EIO
from typing import TYPE_CHECKING, Final

from scraper_supervisor.store.errors import LedgerDamaged, LedgerTooNew, LedgerUnusable, LedgerUnwritable, disk_fault
from scraper_supervisor.store.files import Files
from scraper_supervisor.store.mounts import refuse_network
from scraper_supervisor.store.sqlite import migrations
from scraper_supervisor.store.sqlite.integrity import wal_check as wal
from scraper_supervisor.store.sqlite.integrity.lock_safe_io import GUARD, pread_all, reading
from scraper_supervisor.store.sqlite.integrity.seal import broken_seal, seal_of, unseal
from scraper_supervisor.store.sqlite.migrations import VERSION

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

FILE_NAME: Final = "ledger.db"
BACKUPS: Final = "backups"  # the folder beside it; see store/sqlite/backups/backup.py
BACKUP_NAMES: Final = "ledger-*.db"

_BUSY: Final = 5.0  # seconds to wait for another process's transaction (a backup, an operator's sqlite3)
_CACHE: Final = 16_384  # KiB
_WAL_LIMIT: Final = 64 * 1024 * 1024  # bytes that the log keeps on disk after it was larger

# items.state is open, parked, done or failed; who holds an open item is the daemon's knowledge. `rank` is the priority
# negated and `ord` the place within it (see item_ops.Entry), so that (rank, ord) > (?, ?) is one range of an index.
# `given` tells a target that was offered with the item, or is its key's host, from one that an attempt reported.
# runs.offered: a worker has offered its source to the end; `host` is what the attempts reported, while `hosts` is 1.
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
    removed INTEGER NOT NULL DEFAULT 0, offered INTEGER NOT NULL DEFAULT 0, host TEXT,\
 hosts INTEGER NOT NULL DEFAULT 0, entrypoint TEXT,
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
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'parked', 'done', 'failed')),
    not_before REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    infrastructure INTEGER NOT NULL DEFAULT 0,
    blocked INTEGER NOT NULL DEFAULT 0,
    alone INTEGER NOT NULL DEFAULT 0,
    last_claim INTEGER,
    last_outcome TEXT CHECK (last_outcome IN ('done', 'failed', 'retry', 'open')),
    last_answer TEXT,
    last_failure TEXT,
    worker TEXT,
    seq INTEGER, given INTEGER NOT NULL DEFAULT 1,
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
CREATE TABLE restores (
    id INTEGER PRIMARY KEY,
    restored_at TEXT NOT NULL,
    backup TEXT NOT NULL,
    backup_at TEXT NOT NULL
);
"""
_SINCE_1: Final = frozenset({"groups", "runs", "items", "results", "lanes", "totals", "intents", "probes"})
_SINCE_2: Final = frozenset({"restores"})
_MAGIC: Final = b"SQLite format 3\0"
_VERSION_AT: Final = 60  # of the file: user_version, big-endian


def open_ledger(path: Path, *, create: bool = True) -> sqlite3.Connection:
    """Open the ledger for writing; one of an older version is migrated, and its copy kept as `ledger.db.v<version>`.

    Args:
        path: The file.
        create: Make it if there is none. Beside what a ledger leaves behind, a missing one is damage all the same.

    Raises:
        NetworkFileSystem: The file would be on one.
        LedgerDamaged: The file is no ledger, or is not whole. It stays in place.
        LedgerTooNew: A later version wrote it. It is left untouched.
        LedgerUnusable: It cannot be opened, by its permissions or the disk.
        LedgerUnwritable: It is sound, and the disk refuses what has to be written before it can be used.
    """
    refuse_network(path.parent)
    with refusals(path):
        if not path.exists():
            _create(path, create=create)
        with GUARD:
            roll_back(path)
            reader = open_reader(path)  # looks without writing, as the following lines might
            try:
                (version,) = reader.execute("PRAGMA user_version").fetchone()
                reason = _quick_check(reader) or broken_seal(path)
                if reason is not None:
                    raise LedgerDamaged(path, reason)
                if version < VERSION:
                    migrations.keep_copy(path, reader, version)
            finally:
                reader.close()
            unseal(path)
            return _connect(path)


def journal_of(path: Path) -> Path:
    """A ledger's rollback journal. None of ours has one: it is made to use the log before it gets its name."""
    return path.with_name(f"{path.name}-journal")


def roll_back(path: Path) -> None:
    """Undo what a process that died had begun to change by way of a rollback journal; harmless if there is none.

    Of a ledger that was put in its place by hand, SQLite notes in such a journal that it is to use the log from now on.
    No connection that only reads can open what is left then. The caller has the ledger to itself.

    Raises:
        LedgerDamaged, LedgerTooNew: The file is no ledger of ours, or the journal is not its own; both stay.
        sqlite3.Error, OSError: The disk refuses.
    """
    journal = journal_of(path)
    if not wal.size_of(journal) or not path.exists():
        return
    _look_at_header(path)
    if seal_of(path).exists():
        raise LedgerDamaged(path, f"it was closed, and {journal.name} that is not its own lies beside it; remove that")
    with GUARD, closing(sqlite3.connect(uri(path, "rw"), uri=True, isolation_level=None, timeout=_BUSY)) as db:
        db.execute("SELECT count(*) FROM sqlite_schema").fetchone()


def open_reader(path: Path) -> sqlite3.Connection:
    """Open an existing ledger for reading only, whoever else has it open. One of an older version is read as it is.

    Raises:
        FileNotFoundError: There is none.
        LedgerDamaged, LedgerTooNew, LedgerUnusable: As with `open_ledger`.
    """
    with refusals(path, absent=True), GUARD:
        _look_at_header(path)
        foreign_log = seal_of(path).exists() and wal.size_of(wal.log_of(path)) > 0
        reason = broken_seal(path) if foreign_log else wal.torn_off(path)
        if reason is not None:
            raise LedgerDamaged(path, reason)
        db = open_anyway(path)
        try:
            _check_version(path, db)
            (page,) = db.execute("PRAGMA page_size").fetchone()
            (pages,) = db.execute("PRAGMA page_count").fetchone()
            reason = wal.hole(path) or wal.uncovered(path, page, pages)
            if reason is not None:
                raise LedgerDamaged(path, reason)
        except BaseException:
            db.close()
            raise
        return db


def open_anyway(path: Path) -> sqlite3.Connection:
    """A connection for reading only, whatever the file is like.

    Raises:
        sqlite3.DatabaseError: SQLite cannot open it.
    """
    with GUARD:
        return sqlite3.connect(uri(path, "ro"), uri=True, isolation_level=None, timeout=_BUSY)


def refusal(path: Path, error: sqlite3.Error) -> LedgerUnusable:
    """What an error of SQLite says of a ledger."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)  # none: a text is not UTF-8
    damaged = code & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
    if damaged:
        return LedgerDamaged(path, str(error))
    fault = disk_fault(error)
    return LedgerUnusable(path, str(error), EIO if fault is None else fault.errno)


def uri(path: Path, mode: str) -> str:
    """A file's name as `sqlite3.connect` takes it with a mode: ro, rw."""
    return f"{path.absolute().as_uri()}?mode={mode}"


def remains(path: Path) -> str | None:
    """What a ledger that is gone has left, as a path in its folder; a run must not begin from nothing beside it."""
    for beside in (wal.log_of(path), journal_of(path), seal_of(path)):
        if beside.exists():
            return beside.name
    for pattern in (f"{BACKUPS}/{BACKUP_NAMES}", "checkpoints/*/checkpoint-*"):
        found = next(path.parent.glob(pattern), None)
        if found is not None:
            return str(found.relative_to(path.parent))
    return None


def missing_beside(left: str) -> str:
    """What is wrong where a ledger is gone and has left this."""
    return f"it is missing, while {left} is still there"


@contextmanager
def refusals(path: Path, *, absent: bool = False) -> Generator[None]:
    """Turn what SQLite and the system raise into what `open_ledger` does; `absent` lets FileNotFoundError through."""
    try:
        yield
    except sqlite3.Error as error:
        raise refusal(path, error) from error
    except UnicodeDecodeError as error:  # of SQLite's message, which quotes a damaged schema
        raise LedgerDamaged(path, "its schema is damaged") from error
    except OSError as error:
        if absent and isinstance(error, FileNotFoundError):
            raise
        raise LedgerUnusable(path, error.strerror or str(error), error.errno or EIO) from error


def _look_at_header(path: Path) -> None:
    """Refuse what is no database or too new before SQLite has touched anything beside it."""
    with reading(path) as fd:
        head = pread_all(fd, _VERSION_AT + 4, 0)
    if not head:
        raise LedgerDamaged(path, "it is empty")
    if not head.startswith(_MAGIC) or len(head) < _VERSION_AT + 4:
        raise LedgerDamaged(path, "it is no SQLite database")
    version = int.from_bytes(head[_VERSION_AT:], "big", signed=True)
    if version > VERSION:
        raise LedgerTooNew(path, version, VERSION)


def _create(path: Path, *, create: bool) -> None:
    """Make the file under another name and rename it: an empty ledger is then always a damaged one."""
    left = remains(path)
    if left is not None:
        raise LedgerDamaged(path, missing_beside(left))
    if not create:
        raise LedgerDamaged(path, "it is missing")
    new = path.with_name(path.name + ".new")
    discard(new)
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        db = sqlite3.connect(uri(new, "rw"), uri=True, isolation_level=None)
        try:
            db.executescript(f"PRAGMA journal_mode = MEMORY; BEGIN; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
            use_log(new, db)
        finally:
            db.close()
        os.fsync(fd)
    finally:
        os.close(fd)
    new.rename(path)
    Files().sync_folder(path.parent)


def discard(new: Path) -> None:
    """Remove a ledger that has not its name yet, with all that SQLite left beside it.

    Raises:
        OSError: The disk refuses.
    """
    for file in (journal_of(new), wal.log_of(new), new.with_name(f"{new.name}-shm"), new):
        file.unlink(missing_ok=True)


def use_log(path: Path, db: sqlite3.Connection) -> None:
    """Have a ledger use the write-ahead log; that is kept in its file.

    Raises:
        LedgerUnusable: SQLite does not do it.
    """
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise LedgerUnusable(path, f"its journal mode is {mode}, expected wal")


def _connect(path: Path) -> sqlite3.Connection:
    # Opened by the thread that starts the daemon, used by the writer's thread alone.
    db = sqlite3.connect(uri(path, "rw"), uri=True, isolation_level=None, timeout=_BUSY, check_same_thread=False)
    try:
        version = _check_version(path, db)
        use_log(path, db)
        db.executescript(
            "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY;"
            f"PRAGMA cache_size = -{_CACHE}; PRAGMA wal_autocheckpoint = 0;"  # see Ledger._fold
            f"PRAGMA journal_size_limit = {_WAL_LIMIT};"
        )
        # What is in the log may never have reached the disk, though it can be read: a sync that failed before the
        # process ended would leave it so, and what is appended behind it would be lost with it. Written once more:
        try:
            busy, logged, folded = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError as error:
            fault = disk_fault(error)
            raise LedgerUnwritable(path, str(error), EIO if fault is None else fault.errno) from error
        if busy or folded != logged:  # which is no error to SQLite
            raise LedgerUnwritable(path, "another process is reading it; end that, or try again", EBUSY)
        if version < VERSION:
            migrations.migrate(path, db, version)
    except BaseException:
        db.close()
        raise
    return db


def _check_version(path: Path, db: sqlite3.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise LedgerTooNew(path, version, VERSION)
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    needed = _SINCE_1 | _SINCE_2 if version >= 2 else _SINCE_1
    if version < 1 or not needed <= tables:
        raise LedgerDamaged(path, "it is an SQLite database, but not a ledger of this program")
    return int(version)


def _quick_check(db: sqlite3.Connection) -> str | None:
    """What can be told of the whole by a few rows: the results of each run are numbered from 1 to what is done."""
    row = db.execute(
        "SELECT name, run, done, (SELECT max(seq) FROM results WHERE run_id = runs.id) AS last"
        " FROM runs JOIN groups ON groups.id = group_id WHERE NOT removed AND done != coalesce(last, 0)"
    ).fetchone()
    if row is None:
        return None
    name, run, done, last = row
    return f"run {run} of {name} has {done} items done, and its last result is {last or 0}"
