"""What comes to us because its parent died: we are a subreaper, so no orphan of a worker goes to init.

One that shed its environment and its session bears no mark of its worker. It is known by what the sampler saw, by when
it started, and at the end of the daemon by being ours at all.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from scraper_supervisor.daemon.processes import procfs
from scraper_supervisor.daemon.processes.process_tree import END_WITHIN, kill

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from scraper_supervisor.daemon.processes.procfs import Stat


class Orphans:
    """Our children that are neither workers nor commands. To be made before anything is started."""

    def __init__(self) -> None:
        self._lists_children = procfs.has_children_files()
        # An entrypoint script may have started others before it executed us: their orphans come to us too.
        self._all_ours = self._lists_children and not procfs.children(os.getpid())

    def none(self, others: Collection[int]) -> bool:
        """True if we have no child but `others`; it is read twice, since a child that exits can hide another."""
        if not self._lists_children:
            return False
        first, second = (procfs.children(os.getpid()) for _ in range(2))
        return first == second and set(first) <= set(others)

    def ownerless(self, others: Collection[int], living: Iterable[int]) -> dict[int, int]:
        """Our children that only a dead worker can have left: pid to start time.

        Args:
            others: pids of workers and commands.
            living: when each living worker started, in clock ticks since boot.
        """
        if not self._all_ours:
            return {}
        children = [entry for pid in procfs.children(os.getpid()) if pid not in others and (entry := procfs.stat(pid))]
        return ownerless(children, living, int(time.clock_gettime(time.CLOCK_BOOTTIME) * procfs.TICKS))

    def end_all(self, others: Collection[int], seconds: float = END_WITHIN) -> int:
        """SIGKILL our children, and theirs as they come to us, but for `others`; how many. Blocks meanwhile."""
        deadline = time.monotonic() + seconds
        count = 0
        while self._all_ours and time.monotonic() < deadline:
            children = [entry for pid in procfs.children(os.getpid()) if (entry := procfs.stat(pid)) is not None]
            victims = [entry for entry in children if entry.alive and entry.pid not in others]
            if not victims:
                break
            count += kill(victims, 0.5)
        return count


def ownerless(children: Iterable[Stat], living: Iterable[int], before: int) -> dict[int, int]:
    """Of children that came to us, those that no living worker can have left: pid to start time.

    Args:
        children: ours, but for workers and commands.
        living: when each living worker started, in clock ticks since boot.
        before: those that started later are not looked at: they may be being started by us.
    """
    first = min(living, default=None)
    return {
        child.pid: child.start_time
        for child in children
        if child.start_time < before and (first is None or child.start_time < first)
    }
