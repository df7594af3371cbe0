"""What workers print: FIFOs that outlive the supervisor, read without blocking and cut into lines."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from pathlib import Path

    from scraper_supervisor.core.policy.line_rate import LineRate

MAX_OUTPUT_LINE: Final = 16 * 1024  # bytes; longer lines are delivered in pieces
LINES_A_TURN: Final = 32  # delivered in one turn of the loop, over all workers
LINES_AT_THE_END: Final = 1000  # that are delivered of what a dead worker left in the pipe
FLOOD_PAUSE: Final = 0.02  # seconds between two looks at what a worker prints over its share
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

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        self._rest += data

    @property
    def waiting(self) -> bool:
        """True if there is a whole line to take."""
        return len(self._rest) > MAX_OUTPUT_LINE or b"\n" in self._rest

    def take(self, most: int) -> list[str]:
        """The next whole lines, at most so many."""
        lines: list[str] = []
        start = 0
        while len(lines) < most:
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

    def drop(self, keep: int = 0) -> int:
        """Forget all whole lines but the last ones; how many were forgotten. It costs little, however many they are."""
        end = self._rest.rfind(b"\n") + 1
        for _ in range(keep):
            if not end:
                break
            end = self._rest.rfind(b"\n", 0, end - 1) + 1
        count = self._rest.count(b"\n", 0, end)
        del self._rest[:end]
        if not keep and len(self._rest) > MAX_OUTPUT_LINE:  # it has no end yet
            count += 1
            self._rest.clear()
        return count

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


class OutputTurns:
    """Lines handed on, so many of one stream in a turn of the loop: what one worker prints holds nobody up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Output] = deque()

    def ask(self, output: Output) -> None:
        """Have a stream's lines handed on."""
        self._waiting.append(output)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        output = self._waiting[0]
        more = output.hand_on(LINES_A_TURN)
        self._waiting.popleft()
        if more:
            self._waiting.append(output)
        if self._waiting:
            self._loop.call_soon(self._turn)  # after the sockets were looked at


class Output:
    """Our end of one FIFO on the loop: `deliver` gets each line that the worker's share allows.

    While lines wait for their turn nothing more is read, and while the worker prints more than its share, only each
    FLOOD_PAUSE: then it has to wait in its own print.

    Args:
        loop: the running loop.
        handle: our end.
        deliver: called with each line, and with how many were dropped where there is a gap.
        rate: the worker's share.
        turns: of all streams.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handle: int,
        deliver: Callable[[str], None],
        rate: LineRate,
        turns: OutputTurns,
    ) -> None:
        self._loop = loop
        self._handle = handle
        self._deliver = deliver
        self._rate = rate
        self._turns = turns
        self._lines = LineSplitter()
        self._gap = 0  # lines dropped that nobody was told of
        self._timer: asyncio.TimerHandle | None = None
        self.last: str | None = None
        """The last line that said something."""
        loop.add_reader(handle, self._readable)

    def _readable(self) -> None:
        if self._read():
            self._loop.remove_reader(self._handle)
            self._turns.ask(self)

    def _read(self) -> int:
        try:
            data = os.read(self._handle, PIPE_SIZE)
        except BlockingIOError:
            return 0
        self._lines.feed(data)
        return len(data)

    def hand_on(self, most: int) -> bool:
        """Deliver the next lines; whether there are more. If not, the stream is read again."""
        allowed = self._rate.allowed(self._loop.time())
        flooded = not allowed
        if allowed:
            if self._lines.waiting:
                self._tell_gap()
            for line in self._lines.take(min(most, allowed)):
                self._rate.kept(len(line))
                self._hand_on(line)
        elif dropped := self._lines.drop():
            self._gap += dropped
            self._rate.drop(dropped)
        if self._lines.waiting and self._handle >= 0:
            return True
        if self._handle >= 0 and self._timer is None:
            if flooded:
                self._timer = self._loop.call_later(FLOOD_PAUSE, self._read_again)
            else:
                self._loop.add_reader(self._handle, self._readable)
        return False

    def _read_again(self) -> None:
        self._timer = None
        self._loop.add_reader(self._handle, self._readable)

    def _hand_on(self, line: str) -> None:
        self.last = line if line.strip() else self.last
        self._deliver(line)

    def _tell_gap(self) -> None:
        if self._gap:
            gap, self._gap = self._gap, 0
            self._deliver(f"{gap} lines dropped")

    def finish(self) -> None:
        """Read what a dead worker left in the pipe, then close.

        Bounded by the pipe's size, for a browser that survived may go on writing. The last lines are kept in any case:
        they tell what it died of.
        """
        left = PIPE_SIZE
        while left > 0 and (count := self._read()):
            left -= count
        if dropped := self._lines.drop(LINES_AT_THE_END):
            self._gap += dropped
            self._rate.drop(dropped)
        self._tell_gap()
        for line in (*self._lines.take(2 * LINES_AT_THE_END), *self._lines.flush()):
            self._hand_on(line)
        self.close()

    def close(self) -> None:
        """Stop reading; what the worker prints from now on waits in the pipe."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._handle >= 0:
            self._loop.remove_reader(self._handle)
            os.close(self._handle)
            self._handle = -1
