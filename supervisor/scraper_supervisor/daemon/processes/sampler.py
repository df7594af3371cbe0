"""What workers and browsers use: one thread, one pass over all watched trees a round, whatever the machine's size.

A pass walks the kernel's lists of children from each worker and browser down, so its cost depends on the watched
processes alone. RSS and CPU time are read every round; PSS, which makes the kernel walk page tables (13 ms a GB), only
where it can decide something (`pss_due`).
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from typing import TYPE_CHECKING, Final

import psutil
from msgspec import Struct

from scraper_supervisor.core.events import Sampled
from scraper_supervisor.core.measurements import BrowserSample, Sample
from scraper_supervisor.daemon.processes import host_usage, procfs

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from scraper_supervisor.core.events import Watch
    from scraper_supervisor.daemon.processes.procfs import Stat

PSS_EVERY: Final = 5.0  # seconds
PSS_NEAR: Final = 0.5  # of the limit


class SamplerFault(Struct, frozen=True):
    """A round failed in a way that nobody foresaw; the next one is tried all the same."""

    message: str
    traceback: str


class Usage(Struct, frozen=True):
    """A measurement of PSS, with what was known beside it. Sizes are bytes, `at` is monotonic seconds."""

    pss: int
    rss: int
    at: float


def pss_due(rss: int, limit: int | None, last: Usage | None, now: float, every: float = PSS_EVERY) -> bool:
    """True if PSS must be measured now.

    RSS is never less than PSS, and PSS hardly grows by more than RSS does. So memory can only be near its limit when
    the RSS is, and when the last PSS plus what the RSS grew since is.

    Args:
        rss: bytes, summed over the processes in question.
        limit: bytes; None for no limit.
        last: the last measurement.
        now: monotonic seconds.
        every: seconds after which it is due anyway.
    """
    if last is None or now - last.at >= every:
        return True
    bound = min(rss, last.pss + max(0, rss - last.rss))
    return limit is not None and bound > PSS_NEAR * limit


class SeenTree(Struct, frozen=True):
    """What was seen of an incarnation; `started` are start times by pid, in clock ticks since boot."""

    incarnation: int
    started: dict[int, int]


class _WatchedTree:
    """One worker's tree; what the rounds remember of it belongs to the sampler's thread."""

    def __init__(self, worker: str, incarnation: int, pid: int) -> None:
        self.worker = worker
        self.incarnation = incarnation
        self.pid = pid
        self.browsers: dict[str, int] = {}
        self.browser_limit: int | None = None
        self.worker_limit: int | None = None
        self.seen: dict[int, tuple[int, str | None]] = {}  # pid: start time, browser id or None
        self.mains: dict[tuple[str, int], int] = {}  # browser id and pid: start time when it was first seen
        self.ticks: dict[tuple[int, int], int] = {}  # (pid, start time): CPU ticks in the last round
        self.last_round: float | None = None  # seconds since boot
        self.usage: dict[str | None, Usage] = {}


class Sampler:
    """Samples watched workers every `interval` seconds; its methods are for the loop's thread.

    Args:
        loop: where `deliver` is called.
        deliver: gets a Sampled each round, or a SamplerFault.
        state_dir: whose disk is watched.
        interval: seconds between rounds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[Sampled | SamplerFault], None],
        state_dir: Path,
        interval: float = 1.0,
    ) -> None:
        self._loop = loop
        self._deliver = deliver
        self._state_dir = state_dir
        self._interval = interval
        self._watched: dict[str, _WatchedTree] = {}
        self._seen: dict[str, SeenTree] = {}  # in the last round
        self._left: dict[str, SeenTree] = {}  # in the last round of those that are not watched any more
        self._wake = threading.Condition()
        self._stopping = False
        self._has_children_files = procfs.has_children_files()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Begin with a round at once."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round under way, waiting for it; nothing is delivered any more."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def set_interval(self, seconds: float) -> None:
        """Change the time between rounds, from now on."""
        with self._wake:
            self._interval = seconds
            self._wake.notify()

    def watch(self, command: Watch) -> None:
        """Sample this worker from the next round on, or what it consists of or its limits changed."""
        name, incarnation, pid = command.worker, command.incarnation, command.pid
        with self._wake:
            watched = self._watched.get(name)
            if watched is None or (watched.incarnation, watched.pid) != (incarnation, pid):
                watched = self._watched[name] = _WatchedTree(name, incarnation, pid)
            watched.browsers = dict(command.browsers)
            watched.browser_limit = command.browser_limit
            watched.worker_limit = command.worker_limit

    def forget(self, worker: str) -> None:
        """Sample this worker no longer; a round under way delivers nothing of it."""
        with self._wake:
            self._watched.pop(worker, None)
        if (seen := self._seen.pop(worker, None)) is not None:
            self._left[worker] = seen

    def pids(self, worker: str) -> frozenset[int]:
        """All processes of a worker and its browsers in the last round."""
        seen = self._seen.get(worker)
        return frozenset() if seen is None else frozenset(seen.started)

    def take_seen(self, worker: str, incarnation: int) -> dict[int, int]:
        """Start times by pid of all that was last seen of an incarnation; of one that has ended, once."""
        seen = self._seen.get(worker) or self._left.pop(worker, None)
        return seen.started if seen is not None and seen.incarnation == incarnation else {}

    # ---- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            begin = time.monotonic()
            with self._wake:
                if self._stopping:
                    return
                watched = [(entry, dict(entry.browsers)) for entry in self._watched.values()]
            try:
                self._round(watched)
            except Exception as error:  # noqa: BLE001 - whatever it is, sampling goes on and the daemon hears of it
                self._hand_over(self._fault, SamplerFault(f"{type(error).__name__}: {error}", traceback.format_exc()))
            ended = time.monotonic()
            with self._wake:
                while not self._stopping:
                    # A tenth at the least, so that rounds that take longer than the interval are no busy loop.
                    left = max(begin + self._interval, ended + self._interval / 10) - time.monotonic()
                    if left <= 0:
                        break
                    self._wake.wait(left)

    def _round(self, watched: list[tuple[_WatchedTree, dict[str, int]]]) -> None:
        children = procfs.children if self._has_children_files else _children_by_scan()
        adopted = children(os.getpid())
        results = []
        for entry, browsers in watched:
            parts = _walk(entry, browsers, adopted, children)
            results.append(
                (entry, self._sample(entry, browsers, parts), {pid: start for pid, (start, _) in entry.seen.items()})
            )
        memory, disk = host_usage.memory_percent(), host_usage.disk_free(self._state_dir)
        self._hand_over(self._arrived, results, memory, disk)

    def _hand_over(self, function: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed: nobody wants to know
            with self._wake:
                self._stopping = True

    def _arrived(
        self,
        results: list[tuple[_WatchedTree, Sample | None, dict[int, int]]],
        memory: float,
        disk: int | None,
    ) -> None:
        if self._stopping:
            return
        current = [result for result in results if self._watched.get(result[0].worker) is result[0]]
        for entry, _, pids in current:
            self._seen[entry.worker] = SeenTree(entry.incarnation, pids)
        self._deliver(Sampled(tuple(sample for _, sample, _ in current if sample is not None), memory, disk))

    def _fault(self, fault: SamplerFault) -> None:
        if not self._stopping:
            self._deliver(fault)

    def _sample(
        self, entry: _WatchedTree, browsers: dict[str, int], parts: dict[str | None, dict[int, Stat]]
    ) -> Sample | None:
        """One worker's figures; None when nothing is left of it."""
        now, uptime = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
        everything = [found for part in parts.values() for found in part.values()]
        if not everything:
            return None
        cpu = _cpu_percent(entry, everything, uptime)
        samples = []
        for name, pid in browsers.items():
            main = parts[name].get(pid)
            if main is not None:
                memory = _memory(entry, name, parts[name], entry.browser_limit, now)
                age = max(0.0, uptime - main.start_time / procfs.TICKS)
                samples.append(BrowserSample(name, pid, memory, age, None))
        entry.usage = {name: usage for name, usage in entry.usage.items() if name is None or name in browsers}
        own = parts[None]
        memory = _memory(entry, None, own, entry.worker_limit, now) if own else None
        rss = sum(found.rss for found in own.values()) if own else None
        return Sample(now, entry.worker, memory, rss, cpu, len(everything), tuple(samples))


def _cpu_percent(entry: _WatchedTree, everything: Iterable[Stat], uptime: float) -> float | None:
    """CPU time of the tree since the last round, 100 for one core; None in the first. `uptime`: seconds since boot."""
    before, since = entry.ticks, entry.last_round
    entry.ticks = {(found.pid, found.start_time): found.cpu_ticks for found in everything}
    entry.last_round = uptime
    if since is None or uptime <= since:
        return None
    used = 0
    for process, ticks in entry.ticks.items():
        if process in before:
            used += max(0, ticks - before[process])
        elif process[1] >= since * procfs.TICKS - 1:  # born since: all its time counts
            used += ticks
    return 100.0 * used / procfs.TICKS / (uptime - since)


def _children_by_scan() -> Callable[[int], list[int]]:
    """Children of any process from one scan of all, where the kernel keeps no lists of them."""
    found: dict[int, list[int]] = {}
    for entry in procfs.table().values():
        found.setdefault(entry.ppid, []).append(entry.pid)
    return lambda pid: found.get(pid, [])


def _walk(
    entry: _WatchedTree, browsers: dict[str, int], adopted: list[int], children: Callable[[int], list[int]]
) -> dict[str | None, dict[int, Stat]]:
    """The living processes of one worker: those of each browser, by its id, and all others under None.

    A process that was reparented to us is kept if it was seen before, or if it is in the session of a browser.
    """
    parts: dict[str | None, dict[int, Stat]] = {None: {}, **{name: {} for name in browsers}}
    taken: set[int] = set()

    def descend(root: int, name: str | None, start_time: int | None = None) -> None:
        stack = [root]
        while stack:
            pid = stack.pop()
            if pid in taken:
                continue
            found = procfs.stat(pid)
            if found is None or not found.alive or (pid == root and start_time not in (None, found.start_time)):
                continue
            taken.add(pid)
            parts[name][pid] = found
            stack += children(pid)

    seen = entry.seen
    for name, pid in browsers.items():
        if (
            (name, pid) not in entry.mains
            and (found := procfs.stat(pid)) is not None
            and procfs.descends(pid, entry.pid)
        ):
            entry.mains[name, pid] = found.start_time  # from now on this process, and no later one of the same number
        if (start_time := entry.mains.get((name, pid))) is not None:
            descend(pid, name, start_time)
    entry.mains = {main: since for main, since in entry.mains.items() if browsers.get(main[0]) == main[1]}
    before = seen.get(entry.pid)
    descend(entry.pid, None, before[0] if before is not None else None)
    for pid, (start_time, part_name) in seen.items():
        if pid not in taken:
            descend(pid, part_name if part_name in parts else None, start_time)
    sessions = {pid: name for name, pid in browsers.items()}
    for pid in adopted:
        if sessions and pid not in taken and (found := procfs.stat(pid)) is not None and found.session in sessions:
            descend(pid, sessions[found.session])
    entry.seen = {pid: (found.start_time, name) for name, part in parts.items() for pid, found in part.items()}
    return parts


def _memory(entry: _WatchedTree, name: str | None, part: dict[int, Stat], limit: int | None, now: float) -> int | None:
    """PSS of some processes: measured if due, else as measured last; None if it may not be read."""
    rss = sum(found.rss for found in part.values())
    last = entry.usage.get(name)
    if last is not None and not pss_due(rss, limit, last, now):
        return last.pss
    total = 0
    for pid in part:
        try:
            total += psutil.Process(pid).memory_full_info().pss
        except psutil.NoSuchProcess:  # ended since
            continue
        except (psutil.AccessDenied, OSError):
            return None
    entry.usage[name] = Usage(total, rss, now)
    return total
