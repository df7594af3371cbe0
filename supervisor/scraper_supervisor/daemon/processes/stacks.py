"""Where a worker's main thread stands, asked of it before it is killed as hung.

Only who catches the signal is sent it: whoever does not would be killed by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import time
from typing import TYPE_CHECKING, Final

from scraper_supervisor.daemon.processes import procfs
from scraper_worker.protocol import STACK_FILE, STACK_SIGNAL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIGNAL: Final = signal.SIGRTMIN + STACK_SIGNAL
WITHIN: Final = 1.0  # seconds that a worker has to write it down; what hangs in the kernel never does
POLL: Final = 0.01  # seconds between two looks at what was written
MOST: Final = 64 * 1024  # bytes
MOST_FRAMES: Final = 40
LONGEST_FRAME: Final = 500  # characters
_FRAME: Final = "  File "


async def where_it_stands(pid: int, tmpdir: Path, send: Callable[[int], bool]) -> tuple[str, ...]:
    """The calls under way in a worker's main thread, innermost last; empty where it does not tell.

    Args:
        pid: its process.
        tmpdir: the incarnation's TMPDIR, in which the SDK keeps the file that it writes to.
        send: sends the process a signal; False if it is gone.
    """
    with contextlib.suppress(OSError):  # there is no such file, or no descriptor to read it by: then nothing is known
        found = procfs.stat(pid)
        if found is None or found.state in "TtZX" or not procfs.catches(pid, SIGNAL):
            return ()
        handle = os.open(tmpdir / STACK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return parse(await _written(handle, send))
        finally:
            os.close(handle)
    return ()


async def _written(handle: int, send: Callable[[int], bool]) -> bytes:
    """What the worker writes upon the signal."""
    status = os.fstat(handle)
    before = size = status.st_size
    if not stat.S_ISREG(status.st_mode) or not send(SIGNAL):
        return b""
    until = time.monotonic() + WITHIN
    while time.monotonic() < until:
        await asyncio.sleep(POLL)
        last, size = size, os.fstat(handle).st_size
        if size > before and size == last:  # it is written in one go
            break
    return os.pread(handle, MOST, before)


def parse(written: bytes) -> tuple[str, ...]:
    """What faulthandler wrote, innermost call first, as a traceback has it; of many the innermost ones."""
    lines = written.decode(errors="replace").splitlines()
    frames = [line[:LONGEST_FRAME] for line in lines if line.startswith(_FRAME)]
    return tuple(reversed(frames[:MOST_FRAMES]))
