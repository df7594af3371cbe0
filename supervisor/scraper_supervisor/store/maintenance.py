"""What is done with the ledger as a whole, beside its daily use: it is backed up, checked and restored.

These are SQLite's files. Of a ledger on PostgreSQL this program makes no backups, and restores none: those who run the
server do, with its tools; `check` would hold the rows against their checksums and counts.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from scraper_supervisor.store.errors import StoreError
from scraper_supervisor.store.sqlite.backups import backup, restore
from scraper_supervisor.store.sqlite.integrity.seal import damaged_seal, seal_of
from scraper_supervisor.store.sqlite.schema import FILE_NAME, remains

if TYPE_CHECKING:
    from threading import Event

    from scraper_supervisor.store.opening import LedgerLocation
    from scraper_supervisor.store.sqlite.backups.restore import Restored as Restored


class FileCheck(Struct, frozen=True):
    """A file of the ledger or of its backups that was read wholly; `reason` tells what is wrong, None if nothing."""

    path: Path
    reason: str | None


def ledger_size(where: LedgerLocation) -> int:
    """Bytes that a backup takes."""
    return backup.ledger_size(where.state_dir)


def is_small(where: LedgerLocation) -> bool:
    """True if a backup takes well under a second."""
    return ledger_size(where) <= backup.SMALL


def remove_unfinished(where: LedgerLocation) -> None:
    """Remove what a backup that was cut off left behind.

    Raises:
        OSError: The disk refuses.
    """
    backup.remove_unfinished(where.state_dir)


def backup_is_due(where: LedgerLocation) -> bool:
    """True if there is no backup, or the ledger was written to since the newest one."""
    newest = next(iter(backup.backups(where.state_dir)), None)
    return newest is None or backup.changed_since(where.state_dir, newest.at)


def back_up(where: LedgerLocation, stopping: Event) -> Path:
    """Make a backup of the ledger while it is written to; blocks meanwhile, with rests.

    Args:
        where: The location; only one process may make backups there.
        stopping: Once it is set, the backup is given up.

    Raises:
        BackupStopped: It was given up, or the log grew too long.
        StoreError: The ledger is not sound, or does not open; or the disk refuses.
        OSError: The disk refuses. Nothing is left of the backup.
    """
    try:
        return backup.back_up(where.state_dir, stopping).path
    except sqlite3.Error as error:
        raise StoreError(f"{where}: {error}") from error


def prune_backups(where: LedgerLocation) -> list[Path]:
    """Keep the newest sound backups, and remove those before; tells which were found damaged, and where they are now.

    Raises:
        StoreError, OSError: The disk refuses.
    """
    try:
        return backup.prune(where.state_dir)
    except sqlite3.Error as error:
        raise StoreError(f"{where}: {error}") from error


def check(where: LedgerLocation) -> list[FileCheck]:
    """Read the ledger and its backups wholly; of their seals, those that are damaged themselves are told."""
    path = where.state_dir / FILE_NAME
    found: list[FileCheck] = []
    if path.exists() or remains(path) is not None:
        found.append(FileCheck(path, restore.fault(path)))
    for one in backup.backups(where.state_dir):
        reason = restore.fault(one.path)
        if reason is None or one.path.exists():  # else a daemon has removed it meanwhile
            found.append(FileCheck(one.path, reason))
    seals = [FileCheck(seal_of(one.path), _seal_fault(one.path)) for one in found]
    return found + [seal for seal in seals if seal.reason is not None]


def restore_ledger(where: LedgerLocation) -> Restored:
    """Put the newest sound backup in the ledger's place; the damaged files are moved aside.

    Args:
        where: The location; the caller has its state folder locked.

    Raises:
        StoreError: The ledger is sound, there is no sound backup, or the ledger cannot be read for another reason than
            damage; nothing was changed.
        OSError: The disk refuses. The same call may be made again.
    """
    return restore.restore(where.state_dir)


def _seal_fault(path: Path) -> str | None:
    try:
        return damaged_seal(path)
    except OSError as error:
        return f"it can't be read: {error.strerror or error}"
