"""The daemon: one loop on which events go into the fleet and its commands come out as effects.

`feed` is the only way in and `perform` the only place where effects start. An effect that fails is an event again.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, assert_never

import structlog

from scraper_supervisor import __version__
from scraper_supervisor.core import events
from scraper_supervisor.core.fleet import Fleet
from scraper_supervisor.core.formats.event_payloads import SupervisorStarted, SupervisorStopped
from scraper_supervisor.core.operators.acts import act
from scraper_supervisor.core.snapshot import at_rest, groups_view, supervisor_state
from scraper_supervisor.daemon.backups import Backups
from scraper_supervisor.daemon.control_socket import ControlSocket
from scraper_supervisor.daemon.processes.effects import ProcessEffects
from scraper_supervisor.daemon.processes.processes import Exit, Processes
from scraper_supervisor.daemon.processes.sampler import Sampler, SamplerFault
from scraper_supervisor.daemon.processes.spawning import environment_for_workers
from scraper_supervisor.daemon.progress import Ended, Progress
from scraper_supervisor.daemon.refusal import EX_CONFIG, CannotStart, start_refused
from scraper_supervisor.daemon.reload import InForce, Reload, line_limit
from scraper_supervisor.daemon.status import Status
from scraper_supervisor.daemon.storage import AnswerQueue, StorageThreads
from scraper_supervisor.daemon.systemd import Notifier
from scraper_supervisor.daemon.telling.event_file import EventFile
from scraper_supervisor.daemon.telling.log import LogSink
from scraper_supervisor.daemon.telling.notify import NOTIFY_WITHIN, Notify
from scraper_supervisor.daemon.telling.printed import Printed
from scraper_supervisor.daemon.telling.sinks import Telling
from scraper_supervisor.daemon.upkeep.pulse import BEAT, Pulse
from scraper_supervisor.daemon.upkeep.runtime_folder import LOOK_EVERY, RuntimeFolder
from scraper_supervisor.daemon.upkeep.tasks import Tasks
from scraper_supervisor.daemon.upkeep.threads import Threads
from scraper_supervisor.daemon.worker_socket import WorkerSocket
from scraper_supervisor.store.opening import location

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scraper_supervisor.core.fleet_state import Mode
    from scraper_supervisor.core.formats.event_payloads import EventPayload
    from scraper_supervisor.core.ops.all_ops import Op
    from scraper_supervisor.daemon.signals import Signals
    from scraper_supervisor.daemon.telling.log import Log
    from scraper_supervisor.daemon.upkeep.surroundings import Surroundings
    from scraper_supervisor.store.config_file import Loaded
    from scraper_supervisor.store.errors import StoreFault
    from scraper_supervisor.store.locks import FolderLock

REPEATED_SIGNAL: Final = 0.5  # seconds within which a second SIGTERM or SIGINT is the same one
ARM_EVERY: Final = 0.01  # seconds between two looks for the next deadline, which may come late by that much
HELPERS: Final = 2  # threads for what blocks for a moment
TOLD_WITHIN: Final = 2.0  # seconds that the last events have to reach the notify command
_log = structlog.get_logger()


class DaemonApp:
    """Wiring, the loop's turn and every effect. Made on the running loop; `main` is to be called at once.

    Args:
        loaded: the configuration and its folders, which this process has locked.
        log: where the log goes.
        signals: act upon the daemon once it serves.
        lock: of the runtime folder.
        given: what workers' processes are to have as we were given it.
        once: end when nothing is left to do.
        mode: which run of a group to begin with.
        shown: with `once`, is given the groups each second; without it the log gets a line a minute.

    Raises:
        CannotStart: the ledger does not open, or a folder can't be made; nothing is left of the attempt.
    """

    def __init__(
        self,
        loaded: Loaded,
        log: Log,
        signals: Signals,
        lock: FolderLock,
        given: Surroundings,
        *,
        once: bool,
        mode: Mode,
        shown: Callable[[list[dict[str, Any]]], None] | None = None,
    ) -> None:
        folders, settings = loaded.folders, loaded.settings
        state_dir, runtime_dir = Path(folders.state_dir), Path(folders.runtime_dir)
        where = location(loaded)
        self._loaded = loaded
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._tasks = Tasks()
        self._signals = signals
        self._boot = secrets.token_hex(4)
        self._inbox: list[events.Event] = []
        self._ops: list[Op] = []  # what the store is asked in this turn
        self._timer: asyncio.TimerHandle | None = None
        self._pulse = Pulse(time.monotonic())
        self._beat: asyncio.TimerHandle | None = None
        self._arming = False
        self._armed = 0.0  # monotonic seconds
        self._leaving: events.Leave | None = None
        self._terminated: float | None = None
        self._ready = False
        self._in_force = InForce(loaded)
        self._fleet = Fleet(settings, self._boot, once=once, mode=mode)
        self._progress = Progress(self._loop, self._fleet, shown) if once else None
        self._ended: Ended | None = None
        self._notifier = Notifier()
        environment = environment_for_workers(os.environ)
        with ExitStack() as undo, start_refused():
            self._printed = Printed(self._loop)
            self._processes = Processes(self._loop, runtime_dir, state_dir, self._exited, self._printed.line, given)
            undo.callback(self._processes.stop_all)
            notify = Notify(self._loop, self._tasks, self._processes, environment)
            self._telling = Telling((LogSink(log), notify, EventFile(state_dir)), settings)
            undo.callback(self._telling.close)
            answers = AnswerQueue(self._loop, self._turn)
            self._storage = StorageThreads(where, answers.put, self._store_told, self._loop)
            undo.callback(self._storage.close)
            self._threads = Threads(self._loop, "helper", HELPERS)
            undo.callback(self._threads.stop)
            self._backups = Backups(where, lambda: self._in_force.settings.resources.disk_free)
            undo.pop_all()
        self._sampler = Sampler(self._loop, self._sampled, state_dir, settings.resources.sample_interval)
        self._effects = ProcessEffects(
            self._processes, self._sampler, self._tasks, self.feed, folders.worker_socket, environment
        )
        dropped = self._processes.lines_dropped
        self._status = Status(self._fleet, self._in_force, self._telling, self._turn, self._threads, dropped)
        self._workers = WorkerSocket(Path(folders.worker_socket), self.feed, line_limit(settings))
        actions = {"reload": self._reload, "stop": self._stop, "owner": self._owner}
        named = {"status": self._status.answer}
        self._control = ControlSocket(Path(folders.control_socket), self.feed, actions, named, self._tasks, self._acted)
        parts = (self._telling, self._workers, self._control, self._sampler, self._notifier, self._processes)
        self._processes.limit_output(settings.logs.lines_per_second)
        with start_refused():
            self._reloading = Reload(self._in_force, self._boot, self.feed, *parts)
        self._runtime = RuntimeFolder(
            lock,
            self._workers,
            self._control,
            self._processes,
            self._threads,
            lambda: self._in_force.settings.supervisor.control_group,
            lambda data, number: self._tell_of_us(data, f"{self._boot}-r{number}"),
        )
        self._looking: asyncio.Task[None] | None = None
        self._look_timer: asyncio.TimerHandle | None = None

    async def main(self) -> Ended:
        """Serve until the fleet leaves.

        Returns:
            How it ended.

        Raises:
            CannotStart: a socket can't be made.
        """
        try:
            await self._serve()
        finally:
            self._signals.stop()
            await self._close()
        return self._ended or Ended(1, "failed")

    async def _serve(self) -> None:
        ended = await self._processes.end_predecessors()
        try:
            await self._workers.listen()
            await self._control.listen(self._in_force.settings.supervisor.control_group)
        except KeyError:
            group = self._in_force.settings.supervisor.control_group
            raise CannotStart(f"supervisor.control_group: there is no system group {group!r}", EX_CONFIG) from None
        except OSError as error:
            folder = self._loaded.folders.runtime_dir
            raise CannotStart(f"{folder}: the sockets can't be made: {error}") from None
        self._tell_of_us(SupervisorStarted(os.getpid(), __version__, self._loaded.path, tuple(ended)))
        with start_refused():
            self._sampler.start()
        self._carry_out(self._fleet.start(time.monotonic()))
        if self._progress is not None:
            self._progress.start()
        self._signals.pass_on(self._loop, self._signalled)
        self._beats()
        self._look()
        await self._over
        await self._threads.run(partial(self._telling.handed_over, TOLD_WITHIN))  # the notify command may be a task yet

    async def _close(self) -> None:
        for timer in (self._timer, self._beat, self._look_timer):
            if timer is not None:
                timer.cancel()
        if self._progress is not None:
            self._progress.stop()
        self._notifier.stopping()
        await self._tasks.close(NOTIFY_WITHIN)
        self._reloading.close()
        await self._workers.close()
        await self._control.close()
        self._sampler.stop()
        for step in (self._backups.stop, self._storage.close, self._backups.make_last):
            await self._threads.run(step)
        try:
            left = await self._processes.end_leftovers()
        except OSError as error:
            _log.error("what workers left can't be ended", reason=str(error))
        else:
            if left:
                _log.warning("workers left processes behind, which were ended", processes=left)
        self._processes.stop_all()
        code, reason = (self._leaving.code, self._leaving.reason) if self._leaving is not None else (1, "failed")
        self._tell_of_us(SupervisorStopped(code, reason))
        await self._threads.run(self._telling.close)
        self._threads.stop()
        self._notifier.close()

    def _tell_of_us(self, data: EventPayload, incident: str | None = None) -> None:
        """Publish what no room decides."""
        self._telling.publish(events.Publish(data, data.SEVERITY, incident or f"{self._boot}-0"))

    def _look(self) -> None:
        """Look after the runtime folder, one look at a time."""
        if self._looking is None or self._looking.done():
            self._looking = self._tasks.start(self._runtime.look(), "the runtime folder")
        self._look_timer = self._loop.call_later(LOOK_EVERY, self._look)

    # ---- events in, commands out

    def feed(self, event: events.Event) -> None:
        """Take an event; the fleet gets all those of one turn of the loop together."""
        self._inbox.append(event)
        if len(self._inbox) == 1:
            self._loop.call_soon(self._turn)

    def _turn(self, more: Iterable[events.Event] = ()) -> None:
        """Give what has happened to the fleet, `more` after what waits, and carry out what it commands."""
        now = time.monotonic()
        self._note_gap(now)
        happened, self._inbox = [*self._inbox, *more], []
        if not happened or self._over.done():
            return
        try:
            commands = self._fleet.step(happened, now)
        except Exception as error:  # noqa: BLE001 - a bug: the state is not to be trusted, the ledger is
            names = sorted({type(event).__name__ for event in happened})
            _log.critical("the fleet failed on an event", happened=names, exc_info=error)
            self._over.set_exception(error)
            return
        self._carry_out(commands)

    def _carry_out(self, commands: list[events.Command]) -> None:
        for command in commands:
            try:
                self.perform(command)
            except Exception as error:  # noqa: BLE001 - one effect that fails must not cost the others, nor the daemon
                self._failed(command, error)
        if self._ops:
            ops, self._ops = self._ops, []
            self._storage.submit(*ops)
        self._workers.flush()
        if not self._arming:
            self._arming = True
            self._loop.call_later(max(0.0, self._armed + ARM_EVERY - time.monotonic()), self._arm)
        if not self._ready and supervisor_state(self._fleet) != "starting":
            self._ready = True
            for told in at_rest(self._fleet):
                _log.warning(told)
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
            self._timer = self._loop.call_later(max(0.0, deadline - now) + 0.001, self._due)

    def _due(self) -> None:
        """The time of the next deadline came.

        The loop looks at its sockets after its timers and before the next turn: who lies there is heard before anybody
        is judged.
        """
        self._loop.call_soon(self._loop.call_soon, self.feed, events.Due())

    def _beats(self) -> None:
        """While nothing happens the loop runs all the same: that is no gap."""
        self._note_gap(time.monotonic())
        self._beat = self._loop.call_later(BEAT, self._beats)

    def _note_gap(self, now: float) -> None:
        """If the loop did not run, the fleet learns of that before anything else: it must judge nobody by that time."""
        since = self._pulse.beat(now)
        if since is None or self._over.done():
            return
        _log.warning("the daemon did not run", seconds=round(now - since, 3))
        self._inbox.insert(0, events.Stalled(since))
        if len(self._inbox) == 1:
            self._loop.call_soon(self._turn)

    def perform(self, command: events.Command) -> None:  # noqa: C901 - one arm a command, each a call
        """Start one effect."""
        match command:
            case events.Reply(conn=conn, call=call, result=result):
                self._workers.reply(conn, call, result)
            case events.Persist(op=op):
                self._ops.append(op)
            case events.Publish():
                self._telling.publish(command)
            case events.Refuse(conn=conn, call=call, error=error, close=close):
                self._workers.refuse(conn, call, error, close=close)
            case events.Tell(conn=conn, message=message, call=call):
                self._workers.tell(conn, message, call)
            case events.Spawn():
                self._effects.spawn(command)
            case events.Signal(worker=worker, incarnation=incarnation, signum=signum):
                self._processes.signal(worker, incarnation, signum)
            case events.KillTree():
                self._effects.kill_tree(command)
            case events.KillBrowser():
                self._effects.kill_browser(command)
            case events.Watch():
                self._sampler.watch(command)
            case events.Unwatch(worker=worker):
                self._sampler.forget(worker)
            case events.Introduced(conn=conn):
                self._workers.introduce(conn)
            case events.HangUp(conn=conn):
                self._workers.hang_up(conn)
            case events.Answered(request=request, ok=ok, document=document):
                self._control.answer(request, ok, document)
            case events.Leave():
                self._leave(command)
            case _:
                assert_never(command)

    def _failed(self, command: events.Command, error: Exception) -> None:
        """An effect could not even be begun: whoever waits for it is told, as far as somebody does."""
        _log.error("a command failed", command=type(command).__name__, exc_info=error)
        match command:
            case events.Answered(request=request):
                self._control.failed(request, error)
            case events.Reply(conn=conn) | events.Refuse(conn=conn) | events.Tell(conn=conn):
                self._workers.hang_up(conn)  # it comes again, and repeats what was not answered
            case events.Spawn(worker=worker, incarnation=incarnation):
                self.feed(events.SpawnFailed(worker, incarnation, f"{type(error).__name__}: {error}"))
            case events.KillTree(worker=worker, incarnation=incarnation):
                self.feed(events.TreeEnded(worker, incarnation, 0))
            case _:
                pass

    def _leave(self, command: events.Leave) -> None:
        self._leaving, now = command, time.monotonic()
        recoveries = self._fleet.slo.view(now).recoveries
        groups = groups_view(self._fleet, now)
        self._ended = Ended(command.code, command.reason, groups, self._fleet.state.retries, recoveries)
        _log.info("leaving", code=command.code, reason=command.reason)
        if not self._over.done():
            self._over.set_result(None)

    # ---- what comes from threads, the host and operators

    def _exited(self, worker: str, incarnation: int, end: Exit) -> None:
        self._printed.end(worker)
        self.feed(events.Exited(worker, incarnation, end.code, end.signal, end.last_line))

    def _store_told(self, fault: StoreFault) -> None:
        self.feed(events.StoreTold(events.StoreFaulted(fault.errno, fault.message)))

    def _sampled(self, sampled: events.Sampled | SamplerFault) -> None:
        if isinstance(sampled, SamplerFault):
            _log.error("a sampling round failed", reason=sampled.message, traceback=sampled.traceback)
            return
        self.feed(sampled)
        if self._notifier.is_heard:
            self._notifier.status(self._status.line())

    def _signalled(self, signum: signal.Signals) -> None:
        if signum == signal.SIGHUP:
            if not self._reloading.next_is_asked_for:
                self._tasks.start(self._hup(), "reload")
            return
        now = time.monotonic()
        if self._terminated is not None and now - self._terminated < REPEATED_SIGNAL:
            return
        again = self._terminated is not None
        self._terminated = now
        _log.info("stopping at once" if again else "draining", signal=signum.name)
        self._notifier.stopping("stopping at once" if again else "draining")
        self.feed(events.Terminated(f"{signum.name} to the supervisor", at_once=again))

    def _acted(self, method: str, uid: int) -> None:
        told = act(method, (), uid)
        if told is not None:
            self._telling.publish(events.Publish(told, told.SEVERITY, f"{self._boot}-{secrets.token_hex(4)}"))

    async def _hup(self) -> None:
        await self._reloading.run()

    async def _owner(self) -> tuple[bool, Any]:
        """Whose daemon this is, for a command that may have meant another project's."""
        state_dir = self._loaded.folders.state_dir
        found = await self._threads.run(partial(os.stat, state_dir))
        place = {"state_dir": state_dir, "device": found.st_dev, "inode": found.st_ino}
        return True, {**place, "config": self._loaded.path}

    async def _stop(self) -> tuple[bool, Any]:
        self._terminated = time.monotonic()
        self._notifier.stopping("draining")
        self._loop.call_soon(self.feed, events.Terminated("an operator stopped the supervisor"))
        return True, {}

    async def _reload(self) -> tuple[bool, Any]:
        return await self._reloading.run()
