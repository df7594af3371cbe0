"""The settings in force, and how others take their place: all of a file, or nothing of it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog

from scraper_supervisor.core.config.parser import InvalidSettings, Problem
from scraper_supervisor.core.config.reload_plan import plan
from scraper_supervisor.core.events import Publish, Reconfigured
from scraper_supervisor.core.formats.event_payloads import ConfigRejected
from scraper_supervisor.daemon.telling.log import utc_now
from scraper_supervisor.daemon.upkeep.threads import Threads
from scraper_supervisor.store.config_file import load
from scraper_worker import protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from scraper_supervisor.core.config.settings import Settings
    from scraper_supervisor.core.events import Event
    from scraper_supervisor.daemon.control_socket import ControlSocket
    from scraper_supervisor.daemon.processes.processes import Processes
    from scraper_supervisor.daemon.processes.sampler import Sampler
    from scraper_supervisor.daemon.systemd import Notifier
    from scraper_supervisor.daemon.telling.sinks import Telling
    from scraper_supervisor.daemon.worker_socket import WorkerSocket
    from scraper_supervisor.store.config_file import Loaded

READ_WITHIN: Final = 20.0  # seconds that the files have to be read
LINE_ROOM: Final = 1024 * 1024  # bytes that a line may be longer than the state in it
_log = structlog.get_logger()


def line_limit(settings: Settings) -> int:
    """Bytes that a worker's line may have after its hello."""
    return max(protocol.MAX_LINE, settings.checkpoint.max_state + LINE_ROOM)


class InForce:
    """The settings in force; `Reload` alone changes them.

    Attributes:
        settings: those in force.
        path: the file that they are from; None without one.
        loaded_at: when they were, RFC 3339 UTC.
        error: why the file was rejected when it was last read; None if it was not.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.settings = loaded.settings
        self.path = loaded.path
        self.loaded_at = utc_now()
        self.error: str | None = None


class Reload:
    """Reads the file again and hands its settings to everything that goes by them; the fleet comes last.

    There is one reload at a time. Who asks meanwhile gets the outcome of the next one, which reads what is in the file
    by then, however many ask.

    Args:
        in_force: what is changed.
        boot: begins the correlation id of a rejection.
        feed: takes an event.
        telling: hides the new secrets, and goes by the new level and form of the log and the new notify command.
        workers: accepts lines of the new length.
        control: is opened to the new group.
        sampler: samples at the new interval.
        notifier: tells systemd when a reload begins and ends.
        processes: keep so many lines of what workers print.
    """

    def __init__(
        self,
        in_force: InForce,
        boot: str,
        feed: Callable[[Event], None],
        telling: Telling,
        workers: WorkerSocket,
        control: ControlSocket,
        sampler: Sampler,
        notifier: Notifier,
        processes: Processes,
    ) -> None:
        self._reader = Threads(asyncio.get_running_loop(), "config", 1)  # its own: a disk may take its time
        self._one = asyncio.Lock()
        self._asked = self._begun = self._answered = 0  # how many asked; up to whom a reload has begun, and is over
        self._outcome: tuple[bool, Any] = (False, "")
        self._in_force = in_force
        self._boot = boot
        self._feed = feed
        self._telling = telling
        self._workers = workers
        self._control = control
        self._sampler = sampler
        self._notifier = notifier
        self._processes = processes

    @property
    def next_is_asked_for(self) -> bool:
        """True if a reload that has not begun will come anyway."""
        return self._asked > self._begun

    async def run(self) -> tuple[bool, Any]:
        """Read the configuration again: all of it takes effect, or nothing; whether it did, and what to answer."""
        self._asked += 1
        mine = self._asked
        async with self._one:
            if self._answered < mine:
                self._begun = self._asked
                self._notifier.reloading()
                try:
                    self._outcome = await self._run()
                finally:
                    self._notifier.ready()
                self._answered = self._begun
            return self._outcome

    def close(self) -> None:
        """Read nothing any more; a read under way is not waited for."""
        self._reader.stop(0.0)

    async def _run(self) -> tuple[bool, Any]:
        path = self._in_force.path
        if path is None:
            return self._rejected((Problem("", "there is no configuration file to reload"),))
        try:
            settings = await asyncio.wait_for(self._reader.run(partial(load, path)), READ_WITHIN)
            changes = plan(self._in_force.settings, settings)
        except InvalidSettings as error:
            return self._rejected(error.problems)
        except TimeoutError:
            return self._rejected((Problem("", f"it could not be read within {READ_WITHIN:g} s"),))
        except Exception as error:  # noqa: BLE001 - a bug of ours must not cost what is in force
            _log.error("a reload failed", exc_info=error)
            return self._rejected((Problem("", f"it can't be read: {type(error).__name__}: {error}"),))
        if changes.refused:
            return self._rejected(changes.refused)
        try:
            self._control.open_to(settings.supervisor.control_group)
        except KeyError:
            message = f"there is no system group {settings.supervisor.control_group!r}"
            return self._rejected((Problem("supervisor.control_group", message),))
        except OSError as error:
            return self._rejected((Problem("supervisor.control_group", f"the sockets can't be opened to it: {error}"),))
        self._apply(settings)
        return True, {"summary": changes.summary}

    def _apply(self, settings: Settings) -> None:
        self._in_force.settings = settings
        self._in_force.error, self._in_force.loaded_at = None, utc_now()
        self._telling.configure(settings)
        self._workers.limit_lines(line_limit(settings))
        self._sampler.set_interval(settings.resources.sample_interval)
        self._processes.limit_output(settings.logs.lines_per_second)
        self._feed(Reconfigured(settings))

    def _rejected(self, problems: tuple[Problem, ...]) -> tuple[bool, Any]:
        details = [{"path": problem.path, "message": problem.message} for problem in problems]
        self._in_force.error = error = "; ".join(str(problem) for problem in problems)
        incident = f"{self._boot}-{utc_now()}"
        self._telling.publish(Publish(ConfigRejected(problems), ConfigRejected.SEVERITY, incident))
        return False, (f"the configuration was rejected, nothing changed: {error}", {"problems": details})
