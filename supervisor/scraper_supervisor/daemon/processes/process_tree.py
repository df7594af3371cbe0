"""Ending whole process trees: a worker, its drivers and browsers, and what double-forked away from them.

A browser leads a session of its own and some of its helpers leave even that, so no single kill reaches all. What is an
incarnation's is found by four marks: the worker's session, the token in the environment, descent, and the sessions of
browsers. Nothing is killed by name, and no signal is sent to a bare number: each goes through a pidfd whose process was
compared with the one found. Everything here blocks and belongs in a thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import time
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from scraper_supervisor.daemon.processes import procfs
from scraper_worker.protocol import ENV_TOKEN

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from scraper_supervisor.daemon.processes.procfs import Stat

END_WITHIN: Final = 5.0  # seconds; only an uninterruptible or forking-for-ever tree takes longer
_MAX_WAITED: Final = 256  # processes whose end is awaited at once
_MAX_EMPTY: Final = 10  # scans that find nothing while other processes come and go
_MAX_FREEZES: Final = 10  # scans that may find more before what was found is killed


class Tree(Struct, frozen=True):
    """How to recognise what belongs to an incarnation. `pid` is None when its number was never written down."""

    token: str
    pid: int | None = None
    start_time: int | None = None


class EndedTree(Struct, frozen=True):
    """How many processes were killed and how many could not be; `residue`: why the temporary folder is still there."""

    killed: int = 0
    left: int = 0
    residue: str | None = None


class ProcessRecord(Struct, frozen=True):
    """What a starting supervisor must know to end, or take over, what its predecessor left of a worker."""

    worker: str
    incarnation: int
    token: str
    boot_id: str
    tmpdir: str
    pid: int | None = None
    start_time: int | None = None

    @property
    def tree(self) -> Tree:
        """The marks to look for."""
        return Tree(self.token, self.pid, self.start_time)


def write_record(path: Path, record: ProcessRecord) -> None:
    """Write a record in one step. It need not survive a power loss: neither do processes.

    Raises:
        OSError: it could not be written.
    """
    draft = path.with_suffix(".tmp")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(msgspec.json.encode(record) + b"\n")
    draft.replace(path)


def read_record(path: Path) -> ProcessRecord | None:
    """A record, or None when the file is gone or is none of ours."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ProcessRecord)
    except (OSError, msgspec.DecodeError):
        return None


class _Scan:
    """One look at all processes for those of a tree; the ones that carry its token are stopped on sight.

    Args:
        tree: the incarnation.
        protected: never part of it, nor are the sessions they lead.
    """

    def __init__(self, tree: Tree, protected: Collection[int]) -> None:
        self._mark = f"{ENV_TOKEN}={tree.token}".encode()
        self._tree = tree
        self._protected = protected
        self._marked: set[int] = set()
        self.table: dict[int, Stat] = {}
        self.settled = procfs.scan(self._visit)  # whether no process came or went meanwhile

    def _eligible(self, entry: Stat) -> bool:
        return entry.pid not in self._protected and entry.start_time >= (self._tree.start_time or 0)

    def _visit(self, entry: Stat) -> None:
        self.table[entry.pid] = entry
        if self._eligible(entry) and procfs.carries(entry.pid, self._mark):
            self._marked.add(entry.pid)
            if entry.alive and entry.state != "T":
                _send(entry, signal.SIGSTOP)

    def members(self, browsers: Collection[int], known: Collection[int]) -> set[int]:
        """The pids that belong to the tree, zombies included.

        Args:
            browsers: pids of browsers that the worker reported; each leads a session.
            known: found to belong to it before; their descendants do too.
        """
        me = os.getpid()
        candidates = [entry for entry in self.table.values() if self._eligible(entry)]
        found = self._marked | set(known)
        sessions: set[int] = set()
        for pid in (*browsers, *([] if self._tree.pid is None else [self._tree.pid])):
            leader = self.table.get(pid)
            if leader is None:
                sessions.add(pid)  # a number stays taken while its session has members
            elif pid == self._tree.pid:
                if leader.start_time == self._tree.start_time:
                    found.add(pid)
            elif leader.session == pid and leader.ppid == me and self._eligible(leader):
                found.add(pid)  # orphaned, and started with an environment of its own
        found.difference_update(self._protected)
        sessions.difference_update(self._protected)
        while True:
            # A session counts when its leader is ours or dead: an operator's shell that copied the token is not ours.
            led = {self.table[pid].session for pid in found if pid in self.table}
            sessions |= {leader for leader in led if leader in found or leader not in self.table}
            grown = {e.pid for e in candidates if e.session in sessions or e.ppid in found} - found
            if not grown:
                return found
            found |= grown


def end(
    tree: Tree,
    browsers: Collection[int],
    others: Iterable[int],
    seen: Mapping[int, int] | None = None,
    seconds: float = END_WITHIN,
) -> EndedTree:
    """SIGKILL everything left of an incarnation, until nothing is.

    All are stopped first and the scan repeated until it finds no more, so that nothing slips away by forking while its
    parent is being killed.

    Args:
        tree: the incarnation.
        browsers: pids of browsers that the worker reported.
        others: pids of the workers that are none of this tree.
        seen: start times by pid of processes that are known to have belonged to it, whatever marks they shed since.
        seconds: how long to try.
    """
    protected = {0, 1, *procfs.ancestry(os.getpid()), *others}
    deadline = time.monotonic() + seconds
    killed = freezes = empty = 0
    unfrozen = set(seen or {})  # known, but not stopped yet
    known = dict(seen or {})  # pid to start time
    while True:
        scan = _Scan(tree, protected)
        table = scan.table
        known = {pid: start for pid, start in known.items() if pid in table and table[pid].start_time == start}
        found = scan.members(browsers, known)
        living = [table[pid] for pid in found if pid in table and table[pid].alive]
        if not living and not scan.settled and empty < _MAX_EMPTY:
            empty += 1  # a process that forks and exits all the time may have been missed
            continue
        if not living or (killed and time.monotonic() >= deadline):
            return EndedTree(killed, len(living))
        fresh = [entry for entry in living if entry.pid not in known or entry.pid in unfrozen]
        unfrozen.clear()
        known.update((entry.pid, entry.start_time) for entry in living)
        if fresh and freezes < _MAX_FREEZES:
            freezes += 1
            for entry in fresh:
                _send(entry, signal.SIGSTOP)
            continue
        freezes = 0
        count = kill(living, max(0.1, min(0.5, deadline - time.monotonic())))
        killed += count
        if not count:
            return EndedTree(killed, len(living))  # not ours to kill (another user's): trying again changes nothing


def end_browser(tree: Tree, pid: int, known: Collection[int]) -> bool:
    """SIGKILL a browser with its session and descendants; False when it is not this incarnation's.

    Args:
        tree: the incarnation.
        pid: the browser's main process.
        known: pids already known to belong to the incarnation.
    """
    table = procfs.table()
    main = table.get(pid)
    protected = {0, 1, *procfs.ancestry(os.getpid())}
    if main is None or pid == tree.pid or pid in protected or main.start_time < (tree.start_time or 0):
        return False
    worker = table.get(tree.pid or 0)
    ours = (
        pid in known
        or procfs.carries(pid, f"{ENV_TOKEN}={tree.token}".encode())
        or (worker is not None and worker.start_time == tree.start_time and procfs.descends(pid, worker.pid))
    )
    if not ours:
        return False
    # The session is the browser's: it leads it, or the script that started it does.
    own = main.session == pid or (
        worker is not None and main.session != worker.session and main.session not in protected
    )
    found = {pid}
    while (
        grown := {
            e.pid
            for e in table.values()
            if e.pid not in protected and (e.ppid in found or (own and e.session == main.session))
        }
        - found
    ):
        found |= grown
    found.discard(tree.pid or 0)
    return kill([table[one] for one in found if table[one].alive], 0.5) > 0


def _send(entry: Stat, signum: signal.Signals) -> int | None:
    """Signal exactly that process; its pidfd, to be closed, or None when it is gone or not ours to signal."""
    try:
        handle = os.pidfd_open(entry.pid)
    except OSError:
        return None
    now = procfs.stat(entry.pid)  # after the pidfd: if it is the same process now, the pidfd is that process
    if now is not None and now.start_time == entry.start_time:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(handle, signum)
            if signum == signal.SIGKILL:
                return handle
    os.close(handle)
    return None


def kill(victims: list[Stat], seconds: float) -> int:
    """SIGKILL each and wait until they are dead, for some seconds; how many were signalled."""
    poll = select.poll()
    handles: list[int] = []
    count = 0
    for entry in victims:
        handle = _send(entry, signal.SIGKILL)
        if handle is None:
            continue
        count += 1
        if len(handles) < _MAX_WAITED:
            handles.append(handle)
            poll.register(handle, select.POLLIN)
        else:
            os.close(handle)
    deadline = time.monotonic() + seconds
    waiting = len(handles)
    while waiting and (left := deadline - time.monotonic()) > 0:
        for handle, _ in poll.poll(left * 1000):
            poll.unregister(handle)
            waiting -= 1
    for handle in handles:
        os.close(handle)
    return count


def remove_tree(path: Path) -> str | None:
    """Remove a folder with all it holds; why it is still there, if it is."""
    problem = None
    for _ in range(2):  # a file written by a process in its last moment makes the first pass fail
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            problem = f"{path}: {error.strerror or error}"
        else:
            return None
    return problem
