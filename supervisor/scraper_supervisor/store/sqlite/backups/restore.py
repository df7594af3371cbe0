"""`checkpoint restore --ledger`: the newest sound backup takes the place of a ledger that is damaged or missing.

At no moment is there an empty ledger, or a part of one: until the restored one is renamed into its place, `run` finds
the damaged one or none beside the backups, and refuses.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from scraper_supervisor.core.formats.timestamps import timestamp
from scraper_supervisor.store.errors import LedgerDamaged, StoreError
from scraper_supervisor.store.files import Files
from scraper_supervisor.store.sqlite import migrations, run_numbers
from scraper_supervisor.store.sqlite.backups.backup import CORRUPT, Backup, backups
from scraper_supervisor.store.sqlite.backups.salvage import Missing, Salvage
from scraper_supervisor.store.sqlite.integrity import wal_check as wal
from scraper_supervisor.store.sqlite.integrity.lock_safe_io import pread_all, reading
from scraper_supervisor.store.sqlite.integrity.seal import digest, seal, seal_of
from scraper_supervisor.store.sqlite.reader import LedgerReader
from scraper_supervisor.store.sqlite.schema import (
    BACKUPS,
    FILE_NAME,
    discard,
    journal_of,
    refusals,
    roll_back,
    uri,
    use_log,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

CLAIM_LEAP: Final = 1 << 40  # claims that may have been given since the backup, and many more; 2^53 are exact in JSON
CLAIMS_A_SECOND: Final = 1_000_000  # likewise since 1970, so that two restores of one backup do not leap alike
_STEP: Final = 1 << 20  # bytes copied at once


class Unsound(Struct, frozen=True):
    """A backup that was passed over."""

    path: str
    reason: str


class Restored(Struct, frozen=True):
    """What a restore did. `damage` is what was wrong with the ledger, `unread` why some of it could not be compared."""

    backup: str
    backup_at: str
    damage: str
    moved: list[str]
    missing: list[Missing]
    unsound: list[Unsound]
    unread: str | None


class NotRestored(StoreError):
    """There is nothing to restore, or nothing to restore from; nothing was changed."""


def restore(state_dir: Path, clock: Callable[[], float] = time.time) -> Restored:
    """Put the newest sound backup in the ledger's place; the damaged files are moved to corrupt/.

    Args:
        state_dir: The state folder, locked by the caller.
        clock: Wall-clock seconds.

    Raises:
        NotRestored: The ledger is sound, or there is no sound backup.
        LedgerTooNew, LedgerUnusable: The ledger is not damaged; it is a later version's, or cannot be read by its
            permissions or the disk.
        OSError: The disk refuses. The same call may be made again.
    """
    path = state_dir / FILE_NAME
    damage = _damage(path)
    backup, unsound = _newest_sound(state_dir)
    states = run_numbers.told_by_states(state_dir)
    new = path.with_name(f"{FILE_NAME}.restored")
    moment = timestamp(clock()).replace("-", "").replace(":", "")
    try:
        now = clock()
        _prepare(backup, new, now)
        moved = list(_move_away(path, state_dir / CORRUPT / f"ledger-{moment}"))
        # Nobody writes to it yet; a common reader would leave an empty log beside it.
        with closing(sqlite3.connect(f"{uri(new, 'ro')}&immutable=1", uri=True, isolation_level=None)) as db:
            salvage = Salvage(db)
            remains = _remains(state_dir, backup)
            if remains is not None:
                salvage.read_ledger(remains)
            salvage.read_events(state_dir, backup.at)
        _note_runs(new, now, salvage.highest_runs, states)
    except BaseException as error:
        discard(new)
        if isinstance(error, sqlite3.Error):
            raise NotRestored(f"{new}: {error}; the same command may be given again") from error
        raise
    os.rename(new, path)
    Files().sync_folder(state_dir)
    seal(path)
    return Restored(
        str(backup.path), timestamp(backup.at), damage, [str(one) for one in moved], salvage.missing, unsound,
        salvage.unread,
    )  # fmt: skip


def fault(path: Path) -> str | None:
    """What is wrong with a ledger or a backup, read wholly; None if nothing is."""
    try:
        with LedgerReader(path) as reader:
            return reader.verify()
    except FileNotFoundError:
        return "it is missing"
    except (StoreError, OSError) as error:
        return str(error).removeprefix(f"{path}: ")


def _damage(path: Path) -> str:
    """What is wrong with the ledger.

    Raises:
        NotRestored: Nothing.
    """
    try:
        with refusals(path):
            roll_back(path)
        with LedgerReader(path) as reader:
            found = reader.verify()
    except FileNotFoundError:
        return "it is missing"
    except LedgerDamaged as error:
        return error.reason
    if found is None:
        raise NotRestored(f"{path}: the ledger is sound; what was done since a backup would be lost by restoring one")
    return found


def _newest_sound(state_dir: Path) -> tuple[Backup, list[Unsound]]:
    unsound: list[Unsound] = []
    for backup in backups(state_dir):
        reason = fault(backup.path)
        if reason is None:
            return backup, unsound
        unsound.append(Unsound(str(backup.path), reason))
    told = "".join(f"; {one.path}: {one.reason}" for one in unsound)
    raise NotRestored(f"{state_dir / BACKUPS}: there is no {'sound ' if unsound else ''}backup of the ledger{told}")


def _prepare(backup: Backup, new: Path, now: float) -> None:
    """Make the ledger that is to be, durably, under another name."""
    discard(new)
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with reading(backup.path) as source:
            offset = 0
            while part := pread_all(source, _STEP, offset):
                offset += os.pwrite(fd, part, offset)
        if digest(new) != digest(backup.path):
            raise NotRestored(f"{new}: it is not what was copied from {backup.path}; the ledger was not touched")
        with closing(sqlite3.connect(uri(new, "rw"), uri=True, isolation_level=None)) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version < migrations.VERSION:
                migrations.migrate(new, db, version)
            db.execute("BEGIN IMMEDIATE")
            # A claim is never given twice, and which ones were given since the backup, or since another restore of it,
            # nobody knows.
            db.execute("UPDATE groups SET next_claim = max(next_claim + ?, ?)", (CLAIM_LEAP, _next_claim(now)))
            db.execute(
                "INSERT INTO restores (restored_at, backup, backup_at) VALUES (?, ?, ?)",
                (timestamp(now), backup.path.name, timestamp(backup.at)),
            )
            db.execute("COMMIT")
            use_log(new, db)
        os.fsync(fd)
    finally:
        os.close(fd)


def _next_claim(now: float) -> int:
    return int(now * CLAIMS_A_SECOND)


def _note_runs(new: Path, now: float, *told: Mapping[str, int]) -> None:
    """Have no run get a number that one had since the backup, nor a claim of its group, as far as it is told of."""
    used = {group: max(one.get(group, 0) for one in told) for group in set().union(*told)}
    with closing(sqlite3.connect(uri(new, "rw"), uri=True, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        run_numbers.note_used(db, used)
        groups = [(group, _next_claim(now)) for group in sorted(used)]
        db.executemany("INSERT INTO groups (name, next_claim) VALUES (?, ?) ON CONFLICT (name) DO NOTHING", groups)
        db.execute("COMMIT")


def _move_away(path: Path, folder: Path) -> Iterator[Path]:
    """Move what is there of the ledger. Itself first: its log must not be missed while it is in place."""
    for file in (path, wal.log_of(path), journal_of(path), path.with_name(f"{path.name}-shm"), seal_of(path)):
        if file.exists():
            Files().make_folder(folder)
            Files().move(file, folder / file.name)
            yield folder / file.name


def _remains(state_dir: Path, backup: Backup) -> Path | None:
    """The damaged ledger; that of a restore that was cut off, if it was moved away since the backup."""
    found = max(state_dir.glob(f"{CORRUPT}/ledger-*/{FILE_NAME}"), default=None)
    return found if found is not None and found.parent.name > backup.path.stem else None
