"""What workers print: FIFOs that outlive the supervisor, read without blocking and cut into lines."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from pathlib import Path

MAX_OUTPUT_LINE: Final = 16 * 1024  # bytes; longer lines are delivered in pieces
READ_AT_ONCE: Final = 64 * 1024  # bytes of one readable event, so that a flood starves nobody
PIPE_SIZE: Final = 256 * 1024  # bytes a worker can print before it must wait, while no supervisor reads


def make_fifo(path: Path) -> tuple[int, int]:
    """A fresh FIFO, mode 0600, in place of whatever was at `path`: (our non-blocking end, the worker's blocking end).

    Both ends are opened for reading and writing: ours never sees an end of file, and the worker holds a reader itself,
    so that it gets no SIGPIPE when we die. The worker's end is for a child's stdout and to be closed here.

    Raises:
        OSError: the FIFO cannot be made.
    """
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    ours = open_fifo(path)
    try:
        theirs = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        os.close(ours)
        raise
    return ours, theirs


def open_fifo(path: Path) -> int:
    """Our end of a FIFO that exists.

    Raises:
        OSError: there is none.
    """
    handle = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    with contextlib.suppress(PermissionError):  # over the user's share of pipe memory: the default size must do
        fcntl.fcntl(handle, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    return handle


class LineSplitter:
    """Bytes in, text lines out; a line over MAX_OUTPUT_LINE comes in pieces, invalid UTF-8 is replaced."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes."""
        self._rest += data
        lines: list[str] = []
        start = 0
        while True:
            end = self._rest.find(b"\n", start, start + MAX_OUTPUT_LINE + 1)
            if end >= 0:
                lines.append(_text(self._rest[start:end]))
                start = end + 1
            elif len(self._rest) - start > MAX_OUTPUT_LINE:
                cut = self._boundary(start + MAX_OUTPUT_LINE)
                lines.append(_text(self._rest[start:cut]))
                start = cut
            else:
                break
        del self._rest[:start]
        return lines

    def _boundary(self, cut: int) -> int:
        """The last place at or before `cut` that is not inside a UTF-8 character."""
        for back in range(4):
            if self._rest[cut - back] & 0xC0 != 0x80:
                return cut - back
        return cut

    def flush(self) -> list[str]:
        """The unfinished last line, if there is one."""
        rest, self._rest = self._rest, bytearray()
        return [_text(rest)] if rest else []


def _text(line: bytearray) -> str:
    return line.removesuffix(b"\r").decode(errors="replace")


class Output:
    """Our end of one FIFO on the loop: `deliver` gets each line."""

    def __init__(self, loop: asyncio.AbstractEventLoop, handle: int, deliver: Callable[[str], None]) -> None:
        self._loop = loop
        self._handle = handle
        self._deliver = deliver
        self._lines = LineSplitter()
        self.last: str | None = None
        """The last line that said something."""
        loop.add_reader(handle, self._readable)

    def _readable(self) -> int:
        try:
            data = os.read(self._handle, READ_AT_ONCE)
        except BlockingIOError:
            return 0
        self._hand_on(self._lines.feed(data))
        return len(data)

    def _hand_on(self, lines: list[str]) -> None:
        for line in lines:
            self.last = line if line.strip() else self.last
            self._deliver(line)

    def finish(self) -> None:
        """Read what a dead worker left in the pipe, then close.

        Bounded by the pipe's size: a browser that survived may go on writing.
        """
        left = PIPE_SIZE
        while left > 0 and (count := self._readable()):
            left -= count
        self._hand_on(self._lines.flush())
        self.close()

    def close(self) -> None:
        """Stop reading; what the worker prints from now on waits in the pipe."""
        if self._handle >= 0:
            self._loop.remove_reader(self._handle)
            os.close(self._handle)
            self._handle = -1
