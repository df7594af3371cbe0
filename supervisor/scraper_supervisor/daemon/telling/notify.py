"""The sink that runs `[notify] command`: on an abort, a failed worker and degraded storage, and when each is over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

from scraper_supervisor.daemon.processes.spawning import SpawnError
from scraper_supervisor.daemon.telling.sinks import Sink

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scraper_supervisor.core.config.settings import Settings
    from scraper_supervisor.core.formats.event_names import EventName
    from scraper_supervisor.core.formats.redaction import Redactor
    from scraper_supervisor.daemon.processes.processes import Processes
    from scraper_supervisor.daemon.telling.sinks import ToldEvent
    from scraper_supervisor.daemon.upkeep.tasks import Tasks

NOTIFY_WITHIN: Final = 30.0  # seconds that the command has
IN_ORDER_WITHIN: Final = 1.0  # seconds that a command waits for the end of the one before
_BEGINS: Final[frozenset[EventName]] = frozenset({"abort_executed", "worker_failed", "storage_degraded"})
_ENDS: Final[frozenset[EventName]] = frozenset(
    {"hold_ended", "abort_evaluated", "worker_started", "worker_ready", "worker_completed", "storage_recovered"}
)
_log = structlog.get_logger()


class Notify(Sink):
    """Runs the command for each event that concerns it, with the whole event as JSON on its stdin.

    The commands run one after another, as long as none takes its time.

    An abort is over when the hold of its scope ends, or an operator clears it, a failed worker's trouble when it is
    running again or has ended well. Only what was told of can be told to be over.

    Args:
        loop: the running loop.
        tasks: holds the commands that run.
        processes: runs them.
        environment: theirs, whole.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        tasks: Tasks,
        processes: Processes,
        environment: Mapping[str, str],
    ) -> None:
        self._loop = loop
        self._tasks = tasks
        self._processes = processes
        self._environment = environment
        self._command: tuple[str, ...] | None = None
        self._without_sdk: frozenset[str] = frozenset()  # groups whose workers are running from their spawn on
        self._last: asyncio.Task[None] | None = None
        self._open: set[tuple[Any, ...]] = set()  # troubles that are not over

    def configure(self, settings: Settings, redactor: Redactor) -> None:  # noqa: ARG002 - events come redacted
        """Run these settings' command from now on."""
        self._command = settings.notify.command
        self._without_sdk = frozenset(name for name, group in settings.groups.items() if group.command is not None)

    def take(self, events: Sequence[ToldEvent]) -> None:
        """Have the command run for those that concern it."""
        for event in events:
            if self._concerns(event) and self._command is not None:
                self._loop.call_soon_threadsafe(self._start, self._command, event.line.rstrip())

    def _concerns(self, event: ToldEvent) -> bool:
        name = event.event
        if name not in _BEGINS and name not in _ENDS:
            return False
        if name == "abort_evaluated" and not _clears(event):
            return False
        trouble = _trouble(event)
        if name in _BEGINS:
            self._open.add(trouble)
            return True
        if trouble not in self._open or (name == "worker_started" and event.group not in self._without_sdk):
            return False
        self._open.remove(trouble)
        return True

    def _start(self, command: tuple[str, ...], document: bytes) -> None:
        running = self._run(command, document, self._last)
        started = self._tasks.start(running, "notify", finish=True)
        if started is not None:
            self._last = started
        else:
            _log.error("the daemon ended before the notify command could be started", command=command[0])

    async def _run(self, command: tuple[str, ...], document: bytes, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait((before,), timeout=IN_ORDER_WITHIN)
        try:
            end = await self._processes.run(command, document, self._environment, NOTIFY_WITHIN)
        except SpawnError as error:
            _log.error("the notify command can't be started", command=command[0], reason=error.message)
        else:
            if end.code != 0:
                _log.error("the notify command failed", command=command[0], code=end.code, signal=end.signal)


def _clears(event: ToldEvent) -> bool:
    """True if an `abort_evaluated` says that its scope is normal again."""
    return b'"cleared"' in event.line and msgspec.json.decode(event.line)["data"].get("action") == "cleared"


def _trouble(event: ToldEvent) -> tuple[Any, ...]:
    """What an event begins or ends: the storage's trouble, a worker's, or a scope's."""
    if event.event.startswith("storage"):
        return ("storage",)
    if event.worker is not None:
        return ("worker", event.worker)
    data = msgspec.json.decode(event.line)["data"] or {}
    return ("scope", *(data.get(name) for name in ("scope", "key", "group")))
