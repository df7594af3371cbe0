"""How a ledger of an older version becomes one of this version: a chain of steps, in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scraper_supervisor.store.errors import LedgerDamaged
from scraper_supervisor.store.files import Files
from scraper_supervisor.store.sqlite.backups.copies import durable_copy

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from pathlib import Path

_ITEMS_2: Final = (
    (
        "    state TEXT NOT NULL DEFAULT 'open',",
        "    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'parked', 'done', 'failed')),",
    ),
    (
        "    last_outcome TEXT,",
        "    last_outcome TEXT CHECK (last_outcome IN ('done', 'failed', 'retry', 'open')),",
    ),
)
_RESTORES_2: Final = """CREATE TABLE restores (
    id INTEGER PRIMARY KEY,
    restored_at TEXT NOT NULL,
    backup TEXT NOT NULL,
    backup_at TEXT NOT NULL
)"""


def _to_2(db: sqlite3.Connection) -> None:
    """States and outcomes are checked, and restores are told of."""
    row = db.execute(
        "SELECT key FROM items WHERE state NOT IN ('open', 'parked', 'done', 'failed')"
        " OR last_outcome NOT IN ('done', 'failed', 'retry', 'open') LIMIT 1"
    ).fetchone()
    if row is not None:
        raise ValueError(f"item {row[0]!r} is in no state that there is")
    # A constraint is in the schema's text alone: no row is written anew, a million of them are read once. See "Making
    # Other Kinds Of Table Schema Changes" in https://sqlite.org/lang_altertable.html.
    (sql,) = db.execute("SELECT sql FROM sqlite_schema WHERE name = 'items'").fetchone()
    for old, new in _ITEMS_2:
        if sql.count(old) != 1:
            raise ValueError("the table items is not as version 1 made it")
        sql = sql.replace(old, new)
    (schema_version,) = db.execute("PRAGMA schema_version").fetchone()
    db.execute("PRAGMA writable_schema = ON")
    try:
        db.execute("UPDATE sqlite_schema SET sql = ? WHERE type = 'table' AND name = 'items'", (sql,))
        db.execute(f"PRAGMA schema_version = {schema_version + 1}")
    finally:
        db.execute("PRAGMA writable_schema = RESET")
    db.execute(_RESTORES_2)


def _to_3(db: sqlite3.Connection) -> None:
    """Sources that were offered to their end are known, and targets that are what an attempt reported."""
    db.execute("ALTER TABLE runs ADD COLUMN offered INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE runs ADD COLUMN host TEXT")
    db.execute("ALTER TABLE runs ADD COLUMN hosts INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE items ADD COLUMN given INTEGER NOT NULL DEFAULT 1")
    db.execute("UPDATE items SET given = 0 WHERE target IS NULL")  # of the others nobody knows any more: they stay


def _to_4(db: sqlite3.Connection) -> None:
    """A run remembers the entrypoint that works on it."""
    db.execute("ALTER TABLE runs ADD COLUMN entrypoint TEXT")


STEPS: Final[tuple[Callable[[sqlite3.Connection], None], ...]] = (_to_2, _to_3, _to_4)  # from version 1, from 2, …
VERSION: Final = len(STEPS) + 1  # PRAGMA user_version


def keep_copy(path: Path, db: sqlite3.Connection, version: int) -> Path:
    """Copy a ledger, its log included, to a durable file beside it: `ledger.db.v1` for version 1.

    Args:
        path: The ledger.
        db: A connection to it.
        version: Its version.

    Raises:
        sqlite3.Error, OSError: The disk does not take it; the ledger is as it was.
    """
    copy = path.with_name(f"{path.name}.v{version}")
    new = path.with_name(f"{copy.name}.new")
    durable_copy(db, new)
    new.rename(copy)
    Files().sync_folder(path.parent)
    return copy


def migrate(path: Path, db: sqlite3.Connection, version: int) -> None:
    """Carry out the steps from `version` on in one transaction: a crash leaves the old version or the new.

    Raises:
        LedgerDamaged: The ledger is not what its version says.
        sqlite3.Error: The disk does not take it; the ledger is as it was.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        for step in STEPS[version - 1 :]:
            step(db)
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")
    except ValueError as error:
        db.execute("ROLLBACK")
        raise LedgerDamaged(path, f"it can't be migrated from schema version {version}: {error}") from None
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
