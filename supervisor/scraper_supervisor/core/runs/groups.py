"""Groups and their runs: opened from the ledger, staffed, completed, repeated, aborted, resized, stopped."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from scraper_supervisor.core.config.reload_plan import plan
from scraper_supervisor.core.facts import RunOpened, StatesOwed
from scraper_supervisor.core.fleet_state import Group, Mode, Worker
from scraper_supervisor.core.formats.event_payloads import ConfigReloaded
from scraper_supervisor.core.ops.run_ops import CompleteRun, LoadIntents, OpenRun, SetIntent, SetRunState
from scraper_supervisor.core.policy import restart
from scraper_supervisor.core.queue.queue import Queue
from scraper_supervisor.core.runs import rolling
from scraper_supervisor.core.states.group import ENDED, GroupState, GroupTrigger
from scraper_supervisor.core.states.supervisor import SupervisorTrigger
from scraper_supervisor.core.states.worker_life import Phase

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scraper_supervisor.core.config.settings import GroupSettings, Settings
    from scraper_supervisor.core.fleet_state import FleetState, Intent
    from scraper_supervisor.core.ops.run_ops import Intents, RunEnd, RunImage, RunState
    from scraper_supervisor.core.policy.abort import AbortWindow
    from scraper_supervisor.core.policy.slo import Slo
    from scraper_supervisor.core.workers.lifecycle import Lifecycle

_AT_WORK: Final = frozenset({GroupState.RUNNING, GroupState.PAUSED, GroupState.DRAINING})
RATE_WINDOW: Final = 60.0  # seconds over which a group's rate is measured


class Groups:
    """All groups' runs."""

    def __init__(self, state: FleetState, lifecycle: Lifecycle, slo: Slo, abort: AbortWindow) -> None:
        self._state = state
        self._lifecycle = lifecycle
        self._slo = slo
        self._abort = abort
        self._begun = False  # the ledger has answered at all

    # ---- a run begins

    def begin(self, mode: Mode) -> None:
        """Ask the ledger what operators want, and then for each group's run."""
        self._state.outbox.ask(
            LoadIntents(self._state.outbox.ticket()), lambda answer, _: self._intents_read(answer, mode), again=True
        )

    def _intents_read(self, answer: Intents, mode: Mode) -> None:
        self._begun = True
        self._state.intents = dict(answer.names)
        self._state.found = frozenset(self._state.intents)
        for settings in self._state.settings.groups.values():
            self.create(settings, mode)
        if not self._state.settings.groups:
            self._state.go(SupervisorTrigger.OPENED)

    def create(self, settings: GroupSettings, mode: Mode) -> Group:
        """Make a group known and ask for its run; it is staffed when the ledger answers."""
        state = self._state
        queue = Queue(settings.name, state.retry_settings(settings), state.outbox, state.boot, state.targets)
        group = Group(settings.name, settings, queue)
        group.intent = self._state.intents.get(settings.name)
        self._state.groups[settings.name] = group
        self.open(group, mode)
        return group

    def open(self, group: Group, mode: Mode) -> None:
        """Ask the ledger for the group's run."""
        group.go(GroupTrigger.OPEN)
        group.mode, group.completing, group.repeat_since = mode, False, None
        for worker in self._state.members(group):  # none is up, and one in backoff is started with the run, not before
            worker.life.stop_waiting()
        op = OpenRun(self._state.outbox.ticket(), group.name, mode, group.settings.keep_runs, group.settings.entrypoint)
        group.opening = op.ticket
        self._state.outbox.ask(op, partial(self._run_read, op), again=True)

    def _run_read(self, op: OpenRun, image: RunImage, now: float) -> None:
        """The ledger answered with the run."""
        group, facts = self._state.groups.get(op.group), self._state.outbox.facts
        if group is not None and op.ticket == group.opening:  # else a group of that name was removed since
            if image.owed:
                facts.append(StatesOwed(group.name, image))
                return  # the run is opened when its states are where the workers will look for them
            group.install = None
            self._begin(group, image, now)
        facts.append(RunOpened(op.group))

    def _begin(self, group: Group, image: RunImage, now: float) -> None:
        group.queue.open(image)
        group.run_state = image.state
        group.done_at.clear()
        self._slo.items(0)  # nothing that this daemon acknowledged is missing yet
        self._abort.forget(group.name)
        totals = {one.worker: one for one in image.workers}
        for index in range(group.settings.count):
            worker = self._lifecycle.add(group, index)
            mine = totals.get(worker.name)
            worker.done, worker.failed = (mine.done, mine.failed) if mine is not None else (0, 0)
            worker.state = None  # an earlier run's: it is on the disk, if this run is to go on from it
            worker.paused = self._state.intents.get(worker.name) == "paused"
        if self._state.phase == "draining":
            group.go(GroupTrigger.DOWN)
        elif self._state.phase in ("aborting", "aborted"):
            group.go(GroupTrigger.ABORT)
        elif image.state == "completed":
            group.go(GroupTrigger.COMPLETE)
        elif group.intent in ("drained", "stopped"):
            group.go(GroupTrigger.DOWN)
        else:
            self._staff(group, now)
        if all(one.state is not GroupState.OPENING for one in self._state.groups.values()):
            self._state.go(SupervisorTrigger.OPENED)

    def _want(self, group: Group) -> None:
        group.go(GroupTrigger.STAFF_PAUSED if group.intent == "paused" else GroupTrigger.STAFF)

    def _staff(self, group: Group, now: float) -> None:
        """Start the workers that are wanted."""
        if group.run_state != "running":
            self._set_run_state(group, "running")
        self._want(group)
        group.queue.promise_retries(promised=True)
        group.completing, group.failed_reason, group.parks = False, None, False
        if group.queue.ended.parked:
            group.queue.unpark()
        for worker in self._state.members(group):
            if self._state.intents.get(worker.name) not in ("drained", "stopped"):
                self._lifecycle.keep(worker)
                self._lifecycle.start(worker, now)

    def _set_run_state(self, group: Group, state: RunState) -> None:
        image = group.queue.image
        if image is not None:
            group.run_state = state
            op = SetRunState(self._state.outbox.ticket(), group.name, image.run_id, state)
            self._state.outbox.ask(op, again=True)

    def resume_run(self, group: Group, now: float, *, reset: bool = False) -> None:
        """Go on with the group's run: items were added to it, or an operator starts it."""
        for worker in self._state.members(group):
            if reset:
                worker.history = restart.reset(worker.history)
                worker.life.start_soon(now)
        if group.state in ENDED or reset:
            self._staff(group, now)

    def restart_failed(self, worker: Worker, now: float) -> bool:
        """Start a failed worker anew, where its group is at work or failed with it; whether it was started."""
        group = self._state.groups[worker.group]
        if group.state not in (GroupState.RUNNING, GroupState.PAUSED, GroupState.FAILED) or not self._may_go_on(group):
            return False
        if self._state.intents.get(worker.name) in ("drained", "stopped"):
            return False
        if group.state is GroupState.FAILED:
            self._want(group)
            group.failed_reason = None
        worker.history = restart.reset(worker.history)
        self._lifecycle.start(worker, now)
        return True

    # ---- a run ends

    def check(self, group: Group, now: float) -> None:
        """True if the run is complete, or nobody is left who could work on it."""
        if group.state is GroupState.COMPLETED and group.queue.open_items:  # items were added or requeued
            if self._may_go_on(group):
                self.resume_run(group, now)
            elif group.intent in ("drained", "stopped") and not group.leaving:
                group.go(GroupTrigger.REOPEN)
                self._set_run_state(group, "running")
        if group.state in ENDED:
            self._check_over(group, now)
        elif group.state is not GroupState.OPENING and not (
            group.queue.unfinished and any(self._state.workers[name].life.up for name in group.workers)
        ):
            self._check_ended(group, now)  # which is rare, while this is looked at after each event

    def _check_ended(self, group: Group, now: float) -> None:
        team = self._state.members(group)
        if group.state is GroupState.DRAINING:
            if not any(worker.life.up for worker in team):
                group.go(GroupTrigger.DOWN)
            return
        image = group.queue.image
        if image is not None and not group.completing and self._is_complete(group, team):
            if not self._state.clocks_run():
                return  # it is asked when it can answer
            self._complete(group, image.run_id)
        if group.completing:
            return
        if team and not any(worker.life.up or worker.life.phase is Phase.BACKOFF for worker in team):
            failed = [worker for worker in team if worker.life.phase is Phase.FAILED]
            if failed:
                group.go(GroupTrigger.FAIL)
                group.failed_reason = "; ".join(
                    f"{worker.name} failed" + (f": {worker.last_failure.message}" if worker.last_failure else "")
                    for worker in failed[:3]
                )
            elif all(worker.life.phase is Phase.STOPPED for worker in team):
                group.go(GroupTrigger.DOWN)
            else:  # they ended well and left items behind: only new workers can go on
                for worker in team:
                    if worker.life.phase is Phase.COMPLETED:
                        self._lifecycle.again(worker, "it ended well, but items are left", now)

    def _check_over(self, group: Group, now: float) -> None:
        """Who asked while an offer that brought nothing new was on its way is told; a repeat may be due later."""
        queue = group.queue
        if group.state is GroupState.ABORTED and group.parks and queue.open_items:
            if not (queue.in_flight or queue.writing):  # what comes later is set aside, too
                queue.park()
            return
        if not group.queue.unfinished:
            self._end_waiting(group)
        if group.repeat_since is None and self._may_repeat(group):
            group.repeat_since = now

    def _is_complete(self, group: Group, team: list[Worker]) -> bool:
        queue = group.queue
        if queue.unfinished or queue.frozen:
            return False
        if group.settings.on_complete == "wait" and not self._state.once:
            return False
        if any(self._can_offer(group, worker) for worker in team):
            return False
        if team and not queue.offered and all(worker.life.phase is Phase.FAILED for worker in team):
            return False  # what they would have offered still nobody knows
        return queue.ended.any or any(
            worker.life.phase is Phase.COMPLETED or worker.current.goodbye == "complete" or queue.waits(worker.name)
            for worker in team
        )

    def _can_offer(self, group: Group, worker: Worker) -> bool:
        phase = worker.life.phase
        if phase in (Phase.STOPPED, Phase.FAILED, Phase.COMPLETED) or worker.current.goodbye is not None:
            return False
        if phase is Phase.RUNNING and worker.life.introduced and worker.current.conn is not None:
            waits = group.queue.waits(worker.name) and not group.queue.held_by(worker.name)
            return worker.current.more or not waits
        return True

    def _complete(self, group: Group, run_id: int) -> None:
        """Every item has ended, so far as memory knows: the ledger decides."""
        group.completing = True
        op = CompleteRun(self._state.outbox.ticket(), group.name, run_id)
        self._state.outbox.ask(op, partial(self._run_ended, group), lambda _, __: self._not_completed(group))

    def _run_ended(self, group: Group, end: RunEnd, now: float) -> None:
        image = group.queue.image
        if image is None or image.run_id != end.image.run_id:
            return  # another run is being opened
        asked, group.completing = group.completing, False
        if not asked:  # it was aborted meanwhile, which the ledger is told, or its workers are wanted again
            if end.state != "running" and group.state in _AT_WORK:
                self._set_run_state(group, "running")
            return
        group.run_state = end.state
        group.queue.reread(end.image, now)
        if end.state == "running":
            return  # items were added, of which memory did not know yet
        group.go(GroupTrigger.COMPLETE if end.state == "completed" else GroupTrigger.ABORT)
        if not group.queue.unfinished:
            self._end_waiting(group)

    def _not_completed(self, group: Group) -> None:
        if self._state.storage.ledger is not None:  # it is asked again when the ledger is well
            group.completing = False

    def read_again(self, name: str) -> None:
        """The ledger holds items of this group otherwise than memory does."""
        group = self._state.groups.get(name)
        if group is not None:
            group.queue.read_again()

    def _end_waiting(self, group: Group) -> None:
        for worker in self._state.members(group):
            group.queue.end_waiting(worker.name, "complete")

    def _may_go_on(self, group: Group) -> bool:
        return group.intent not in ("drained", "stopped") and self._state.phase == "running" and not group.leaving

    def _may_repeat(self, group: Group) -> bool:
        return (
            group.settings.on_complete == "repeat"
            and group.state is GroupState.COMPLETED
            and self._may_go_on(group)
            and not (self._state.once or group.queue.writing)
            and not any(worker.life.up for worker in self._state.members(group))
        )

    def due(self, now: float) -> None:
        """The time of a repeat may have come."""
        for group in list(self._state.groups.values()):
            if group.repeat_at is not None and now >= group.repeat_at:
                group.repeat_since = None
                if self._may_repeat(group):
                    group.queue.close()
                    self.open(group, "next")

    def next_deadline(self) -> float | None:
        """When a repeat is due, or a queue may have something new to say by itself."""
        times = [group.repeat_at for group in self._state.groups.values()]
        times += [group.queue.next_deadline() for group in self._state.groups.values()]
        return min((time for time in times if time is not None), default=None)

    # ---- orders

    def stop(self, group: Group, reason: str, now: float) -> None:
        """Drain all workers of the group."""
        for worker in self._state.members(group):
            self._lifecycle.drain(worker, reason, "stop", now)
        group.go(GroupTrigger.DRAIN)
        group.repeat_since = None

    def set_intent(self, name: str, intent: Intent | None) -> None:
        """What an operator wants of a group or worker; it outlives the daemon."""
        if self._state.intents.get(name) == intent:
            return
        if intent is None:
            self._state.intents.pop(name, None)
        else:
            self._state.intents[name] = intent
        if name in self._state.groups:
            self._state.groups[name].intent = intent
        self._state.outbox.ask(SetIntent(self._state.outbox.ticket(), name, intent), again=True)

    def abort(self, group: Group, reason: str, now: float, *, parks: bool) -> None:
        """The abort policy stopped the group: its workers drain, what is open waits for an operator.

        Args:
            group: which.
            reason: a sentence.
            now: monotonic seconds.
            parks: it was aborted by itself, and not with everything: what is open is parked.
        """
        group.parks |= parks and (group.state is GroupState.ABORTED or group.state not in ENDED)
        if group.state in ENDED or group.state is GroupState.OPENING:
            return
        for worker in self._state.members(group):
            self._lifecycle.drain(worker, reason, "stop", now)
        group.go(GroupTrigger.ABORT)
        group.queue.promise_retries(promised=False)
        group.failed_reason, group.completing = reason, False
        self._set_run_state(group, "aborted")

    def flush(self) -> None:
        """The ledger takes writes again: what it refused of the supervisor's own is written."""
        for group in self._state.groups.values():
            group.queue.flush()

    # ---- reload

    def reconfigured(self, settings: Settings, now: float) -> None:
        """A new configuration, valid and allowed, takes effect."""
        state = self._state
        changes = plan(state.settings, settings)
        state.settings = settings
        self._abort.reconfigure(settings.abort)
        for group in state.groups.values():
            group.roll_failed = None
        state.targets.configure(settings.targets)
        for name in changes.removed:
            if name in state.groups:  # else the ledger has not even told of it
                self.remove(state.groups[name], now)
        for name, group in list(state.groups.items()):
            if name in settings.groups:
                self._reconfigure(group, settings.groups[name], roll=name in changes.restart, now=now)
        for name in changes.added if self._begun else ():  # else they are made when the ledger first answers
            if name not in state.groups:
                self.create(settings.groups[name], "next" if state.once else "continue")
        state.publish(ConfigReloaded(changes.summary))

    def _reconfigure(self, group: Group, settings: GroupSettings, *, roll: bool, now: float) -> None:
        """New settings take effect in place; a new count hires or drains the highest; `roll` restarts one by one."""
        before, group.settings = group.settings, settings
        for worker in self._state.members(group):
            self._lifecycle.reconfigured(worker, before, now)
        group.queue.configure(self._state.retry_settings(settings))
        for worker in [one for one in self._state.members(group) if one.index >= settings.count]:
            self._remove_worker(worker, "count was lowered", now)
        for index in range(settings.count):
            known = f"{group.name}-{index}" in group.workers
            worker = self._lifecycle.add(group, index)
            if not known and group.state in (GroupState.RUNNING, GroupState.PAUSED):
                self._lifecycle.start(worker, now)
        if group.leaving:  # it was removed and came back before its workers were down
            group.leaving = False
            if group.intent not in ("drained", "stopped") and group.state is not GroupState.OPENING:
                self._staff(group, now)
        if roll:
            up = [worker.name for worker in self._state.members(group) if worker.life.up]
            rolling.begin(self._state, group, up, "the configuration of its program changed")

    def _remove_worker(self, worker: Worker, reason: str, now: float) -> None:
        worker.leaving = True
        self._lifecycle.drain(worker, reason, "stop", now)
        if not worker.life.up:
            self._state.groups[worker.group].workers.remove(worker.name)
            del self._state.workers[worker.name]
            self._slo.forget(worker.name, now)

    def remove(self, group: Group, now: float) -> None:
        """The group is no longer in the configuration: its workers drain, then it is forgotten."""
        group.leaving = True
        self.stop(group, "the group was removed from the configuration", now)

    def forget_removed(self, names: Iterable[str], now: float) -> None:
        """Drop removed groups that nobody works for any more."""
        for name in list(names):
            group = self._state.groups[name]
            if not group.leaving:
                continue
            writing = group.queue.writing and self._state.clocks_run()
            if not writing and not any(worker.life.up for worker in self._state.members(group)):
                for worker in group.workers:
                    self._state.workers.pop(worker, None)
                    self._slo.forget(worker, now)
                group.queue.close()
                del self._state.groups[name]
