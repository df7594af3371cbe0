"""Worker processes: started, watched by pidfd, signalled one by one, ended as whole trees. No policy.

The daemon is a subreaper, so what double-forks away from a worker comes to it and is reaped here. The daemon's other
modules must start no processes of their own (subprocess, asyncio's or os.fork): their exit statuses would be reaped as
strangers', and uvloop would replace our SIGCHLD handler. `Processes.run` is for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from msgspec.structs import replace

from scraper_supervisor.core.policy.line_rate import LineRate
from scraper_supervisor.daemon.processes import process_tree, procfs, spawning
from scraper_supervisor.daemon.processes.orphans import Orphans
from scraper_supervisor.daemon.processes.process_tree import EndedTree, ProcessRecord, Tree
from scraper_supervisor.daemon.processes.spawning import (
    CommandProcess,
    Exit,
    Live,
    ProcessFolders,
    SpawnedProcess,
    SpawnError,
    SpawnSpec,
    start_command,
    start_worker,
)
from scraper_supervisor.daemon.processes.stacks import where_it_stands
from scraper_supervisor.daemon.processes.worker_output import Output, OutputTurns
from scraper_supervisor.daemon.upkeep.surroundings import as_they_are
from scraper_supervisor.daemon.upkeep.threads import Threads, ThreadsStopped

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from scraper_supervisor.daemon.upkeep.surroundings import Surroundings

__all__ = ["EndedTree", "Exit", "ProcessRecord", "Processes", "SpawnError", "SpawnSpec", "SpawnedProcess"]

DEFAULT_LINES: Final = 1000  # a second that are kept of what a worker prints
_T = TypeVar("_T")
_Child = TypeVar("_Child", Live, CommandProcess)


class Processes:
    """All worker processes of this daemon. Made and used on the loop, in the main thread.

    Args:
        loop: the running loop.
        runtime_dir: holds `output/` (FIFOs) and `tmp/` (a TMPDIR per incarnation).
        state_dir: holds `workers/` (a record per live incarnation), for the next supervisor.
        on_exit: called once for each process that ended, after its last lines.
        on_line: called for each line printed: worker, "out" or "err", text.
        given: what processes are started with; None for what we have ourselves.

    Raises:
        OSError: the folders cannot be made.
        RuntimeError: the host gives no further thread.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        runtime_dir: Path,
        state_dir: Path,
        on_exit: Callable[[str, int, Exit], None],
        on_line: Callable[[str, str, str], None],
        given: Surroundings | None = None,
    ) -> None:
        self._loop = loop
        self._on_exit = on_exit
        self._on_line = on_line
        self._folders = ProcessFolders.of(runtime_dir, state_dir)
        self._folders.make()
        self._given = given or as_they_are()
        self._boot_id = procfs.boot_id()
        self._live: dict[str, Live] = {}
        self._collectors: dict[int, Callable[[], None]] = {}  # by pid, of our own children: takes the exit status
        self._commands: set[CommandProcess] = set()
        self._trees: dict[str, tuple[int, Tree]] = {}  # worker: incarnation whose tree is not known to have ended
        self._ending: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # one search for a worker's at a time
        self._adopted: set[str] = set()  # workers whose orphans need not come to us
        self._orphans = Orphans()
        self._starting = 0  # threads that may hold a child that no collector waits for yet
        self._starters = Threads(loop, "spawn", 2)  # an exec may wait for a slow disk
        self._enders = Threads(loop, "end-tree", 2)
        self._closed = False
        self._rates: dict[str, LineRate] = {}  # by worker
        self._lines_per_second = DEFAULT_LINES
        self._turns = OutputTurns(loop)
        spawning.become_subreaper()
        # Not loop.add_signal_handler, which uvloop refuses for SIGCHLD.
        self._old_handler: Any = signal.signal(signal.SIGCHLD, self._child_signal)
        signal.siginterrupt(signal.SIGCHLD, False)

    # ---- starting --------------------------------------------------------------------------------------------------

    async def spawn(self, spec: SpawnSpec) -> SpawnedProcess:
        """Start a worker in a session of its own; what an earlier incarnation left is ended first.

        If the caller is cancelled, the process is started and watched all the same.

        Raises:
            SpawnError: it could not be started; nothing is left of the attempt.
        """
        if spec.worker in self._live:
            raise SpawnError(errno.EEXIST, f"{spec.worker} is still running as PID {self._live[spec.worker].pid}")
        if spec.worker in self._trees:
            await self.end_tree(spec.worker, self._trees[spec.worker][0])
        self._adopted.discard(spec.worker)
        live = await self._guarded(partial(start_worker, spec, self._folders, self._boot_id, self._given), self._watch)
        return SpawnedProcess(live.pid, live.start_time, live.token)

    async def _guarded(self, start: Callable[[], _Child], started: Callable[[_Child], None]) -> _Child:
        """Run `start` in a thread, and `started` on the loop; strangers are not reaped in between."""

        def arrived(future: asyncio.Future[_Child]) -> None:
            self._starting -= 1
            if not future.cancelled() and future.exception() is None:
                started(future.result())
            self._reap()

        self._starting += 1
        try:
            future = self._starters.run(start)
        except ThreadsStopped as error:
            self._starting -= 1
            raise SpawnError(errno.ESHUTDOWN, str(error)) from None
        future.add_done_callback(arrived)
        return await asyncio.shield(future)

    def _watch(self, live: Live) -> None:
        if self._closed:
            self._release(live)
            return
        self._live[live.worker] = live
        self._collectors[live.pid] = partial(self._died, live)
        self._trees[live.worker] = (live.incarnation, Tree(live.token, live.pid, live.start_time))
        rate = self._rates.setdefault(live.worker, LineRate(self._lines_per_second, self._loop.time()))
        live.outputs = [
            Output(self._loop, handle, partial(self._on_line, live.worker, stream), rate, self._turns)
            for stream, handle in live.handles.items()
        ]
        self._loop.add_reader(live.pidfd, self._died, live)

    # ---- dying -----------------------------------------------------------------------------------------------------

    def _died(self, live: Live) -> None:
        if self._live.get(live.worker) is not live:
            return
        end = spawning.collect(live.pidfd)
        if end is None:
            return
        del self._collectors[live.pid], self._live[live.worker]
        for stream in live.outputs:
            stream.finish()
        said = dict(zip(live.handles, live.outputs, strict=True)).get("err")
        live.outputs = []
        self._release(live)
        for name in live.handles:
            self._folders.fifo(live.worker, name).unlink(missing_ok=True)
        self._on_exit(live.worker, live.incarnation, replace(end, last_line=said and said.last))

    def _release(self, live: Live) -> None:
        self._loop.remove_reader(live.pidfd)
        os.close(live.pidfd)
        for stream in live.outputs:
            stream.close()

    def _child_signal(self, _signum: int, _frame: object) -> None:
        with contextlib.suppress(RuntimeError):  # a closed loop has nobody to reap for
            self._loop.call_soon_threadsafe(self._reap)

    def _reap(self) -> None:
        """Reap adopted orphans, and workers by the way: a zombie at the head would hide those behind it."""
        while not self._closed:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if info is None:
                return
            if (collect := self._collectors.get(info.si_pid)) is not None:
                collect()
            elif self._starting:
                return  # perhaps one being started: again when no start is under way
            else:
                with contextlib.suppress(ChildProcessError):
                    os.waitid(os.P_PID, info.si_pid, os.WEXITED | os.WNOHANG)

    # ---- signalling and ending -------------------------------------------------------------------------------------

    def signal(self, worker: str, incarnation: int, signum: int) -> bool:
        """Send a signal to the worker's process alone; False when it has ended, or it may not be signalled."""
        live = self._live.get(worker)
        if live is None or live.incarnation != incarnation:
            return False
        try:
            signal.pidfd_send_signal(live.pidfd, signum)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    async def stack(self, worker: str, incarnation: int) -> tuple[str, ...]:
        """Where the worker's main thread stands, innermost call last; empty where it does not tell in a moment."""
        live = self._live.get(worker)
        if live is None or live.incarnation != incarnation:
            return ()
        send = partial(self.signal, worker, incarnation)
        return await where_it_stands(live.pid, self._folders.tmpdir(worker, incarnation), send)

    async def end_tree(
        self, worker: str, incarnation: int, browsers: Collection[int] = (), seen: Mapping[int, int] | None = None
    ) -> EndedTree:
        """SIGKILL everything left of an incarnation and remove its TMPDIR, FIFOs and record.

        Args:
            worker: its name.
            incarnation: which start of it; one that has ended or is unknown has nothing left.
            browsers: pids of the browsers that it reported, dead ones too.
            seen: start times by pid of what was seen in its tree.
        """
        async with self._ending[worker]:
            if worker not in self._trees or self._trees[worker][0] != incarnation:
                return EndedTree()
            tree = self._trees[worker][1]
            others = [live.pid for live in self._live.values() if live.pid != tree.pid]
            tmpdir = self._folders.tmpdir(worker, incarnation)
            gone = worker not in self._adopted and worker not in self._live
            if gone and self._orphans.none(others):  # which spares the search through all processes of the machine
                ended = EndedTree(residue=await self._in_thread(process_tree.remove_tree, tmpdir))
            else:
                known = {**(seen or {}), **self._ownerless(worker, others)}
                ended = await self._in_thread(_end_and_clean, tree, tuple(browsers), others, tmpdir, known)
            if (live := self._live.get(worker)) is not None and live.incarnation == incarnation and not ended.left:
                self._died(live)  # so that its exit is known to the caller before this returns
            if self._trees.get(worker, (None,))[0] == incarnation and not ended.left:
                del self._trees[worker]
                self._folders.forget(worker)
            return ended

    def _ownerless(self, worker: str, others: Collection[int]) -> dict[int, int]:
        """Our children that only a dead worker can have left, this one or another."""
        if self._starting:
            return {}
        living = [live.start_time for live in self._live.values() if live.worker != worker]
        return self._orphans.ownerless({*others, *self._collectors}, living)

    async def end_leftovers(self) -> int:
        """SIGKILL whatever workers left behind that is our child by now; how many. For the end."""
        if self._live or self._adopted:
            return 0
        return await self._in_thread(self._orphans.end_all, [command.pid for command in self._commands])

    async def kill_browser(self, worker: str, incarnation: int, pid: int, known: Collection[int] = ()) -> bool:
        """SIGKILL a browser with its whole session; False when it is gone or not that incarnation's.

        Args:
            worker: the worker that reported it.
            incarnation: which start of it.
            pid: the browser's main process.
            known: pids that the sampler saw in the worker's tree.
        """
        if worker not in self._trees or self._trees[worker][0] != incarnation:
            return False
        return await self._in_thread(process_tree.end_browser, self._trees[worker][1], pid, tuple(known))

    async def _in_thread(self, function: Callable[..., _T], *args: object) -> _T:
        return await asyncio.shield(self._enders.run(partial(function, *args)))

    # ---- predecessors ----------------------------------------------------------------------------------------------

    def predecessors(self) -> list[ProcessRecord]:
        """The workers of an earlier supervisor that are on record and not adopted; they may have ended."""
        found = (process_tree.read_record(path) for path in sorted(self._folders.records.glob("*.json")))
        return [record for record in found if record is not None and record.worker not in self._live]

    def adopt(self, record: ProcessRecord) -> SpawnedProcess | None:
        """Watch a predecessor's worker as one of ours; None when it has ended.

        Of a process that is not our child the exit's code and signal stay unknown.
        """
        live = None if self._closed else spawning.find_worker(record, self._folders, self._boot_id)
        if live is None:
            return None
        self._adopted.add(record.worker)
        self._watch(live)
        return SpawnedProcess(live.pid, live.start_time, live.token)

    async def end_predecessors(self) -> list[str]:
        """End the whole tree of every worker on record that was not adopted; the names of those that left something.

        Removes what such workers left in the runtime folder too.
        """
        ended: list[str] = []
        for record in self.predecessors():
            others = [live.pid for live in self._live.values()]
            tmpdir = self._folders.tmpdir(record.worker, record.incarnation)
            if record.tmpdir.endswith(f"/tmp/{record.worker}-{record.incarnation}"):
                tmpdir = Path(record.tmpdir)  # where another runtime folder was configured then
            if record.boot_id == self._boot_id:
                done = await self._in_thread(_end_and_clean, record.tree, (), others, tmpdir)
                if done.killed or done.left:
                    ended.append(record.worker)
                if done.left:
                    continue  # still on record for the next try
            self._folders.forget(record.worker)
        kept = {self._folders.tmpdir(worker, incarnation).name for worker, (incarnation, _) in self._trees.items()}
        for leftover in [path for path in self._folders.tmp.iterdir() if path.name not in kept]:
            await self._in_thread(process_tree.remove_tree, leftover)
        return ended

    # ---- output ----------------------------------------------------------------------------------------------------

    def limit_output(self, lines_per_second: int) -> None:
        """Keep so many lines a second of what each worker prints, from now on."""
        self._lines_per_second = lines_per_second
        for rate in self._rates.values():
            rate.rate = lines_per_second

    def lines_dropped(self) -> dict[str, int]:
        """By worker, how many lines it printed that were not kept, since we started."""
        return {worker: rate.dropped for worker, rate in self._rates.items()}

    # ---- folders ---------------------------------------------------------------------------------------------------

    def missing_folders(self) -> list[Path]:
        """Those of our folders, and of live workers' TMPDIRs, that were removed."""
        return [path for path in (*self._folders.all(), *self._tmpdirs()) if not path.is_dir()]

    def make_folders(self) -> None:
        """Make those again.

        Raises:
            OSError: one cannot be made.
        """
        self._folders.make()
        for path in self._tmpdirs():
            path.mkdir(mode=0o700, exist_ok=True)

    def _tmpdirs(self) -> list[Path]:
        return [self._folders.tmpdir(live.worker, live.incarnation) for live in tuple(self._live.values())]

    # ---- others' commands ------------------------------------------------------------------------------------------

    async def run(self, argv: tuple[str, ...], stdin: bytes, env: Mapping[str, str], seconds: float) -> Exit:
        """Run a command that is no worker (a notification) to its end; its output goes to ours.

        Args:
            argv: program and arguments.
            stdin: what it can read.
            env: its whole environment.
            seconds: after which its session is killed.

        Raises:
            SpawnError: it could not be started.
        """
        over: asyncio.Future[Exit] = self._loop.create_future()
        command = await self._guarded(
            partial(start_command, argv, stdin, env, self._given), partial(self._watch_command, over)
        )
        timer = self._loop.call_later(seconds, command.kill)
        try:
            return await asyncio.shield(over)
        except asyncio.CancelledError:
            command.kill()
            raise
        finally:
            timer.cancel()

    def _watch_command(self, over: asyncio.Future[Exit], command: CommandProcess) -> None:
        def ended() -> None:
            if command in self._commands and (end := spawning.collect(command.pidfd)) is not None:
                del self._collectors[command.pid]
                self._release_command(command)
                if not over.done():
                    over.set_result(end)

        self._commands.add(command)
        self._collectors[command.pid] = ended
        self._loop.add_reader(command.pidfd, ended)
        if self._closed:
            command.kill()
            self._release_command(command)

    def _release_command(self, command: CommandProcess) -> None:
        self._commands.discard(command)
        self._loop.remove_reader(command.pidfd)
        os.close(command.pidfd)
        command.pidfd = -1

    # ---- the end ---------------------------------------------------------------------------------------------------

    def stop_all(self) -> None:
        """Let go of everything: no reader, handle, thread or signal handler is left. Live workers live on.

        Waits for starts and ends under way, so await those before; a command still running is killed.
        """
        self._closed = True
        signal.signal(signal.SIGCHLD, self._old_handler)
        for live in self._live.values():
            self._release(live)
        for command in tuple(self._commands):
            command.kill()
            self._release_command(command)
        self._live.clear()
        self._collectors.clear()
        self._starters.stop()
        self._enders.stop()
        with contextlib.suppress(OSError):  # live workers' folders are in it, or nothing any more
            self._folders.tmp.rmdir()


def _end_and_clean(
    tree: Tree,
    browsers: Collection[int],
    others: Collection[int],
    tmpdir: Path,
    seen: Mapping[int, int] | None = None,
) -> EndedTree:
    ended = process_tree.end(tree, browsers, others, seen)
    if ended.left:
        return ended
    return EndedTree(ended.killed, 0, process_tree.remove_tree(tmpdir))
