"""A durable copy of an SQLite database, as the backup API makes it: the migrations', the backups' and the rescues'."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


@contextmanager
def copy_into(path: Path) -> Generator[tuple[sqlite3.Connection, int]]:
    """A new file to copy a database into; it is on disk when the block is left, and removed if that fails.

    The file has mode 0600 and takes the place of one that is there. Its name is not durable: who needs that syncs the
    folder. The connection keeps no journal and syncs nothing, as a crash leaves a part of a copy either way.

    Args:
        path: The copy.

    Yields:
        A connection to the empty file, for `sqlite3.Connection.backup`, and the descriptor of that file.

    Raises:
        sqlite3.Error, OSError: The disk refuses.
    """
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as target:
            target.execute("PRAGMA journal_mode = OFF")
            target.execute("PRAGMA synchronous = OFF")
            yield target, fd
        os.fsync(fd)
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(fd)


def durable_copy(db: sqlite3.Connection, path: Path) -> None:
    """Copy all that was committed, also what is in the log alone, to a file of its own; see `copy_into`.

    Raises:
        sqlite3.Error, OSError: The disk refuses.
    """
    with copy_into(path) as (target, _):
        db.backup(target)
