"""Reading the ledger's files past SQLite, without taking its locks from it."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

# Held while a connection is opened, too: none may come between our opening of a file and our closing of it.
GUARD: Final = threading.RLock()


@contextlib.contextmanager
def reading(path: Path) -> Generator[int]:
    """A descriptor to read a file with `os.pread`; a context manager.

    SQLite's locks are POSIX locks: closing any descriptor of a file drops all that this process holds on it. So where
    SQLite has the file open in this process, its own descriptor is lent, and stays open.

    Raises:
        OSError: The file cannot be opened; FileNotFoundError if there is none.
    """
    with GUARD:
        lent = _lent(os.stat(path))
        if lent is not None:
            yield lent
            return
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def pread_all(fd: int, size: int, offset: int) -> bytes:
    """Bytes of a file from `offset` on; fewer than `size` only at its end.

    Raises:
        OSError: The disk does not give them.
    """
    parts = []
    while size > 0 and (part := os.pread(fd, size, offset)):
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return b"".join(parts)


def _lent(wanted: os.stat_result) -> int | None:
    """A descriptor of this file that this process has open already."""
    for name in os.listdir("/proc/self/fd"):
        try:
            found = os.fstat(int(name))
        except OSError:  # the listing's own, or one that another thread closed meanwhile
            continue
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return int(name)
    return None
