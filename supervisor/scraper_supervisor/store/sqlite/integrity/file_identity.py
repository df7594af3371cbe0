"""The files of an open ledger: whether they are still in their places, and how they come back there.

SQLite goes on writing to a file that was removed, or to which another was renamed; what it writes is lost with the
process. Whoever writes the ledger asks before each commit; what is missing is written back from what is still open.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final, TypeAlias

from scraper_supervisor.store.errors import LedgerHeld, LedgerMoved
from scraper_supervisor.store.files import Files
from scraper_supervisor.store.sqlite.backups.copies import durable_copy

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

RESCUED: Final = ".rescued"  # the ending of the copy where another file has taken the ledger's place

_Identity: TypeAlias = tuple[int, int] | None  # device and inode; None: there is no such file


class Places:
    """Where the files of an open ledger are.

    Args:
        path: The ledger; its log and shared memory lie beside it, and exist from the first transaction on.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = [os.fspath(path) + ending for ending in ("", "-wal", "-shm")]
        self._there = [_identity(file) for file in self._files]

    def check(self) -> None:
        """See whether each file is the one that it was.

        Raises:
            LedgerMoved: One is gone, or another has taken its place.
            OSError: The folder cannot be read.
        """
        for file, was in zip(self._files, self._there, strict=True):
            now = _identity(file)
            if now != was:
                raise LedgerMoved(self._path, os.path.basename(file), gone=now is None)

    def rescue(self, db: sqlite3.Connection) -> Path:
        """Copy all that was committed to a durable file beside the ledger; tells which.

        Raises:
            OSError, sqlite3.Error: The disk refused.
        """
        copy = self._path.with_name(self._path.name + RESCUED)
        durable_copy(db, copy)
        return copy

    def bring_back(self, db: sqlite3.Connection) -> None:
        """Have all that was committed in the ledger's place again, then close the connection.

        Raises:
            LedgerMoved: Another file is in the ledger's place; a copy of what was committed lies beside it now.
            LedgerHeld: Another process is reading the ledger; the connection stays open, and nothing is lost yet.
            OSError, sqlite3.Error: The disk refused; as above.
        """
        if _identity(self._files[0]) == self._there[0]:
            # All of the log into the ledger; the log is made anew. Where a reader is in the way, SQLite raises nothing.
            busy, logged, folded = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy or folded != logged:
                raise LedgerHeld(self._path, "a file of it was removed while it was open")
            db.close()
            return
        copy = self.rescue(db)
        try:
            os.link(copy, self._path)  # unlike a rename, it never replaces anything
        except FileExistsError:
            raise LedgerMoved(self._path, self._path.name, gone=False, copy=copy) from None
        try:
            Files().sync_folder(self._path.parent)
        except OSError:
            self._path.unlink()  # else it would be taken for another file when it is tried again
            raise
        db.close()
        # What goes on from here can't be undone: it is closed. The files are those of the ledger that was removed;
        # SQLite makes new ones, and what it finds in a log that stays is in the copy too.
        for file in (os.fspath(copy), *self._files[1:]):
            with contextlib.suppress(OSError):
                os.unlink(file)


def _identity(file: str) -> _Identity:
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
