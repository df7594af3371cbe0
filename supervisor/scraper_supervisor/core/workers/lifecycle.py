"""Workers coming up and going down: starts, drains, hangs, deaths, and what each death costs and brings.

The phases are `Life`'s, the restarts `restart`'s, the claims the queue's; here they are brought together.
"""

from __future__ import annotations

from errno import EAGAIN, EDQUOT, EIO, EMFILE, ENFILE, ENOMEM, ENOSPC, EROFS
from typing import TYPE_CHECKING, Final, Literal
from zlib import crc32

from msgspec.structs import replace

from scraper_supervisor.core.events import HangUp, Unwatch, Watch
from scraper_supervisor.core.facts import ProcessEnded, ProcessKnown
from scraper_supervisor.core.fleet_state import Group, Incarnation, Worker
from scraper_supervisor.core.formats.worker_payloads import (
    CleanupInitiated,
    WorkerBackoff,
    WorkerCompleted,
    WorkerExited,
    WorkerFailed,
    WorkerHung,
    WorkerReady,
    WorkerStarted,
)
from scraper_supervisor.core.policy import restart
from scraper_supervisor.core.policy.limits import lowest_memory_limits
from scraper_supervisor.core.states.group import GroupState
from scraper_supervisor.core.states.worker_life import Clock, Life, Phase
from scraper_supervisor.core.workers.set_up import wrong_set_up
from scraper_worker.protocol import Drain, Failure

if TYPE_CHECKING:
    from scraper_supervisor.core.checkpoints import Checkpoints
    from scraper_supervisor.core.config.settings import GroupSettings
    from scraper_supervisor.core.events import Exited, Spawned, SpawnFailed, StackTold, TreeEnded
    from scraper_supervisor.core.fleet_state import FleetState
    from scraper_supervisor.core.policy.slo import Slo
    from scraper_supervisor.core.states.worker_life import Gone

# With which no start is a worker's fault: the disk has no room, or the host no descriptor, process or memory to spare.
HOST_ERRORS: Final = frozenset({ENOSPC, EDQUOT, EROFS, EIO, EMFILE, ENFILE, EAGAIN, ENOMEM})
HOST_PAUSE: Final = 1.0  # seconds between tries to start a worker for which the host has no room


class Lifecycle:
    """Ups and downs of all workers."""

    def __init__(self, state: FleetState, slo: Slo, checkpoints: Checkpoints) -> None:
        self._state = state
        self._slo = slo
        self._checkpoints = checkpoints

    # ---- up

    def add(self, group: Group, index: int) -> Worker:
        """Make the worker of that index known; it is not started yet."""
        name = f"{group.name}-{index}"
        worker = self._state.workers.get(name)
        if worker is None:
            worker = self._state.workers[name] = Worker(name, group.name, index, Life(name))
        if worker.leaving:
            self.keep(worker)
        worker.leaving = False
        if name not in group.workers:
            group.workers.append(name)
            group.workers.sort(key=lambda one: self._state.workers[one].index)
        return worker

    def keep(self, worker: Worker) -> None:
        """Start a worker anew at its end that was to stay down after it."""
        worker.life.wanted_again()

    def start(self, worker: Worker, now: float) -> None:
        """Start the worker, unless it is up."""
        group = self._state.groups[worker.group]
        commands = worker.life.start(group.settings)
        if not commands:
            return
        worker.current, worker.unusable = Incarnation(), False
        self._state.outbox.commands += commands
        self.note(worker, now)

    def spawned(self, event: Spawned, now: float) -> None:
        """A process runs."""
        worker = self._current(event.worker, event.incarnation)
        if worker is None or worker.life.phase is not Phase.SPAWNING:
            return
        group = self._state.groups[worker.group]
        worker.history = restart.on_start(worker.history, now)
        worker.current.heard = now
        self._state.outbox.commands += worker.life.spawned(event.pid, event.token, group.settings, now)
        if group.settings.entrypoint is None:
            worker.current.up_since = now  # a command need not say hello
        self.watch(worker)
        self._state.publish(WorkerStarted(event.pid, event.incarnation), worker=worker)
        if self._state.at_once:
            self.kill(worker, "the supervisor ends at once", "stopped", now)
        elif worker.current.given_up:
            self._state.outbox.commands += worker.life.give_up(now)
        self.note(worker, now)
        self._state.outbox.facts.append(ProcessKnown(worker.name))

    def spawn_failed(self, event: SpawnFailed, now: float) -> None:
        """No process could be started; that counts as a death without any uptime, unless the host is to blame."""
        worker = self._current(event.worker, event.incarnation)
        if worker is None or worker.life.phase is not Phase.SPAWNING:
            return
        self._state.outbox.facts.append(ProcessKnown(worker.name))
        told = worker.last_failure is not None and worker.last_failure.message == event.message
        worker.last_failure = Failure("transient", "system", "spawn-failed", event.message)
        if worker.current.given_up:
            self._down(worker, "fail", now)
            return
        if event.errno in HOST_ERRORS and worker.life.after != "stop":
            self._down(worker, "wait", now, Clock("fixed", now, HOST_PAUSE))
            if not told:
                reason = f"could not be started ({event.message}); it is tried again until the host allows it"
                self._state.publish(WorkerBackoff(HOST_PAUSE, reason), worker=worker)
            return
        if event.is_set_up and worker.life.after != "stop":
            self._unusable(worker, event.message, now)
            return
        self._detected(worker, "death", now)
        if worker.life.after == "stop":
            self._down(worker, "stop", now)
        else:
            self._judge(worker, f"could not be started ({event.message})", None, now)

    def introduced(self, worker: Worker, conn: int, now: float) -> None:
        """The worker said a good hello on `conn`; an older connection of its own is replaced."""
        if worker.current.conn is not None and worker.current.conn != conn:
            self._state.conns.pop(worker.current.conn, None)
            self._state.groups[worker.group].queue.disconnected(worker.current.conn)
            self._state.outbox.commands.append(HangUp(worker.current.conn))
        worker.current.conn, worker.current.away_since = conn, None
        worker.current.heard = worker.current.quiet_since = now
        self._state.conns[conn] = (worker.name, worker.life.incarnation)
        if worker.life.hello():
            worker.current.up_since = now
            self._state.publish(WorkerReady(worker.life.incarnation), worker=worker)
        self.note(worker, now)

    def watch(self, worker: Worker) -> None:
        """Have the worker's tree sampled as it now is, under the limits that now hold."""
        life = worker.life
        if life.alive and life.pid is not None:
            browsers = tuple((browser.id, browser.pid) for browser in worker.current.browsers.values())
            limits = lowest_memory_limits(self._state.groups[worker.group].settings.resources)
            self._state.outbox.commands.append(Watch(worker.name, life.incarnation, life.pid, browsers, *limits))

    # ---- orders

    def drain(self, worker: Worker, reason: str, after: Literal["restart", "stop"], now: float) -> None:
        """Have the worker finish what is in its hands, and end or start anew."""
        life = worker.life
        group = self._state.groups[worker.group]
        commands, tell = life.drain(reason, after, group.settings, now)
        self._state.outbox.commands += commands
        if tell:
            self._state.tell(worker, Drain(reason, group.settings.stop_timeout))
            group.queue.end_waiting(worker.name, "draining")
        self.note(worker, now)

    def hung(self, worker: Worker, reason: str, signature: str, now: float) -> None:
        """Kill a worker for what it does not do; it is told when it is known where the worker stood."""
        if worker.life.alive and not worker.life.killed:
            worker.current.hung = reason
            self.kill(worker, reason, signature, now, ask=True)

    def stack_told(self, event: StackTold) -> None:
        """Where a worker stood that is killed as hung: its failure, and the one of the item in its hands, tell it."""
        worker = self._current(event.worker, event.incarnation)
        if worker is None or worker.current.hung is None:
            return
        if event.lines and worker.current.killed_for is not None:
            where = "\n".join(("Where the main thread stood (most recent call last):", *event.lines))
            worker.current.killed_for = worker.last_failure = replace(worker.current.killed_for, traceback=where)
        self._tell_hung(worker, worker.current, event.lines)

    def _tell_hung(self, worker: Worker, was: Incarnation, lines: tuple[str, ...]) -> None:
        if was.hung is not None:
            self._state.publish(WorkerHung(was.hung, lines or None), worker=worker)
            was.hung = None

    def kill(self, worker: Worker, reason: str, signature: str, now: float, *, ask: bool = False) -> None:
        """SIGKILL to the worker's whole tree. Unless its end was ordered before, it is a death like any other.

        Args:
            worker: which one.
            reason: a sentence.
            signature: of the failure that the death is charged as.
            now: monotonic seconds.
            ask: the worker is asked before where it stands.
        """
        if not worker.life.alive or worker.life.killed:
            return
        if worker.life.after == "decide" and not worker.current.given_up:
            worker.current.killed_for = worker.last_failure = Failure("transient", "system", signature, reason)
            self._slo.lost(worker.name, "hang", now)
        self.incident(worker)  # also where its end was ordered: hang, kill and exit are told as one
        self.kill_tree(worker, reason, ask=ask)
        self.note(worker, now)

    def kill_tree(self, worker: Worker, reason: str, *, ask: bool = False) -> None:
        """SIGKILL to the worker's whole tree."""
        commands = worker.life.kill(reason, worker.current.browser_pids, ask=ask)
        if commands:
            self._state.trees.add((worker.name, worker.life.incarnation))
            self._state.outbox.commands += commands

    # ---- reload

    def reconfigured(self, worker: Worker, before: GroupSettings, now: float) -> None:
        """Compute the clocks that run anew, from its group's settings as they are now; `before` are those until now."""
        settings, current = self._state.groups[worker.group].settings, worker.current
        if current.silence is not None or before.heartbeat_interval != settings.heartbeat_interval:
            # It beats as it was told at its hello: until the next one, it may be silent for the longer of both times.
            current.silence = max(current.silence or before.heartbeat_timeout, settings.heartbeat_timeout)
        backoff = restart.delay(settings.restart_policy, worker.history.waits, self._unit(worker))
        if worker.life.reconfigured(settings, backoff) and worker.life.phase is Phase.DRAINING:
            self.remind_to_drain(worker, now)
        if before.resources != settings.resources:
            self.watch(worker)

    def remind_to_drain(self, worker: Worker, now: float) -> None:
        """Tell a worker that drains how long it has."""
        deadline = worker.life.deadline
        if worker.life.phase is Phase.DRAINING and deadline is not None:
            self._state.tell(worker, Drain(worker.life.reason or "draining", max(0.0, deadline - now)))

    # ---- ends

    def exited(self, event: Exited, now: float) -> None:
        """A process ended: its hands are emptied, and the restart policy or the order says what comes next."""
        worker = self._current(event.worker, event.incarnation)
        if worker is None or not worker.life.up:
            return
        group, life = self._state.groups[worker.group], worker.life
        queue = group.queue
        was = worker.current
        self._tell_hung(worker, was, ())
        ordered = life.after != "decide" or was.given_up
        python = (group.settings.python or "the daemon's interpreter") if group.settings.entrypoint else ""
        unusable = None
        if not ordered:
            unusable = wrong_set_up(python, event.code, event.last_line, worker.name, introduced=life.introduced)
        well = event.code == 0 and (was.goodbye == "complete" or not life.introduced)
        # A last offer that said `more` tells of a source, or a function, that failed: what it still had nobody knows.
        nothing_left = not queue.unfinished and queue.ended.any and queue.offered and not was.more
        how = f"exited with code {event.code}" if event.signal is None else f"was killed by signal {event.signal}"
        if life.killed and life.reason is not None:
            how = life.reason
        self._state.outbox.commands.append(Unwatch(worker.name))
        self._state.end_tree(worker)
        self._cut(worker)
        worker.current = Incarnation()
        charged: str | None = None
        died = not (ordered or well or nothing_left or unusable)
        if died:
            charged = self._blame(worker, was, how, now)
        else:
            self._checkpoints.save_again(worker)
            queue.give_back_all(worker.name)
        self._state.outbox.facts.append(ProcessEnded(worker.name, group.name, died, charged))
        exited = WorkerExited(event.incarnation, event.code, event.signal, ordered, life.reason, charged, died=died)
        self._state.publish(exited, "warning" if died else "info", worker=worker)
        if died:
            self._judge(worker, how, charged, now)
        elif ordered:
            self._ordered_end(worker, was, now)
        elif unusable:
            self._unusable(worker, unusable, now)
        elif group.settings.restart == "always" and group.state is GroupState.RUNNING and not group.completing:
            self._judge(worker, how, None, now)
        else:
            self._down(worker, "done", now)
            self._state.publish(WorkerCompleted(), worker=worker)
            worker.incident = None

    def tree_ended(self, event: TreeEnded) -> None:
        """Nothing is left of an incarnation."""
        self._state.trees.discard((event.worker, event.incarnation))
        if event.killed:
            cleanup = CleanupInitiated(killed=event.killed, incarnation=event.incarnation, cleaned=event.worker)
            self._state.publish(cleanup, "warning", worker=self._state.workers.get(event.worker))

    def _blame(self, worker: Worker, was: Incarnation, how: str, now: float) -> str | None:
        """It died by itself: what was in its hands goes back; the key of the item that is charged, if one is."""
        queue = self._state.groups[worker.group].queue
        failure = was.killed_for
        if failure is None:
            failure = Failure("transient", "system", "worker-died", f"the worker {how} with the item in its hands")
        worker.last_failure = failure
        self._detected(worker, "death", now)
        return queue.died(worker.name, failure)

    def _unusable(self, worker: Worker, reason: str, now: float) -> None:
        """Its own set-up is wrong: whatever `restart` says, no other start would go better."""
        worker.unusable = True
        worker.last_failure = Failure("permanent", "system", "worker-setup", reason)
        self._down(worker, "fail", now)
        self._state.publish(WorkerFailed(reason), worker=worker)

    def _ordered_end(self, worker: Worker, was: Incarnation, now: float) -> None:
        if was.given_up:
            self._down(worker, "fail", now)
        elif worker.life.after == "stop" or worker.leaving:
            self._down(worker, "stop", now)
        elif was.limit is not None:
            self._judge(worker, was.limit, None, now)
        else:
            self._down(worker, "stop", now)
            self.start(worker, now)

    def again(self, worker: Worker, cause: str, now: float) -> None:
        """Start a worker that is down because of `cause`, as the restart policy allows."""
        self._judge(worker, cause, None, now)

    def _judge(self, worker: Worker, cause: str, blamed: str | None, now: float) -> None:
        group = self._state.groups[worker.group]
        if group.settings.restart == "never":
            self._down(worker, "fail", now)
            reason = f'{cause}; restart = "never"'
            self._state.publish(WorkerFailed(reason), worker=worker)
            return
        worker.history, verdict = restart.on_exit(
            worker.history, group.settings.restart_policy, now, blamed=blamed, unit=self._unit(worker), cause=cause
        )
        if verdict.action == "fail":
            self._down(worker, "fail", now)
            self._state.publish(WorkerFailed(verdict.reason), worker=worker)
            return
        worker.restarts += 1
        self._down(worker, "wait", now, Clock("start", now, verdict.delay))
        if verdict.delay > 0:
            self._state.publish(WorkerBackoff(verdict.delay, verdict.reason), worker=worker)
        else:
            self.start(worker, now)

    def _unit(self, worker: Worker) -> float:
        """Where the worker's waits lie within their jitter, in [0, 1)."""
        return crc32(f"{self._state.boot}:{worker.name}:{worker.life.incarnation}".encode()) / 2**32

    def _down(self, worker: Worker, what: Gone, now: float, next_start: Clock | None = None) -> None:
        worker.life.gone(what, next_start)
        if what == "stop":
            worker.incident = None  # it ended as ordered: nothing is to recover from that
        if worker.leaving and not worker.life.up:
            self._state.groups[worker.group].workers.remove(worker.name)
            del self._state.workers[worker.name]
            self._slo.state(worker.name, "stopped", now)
            return
        self.note(worker, now)

    def _cut(self, worker: Worker) -> None:
        """The process is gone, and with it its connection: what still comes there is an old incarnation's."""
        conn = worker.current.conn
        if conn is not None:
            self._state.groups[worker.group].queue.disconnected(conn)
            self._state.outbox.commands.append(HangUp(conn))

    def fail(self, worker: Worker, reason: str, now: float) -> None:
        """Give the worker up until an operator starts it: its process, if any, is ended."""
        self._state.publish(WorkerFailed(reason), "critical", worker=worker)
        worker.last_failure = Failure("permanent", "system", "worker-failed", reason)
        if worker.life.up:  # also while it is being started: then it is ended as soon as it is there
            worker.current.given_up = True
            self._state.outbox.commands += worker.life.give_up(now)
        else:
            worker.life.gone("fail")
        self.note(worker, now)

    # ---- figures

    def note(self, worker: Worker, now: float) -> None:
        """Tell the figures how the worker stands."""
        self._slo.state(worker.name, self.public(worker), now)

    def public(self, worker: Worker) -> str:
        """The worker's state in `status`."""
        group = self._state.groups.get(worker.group)
        held = worker.paused or (group is not None and group.state is GroupState.PAUSED)
        return "paused" if held and worker.life.phase is Phase.RUNNING else worker.life.phase.public

    def progressed(self, worker: Worker, now: float) -> None:
        """The worker claimed or finished something: an incident ends with it, unless its process is to be replaced."""
        self._slo.progress(worker.name, now)
        if worker.current.limit is None and not worker.life.killed:
            worker.incident = None

    def lost_browser(self, worker: Worker, incident: str, now: float) -> None:
        """A browser went away unasked; `incident` is its correlation id."""
        self.incident(worker, incident)
        self._slo.lost(worker.name, "browser", now)

    def incident(self, worker: Worker, incident: str | None = None) -> str:
        """The correlation id of what is the matter with the worker; this one, or a new one, where nothing was."""
        worker.incident = worker.incident or incident or self._state.outbox.incident_id()
        return worker.incident

    def _detected(self, worker: Worker, what: str, now: float) -> None:
        self.incident(worker)
        self._slo.lost(worker.name, what, now)

    # ---- inside

    def _current(self, name: str, incarnation: int) -> Worker | None:
        """The worker, if the word is about its present incarnation; else it is stale."""
        worker = self._state.workers.get(name)
        return worker if worker is not None and worker.life.incarnation == incarnation else None
