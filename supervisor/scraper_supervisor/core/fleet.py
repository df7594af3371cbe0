"""The one door of the core: `step(events, now)` gives commands, `next_deadline()` is the one timer.

The fleet routes; the rooms decide. What a room has to say to another passes through here. Events that are known
together are taken together: what any of them may have made possible is looked for once, after the last.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Final, assert_never

from scraper_supervisor.core.bookkeeping import Bookkeeping
from scraper_supervisor.core.checkpoints import Checkpoints
from scraper_supervisor.core.events import (
    Asked,
    Command,
    Disconnected,
    Due,
    Event,
    Exited,
    Heard,
    ItemsChanged,
    LeasesLost,
    News,
    Persisted,
    PersistFailed,
    Reconfigured,
    Replied,
    Said,
    Sampled,
    Spawned,
    SpawnFailed,
    StackTold,
    Stalled,
    StoreFaulted,
    StoreTold,
    Terminated,
    TreeEnded,
    Withdrawn,
)
from scraper_supervisor.core.facts import (
    Claimed,
    Fact,
    ItemEnded,
    ParkedWanted,
    PlaceHealed,
    ProcessEnded,
    ProcessKnown,
    RunOpened,
    RunRead,
    StatesOwed,
)
from scraper_supervisor.core.fleet_state import FleetState, Mode
from scraper_supervisor.core.operators.orders import Orders
from scraper_supervisor.core.operators.run_import import RunImports
from scraper_supervisor.core.operators.state_restore import StateRestores
from scraper_supervisor.core.outbox import Outbox
from scraper_supervisor.core.policy.abort import AbortWindow
from scraper_supervisor.core.policy.slo import Slo
from scraper_supervisor.core.queue.targets import Targets
from scraper_supervisor.core.runs.aborts import Aborts
from scraper_supervisor.core.runs.groups import Groups
from scraper_supervisor.core.runs.rolling import Rolling
from scraper_supervisor.core.runs.shutdown import Shutdown
from scraper_supervisor.core.sessions.handshake import Handshakes
from scraper_supervisor.core.sessions.sessions import Sessions
from scraper_supervisor.core.states.group import ENDED
from scraper_supervisor.core.storage_health import StorageHealth
from scraper_supervisor.core.workers.lifecycle import Lifecycle
from scraper_supervisor.core.workers.readiness import why_closed, why_not_ready
from scraper_supervisor.core.workers.recycling import Recycling
from scraper_supervisor.core.workers.standstill import stand_still
from scraper_supervisor.core.workers.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scraper_supervisor.core.config.settings import Settings

_lanes: Final = attrgetter("queue.frontier")


class Fleet:
    """Everything the supervisor decides.

    Args:
        settings: a valid configuration.
        boot: a random word; seeds jitter and begins every correlation id of this daemon's life.
        once: end when nothing is left to do.
        mode: how each group's run is opened; "next" with `once`.
    """

    def __init__(self, settings: Settings, boot: str, *, once: bool = False, mode: Mode = "continue") -> None:
        self.outbox = Outbox(boot)
        self.state = FleetState(settings, boot, self.outbox, Targets(settings.targets), once=once)
        self.mode: Mode = mode
        self.abort = AbortWindow(settings.abort)
        self.slo = Slo()
        self.storage_health = StorageHealth(self.state)
        self.checkpoints = Checkpoints(self.state, self.slo)
        self.lifecycle = Lifecycle(self.state, self.slo, self.checkpoints)
        self.bookkeeping = Bookkeeping(self.state, self.lifecycle, self.abort, self.slo)
        self.groups = Groups(self.state, self.lifecycle, self.slo, self.abort)
        self.aborts = Aborts(self.state, self.groups, self.abort)
        self.rolling = Rolling(self.state, self.lifecycle)
        self.recycling = Recycling(self.state, self.lifecycle)
        self.watchdog = Watchdog(self.state, self.lifecycle, self.recycling)
        self.handshakes = Handshakes(self.state, self.lifecycle, self.watchdog, self.recycling, self.checkpoints)
        self.sessions = Sessions(self.state, self.lifecycle, self.handshakes, self.checkpoints, self.recycling)
        self.state_restores = StateRestores(self.state, self.groups, self.lifecycle, self.checkpoints)
        self.run_imports = RunImports(self.state, self.groups, self.checkpoints)
        self.orders = Orders(
            self.state,
            self.groups,
            self.lifecycle,
            self.watchdog,
            self.recycling,
            self.abort,
            self.aborts,
            self.state_restores,
            self.run_imports,
        )
        self.shutdown = Shutdown(self.state, self.groups, self.lifecycle)

    def start(self, now: float) -> list[Command]:
        """Begin: ask the ledger what operators want and where each run stands."""
        self.groups.begin(self.mode)
        self.checkpoints.begin(now)
        return self._finish(now)

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event; what is to be done about it."""
        return self.step((event,), now)

    def step(self, events: Iterable[Event], now: float) -> list[Command]:
        """Take events in their order; what is to be done about them."""
        for event in events:
            self._route(event, now)
            self._pass_on(now)
        return self._finish(now)

    def next_deadline(self) -> float | None:
        """When `Due` is wanted, in monotonic seconds."""
        rooms = (
            self.abort,
            self.storage_health,
            self.checkpoints,
            self.recycling,
            self.watchdog,
            self.groups,
            self.rolling,
            self.orders,
        )
        times = (room.next_deadline() for room in rooms)
        return min((time for time in times if time is not None), default=None)

    # ---- routing

    def _route(self, event: Event, now: float) -> None:  # noqa: C901 - one arm an event
        match event:
            case Said():
                self.sessions.said(event, now)
            case Persisted(op=op, answer=answer):
                question = self.outbox.pending.pop(op.ticket, None)
                if question is not None:
                    question.answered(answer, now)
            case PersistFailed(op=op):
                question = self.outbox.pending.pop(op.ticket, None)
                self.storage_health.failed(event, question, now)
                if question is not None:
                    question.refused(event, now)
            case StoreTold(news=news):
                self._learn(news, now)
            case Due():
                self._due(now)
            case Heard(conn=conn):
                self.sessions.heard(conn, now)
            case Replied():
                self.sessions.heard(event.conn, now)
                self.recycling.replied(event, now)
            case Disconnected(conn=conn):
                self.sessions.disconnected(conn, now)
            case Spawned():
                self.lifecycle.spawned(event, now)
            case SpawnFailed():
                self.lifecycle.spawn_failed(event, now)
            case Exited():
                self.lifecycle.exited(event, now)
            case StackTold():
                self.lifecycle.stack_told(event)
            case TreeEnded():
                self.lifecycle.tree_ended(event)
            case Sampled():
                self.storage_health.measured(event.disk_free, now)
                self.recycling.sampled(event, now)
            case Asked():
                self.orders.asked(event, now)
            case Withdrawn(request=request):
                self.orders.withdrawn(request)
            case Reconfigured(settings=settings):
                self.groups.reconfigured(settings, now)
            case Terminated():
                self.shutdown.terminate(event, now)
            case Stalled(since=since):
                stand_still(self.state, since, now)
                self.recycling.stood_still(since, now)
            case _:
                assert_never(event)

    def _pass_on(self, now: float) -> None:
        """Tell the rooms that care what the others found out, and what they find out upon that."""
        facts = self.outbox.facts
        while facts:
            self.outbox.facts = []
            for fact in facts:
                self._learn(fact, now)
            facts = self.outbox.facts

    def _learn(self, fact: Fact | News, now: float) -> None:
        match fact:
            case ItemEnded():
                self.bookkeeping.ended(fact, now)
            case Claimed():
                self.bookkeeping.claimed(fact, now)
            case ProcessKnown(worker=worker):
                self.handshakes.process_known(worker)
            case ProcessEnded(worker=worker):
                self.recycling.forget(worker)
                self.bookkeeping.process_ended(fact, now)
            case PlaceHealed():
                if fact.worker is None:
                    self.groups.flush()
                self.run_imports.healed()
                self.watchdog.place_healed(fact, now)
            case StoreFaulted():
                self.storage_health.told(fact, now)
            case LeasesLost(group=name, claims=claims):
                self.watchdog.leases_lost(name, claims)
            case ItemsChanged(group=name):
                self.groups.read_again(name)
            case ParkedWanted(group=name):
                self.aborts.another_chance(name, now)
            case RunRead():
                self.bookkeeping.run_read(fact)
            case RunOpened(group=group):
                self.run_imports.run_opened(group)
            case StatesOwed():
                self.run_imports.states_owed(fact)
            case _:
                assert_never(fact)

    def _finish(self, now: float) -> list[Command]:
        """What any event may have made possible: hand out items, complete runs, leave."""
        self.recycling.step(now)  # before items are handed out: it says who may have one
        self.aborts.decided(self.abort.evaluate(now), now)
        closed = why_closed(self.state)
        groups = list(self.state.groups.values())
        turn = self.state.targets.in_turn(groups, _lanes, now)
        while turn:
            for group in turn:
                group.queue.pump(now, self._is_ready, open_=group.state not in ENDED and closed is None)
                self.groups.check(group, now)
                self.rolling.step(group, now)
            turn = self.state.targets.called(groups, _lanes)  # what one gave back may be another's next
        self._pass_on(now)
        self.sessions.answer_goodbyes()
        self.groups.forget_removed(self.state.groups, now)
        self.orders.settle(now)
        self.shutdown.leave_if_done(now)
        commands, self.outbox.commands = self.outbox.commands, []
        return commands

    def _is_ready(self, name: str) -> bool:
        worker = self.state.workers.get(name)
        return worker is not None and why_not_ready(self.state, worker) is None

    # ---- time

    def _due(self, now: float) -> None:
        self.storage_health.due(now)
        self.watchdog.due(now)
        self.groups.due(now)
        self.checkpoints.due(now)
