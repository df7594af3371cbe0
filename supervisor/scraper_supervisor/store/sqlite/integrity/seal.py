"""The seal of a ledger or backup that nobody writes to: its SHA-256 in a file beside it, for `sha256sum -c`.

A database page has no checksum: SQLite finds what contradicts itself, and not a letter that is another. While a ledger
is open it has no seal; it gets one when it is closed cleanly, and loses it durably before it is written again.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING, Final

from scraper_supervisor.store.files import Files
from scraper_supervisor.store.sqlite.integrity.lock_safe_io import pread_all, reading
from scraper_supervisor.store.sqlite.integrity.wal_check import log_of, size_of

if TYPE_CHECKING:
    from pathlib import Path

_STEP: Final = 1 << 20  # bytes read at once
_LINE: Final = re.compile(r"([0-9a-f]{64})  .+", re.ASCII)


def seal_of(path: Path) -> Path:
    """The seal's file."""
    return path.with_name(f"{path.name}.sha256")


def seal(path: Path) -> bool:
    """Seal a file, durably. A ledger whose log is still there cannot be; returns whether it was.

    Raises:
        OSError: The disk refuses.
    """
    if size_of(log_of(path)):
        return False
    write_seal(path, digest(path))
    return True


def write_seal(path: Path, sha256: str) -> None:
    """Write a file's seal, durably.

    Raises:
        OSError: The disk refuses.
    """
    # Twice, so that damage to the seal itself is not taken for damage to the ledger.
    line = f"{sha256}  {path.name}\n".encode()
    Files().write(seal_of(path), (line, line))


def unseal(path: Path) -> None:
    """Remove the seal, durably; harmless if there is none.

    Raises:
        OSError: The disk refuses.
    """
    try:
        seal_of(path).unlink()
    except FileNotFoundError:
        return
    Files().sync_folder(path.parent)


def broken_seal(path: Path) -> str | None:
    """How a sealed file differs from what was sealed; None if it does not, or has no (readable) seal.

    Raises:
        OSError: The disk does not give the file.
    """
    sums = _sums(path)
    if not sums:
        return None
    remedy = f"; if it was changed on purpose, remove {seal_of(path).name}"
    if size_of(log_of(path)):
        return f"it was closed, and a log that is not its own lies beside it{remedy}"
    if digest(path) not in sums:
        return f"it is not as it was when it was closed: its SHA-256 is another{remedy}"
    return None


def has_seal(path: Path) -> bool:
    """True if a file has a seal that can be read.

    Raises:
        OSError: The disk does not give it.
    """
    return bool(_sums(path))


def damaged_seal(path: Path) -> str | None:
    """What is wrong with the seal itself; None if nothing, or if there is none.

    Raises:
        OSError: The disk does not give it.
    """
    try:
        lines = seal_of(path).read_bytes().splitlines()
    except FileNotFoundError:
        return None
    sound = len(lines) == 2 and lines[0] == lines[1] and len(_sums(path)) == 1
    return None if sound else "it is damaged; expected two equal lines of a SHA-256 and a name"


def digest(path: Path) -> str:
    """A file's SHA-256 in hex.

    Raises:
        OSError: The disk does not give the file.
    """
    total, offset = hashlib.sha256(), 0
    with reading(path) as fd:
        while part := pread_all(fd, _STEP, offset):
            total.update(part)
            offset += len(part)
            if os.fstat(fd).st_size <= offset:
                break
    return total.hexdigest()


def _sums(path: Path) -> set[str]:
    try:
        text = seal_of(path).read_text("ascii", "replace")
    except FileNotFoundError:
        return set()
    return {found[1] for line in text.splitlines() if (found := _LINE.fullmatch(line))}
