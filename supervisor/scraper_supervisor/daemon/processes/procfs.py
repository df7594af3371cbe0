"""What /proc says about processes: blocking reads of small files, each tolerant of a process that vanishes meanwhile.

One process costs some 20 µs, so single ones may be read on the event loop; whole scans belong in a thread.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable

TICKS: Final = os.sysconf("SC_CLK_TCK")  # a second
PAGE: Final = os.sysconf("SC_PAGE_SIZE")  # bytes
_MAX_DEPTH: Final = 64  # generations; a chain of parents longer than this is no worker's
_RELISTINGS: Final = 5  # of /proc in one scan
_GONE = (FileNotFoundError, ProcessLookupError)


class Stat(Struct, frozen=True):
    """One process; `start_time` is in clock ticks since boot and, with the pid, names a process for ever."""

    pid: int
    state: str
    ppid: int
    pgrp: int
    session: int
    threads: int
    start_time: int
    cpu_ticks: int  # of CPU time used, user and system
    rss: int  # bytes

    @property
    def alive(self) -> bool:
        """True if it still runs: no zombie, or a zombie leader whose other threads go on."""
        return self.state not in "ZX" or self.threads > 1


def _read(path: str) -> bytes:
    """A whole small file, without the layers of `open` (a scan reads thousands)."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(handle, 65536):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(handle)


def stat(pid: int) -> Stat | None:
    """One process, or None when there is none of that number."""
    try:
        raw = _read(f"/proc/{pid}/stat")
    except (*_GONE, PermissionError):  # gone, or hidden from us
        return None
    fields = raw[raw.rindex(b")") + 2 :].split()  # the command before it may hold blanks and parentheses
    return Stat(
        pid=pid,
        state=fields[0].decode(),
        ppid=int(fields[1]),
        pgrp=int(fields[2]),
        session=int(fields[3]),
        threads=int(fields[17]),
        start_time=int(fields[19]),
        cpu_ticks=int(fields[11]) + int(fields[12]),
        rss=int(fields[21]) * PAGE,
    )


def catches(pid: int, signum: int) -> bool:
    """True if the process has a handler for that signal; False where that can't be known."""
    try:
        status = _read(f"/proc/{pid}/status")
    except (*_GONE, PermissionError):
        return False
    caught = next((line for line in status.splitlines() if line.startswith(b"SigCgt:")), b"SigCgt:0")
    return bool(int(caught.partition(b":")[2], 16) & 1 << (signum - 1))


def table() -> dict[int, Stat]:
    """Every process of the machine, by pid."""
    found: dict[int, Stat] = {}
    scan(lambda entry: found.update({entry.pid: entry}))
    return found


def scan(visit: Callable[[Stat], None]) -> bool:
    """Call `visit` with every process of the machine, as soon as it was read; whether none came or went meanwhile.

    The newest come first, and those born meanwhile after them, so that what forks and exits all the time can hardly
    slip between the listing and the look.
    """
    tried: set[int] = set()
    settled = True
    for _ in range(_RELISTINGS):
        fresh = sorted({int(name) for name in os.listdir("/proc") if name.isdigit()} - tried, reverse=True)
        if not fresh:
            return settled
        settled = settled and not tried
        tried.update(fresh)
        for pid in fresh:
            entry = stat(pid)
            if entry is not None:
                visit(entry)
            else:
                settled = False
    return False


def carries(pid: int, mark: bytes) -> bool:
    """True if `mark` ("NAME=value") is in the environment that the process was started with.

    False too where it may not be read (another user's) or was overwritten by the process.
    """
    try:
        return mark in _read(f"/proc/{pid}/environ").split(b"\0")
    except (*_GONE, PermissionError):
        return False


def children(pid: int) -> list[int]:
    """The children of all threads of a process, none when it is gone.

    The kernel promises a complete list only for a stopped process; a child missed now is seen in the next round.
    """
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
    except _GONE:
        pass  # the process or a thread ended while we looked: what was found is all there is
    return found


def has_children_files() -> bool:
    """True if the kernel was built with CONFIG_PROC_CHILDREN."""
    return os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children")


def descends(pid: int, ancestor: int) -> bool:
    """True if `pid` is `ancestor` or was started by it or by a descendant of it, as far as parents still live.

    A parent that dies while we climb hands its children to the subreaper and would hide the rest, so a broken climb is
    tried again.
    """
    for _ in range(3):
        current = pid
        for _ in range(_MAX_DEPTH):
            if current == ancestor:
                return True
            if current <= 1:
                return False
            found = stat(current)
            if found is None:
                break
            current = found.ppid
        else:
            return False
    return False


def ancestry(pid: int) -> tuple[int, ...]:
    """`pid` and its ancestors, nearest first, up to one that is gone."""
    found: list[int] = []
    while pid > 0 and len(found) < _MAX_DEPTH and (entry := stat(pid)) is not None:
        found.append(pid)
        pid = entry.ppid
    return tuple(found)


def boot_id() -> str:
    """The name of this boot of the machine: pids and start times mean nothing beyond it."""
    return _read("/proc/sys/kernel/random/boot_id").decode().strip()
