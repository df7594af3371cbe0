"""A bounded queue and the thread that empties it: what is told outside never holds the loop up.

A terminal that is stopped, a pipe that nobody reads and a disk that is full cost lines, which are counted.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RETRY_EVERY: Final = 1.0  # seconds, while the writer keeps what it is given
CLOSE_WITHIN: Final = 2.0  # seconds
GATHER: Final = 0.005  # seconds between two writes, for lines to gather
_BATCH: Final = 256  # lines written at once: to put them together must not keep the interpreter from the loop

T = TypeVar("T")


class BatchThread(Generic[T]):
    """A bounded queue of lines, or of what becomes lines, and the thread that writes them.

    Args:
        name: the thread's.
        capacity: lines that may wait; further ones are dropped and counted.
        write: writes some lines; False keeps them, to be tried again after a while. Called in the thread alone.
        gather: seconds between two writes, for lines to gather; 0 where they come gathered.
    """

    def __init__(self, name: str, capacity: int, write: Callable[[list[T]], bool], *, gather: float = GATHER) -> None:
        self._capacity = capacity
        self._gather = gather
        self._write = write
        self._lines: deque[T] = deque()
        self._changed = threading.Condition()
        self._asleep = False
        self._prompt = False
        self._closing = False
        self._dropped = 0
        self._accepted = self._written = 0  # lines, since the beginning
        # Not joined at exit: one that hangs in a write to a stopped terminal must not hang the daemon.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, line: T, *, prompt: bool = True) -> bool:
        """Queue a line; False when it was dropped.

        Args:
            line: what to write.
            prompt: write it now; else when lines have gathered, which costs less where they are many.
        """
        if self._closing or len(self._lines) >= self._capacity:
            with self._changed:
                self._dropped += 1
            return False
        self._lines.append(line)
        self._accepted += 1
        if self._asleep or prompt:
            with self._changed:
                self._prompt = prompt
                self._changed.notify_all()
        return True

    def put_all(self, lines: Sequence[T]) -> None:
        """Queue lines to be written now; those for which there is no room are dropped."""
        room = 0 if self._closing else max(0, self._capacity - len(self._lines))
        taken = lines if len(lines) <= room else lines[:room]
        self._lines.extend(taken)
        self._accepted += len(taken)
        with self._changed:
            self._dropped += len(lines) - len(taken)
            self._prompt = True
            self._changed.notify_all()

    def drained(self, seconds: float) -> bool:
        """Wait until what was queued before is written, but no longer than so many seconds; whether it is."""
        upto = self._accepted
        with self._changed:
            self._prompt = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._written >= upto, seconds)

    def take_dropped(self) -> int:
        """How many lines were dropped since this was last asked."""
        with self._changed:
            count, self._dropped = self._dropped, 0
            return count

    def close(self, seconds: float = CLOSE_WITHIN) -> int:
        """Write what waits, but for no longer than `seconds`; how many lines remain unwritten."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        return len(self._lines)

    def _run(self) -> None:
        while self._wait():
            batch = list(itertools.islice(self._lines, _BATCH))
            if self._write(batch):
                for _ in batch:
                    self._lines.popleft()
                with self._changed:
                    self._written += len(batch)
                    self._changed.notify_all()
            elif self._closing:
                return
            else:
                self._pause(RETRY_EVERY)
            if self._gather and len(self._lines) < _BATCH:
                self._pause(self._gather, lambda: self._prompt)

    def _wait(self) -> bool:
        """Wait for a line; False when none will come."""
        with self._changed:
            self._asleep = True  # before the look: a line that comes after it finds us asleep
            while not self._lines and not self._closing:
                self._changed.wait()
            self._asleep = self._prompt = False
        return bool(self._lines)

    def _pause(self, seconds: float, over: Callable[[], bool] = bool) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or over(), seconds)
