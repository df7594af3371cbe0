"""What the fleet commands to be done to processes, as tasks whose outcome is an event again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from scraper_supervisor.core.events import Spawned, SpawnFailed, TreeEnded
from scraper_supervisor.daemon.processes.spawning import SpawnError, spec_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from scraper_supervisor.core.events import Event, KillBrowser, KillTree, Spawn
    from scraper_supervisor.daemon.processes.processes import Processes
    from scraper_supervisor.daemon.processes.sampler import Sampler

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
        tasks: asyncio.TaskGroup,
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
        self._tasks.create_task(self._spawn(command), name=f"spawn {command.worker}")

    def kill_tree(self, command: KillTree) -> None:
        """End all that is left of an incarnation; the outcome is `TreeEnded`."""
        self._tasks.create_task(self._kill_tree(command), name=f"end {command.worker}")

    def kill_browser(self, command: KillBrowser) -> None:
        """End one browser; its worker tells of its end."""
        self._tasks.create_task(self._kill_browser(command), name=f"kill a browser of {command.worker}")

    async def _spawn(self, command: Spawn) -> None:
        worker, incarnation = command.worker, command.incarnation
        try:
            spawned = await self._processes.spawn(spec_of(command, self._worker_socket, self._environment))
        except SpawnError as error:
            self._feed(SpawnFailed(worker, incarnation, error.message, error.errno))
        else:
            self._feed(Spawned(worker, incarnation, spawned.pid, spawned.token))

    async def _kill_tree(self, command: KillTree) -> None:
        ended = await self._processes.end_tree(command.worker, command.incarnation, command.browsers)
        if ended.left:
            _log.error("processes can't be ended", worker=command.worker, left=ended.left)
        self._feed(TreeEnded(command.worker, command.incarnation, ended.killed))

    async def _kill_browser(self, command: KillBrowser) -> None:
        known = self._sampler.pids(command.worker)
        killed = await self._processes.kill_browser(command.worker, command.incarnation, command.pid, known)
        _log.info("killed a browser" if killed else "a browser was gone", worker=command.worker, pid=command.pid)
