"""The event log, `events.jsonl`: written, rotated by size, read and followed.

`events.jsonl` is the newest file, `events.jsonl.1` the one before it, and so on up to `KEPT`. Readers need no lock: a
file is only ever appended to and renamed, so one that is open stays whole whatever its name is by now.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeAlias

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator
    from pathlib import Path

EVENTS_FILE: Final = "events.jsonl"
KEPT: Final = 5  # rotated files, events.jsonl.1 the newest
ROTATE_AT: Final = 64 * 1024 * 1024  # bytes

_FileId: TypeAlias = tuple[int, int]  # device and inode


class EventRecord(Struct, frozen=True):
    """One line of the event log; `time` is RFC 3339 UTC."""

    time: str
    event: str
    severity: str = "info"
    component: str = ""
    correlation_id: str = ""
    worker: str | None = None
    group: str | None = None
    data: Any = None


_decoder: Final = msgspec.json.Decoder(EventRecord)


def rotated(path: Path, number: int) -> Path:
    """The name of the `number`th rotated file; 0 is the one that is written."""
    return path.with_name(f"{path.name}.{number}") if number else path


def exists(path: Path) -> bool:
    """True if there is a log: the newest file, or the one before it where that one was removed."""
    return path.exists() or rotated(path, 1).exists()


def decode_event(line: bytes) -> EventRecord | None:
    """A line of the event log; None if it is none, torn by a crash or another's."""
    try:
        return _decoder.decode(line)
    except msgspec.DecodeError:
        return None


# ---- writing ---------------------------------------------------------------------------------------------------------


class EventLogWriter:
    """Appends lines to the log and rotates it. For one thread; the folder is locked by this process.

    What happens to the file from outside is noticed at the next write: where it was removed or renamed (by logrotate,
    say), a new one is begun; where it was cut, writing goes on at its new end.

    Args:
        path: the newest file, `events.jsonl`; it is made at the first write.
        rotate_at: bytes over which a new file is begun.
    """

    def __init__(self, path: Path, rotate_at: int = ROTATE_AT) -> None:
        self.path = path
        self._rotate_at = rotate_at
        self._handle = -1
        self._identity: _FileId = (0, 0)
        self._size = 0
        self._found: str | None = None  # what was done to the file from outside, to be told by the next good write

    def append(self, data: bytes) -> str | None:
        """Write all of it, or nothing.

        Args:
            data: whole lines.

        Returns:
            What was done to the file from outside since the last write, one sentence; None is usual.

        Raises:
            OSError: nothing was written. The next call opens the file anew.
        """
        try:
            if self._handle >= 0:
                self._look()
            if self._handle < 0:
                self._open()
            if self._size and self._size + len(data) > self._rotate_at:
                self._rotate()
            self._write(data)
        except OSError:
            self.close()
            raise
        found, self._found = self._found, None
        return found

    def close(self) -> None:
        """Let go of the file; harmless when already done."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _look(self) -> None:
        """Compare the file that bears the name now with the one that is open; let go of ours where they differ."""
        try:
            now = os.stat(self.path)
        except FileNotFoundError:
            found = "was removed or renamed: a new one was begun"
        else:
            if (now.st_dev, now.st_ino) != self._identity:
                found = "was replaced by another file, which is written to from now on"
            elif now.st_size < self._size:
                found = f"was cut from {self._size} to {now.st_size} bytes"
            else:
                self._size = now.st_size
                return
        self._found = f"{self.path} {found}"
        self.close()

    def _open(self) -> None:
        self._handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        found = os.fstat(self._handle)
        self._identity, self._size = (found.st_dev, found.st_ino), found.st_size
        if self._size and os.pread(self._handle, 1, self._size - 1) != b"\n":
            self._size += os.write(self._handle, b"\n")  # a line that a crash tore: it must not spoil the next

    def _rotate(self) -> None:
        for number in range(KEPT, 0, -1):
            source = rotated(self.path, number - 1)
            if source.exists():
                source.replace(rotated(self.path, number))
        self.close()
        self._open()

    def _write(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.write(self._handle, data[written:])
        except OSError:
            os.ftruncate(self._handle, self._size)  # no torn line in the middle of the file
            raise
        self._size += written


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_events(path: Path, with_rotated: bool = True, only: Collection[str] | None = None) -> Iterator[EventRecord]:
    """The events of a log, oldest first; what is no event (a torn line after a crash, another's line) is left out.

    It may be read while it is written: a rotation meanwhile neither hides nor doubles an event that was there at the
    beginning.

    Args:
        path: the newest file, `events.jsonl`.
        with_rotated: read the older files beside it too.
        only: the names of the events that are wanted; None for all. Lines of others cost next to nothing.

    Raises:
        OSError: `path` cannot be read.
    """
    marks = None if only is None else [f'"{name}"'.encode() for name in only]
    with ExitStack() as stack:
        files = _open_all(path, KEPT if with_rotated else 0)
        for file in files:
            stack.enter_context(file)
        if not files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        for file in reversed(files):
            for line in file:
                if marks is not None and not any(mark in line for mark in marks):
                    continue
                event = decode_event(line)
                if event is not None and (only is None or event.event in only):
                    yield event


def follow_lines(path: Path) -> Generator[bytes | None, None, None]:
    """The lines of a log that is rotated, oldest first, and for ever; None each time there is no further one yet.

    The caller waits after a None, as long as it likes: of up to `KEPT` rotations meanwhile nothing is missed. A log
    that does not exist yet is waited for.
    """
    with ExitStack() as stack:
        while not (files := _open_all(path, KEPT)):
            yield None
        for file in files:
            stack.enter_context(file)
        for file in reversed(files[1:]):
            yield from file
        current, rest = files[0], b""
        while True:
            for line in iter(current.readline, b""):
                rest += line
                if rest.endswith(b"\n"):
                    yield rest
                    rest = b""
            if _was_cut(current, rest):
                rest = b""
                continue
            # Looked for before the last look at this one: what was written to it before it was renamed comes first.
            following = _after(path, current)
            if following is None:
                yield None
            elif current.peek(1):  # type: ignore[attr-defined]  # buffered, as opened
                following.close()
            else:
                current.close()
                current, rest = stack.enter_context(following), b""


def _open_all(path: Path, older: int) -> list[BinaryIO]:
    """The files, newest first: rotation moves a file from where we have been to where we are still to look.

    Raises:
        OSError: one is there and cannot be read; none is left open.
    """
    with ExitStack() as stack:
        files: list[BinaryIO] = []
        met: set[_FileId] = set()
        for number in range(older + 1):
            file = _opened(rotated(path, number))
            if file is None:
                continue
            stack.enter_context(file)
            if _identity(file) not in met:
                met.add(_identity(file))
                files.append(file)
            else:
                file.close()
        stack.pop_all()
    return files


def _opened(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _after(path: Path, file: BinaryIO) -> BinaryIO | None:
    """The file that was begun after this one; None while this one is the newest."""
    while not _bears(path, file):
        number = next((number for number in range(1, KEPT + 1) if _bears(rotated(path, number), file)), 0)
        if number == 0:  # renamed or removed from outside, or rotated away: the newest is all that is left to us
            return _opened(path)
        following = _opened(rotated(path, number - 1))
        if following is None:
            return None
        if _bears(rotated(path, number), file):  # else it was rotated between the two looks, and this is not the next
            return following
        following.close()
    return None


def _was_cut(file: BinaryIO, rest: bytes) -> bool:
    """True if the file is shorter by now than what was read. Reading then goes on where its next line begins.

    That is the beginning of `rest`, a line that the writer took back, or the beginning of the file.
    """
    size, at = os.fstat(file.fileno()).st_size, file.tell()
    if size >= at:
        return False
    file.seek(at - len(rest) if size >= at - len(rest) else 0)
    return True


def _bears(path: Path, file: BinaryIO) -> bool:
    """True if the file bears the name at present."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == _identity(file)


def _identity(file: BinaryIO) -> _FileId:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino
