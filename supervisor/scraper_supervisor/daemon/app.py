"""The daemon: one loop on which events go into the fleet and its commands come out as effects.

`feed` is the only way in and `perform` the only place where effects start. An effect that fails is an event again.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, assert_never

import msgspec
import structlog
import uvloop

from scraper_supervisor import __version__
from scraper_supervisor.core.changes import plan
from scraper_supervisor.core.events import (
    Answered,
    Command,
    Due,
    Event,
    Exited,
    HangUp,
    Introduced,
    KillBrowser,
    KillTree,
    Leave,
    Persist,
    Persisted,
    PersistFailed,
    Publish,
    Reconfigured,
    Refuse,
    Reply,
    Sampled,
    Signal,
    Spawn,
    Spawned,
    SpawnFailed,
    StoreFaulted,
    StoreTold,
    Tell,
    Terminated,
    TreeEnded,
    Unwatch,
    Watch,
)
from scraper_supervisor.core.fleet import Fleet
from scraper_supervisor.core.parse import InvalidSettings, Problem
from scraper_supervisor.core.snapshot import Daemon, snapshot, supervisor_state
from scraper_supervisor.daemon.backups import Backups
from scraper_supervisor.daemon.control_socket import ControlSocket
from scraper_supervisor.daemon.processes.processes import Exit, Processes, SpawnError, SpawnSpec
from scraper_supervisor.daemon.processes.sampler import Sampler, SamplerFault
from scraper_supervisor.daemon.processes.spawning import environment_for_workers
from scraper_supervisor.daemon.signals import Signals
from scraper_supervisor.daemon.storage import StorageThreads
from scraper_supervisor.daemon.systemd import Notifier
from scraper_supervisor.daemon.telemetry import EventLog, configure_logging, utc_now
from scraper_supervisor.daemon.worker_socket import WorkerSocket
from scraper_supervisor.store.config_file import load
from scraper_supervisor.store.faults import LedgerTooNew, Locked, NetworkFileSystem, StoreError, StoreFault
from scraper_supervisor.store.locks import FolderLock
from scraper_supervisor.store.opening import location
from scraper_worker import protocol

if TYPE_CHECKING:
    from scraper_supervisor.core.records import Op
    from scraper_supervisor.core.settings import GroupSettings
    from scraper_supervisor.core.state import Mode
    from scraper_supervisor.daemon.storage import StoreAnswers
    from scraper_supervisor.daemon.telemetry import Log
    from scraper_supervisor.store.config_file import Loaded

EX_DATA: Final = 65  # the ledger does not open
REPEATED_SIGNAL: Final = 0.5  # seconds within which a second SIGTERM or SIGINT is the same one
LINE_ROOM: Final = 1024 * 1024  # bytes that a line may be longer than the state in it
ANSWERS_A_TURN: Final = 16
EVENTS_WITHIN: Final = 0.05  # seconds that an answer waits for the event log
ARM_EVERY: Final = 0.01  # seconds between two looks for the next deadline, which may come late by that much
NOTIFY_WITHIN: Final = 30.0  # seconds that the notify command has
LEVELS: Final = logging.getLevelNamesMapping()
NOTIFIED: Final = frozenset({"abort_executed", "worker_failed", "storage_degraded"})


class CannotStart(Exception):
    """The daemon can't start; the message says why and what to do. `code` is the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def run(loaded: Loaded, *, once: bool = False, fresh: bool = False) -> int:
    """Run the daemon until it leaves.

    Args:
        loaded: the configuration and its folders.
        once: end when nothing is left to do.
        fresh: begin a new run of every group.

    Returns:
        The exit code.

    Raises:
        CannotStart: before anything was started.
    """
    mode: Mode = "fresh" if fresh else ("next" if once else "continue")
    os.umask(0o077)  # states hold cookies: nothing that we or the store make is for others to read
    state_dir, runtime_dir = Path(loaded.folders.state_dir), Path(loaded.folders.runtime_dir)
    locks: list[FolderLock] = []
    try:
        for folder in dict.fromkeys((state_dir, runtime_dir)):
            folder.mkdir(parents=True, exist_ok=True)
            locks.append(FolderLock(folder))
    except Locked as error:
        if error.command is not None:
            raise CannotStart(f"{error}; start when it is done") from None
        raise CannotStart(f"another supervisor is running: {error}") from None
    except OSError as error:
        raise CannotStart(f"{error.filename}: {error.strerror}") from None
    supervisor = loaded.settings.supervisor
    log = configure_logging(supervisor.log_level, supervisor.log_format, sys.stderr)
    try:
        return uvloop.run(DaemonApp(loaded, state_dir, runtime_dir, log, once=once, mode=mode).main())
    finally:
        log.close()
        for lock in locks:
            lock.close()


class DaemonApp:
    """Wiring, the loop and every effect."""

    def __init__(
        self, loaded: Loaded, state_dir: Path, runtime_dir: Path, output: Log, *, once: bool, mode: Mode
    ) -> None:
        self._loaded = loaded
        self._settings = loaded.settings
        self._state_dir = state_dir
        self._runtime_dir = runtime_dir
        self._boot = secrets.token_hex(4)
        self._output = output
        self._log = structlog.get_logger().bind()
        self._fleet = Fleet(loaded.settings, self._boot, once=once, mode=mode)
        self._started_at = self._config_loaded_at = utc_now()
        self._config_error: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._arming = False
        self._armed = 0.0  # monotonic seconds
        self._inbox: list[Event] = []
        self._answers: StoreAnswers = []
        self._ops: list[Op] = []  # what the store is asked in this turn
        self._leaving: Leave | None = None
        self._terminated: float | None = None
        self._ready = False
        self._environment = environment_for_workers(os.environ)
        self._notifier = Notifier()

    async def main(self) -> int:
        """Serve until the fleet leaves.

        Raises:
            CannotStart: the ledger does not open, or a socket can't be made.
        """
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self._events = EventLog(self._state_dir)
        try:
            self._storage = StorageThreads(location(self._loaded), self._stored, self._store_told, self._loop)
        except StoreError as error:
            self._events.close()
            hint = "; 'scraper-supervisor checkpoint restore --ledger' brings back the newest sound backup"
            in_place = isinstance(error, LedgerTooNew | NetworkFileSystem)  # nothing is damaged
            raise CannotStart(f"{error}{'' if in_place else hint}", EX_DATA) from None
        self._backups = Backups(location(self._loaded), lambda: self._settings.resources.disk_free)
        self._processes = Processes(self._loop, self._runtime_dir, self._state_dir, self._exited, self._printed)
        interval = self._settings.resources.sample_interval
        self._sampler = Sampler(self._loop, self._sampled, self._state_dir, interval)
        signals = Signals(self._loop, self._signalled)
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await self._serve()
        except BaseExceptionGroup as group:
            refused = group.subgroup(CannotStart)
            if refused is None:
                raise
            raise refused.exceptions[0] from None
        finally:
            signals.close()
            await self._close()
        return self._leaving.code if self._leaving is not None else 1

    async def _serve(self) -> None:
        # Before the loop first turns: a signal may bring the fleet to its first step at any time from then on.
        self._workers = WorkerSocket(Path(self._loaded.folders.worker_socket), self.feed, self._line_limit())
        ended = await self._processes.end_predecessors()
        self._control = ControlSocket(
            Path(self._loaded.folders.control_socket),
            self.feed,
            {"status": self._tell_status, "reload": self._reload, "stop": self._stop},
            self._tasks,
        )
        try:
            await self._workers.listen()
            await self._control.listen(self._settings.supervisor.control_group)
        except (OSError, KeyError) as error:
            raise CannotStart(f"{self._runtime_dir}: the sockets can't be made: {error}") from None
        self._publish(
            Publish(
                "supervisor_started",
                "info",
                "supervisor",
                f"{self._boot}-0",
                {"pid": os.getpid(), "version": __version__, "config": self._loaded.path, "predecessors_ended": ended},
            )
        )
        self._sampler.start()
        self._carry_out(self._fleet.start(time.monotonic()))
        await self._over

    async def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._notifier.stopping()
        if hasattr(self, "_control"):
            await self._workers.close()
            await self._control.close()
        self._sampler.stop()
        for step in (self._backups.stop, self._storage.close, self._backups.make_last):
            await self._loop.run_in_executor(None, step)
        self._processes.stop_all()
        code = self._leaving.code if self._leaving is not None else 1
        reason = self._leaving.reason if self._leaving is not None else "failed"
        self._publish(
            Publish("supervisor_stopped", "info", "supervisor", f"{self._boot}-0", {"code": code, "reason": reason})
        )
        await self._loop.run_in_executor(None, self._events.close)
        self._notifier.close()

    # ---- events in, commands out

    def feed(self, event: Event) -> None:
        """Take an event; the fleet gets all those of one turn of the loop together."""
        self._inbox.append(event)
        if len(self._inbox) == 1:
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Hand what has happened to the fleet and carry out what it commands."""
        events, self._inbox = self._inbox, []
        if not events or self._over.done():
            return
        try:
            commands = self._fleet.step(events, time.monotonic())
        except Exception as error:  # noqa: BLE001 - a bug: the state is not to be trusted, the ledger is
            happened = sorted({type(event).__name__ for event in events})
            self._log.critical("the fleet failed on an event", happened=happened, exc_info=error)
            self._over.set_exception(error)
            return
        self._carry_out(commands)

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            self.perform(command)
        if self._ops:
            ops, self._ops = self._ops, []
            self._storage.submit(*ops)
        self._workers.flush()
        if not self._arming:
            self._arming = True
            self._loop.call_later(max(0.0, self._armed + ARM_EVERY - time.monotonic()), self._arm)
        if not self._ready and supervisor_state(self._fleet) != "starting":
            self._ready = True
            self._notifier.ready("serving")
            self._notifier.start_watchdog(self._loop)

    def _arm(self) -> None:
        """Set the one timer."""
        self._arming = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._fleet.next_deadline()
        self._armed = now = time.monotonic()
        if deadline is not None and not self._over.done():
            # A millisecond late is a millisecond; one early would be a turn for nothing.
            self._timer = self._loop.call_later(max(0.0, deadline - now) + 0.001, self.feed, Due())

    def perform(self, command: Command) -> None:  # noqa: C901 - one arm a command, each a call
        """Start one effect."""
        match command:
            case Reply(conn=conn, call=call, result=result):
                self._workers.reply(conn, call, result)
            case Persist(op=op):
                self._ops.append(op)
            case Publish():
                self._publish(command)
            case Refuse(conn=conn, call=call, error=error, close=close):
                self._workers.refuse(conn, call, error, close=close)
            case Tell(conn=conn, message=message, call=call):
                self._workers.tell(conn, message, call)
            case Spawn():
                self._tasks.create_task(self._spawn(command), name=f"spawn {command.worker}")
            case Signal(worker=worker, incarnation=incarnation, signum=signum):
                self._processes.signal(worker, incarnation, signum)
            case KillTree():
                self._tasks.create_task(self._kill_tree(command), name=f"end {command.worker}")
            case KillBrowser():
                self._tasks.create_task(self._kill_browser(command), name=f"kill a browser of {command.worker}")
            case Watch():
                self._sampler.watch(command)
            case Unwatch(worker=worker):
                self._sampler.forget(worker)
            case Introduced(conn=conn):
                self._workers.introduce(conn)
            case HangUp(conn=conn):
                self._workers.hang_up(conn)
            case Answered(request=request, ok=ok, document=document):
                self._control.answer(request, ok, document)
            case Leave():
                self._leave(command)
            case _ as never:
                assert_never(never)

    def _leave(self, command: Leave) -> None:
        self._leaving = command
        self._log.info("leaving", code=command.code, reason=command.reason)
        if not self._over.done():
            self._over.set_result(None)

    # ---- processes

    async def _spawn(self, command: Spawn) -> None:
        group, worker, incarnation = command.group, command.worker, command.incarnation
        spec = SpawnSpec(worker, incarnation, _argv(group), group.directory, self._worker_environment(command))
        try:
            spawned = await self._processes.spawn(spec)
        except SpawnError as error:
            self.feed(SpawnFailed(worker, incarnation, error.message, error.errno))
        else:
            self.feed(Spawned(worker, incarnation, spawned.pid, spawned.token))

    def _worker_environment(self, command: Spawn) -> dict[str, str]:
        group = command.group
        environment = self._environment | group.file_env | group.env
        if group.entrypoint is not None:
            environment.setdefault("PYTHONUNBUFFERED", "1")  # what a scraper prints shall not wait for a full buffer
        environment[protocol.ENV_SOCKET] = self._loaded.folders.worker_socket
        environment[protocol.ENV_NAME] = command.worker
        environment.pop(protocol.ENV_TOKEN, None)  # ours, if we ourselves run under a supervisor
        return environment

    def _exited(self, worker: str, incarnation: int, end: Exit) -> None:
        self.feed(Exited(worker, incarnation, end.code, end.signal))

    def _printed(self, worker: str, stream: str, line: str) -> None:
        self._log.info(line, worker=worker, stream=stream)

    async def _kill_tree(self, command: KillTree) -> None:
        ended = await self._processes.end_tree(command.worker, command.incarnation, command.browsers)
        if ended.left:
            self._log.error("processes can't be ended", worker=command.worker, left=ended.left)
        self.feed(TreeEnded(command.worker, command.incarnation, ended.killed))

    async def _kill_browser(self, command: KillBrowser) -> None:
        known = self._sampler.pids(command.worker)
        killed = await self._processes.kill_browser(command.worker, command.incarnation, command.pid, known)
        self._log.info("killed a browser" if killed else "a browser was gone", worker=command.worker, pid=command.pid)

    # ---- what comes from threads and the host

    def _stored(self, answers: StoreAnswers) -> None:
        if not self._answers:
            self._loop.call_soon(self._take_answers)
        self._answers += answers

    def _take_answers(self) -> None:
        """Take some of the store's answers; between them and the rest the loop looks at its sockets.

        So no batch holds the loop up, and those answered first are back with new calls while others are still being
        answered: the store and the loop work side by side instead of in turn.
        """
        answers, self._answers = self._answers[:ANSWERS_A_TURN], self._answers[ANSWERS_A_TURN:]
        if self._answers:
            self._loop.call_soon(self._take_answers)
        for op, answer in answers:
            if not isinstance(answer, StoreFault):
                self._inbox.append(Persisted(op, answer))
                continue
            if answer.errno == errno.EINVAL:
                self._log.error("the store was asked what makes no sense", op=type(op).__name__, why=answer.message)
            self._inbox.append(PersistFailed(op, answer.errno, answer.message))
        self._turn()

    def _store_told(self, fault: StoreFault) -> None:
        self.feed(StoreTold(StoreFaulted(fault.errno, fault.message)))

    def _sampled(self, sampled: Sampled | SamplerFault) -> None:
        if isinstance(sampled, SamplerFault):
            self._log.error("a sampling round failed", reason=sampled.message, traceback=sampled.traceback)
            return
        self.feed(sampled)
        groups = self._fleet.state.groups.values()
        done = sum(group.queue.ended.done for group in groups)
        left = sum(group.queue.open_items for group in groups)
        self._notifier.status(f"{self._fleet.state.phase}: {done} items done, {left} to do")

    def _signalled(self, signum: signal.Signals) -> None:
        if signum == signal.SIGHUP:
            self._tasks.create_task(self._reload(), name="reload")
            return
        now = time.monotonic()
        if self._terminated is not None and now - self._terminated < REPEATED_SIGNAL:
            return
        again = self._terminated is not None
        self._terminated = now
        self._log.info("stopping at once" if again else "draining", signal=signum.name)
        self._notifier.stopping("stopping at once" if again else "draining")
        self.feed(Terminated(f"{signum.name} to the supervisor", at_once=again))

    # ---- operators

    async def _tell_status(self) -> tuple[bool, Any]:
        """The status; what it shows is in the event log by then, if the disk takes that."""
        status = self._status()
        await asyncio.to_thread(self._events.settle, EVENTS_WITHIN)
        return True, status

    def _status(self) -> Any:
        self._turn()  # what was asked before shows
        daemon = Daemon(
            os.getpid(),
            __version__,
            self._started_at,
            self._loaded.path,
            self._config_loaded_at,
            self._config_error,
            time.monotonic(),
            time.time(),
        )
        return snapshot(self._fleet, daemon)

    async def _stop(self) -> tuple[bool, Any]:
        self._terminated = time.monotonic()
        self._notifier.stopping("draining")
        self._loop.call_soon(self.feed, Terminated("an operator stopped the supervisor"))
        return True, {}

    async def _reload(self) -> tuple[bool, Any]:
        """Read the configuration again: all of it takes effect, or nothing."""
        self._notifier.reloading()
        try:
            return await self._reload_file()
        finally:
            self._notifier.ready()

    async def _reload_file(self) -> tuple[bool, Any]:
        path = self._loaded.path
        if path is None:
            return self._rejected((Problem("", "there is no configuration file to reload"),))
        try:
            settings = await asyncio.to_thread(load, path)
        except InvalidSettings as error:
            return self._rejected(error.problems)
        changes = plan(self._settings, settings)
        if changes.refused:
            return self._rejected(changes.refused)
        try:
            self._control.open_to(settings.supervisor.control_group)
        except KeyError:
            message = f"there is no system group {settings.supervisor.control_group!r}"
            return self._rejected((Problem("supervisor.control_group", message),))
        except OSError as error:
            return self._rejected((Problem("supervisor.control_group", f"the sockets can't be opened to it: {error}"),))
        self._settings = settings
        self._config_error, self._config_loaded_at = None, utc_now()
        self._output.configure(settings.supervisor.log_level, settings.supervisor.log_format)
        self._log = structlog.get_logger().bind()
        self._workers.limit_lines(self._line_limit())
        self._sampler.set_interval(settings.resources.sample_interval)
        self.feed(Reconfigured(settings))
        return True, {"summary": changes.summary}

    def _rejected(self, problems: tuple[Problem, ...]) -> tuple[bool, Any]:
        details = [{"path": problem.path, "message": problem.message} for problem in problems]
        self._config_error = "; ".join(str(problem) for problem in problems)
        self._publish(Publish("config_rejected", "error", "config", f"{self._boot}-{utc_now()}", {"problems": details}))
        message = f"the configuration was rejected, nothing changed: {self._config_error}"
        return False, (message, {"problems": details})

    def _line_limit(self) -> int:
        return max(protocol.MAX_LINE, self._settings.checkpoint.max_state + LINE_ROOM)

    # ---- telling

    def _publish(self, event: Publish) -> None:
        where = (event.worker, event.group)
        self._events.write(event.event, event.severity, event.component, event.correlation_id, event.data, *where)
        if self._log.is_enabled_for(LEVELS[event.severity.upper()]):
            self._log_event(event)
        command = self._settings.notify.command
        if command is not None and event.event in NOTIFIED:
            document = {
                "event": event.event,
                "time": utc_now(),
                "worker": event.worker,
                "group": event.group,
                "data": event.data,
            }
            self._tasks.create_task(self._notify(command, msgspec.json.encode(document)), name="notify")

    def _log_event(self, event: Publish) -> None:
        data = msgspec.to_builtins(event.data)
        fields = {key: value for key, value in data.items() if value is not None and key not in ("event", "level")}
        where = {"worker": event.worker} if event.worker is not None else {"group": event.group} if event.group else {}
        getattr(self._log, event.severity)(
            event.event, **{"component": event.component, "correlation_id": event.correlation_id, **where, **fields}
        )

    async def _notify(self, command: tuple[str, ...], document: bytes) -> None:
        try:
            end = await self._processes.run(command, document, self._environment, NOTIFY_WITHIN)
        except SpawnError as error:
            self._log.error("the notify command can't be started", command=command[0], reason=error.message)
        else:
            if end.code != 0:
                self._log.error("the notify command failed", command=command[0], code=end.code, signal=end.signal)


def _argv(group: GroupSettings) -> tuple[str, ...]:
    """What to execute. -P keeps a scraper's own json.py from breaking the SDK; it adds the folder to the path later."""
    if group.entrypoint is not None:
        return (group.python or sys.executable, "-P", "-m", "scraper_worker", group.entrypoint)
    return group.command or ()
