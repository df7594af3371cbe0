"""The one door of the core: `step(events, now)` gives commands, `next_deadline()` is the one timer.

The fleet routes; the rooms decide. What a room has to say to another passes through here. Events that are known
together are taken together: what any of them may have made possible is looked for once, after the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from scraper_supervisor.core.abort import AbortWindow
from scraper_supervisor.core.changes import plan
from scraper_supervisor.core.checkpoints import Checkpoints
from scraper_supervisor.core.claims import Claimed, Effect, ItemEnded
from scraper_supervisor.core.desk import Desk
from scraper_supervisor.core.disk import Disk
from scraper_supervisor.core.endings import Endings
from scraper_supervisor.core.events import (
    Asked,
    Command,
    Disconnected,
    Due,
    Event,
    Exited,
    Persist,
    Persisted,
    PersistFailed,
    Reconfigured,
    Refuse,
    Replied,
    Reply,
    Said,
    Sampled,
    Spawned,
    SpawnFailed,
    Terminated,
    TreeEnded,
    Withdrawn,
)
from scraper_supervisor.core.groups import Groups
from scraper_supervisor.core.imports import Imports
from scraper_supervisor.core.introductions import Introductions
from scraper_supervisor.core.lifecycle import Lifecycle
from scraper_supervisor.core.operators import Operators
from scraper_supervisor.core.outcomes import Outcomes
from scraper_supervisor.core.records import (
    AddItems,
    Answer,
    Conclude,
    DropState,
    ImportBegin,
    ImportDrop,
    ImportFinish,
    ImportLines,
    Intents,
    LoadIntents,
    LoadRun,
    LoadState,
    Op,
    OpenRun,
    Probe,
    ProbeFolder,
    QueueOp,
    RunImage,
    SaveState,
    SetIntent,
    SetRunState,
    StateLoaded,
    StateSaved,
    TakeState,
)
from scraper_supervisor.core.recycling import Recycling
from scraper_supervisor.core.restores import Restores
from scraper_supervisor.core.slo import Slo
from scraper_supervisor.core.state import ENDED, FleetState, GroupState, Mode
from scraper_supervisor.core.watchdog import Watchdog
from scraper_supervisor.core.worker import Phase

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scraper_supervisor.core.settings import Settings


class Fleet:
    """Everything the supervisor decides.

    Args:
        settings: a valid configuration.
        boot: a random word; seeds jitter and begins every correlation id of this daemon's life.
        once: end when nothing is left to do.
        mode: how each group's run is opened; "next" with `once`.
    """

    def __init__(self, settings: Settings, boot: str, *, once: bool = False, mode: Mode = "continue") -> None:
        self.state = FleetState(settings, boot, once=once)
        self.mode: Mode = mode
        self.abort = AbortWindow(settings.abort)
        self.slo = Slo()
        self.disk = Disk(self.state, self._awaited)
        self.lifecycle = Lifecycle(self.state, self.slo, self.abort, self._effects)
        self.watchdog = Watchdog(self.state, self.lifecycle)
        self.outcomes = Outcomes(self.state, self.lifecycle, self.abort)
        self.groups = Groups(self.state, self.lifecycle, self.slo, self.abort, self._effects)
        self.recycling = Recycling(self.state, self.lifecycle)
        self.checkpoints = Checkpoints(self.state, self.lifecycle, self.slo)
        self.introductions = Introductions(
            self.state, self.lifecycle, self.watchdog, self.recycling, self.checkpoints, self._effects
        )
        self.desk = Desk(
            self.state, self.lifecycle, self.introductions, self.checkpoints, self.recycling, self._effects
        )
        self.restores = Restores(self.state, self.groups, self.lifecycle, self.checkpoints)
        self.imports = Imports(self.state, self.groups)
        self.operators = Operators(
            self.state,
            self.groups,
            self.lifecycle,
            self.watchdog,
            self.recycling,
            self.abort,
            self.restores,
            self.imports,
        )
        self.endings = Endings(self.state, self.groups, self.lifecycle)
        self._begun = False  # the ledger has answered at all
        self._save_states_at: float | None = None

    def start(self, now: float) -> list[Command]:
        """Begin: ask the ledger what operators want and where each run stands."""
        self.state.persist(LoadIntents(self.state.ticket()))
        self._save_states_at = now + self.state.settings.checkpoint.interval
        return self._finish(now)

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event; what is to be done about it."""
        return self.step((event,), now)

    def step(self, events: Iterable[Event], now: float) -> list[Command]:
        """Take events in their order; what is to be done about them."""
        for event in events:
            self._route(event, now)
        return self._finish(now)

    def next_deadline(self) -> float | None:
        """When `Due` is wanted, in monotonic seconds."""
        state = self.state
        times = [
            self.abort.next_deadline(),
            self.disk.next_deadline(),
            self._save_states_at,
            self.recycling.next_deadline(),
        ]
        for group in state.groups.values():
            times += [group.repeat_at, group.queue.next_deadline(), self.watchdog.items_deadline(group)]
        times += [self.watchdog.next_deadline(worker) for worker in state.workers.values()]
        return min((time for time in times if time is not None), default=None)

    # ---- routing

    def _route(self, event: Event, now: float) -> None:  # noqa: C901 - one arm an event
        match event:
            case Said():
                self.desk.said(event, now)
            case Persisted(op=op, answer=answer):
                self._persisted(op, answer, now)
            case PersistFailed():
                self._persist_failed(event, now)
            case Due():
                self._due(now)
            case Replied():
                self.recycling.replied(event, now)
            case Disconnected(conn=conn):
                self._disconnected(conn, now)
            case Spawned():
                if self.lifecycle.spawned(event, now) is not None:
                    self.introductions.process_known(event.worker)
            case SpawnFailed():
                self.lifecycle.spawn_failed(event, now)
                self.introductions.process_known(event.worker)
            case Exited():
                if self.lifecycle.exited(event, now) is not None:
                    self.recycling.forget(event.worker)
            case TreeEnded(worker=name, incarnation=incarnation, killed=killed):
                self.state.trees.discard((name, incarnation))
                if killed:
                    self.state.publish(
                        "cleanup_initiated",
                        "warning",
                        "workers",
                        worker=self.state.workers.get(name),
                        incarnation=incarnation,
                        killed=killed,
                        cleaned=name,
                    )
            case Sampled():
                self.disk.measured(event.disk_free, now)
                self.recycling.sampled(event, now)
            case Asked():
                self.operators.asked(event, now)
            case Withdrawn(request=request):
                self.operators.withdrawn(request)
            case Reconfigured(settings=settings):
                self._reconfigure(settings, now)
            case Terminated():
                self.endings.terminate(event, now)
            case _ as never:
                assert_never(never)

    def _finish(self, now: float) -> list[Command]:
        """What any event may have made possible: hand out items, complete runs, leave."""
        self.recycling.step(now)  # before items are handed out: it says who may have one
        self.endings.decided(self.abort.evaluate(now), now)
        for group in list(self.state.groups.values()):
            open_ = group.state not in ENDED and self.state.disk_works()
            effects = group.queue.pump(now, self._may_start, open_=open_)
            if effects:
                self._effects(effects, now)
            self.groups.check(group, now)
            self.groups.roll(group, now)
        self.desk.answer_goodbyes()
        self.groups.forget_removed(self.state.groups, now)
        self.operators.settle(now)
        self.endings.leave_if_done()
        commands, self.state.out = self.state.out, []
        return commands

    # ---- the queue's effects

    def _effects(self, effects: list[Effect], now: float) -> None:
        for effect in effects:
            match effect:
                case Reply() | Refuse():
                    if effect.call >= 0:
                        self.state.out.append(effect)
                case ItemEnded():
                    self.outcomes.ended(effect, now)
                case Claimed():
                    self.outcomes.claimed(effect, now)
                case Persist():
                    self.state.out.append(effect)
                case _ as never:
                    assert_never(never)

    def _may_start(self, name: str) -> bool:
        """Whether this worker may be handed a further item now."""
        worker = self.state.workers.get(name)
        if worker is None or worker.life.phase is not Phase.RUNNING or worker.goodbye is not None:
            return False
        if name in self.state.storage.folders:
            return False
        if worker.recycle is not None or worker.limit is not None or worker.paused:
            return False
        return self.state.groups[worker.group].state is GroupState.RUNNING

    # ---- the store's answers

    def _persisted(self, op: Op, answer: Answer, now: float) -> None:
        match op:
            case Conclude() | AddItems():  # the most by far
                self._items_answered(op, answer, now)
            case Probe() | ProbeFolder():
                self._healed(op, now)
            case LoadIntents():
                self._begun = True
                if isinstance(answer, Intents):
                    self.state.intents = dict(answer.names)
                for settings in self.state.settings.groups.values():
                    self.groups.create(settings, self.mode)
                if not self.state.settings.groups:
                    self.state.phase = "running"
            case OpenRun() | LoadRun():
                if isinstance(answer, RunImage):
                    self._image_read(op, answer, now)
            case SetRunState():
                self.groups.run_state_set(op)
            case SaveState() | LoadState():
                self._state_answered(op, answer, now)
            case SetIntent():
                pass
            case ImportBegin() | ImportLines() | ImportFinish() | ImportDrop() | TakeState() | DropState():
                self.imports.persisted(op, answer)
            case _:
                self._items_answered(op, answer, now)

    def _items_answered(self, op: QueueOp, answer: Answer, now: float) -> None:
        group = self.state.groups.get(op.group)
        if group is not None:
            self._effects(group.queue.persisted(op, answer, now), now)
        self.operators.persisted(op, answer)

    def _image_read(self, op: OpenRun | LoadRun, image: RunImage, now: float) -> None:
        if isinstance(op, OpenRun) and not self.imports.opened(op, image):
            return  # it is read again when its states are where the workers will look for them
        if op.group in self.state.groups:
            self.groups.opened(op, image, now)
            self.operators.image_read(op, self.state.groups[op.group])
        if isinstance(op, OpenRun):
            self.imports.told(op)

    def _state_answered(self, op: SaveState | LoadState, answer: Answer, now: float) -> None:
        if isinstance(op, SaveState) and isinstance(answer, StateSaved):
            self.checkpoints.saved(op, answer)
            self.restores.saved(op, answer)
            self.imports.saved(op)
        if not isinstance(op, LoadState) or not isinstance(answer, StateLoaded):
            return
        self.checkpoints.publish_damage(op.worker, answer)
        if self._healed(op, now):  # it was read to learn whether it can be
            return
        if self.restores.loaded(op, answer, now):
            return
        later = self.introductions.read(op, answer, now)
        if later is None:
            self.checkpoints.loaded(op, answer)
        for said in later or ():
            self.desk.said(said, now)

    def _persist_failed(self, event: PersistFailed, now: float) -> None:
        self.disk.failed(event, now)
        op = event.op
        match op:
            case SaveState():
                self.checkpoints.failed(op, event.errno, event.message)
                self.restores.failed(op, event.message)
                self.imports.save_failed(op)
            case LoadState():
                if self.restores.failed(op, event.message):
                    pass
                elif not self.introductions.failed(op, event.errno, event.message, now):
                    self.checkpoints.failed(op, event.errno, event.message)
            case ImportBegin() | ImportLines() | ImportFinish() | ImportDrop() | TakeState() | DropState():
                self.imports.persist_failed(op, event.message)
            case SetRunState() | SetIntent() | LoadIntents() | OpenRun() | LoadRun() | Probe() | ProbeFolder():
                pass  # the disk's room asks them again
            case _:
                group = self.state.groups.get(op.group)
                if group is not None:
                    self._effects(group.queue.persist_failed(op, event.errno, event.message), now)
                self.operators.persist_failed(op, event.message)

    def _healed(self, op: Probe | ProbeFolder | LoadState, now: float) -> bool:
        """A place of the store took what it is tried with; whether that ends a trouble."""
        ended = self.disk.healed(op, now)
        if ended is None:
            return False
        name, since = ended
        if name is None:
            for group in self.state.groups.values():
                self._effects(group.queue.settle(), now)
        self.imports.healed()
        ledger, folders = self.state.storage.ledger, self.state.storage.folders
        until = now if ledger is None else ledger.since  # from then on it is the ledger's trouble that counts
        for worker in self.state.workers.values():
            if name in (None, worker.name) and worker.name not in folders and since < until:
                self.watchdog.stood_still(worker, since, until)
        return True

    def _awaited(self, worker: str) -> bool:
        """Whether this worker's folder is tried though nobody may be hired for it: an import is to be saved there."""
        return self.imports.awaits(worker)

    # ---- time

    def _due(self, now: float) -> None:
        state = self.state
        self.disk.due(now)
        for worker in list(state.workers.values()):
            self.watchdog.due(worker, now)
        for group in list(state.groups.values()):
            self.groups.due(group, now)
            self.watchdog.items_due(group, now)
        if self._save_states_at is not None and now >= self._save_states_at:
            self._save_states_at = now + state.settings.checkpoint.interval
            for worker in state.workers.values():
                self.lifecycle.save_again(worker)

    def _disconnected(self, conn: int, now: float) -> None:
        self.introductions.disconnected(conn)
        known = self.state.conns.pop(conn, None)
        if known is None:
            return
        worker = self.state.workers.get(known[0])
        if worker is not None and worker.conn == conn:
            self.state.groups[worker.group].queue.disconnected(conn)
            self.lifecycle.disconnected(worker, now)

    # ---- reload

    def _reconfigure(self, settings: Settings, now: float) -> None:
        state = self.state
        changes = plan(state.settings, settings)
        state.settings = settings
        self.abort.reconfigure(settings.abort)
        for name in changes.removed:
            if name in state.groups:  # else the ledger has not even told of it
                self.groups.remove(state.groups[name], now)
        for name, group in list(state.groups.items()):
            if name in settings.groups:
                self.groups.reconfigure(group, settings.groups[name], roll=name in changes.restart, now=now)
        for name in changes.added if self._begun else ():  # else they are made when the ledger first answers
            if name not in state.groups:
                self.groups.create(settings.groups[name], "next" if state.once else "continue")
        self._save_states_at = min(self._save_states_at or now, now + settings.checkpoint.interval)
        state.publish("config_reloaded", "info", "config", summary=changes.summary)
