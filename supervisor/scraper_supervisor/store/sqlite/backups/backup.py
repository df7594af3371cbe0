"""Backups of the ledger, made while it is written to: `backups/ledger-<UTC time>.db`, each with a seal beside it."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from scraper_supervisor.core.formats.timestamps import timestamp
from scraper_supervisor.store.errors import BackupStopped, LedgerDamaged, LedgerTooNew, LedgerUnreadable
from scraper_supervisor.store.files import Files
from scraper_supervisor.store.sqlite.backups.copies import copy_into
from scraper_supervisor.store.sqlite.integrity import wal_check as wal
from scraper_supervisor.store.sqlite.integrity.seal import broken_seal, digest, has_seal, seal_of, write_seal
from scraper_supervisor.store.sqlite.integrity.verify import find_damage
from scraper_supervisor.store.sqlite.schema import BACKUP_NAMES, BACKUPS, FILE_NAME, open_reader, uri

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

KEPT: Final = 2  # sound backups
LOG_BOUND: Final = 256 * 1024 * 1024  # bytes of log at which a backup gives up: while it reads, the log can't shrink
SMALL: Final = 64 * 1024 * 1024  # bytes of a ledger that is copied in well under a second, and checked as wholly
CORRUPT: Final = "corrupt"  # the folder that damaged files are moved to

_STEP: Final = 256  # pages copied at once, 1 MiB
_SYNCED: Final = 8 * 1024 * 1024  # bytes written at most between two syncs, so that the writer's own never waits long
_TICK: Final = 0.05  # seconds that the kernel's times of files are behind its clock, at most
_NEW: Final = ".new"
_TIME: Final = re.compile(r"ledger-(\d{8}T\d{6}\.\d{3}Z)\.db", re.ASCII)


class Backup(Struct, frozen=True):
    """A backup; `at` is when what it holds was read, in wall-clock seconds."""

    path: Path
    at: float


def backups(state_dir: Path) -> list[Backup]:
    """The backups in a state folder, the newest first; whether they are sound is not looked at."""
    found = [
        Backup(path, datetime.strptime(name[1], "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC).timestamp())
        for path in (state_dir / BACKUPS).glob(BACKUP_NAMES)
        if (name := _TIME.fullmatch(path.name))
    ]
    return sorted(found, key=lambda one: one.at, reverse=True)


def changed_since(state_dir: Path, at: float) -> bool:
    """True if the ledger's files were written to since then. Folding the log back writes to them too."""
    path = state_dir / FILE_NAME
    written = [file.stat().st_mtime for file in (path, wal.log_of(path)) if file.exists()]
    return max(written, default=0.0) >= at - _TICK


def ledger_size(state_dir: Path) -> int:
    """Bytes of the ledger and its log."""
    path = state_dir / FILE_NAME
    return wal.size_of(path) + wal.size_of(wal.log_of(path))


def remove_unfinished(state_dir: Path) -> None:
    """Remove what a backup that was cut off left behind.

    Raises:
        OSError: The disk refuses.
    """
    for path in (state_dir / BACKUPS).glob(f"ledger-*{_NEW}*"):
        path.unlink()
    for path in (state_dir / BACKUPS).glob("ledger-*.db.sha256"):
        if not path.with_suffix("").exists():
            path.unlink()


def back_up(state_dir: Path, stopping: Event, clock: Callable[[], float] = time.time) -> Backup:
    """Copy the ledger as it is now, check the copy, and keep it durably; the writer goes on meanwhile.

    The copy is made in steps, with as much rest between as they take.

    Args:
        state_dir: The state folder; only one process may make backups in it.
        stopping: Once it is set, the backup is given up.
        clock: Wall-clock seconds.

    Raises:
        BackupStopped: It was given up, or the log grew too long.
        LedgerUnreadable, LedgerUnusable: The ledger is not sound, or does not open.
        sqlite3.Error, OSError: The disk refuses. Nothing is left of the backup.
    """
    Files().make_folder(state_dir / BACKUPS)
    at = clock()
    moment = timestamp(at).replace("-", "").replace(":", "")
    final = state_dir / BACKUPS / f"ledger-{moment}.db"
    new = final.with_name(final.name + _NEW)
    _copy(state_dir / FILE_NAME, new, stopping)
    try:
        write_seal(final, digest(new))
    except BaseException:
        new.unlink()
        seal_of(final).unlink(missing_ok=True)
        raise
    new.rename(final)
    Files().sync_folder(final.parent)
    return Backup(final, at)


def prune(state_dir: Path) -> list[Path]:
    """Keep the newest sound backups, and remove those before; tells which were found damaged and moved to corrupt/.

    Raises:
        LedgerUnusable, OSError: The disk refuses.
    """
    sound, damaged = 0, []
    for backup in backups(state_dir):
        if sound == KEPT:
            backup.path.unlink()
            seal_of(backup.path).unlink(missing_ok=True)
            continue
        try:
            damage = _damage(backup.path)
        except LedgerTooNew:  # left alone, and no use to this version
            continue
        if damage is None:
            sound += 1
        else:
            folder = state_dir / CORRUPT
            Files().make_folder(folder)
            for path in (backup.path, seal_of(backup.path)):
                if path.exists():
                    Files().move(path, folder / path.name)
            damaged.append(folder / backup.path.name)
    return damaged


def _damage(path: Path) -> str | None:
    """What is wrong with a backup, by its seal; by what is in it where no seal tells, which takes longer."""
    if has_seal(path):
        return broken_seal(path)
    try:
        with closing(open_reader(path)) as db:
            return find_damage(path, db, quick=wal.size_of(path) > SMALL)
    except LedgerDamaged as error:
        return error.reason


def _copy(path: Path, new: Path, stopping: Event) -> None:
    with closing(_source(path)) as source, copy_into(new) as (target, fd):
        target.set_progress_handler(stopping.is_set, 100_000)
        page = int(source.execute("PRAGMA page_size").fetchone()[0])
        began, synced = time.monotonic(), 0

        def rest(_status: int, remaining: int, total: int) -> None:
            nonlocal began, synced
            if (total - remaining) * page - synced >= _SYNCED:
                os.fdatasync(fd)
                synced = (total - remaining) * page
            if wal.size_of(wal.log_of(path)) > LOG_BOUND:
                raise BackupStopped(f"{path}: not backed up: its log grew over {LOG_BOUND} bytes meanwhile")
            if stopping.wait(min(time.monotonic() - began, 1.0)):
                raise BackupStopped(f"{path}: not backed up: stopped before it was whole")
            began = time.monotonic()

        # One view for all steps: the copy need not begin again when the writer has written.
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM groups").fetchone()
        try:
            source.backup(target, pages=_STEP, progress=rest)
            source.execute("ROLLBACK")
            target.execute("PRAGMA journal_mode = DELETE")  # it is a single file from here on
            damage = find_damage(new, target, quick=wal.size_of(new) > SMALL)
        except sqlite3.OperationalError:
            if stopping.is_set():
                raise BackupStopped(f"{path}: not backed up: stopped before it was whole") from None
            raise
        if damage is not None:
            if stopping.is_set():  # it was interrupted
                raise BackupStopped(f"{path}: not backed up: stopped before it was whole")
            raise LedgerUnreadable(path, f"its backup is not sound: {damage}")


def _source(path: Path) -> sqlite3.Connection:
    if wal.log_of(path).exists():
        return open_reader(path)
    # Nobody has it open, and nobody will, as the state folder is ours: a common reader would leave an empty log behind.
    return sqlite3.connect(f"{uri(path, 'ro')}&immutable=1", uri=True, isolation_level=None)
