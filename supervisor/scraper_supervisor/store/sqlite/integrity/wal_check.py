"""True if the ledger's log is whole: SQLite ends a log in silence where a frame does not fit its checksum.

The formats are those of https://sqlite.org/walformat.html: `-wal` is a header of 32 bytes and frames of 24 bytes and a
page, each with the checksum of all before it; `-shm` begins with a header, twice, that tells how many frames count.

After a death the log may end in a transaction that nobody was told of: its frames may be torn, and are rightly passed
over. Two things tell damage from that. The `-shm` that a killed process left behind says how far the log went, and it
is written after the log is synced, so it never says too much. And a frame that continues the checksum of a commit was
written after that commit's sync had returned, as there is one writer: a commit that SQLite passes over though such a
frame follows it has been acknowledged.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from scraper_supervisor.store.sqlite.integrity.lock_safe_io import pread_all, reading

if TYPE_CHECKING:
    from pathlib import Path

_HEADER: Final = 32  # bytes
_FRAME: Final = 24  # bytes of a frame's header
_MAGIC: Final = 0x377F0682  # the lowest bit tells the byte order of the checksums
_VERSION: Final = 3_007_000
_INDEX: Final = struct.Struct("=I4xIB1xHIIII8s2I")  # of -shm, in the machine's byte order
_FOLDED: Final = 96  # where -shm says how many frames are in the database file
_RESTARTS: Final = 1 << 16  # times that the log may have begun anew since a -shm was written back, at most
_TRIES: Final = 5

Sum = tuple[int, int]


class Mark(Struct, frozen=True):
    """How far the log goes, by -shm. `last` and `folded` are numbers of frames, `pages` is the database's size."""

    salts: bytes
    last: int
    folded: int
    pages: int


class _Head(Struct, frozen=True):
    """The log's own header."""

    big: bool
    page: int  # bytes
    salts: bytes
    sum: Sum


def log_of(path: Path) -> Path:
    """The log of a ledger."""
    return path.with_name(f"{path.name}-wal")


def size_of(path: Path) -> int:
    """A file's bytes; 0 if there is none.

    Raises:
        OSError: It cannot be told.
    """
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def mark(path: Path) -> Mark | None:
    """What the ledger's -shm says; None if there is none that is sound."""
    try:
        with reading(path.with_name(f"{path.name}-shm")) as fd:
            content = pread_all(fd, _FOLDED + 4, 0)
    except OSError:  # none, or another thread closed the descriptor that was lent
        return None
    if len(content) < _FOLDED + 4:
        return None
    for at in (0, _INDEX.size):
        version, _, ready, _, last, pages, _, _, salts, *found = _INDEX.unpack_from(content, at)
        if version == _VERSION and ready and (*found,) == _sum(content[at : at + 40], (0, 0), sys.byteorder == "big"):
            (folded,) = struct.unpack_from("=I", content, _FOLDED)
            return Mark(salts, last, folded, pages)
    return None


def torn_off(path: Path) -> str | None:
    """What -shm knows of and the log does not hold; None if nothing. To be asked before SQLite opens the ledger.

    Its first connection makes -shm anew from the log.
    """
    for _ in range(_TRIES):
        before = mark(path)
        found = None if before is None else _short(path, before)
        if found is None or mark(path) == before:
            return found
    return None  # a writer is at work


def hole(path: Path) -> str | None:
    """Where the log is damaged though more was acknowledged; None if nowhere. To be asked while SQLite has it open."""
    found, now = None, None
    for _ in range(_TRIES):
        now = mark(path)
        found = _hole(path, now)
        if found is None or (now is not None and mark(path) == now):
            return found
    return found if now is None else None  # a writer is at work


def first_bad(path: Path) -> str | None:
    """The first frame in use that does not fit its checksum; None if all do. Some 0.1 ms a frame."""
    now = mark(path)
    if now is None or not now.last:
        return None
    try:
        with reading(log_of(path)) as fd:
            head = _head(fd)
            if head is None or head.salts != now.salts:
                return None if _moved(path, now) else "its log has not the header that it was written with"
            total = head.sum
            for number in range(1, now.last + 1):
                frame = _frame(fd, head, number)
                total = _sum(frame[:8] + frame[_FRAME:], total, head.big)
                if frame[8:16] != head.salts or struct.unpack(">2I", frame[16:_FRAME]) != total:
                    return None if _moved(path, now) else f"frame {number} of its log does not fit its checksum"
    except FileNotFoundError:
        return None  # folded into the database meanwhile
    return None


def uncovered(path: Path, page: int, pages: int) -> str | None:
    """The first page that is behind the end of the file and not in the log either; None if there is none.

    Args:
        path: The ledger.
        page: Bytes of a page.
        pages: How many the ledger has.
    """
    for _ in range(_TRIES):
        whole = size_of(path) // page
        now = mark(path)
        if whole >= pages:
            return None
        logged = _logged(path, now)
        missing = next((number for number in range(whole + 1, pages + 1) if number not in logged), None)
        if missing is None:
            return None
        if mark(path) == now and size_of(path) // page == whole:
            return f"page {missing} is missing: the file ends at {whole} of {pages} pages"
    return None


# ---- the log ---------------------------------------------------------------------------------------------------------


def _short(path: Path, before: Mark) -> str | None:
    if not before.last:
        return None
    said = f"its log {log_of(path).name} lacks what was committed to it ({before.last} frames, by {path.name}-shm)"
    said += "; if these files are a copy made while they were written, remove the copy's -shm"
    needed = said if before.last > before.folded else None
    try:
        with reading(log_of(path)) as fd:
            head = _head(fd)
            size = os.fstat(fd).st_size
            if head is None or size < _at(head, 2):
                return needed
            if head.salts == before.salts:
                # Also where all of it is folded back: a log's beginning alone would hide what is newer in the file.
                bad = _bad_at_end(fd, head, before.last)
                if bad is None:
                    return None
                whole = size >= _at(head, before.last + 1)
                return f"frame {bad} of its log does not fit its checksum" if whole else said
            ahead = (_number(head.salts) - _number(before.salts)) % 2**32  # times it began anew; 0: another log
            return None if 0 < ahead <= _RESTARTS else said
    except FileNotFoundError:
        return needed


def _bad_at_end(fd: int, head: _Head, last: int) -> int | None:
    """A frame of the last two transactions that does not fit; `hole` finds those before, from what follows them."""
    ended = 0
    for number in range(last, 0, -1):
        frame = _frame(fd, head, number)
        ended += number < last and frame[4:8] != bytes(4)
        if ended == 2:
            return None
        total = _sum(frame[:8] + frame[_FRAME:], _seed(fd, head, number), head.big)
        if frame[8:16] != head.salts or struct.unpack(">2I", frame[16:_FRAME]) != total:
            return number
    return None


def _hole(path: Path, now: Mark | None) -> str | None:
    try:
        with reading(log_of(path)) as fd:
            size = os.fstat(fd).st_size
            if size <= _HEADER:
                return None
            if now is None:
                return "its header does not say that it has a log, and there is one"
            head = _head(fd)
            if head is None:
                return "the header of its log is damaged"
            if head.salts != now.salts:  # begun anew and not written to yet, or just being begun
                return None
            last = (size - _HEADER) // (head.page + _FRAME)
            commit = next((n for n in range(now.last + 1, last) if _acknowledged(fd, head, n)), None)
            if commit is None:
                return None
            return f"its log is damaged behind frame {now.last}, and goes on to frame {commit} and further"
    except FileNotFoundError:
        return None


def _acknowledged(fd: int, head: _Head, number: int) -> bool:
    """True if a frame is a commit, after which the log was written on."""
    following = pread_all(fd, _FRAME, _at(head, number + 1))
    this = pread_all(fd, _FRAME, _at(head, number))
    if following[8:16] != head.salts or this[4:8] == bytes(4):
        return False
    following = _frame(fd, head, number + 1)
    stated = struct.unpack(">2I", following[16:_FRAME])
    part = following[:8] + following[_FRAME:]
    if _sum(part, struct.unpack(">2I", this[16:_FRAME]), head.big) == stated:
        return True
    # Perhaps it is the checksum in the commit itself that is damaged.
    this = _frame(fd, head, number)
    return _sum(part, _sum(this[:8] + this[_FRAME:], _seed(fd, head, number), head.big), head.big) == stated


def _logged(path: Path, now: Mark | None) -> set[int]:
    """The numbers of the pages that are in the log."""
    if now is None or not now.last:
        return set()
    try:
        with reading(log_of(path)) as fd:
            head = _head(fd)
            if head is None:
                return set()
            return {
                struct.unpack(">I", pread_all(fd, 4, _at(head, number)).ljust(4, b"\0"))[0]
                for number in range(1, now.last + 1)
            }
    except FileNotFoundError:
        return set()


def _moved(path: Path, then: Mark) -> bool:
    """True if the log was begun anew since."""
    now = mark(path)
    return now is None or now.salts != then.salts


def _head(fd: int) -> _Head | None:
    content = pread_all(fd, _HEADER, 0)
    if len(content) < _HEADER:
        return None
    magic, version, page, _ = struct.unpack_from(">4I", content)
    big = bool(magic & 1)
    total = _sum(content[:24], (0, 0), big)
    if magic & ~1 != _MAGIC or version != _VERSION or total != struct.unpack_from(">2I", content, 24):
        return None
    return _Head(big, page, content[16:24], total)


def _at(head: _Head, number: int) -> int:
    """Where a frame begins; they are numbered from 1."""
    return _HEADER + (number - 1) * (head.page + _FRAME)


def _frame(fd: int, head: _Head, number: int) -> bytes:
    return pread_all(fd, _FRAME + head.page, _at(head, number)).ljust(_FRAME + head.page, b"\0")


def _seed(fd: int, head: _Head, number: int) -> Sum:
    """The checksum that a frame carries on, as the one before it states it."""
    if number == 1:
        return head.sum
    first, second = struct.unpack(">2I", pread_all(fd, 8, _at(head, number - 1) + 16).ljust(8, b"\0"))
    return first, second


def _number(salts: bytes) -> int:
    """The first salt, which grows by one each time that the log begins anew."""
    return int.from_bytes(salts[:4], "big")


def _sum(content: bytes, seed: Sum, big: bool) -> Sum:
    """SQLite's checksum, carried on from `seed`."""
    first, second = seed
    words = iter(struct.unpack(f"{'>' if big else '<'}{len(content) // 4}I", content))
    for word in words:
        first = (first + word + second) & 0xFFFFFFFF
        second = (second + next(words) + first) & 0xFFFFFFFF
    return first, second
