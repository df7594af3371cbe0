"""What goes wrong in the store: a fault is a value where work can go on, an exception where it cannot begin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from pathlib import Path
import errno
import sqlite3


class StoreFault(Struct, frozen=True):
    """The answer to an operation that was not carried out; nothing of it is on disk, or all of it without a promise.

    `errno` is ENOSPC, EIO, EROFS and their like where the disk is at fault, EINVAL where the operation made no sense.
    """

    errno: int
    message: str


_ERRNO = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EIO,
    sqlite3.SQLITE_CORRUPT: errno.EIO,
    sqlite3.SQLITE_NOTADB: errno.EIO,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
    sqlite3.SQLITE_LOCKED: errno.EBUSY,
    sqlite3.SQLITE_PROTOCOL: errno.EBUSY,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_AUTH: errno.EACCES,
    sqlite3.SQLITE_NOMEM: errno.ENOMEM,
}


def disk_fault(error: BaseException) -> StoreFault | None:
    """The fault that an error of the disk or of the database file is; None if it is neither.

    A full disk shows as ENOSPC also where SQLite could not make its shared memory larger. A system call's EINVAL is EIO
    here: it is the disk that does not do what it is asked.
    """
    if isinstance(error, StoreError):
        return StoreFault(_of_the_disk(error.errno), str(error))
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return StoreFault(_of_the_disk(error.errno), f"{where}{error.strerror or error}")
    code = error.sqlite_errorcode if isinstance(error, sqlite3.Error) and hasattr(error, "sqlite_errorcode") else 0
    number = errno.ENOSPC if code == sqlite3.SQLITE_IOERR_SHMSIZE else _ERRNO.get(code & 0xFF)
    return None if number is None else StoreFault(number, f"the ledger: {error}")


def _of_the_disk(number: int | None) -> int:
    return errno.EIO if not number or number == errno.EINVAL else number


class StoreError(Exception):
    """The store cannot be used; the message says what is wrong and names the file."""

    errno = errno.EIO


class LedgerUnusable(StoreError):
    """The ledger does not open. It stays where it is. `errno` is the system's, EIO where it gave none."""

    def __init__(self, path: Path, reason: str, number: int = errno.EIO) -> None:
        super().__init__(f"{path}: the ledger does not open: {reason}")
        self.path = path
        self.reason = reason
        self.errno = number


class LedgerUnwritable(LedgerUnusable):
    """The ledger is sound, and the disk does not take what has to be written before it can be used."""


class LedgerMoved(StoreError):
    """A file of the open ledger is not in its place any more: what is committed now would be lost with the process."""

    def __init__(self, path: Path, file: str, *, gone: bool, copy: Path | None = None) -> None:
        what = "was removed" if gone else "was replaced by another file"
        then = "it is written again" if copy is None else f"the one in use was copied to {copy}: put it in its place"
        super().__init__(f"{path}: {file} {what} while it was open; {then}")
        self.path = path


class LedgerHeld(StoreError):
    """The open ledger has to be put in order, and another process is reading it; `errno` is EBUSY."""

    errno = errno.EBUSY

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}; it is put in order once no other process reads it")
        self.path = path


class LedgerDamaged(LedgerUnusable):
    """The ledger is no database, or not whole. It stays where it is."""


class LedgerTooNew(LedgerUnusable):
    """The ledger was written by a later version of this program. It is left untouched."""

    def __init__(self, path: Path, found: int, known: int) -> None:
        reason = f"it has schema version {found}, this program knows versions up to {known}; use the one that wrote it"
        super().__init__(path, reason)


class LedgerUnreadable(StoreError):
    """What was asked for cannot be read from an open ledger; the rest of it may be sound."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; 'scraper-supervisor checkpoint verify' tells what else is damaged")
        self.path = path
        self.reason = reason


class NotExportable(StoreError):
    """What should be exported is damaged or not there yet; the message names it and the remedy."""


class BackupStopped(StoreError):
    """A backup was given up; nothing of it is left."""


class NetworkFileSystem(StoreError):
    """The folder is on a network file system, where neither locks nor syncs can be relied on."""

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__(f"{path}: it is on a network file system ({kind}); expected a local one")
        self.path = path
        self.kind = kind


class Locked(StoreError):
    """Another process holds the folder: a supervisor, unless it said which command it is.

    `pid` is None if it has not said it.
    """

    def __init__(self, folder: Path, pid: int | None, command: str | None = None) -> None:
        holder = "another process" if pid is None else f"process {pid}"
        what = f" ({command})" if command is not None else ""
        super().__init__(f"{folder}: {holder}{what} is using it")
        self.folder = folder
        self.pid = pid
        self.command = command
