"""The runtime folder and its sockets, looked after: what is removed under us is made again within seconds.

Without them no command and no worker finds the daemon, and no worker can be started: a logout, or a clean-up of old
files, must not cost more than a moment.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import structlog

from scraper_supervisor.core.formats.event_payloads import StorageDegraded, StorageRecovered
from scraper_supervisor.store.errors import Locked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scraper_supervisor.daemon.control_socket import ControlSocket
    from scraper_supervisor.daemon.processes.processes import Processes
    from scraper_supervisor.daemon.upkeep.threads import Threads
    from scraper_supervisor.daemon.worker_socket import WorkerSocket
    from scraper_supervisor.store.locks import FolderLock

LOOK_EVERY: Final = 1.0  # seconds
_log = structlog.get_logger()


class RuntimeFolder:
    """Looks whether everything is in its place, and puts it there.

    Args:
        lock: of the folder, by which it stays ours.
        workers: the workers' socket.
        control: the operators' socket.
        processes: has folders in it.
        threads: look at the disk.
        control_group: the group that control.sock is opened to now.
        publish: tells of it, with the number of the incident.
    """

    def __init__(
        self,
        lock: FolderLock,
        workers: WorkerSocket,
        control: ControlSocket,
        processes: Processes,
        threads: Threads,
        control_group: Callable[[], str | None],
        publish: Callable[[StorageDegraded | StorageRecovered, int], None],
    ) -> None:
        self._lock = lock
        self._workers = workers
        self._control = control
        self._processes = processes
        self._threads = threads
        self._control_group = control_group
        self._publish = publish
        self._incidents = 0
        self._since: float | None = None  # when it was noticed, in monotonic seconds

    async def look(self) -> None:
        """Make what is missing, and tell of it; what cannot be made now is tried again at the next look."""
        missing = await self._threads.run(self._missing)
        if not missing and self._since is None:
            return
        if missing and self._since is None:
            self._since, self._incidents = time.monotonic(), self._incidents + 1
            names = ", ".join(path.name for path in missing)
            reason = f"{self._lock.folder}: removed or replaced while in use: {names}; made again"
            self._publish(StorageDegraded(reason), self._incidents)
        try:
            await self._threads.run(self._make_folders)
            if not self._workers.in_place():
                await self._workers.listen()
            if not self._control.in_place():
                await self._control.listen(self._control_group())
        except (OSError, KeyError, Locked) as error:
            _log.error("the runtime folder can't be made again", path=str(self._lock.folder), reason=str(error))
            return
        if self._since is not None:
            self._publish(StorageRecovered(time.monotonic() - self._since), self._incidents)
            self._since = None

    def _missing(self) -> list[Path]:
        sockets = [one.path for one in (self._workers, self._control) if not one.in_place()]
        lock = [] if self._lock.in_place() else [self._lock.folder]
        return [*lock, *sockets, *self._processes.missing_folders()]

    def _make_folders(self) -> None:
        self._lock.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._lock.in_place():
            self._lock.take_again()
        self._processes.make_folders()
