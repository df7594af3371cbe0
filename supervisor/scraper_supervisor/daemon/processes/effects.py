"""What the fleet commands to be done to processes, as tasks whose outcome is an event again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from scraper_supervisor.core.events import Spawned, SpawnFailed, StackTold, TreeEnded
from scraper_supervisor.daemon.processes.spawning import SpawnError, spec_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from scraper_supervisor.core.events import Event, KillBrowser, KillTree, Spawn
    from scraper_supervisor.daemon.processes.processes import Processes
    from scraper_supervisor.daemon.processes.sampler import Sampler
    from scraper_supervisor.daemon.upkeep.tasks import Tasks

TRIES: Final = 60  # to end what is to be ended, where that fails unexpectedly
TRY_EVERY: Final = 1.0  # seconds
_T = TypeVar("_T")
_log = structlog.get_logger()


class ProcessEffects:
    """Starts and ends workers and browsers; each method returns at once.

    Args:
        processes: does it.
        sampler: knows which processes are a worker's.
        tasks: holds what is under way.
        feed: takes the outcome.
        worker_socket: the path of the socket that workers find us at.
        environment: ours, as far as it is for workers.
    """

    def __init__(
        self,
        processes: Processes,
        sampler: Sampler,
        tasks: Tasks,
        feed: Callable[[Event], None],
        worker_socket: str,
        environment: Mapping[str, str],
    ) -> None:
        self._processes = processes
        self._sampler = sampler
        self._tasks = tasks
        self._feed = feed
        self._worker_socket = worker_socket
        self._environment = environment

    def spawn(self, command: Spawn) -> None:
        """Start a worker; the outcome is `Spawned` or `SpawnFailed`."""

        def failed(error: Exception) -> None:
            number = error.errno if isinstance(error, OSError) and error.errno is not None else 0
            reason = f"it could not be started: {type(error).__name__}: {error}"
            self._feed(SpawnFailed(command.worker, command.incarnation, reason, number))

        self._tasks.start(self._spawn(command), f"spawn {command.worker}", failed)

    def kill_tree(self, command: KillTree) -> None:
        """End all that is left of an incarnation; the outcome is `TreeEnded`, and before it `StackTold` if asked."""

        def failed(_: Exception) -> None:  # nobody shall wait for it for ever; its record stays for the next supervisor
            self._feed(TreeEnded(command.worker, command.incarnation, 0))

        self._tasks.start(self._kill_tree(command), f"end {command.worker}", failed)

    def kill_browser(self, command: KillBrowser) -> None:
        """End one browser; its worker tells of its end."""
        self._tasks.start(self._kill_browser(command), f"kill a browser of {command.worker}")

    async def _spawn(self, command: Spawn) -> None:
        worker, incarnation = command.worker, command.incarnation
        try:
            spawned = await self._processes.spawn(spec_of(command, self._worker_socket, self._environment))
        except SpawnError as error:
            self._feed(SpawnFailed(worker, incarnation, error.message, error.errno, error.is_set_up))
        else:
            self._feed(Spawned(worker, incarnation, spawned.pid, spawned.token))

    async def _kill_tree(self, command: KillTree) -> None:
        if command.ask:
            where = await self._processes.stack(command.worker, command.incarnation)
            self._feed(StackTold(command.worker, command.incarnation, where))
        seen = self._sampler.take_seen(command.worker, command.incarnation)
        ended = await _tried(
            f"end {command.worker}",
            lambda: self._processes.end_tree(command.worker, command.incarnation, command.browsers, seen),
        )
        if ended.left:
            _log.error("processes can't be ended", worker=command.worker, left=ended.left)
        self._feed(TreeEnded(command.worker, command.incarnation, ended.killed))

    async def _kill_browser(self, command: KillBrowser) -> None:
        known = self._sampler.pids(command.worker)
        killed = await _tried(
            f"kill a browser of {command.worker}",
            lambda: self._processes.kill_browser(command.worker, command.incarnation, command.pid, known),
        )
        _log.info("killed a browser" if killed else "a browser was gone", worker=command.worker, pid=command.pid)


async def _tried(what: str, act: Callable[[], Awaitable[_T]]) -> _T:
    """Do it, again after a while where it fails: a host that is short of descriptors or threads has them later.

    Raises:
        Exception: what the last try raised.
    """
    for left in reversed(range(TRIES)):
        try:
            return await act()
        except Exception as error:
            if not left:
                raise
            _log.warning("a task failed and is tried again", task=what, exc_info=error)
        await asyncio.sleep(TRY_EVERY)
    raise AssertionError
