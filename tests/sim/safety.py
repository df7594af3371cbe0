"""What must hold after every step of a world, and of every answer that a process is given."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from scraper_supervisor.core.formats.worker_payloads import WorkerHung
from scraper_supervisor.core.policy.ladder import RUNG
from scraper_supervisor.core.queue import frontier as lanes
from scraper_supervisor.core.states.group import GroupState
from scraper_supervisor.core.states.worker_life import Phase
from scraper_worker.protocol import (
    DoneAnswer,
    FailedAnswer,
    Granted,
    ItemDone,
    ItemFailed,
    ItemsOffer,
    Offered,
    Welcome,
)

if TYPE_CHECKING:
    from tests.sim.processes import Process
    from tests.sim.world import World

    from scraper_supervisor.core.formats.worker_payloads import CleanupInitiated
    from scraper_supervisor.core.ops.item_ops import LeaseFresh
    from scraper_worker.protocol import ItemCancel


class Broken(AssertionError):
    """The fleet did what it must never do."""


class Safety:
    """What a world was promised, held against its ledger, its processes and the fleet's own state."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.acknowledged: dict[tuple[int, str], int] = {}
        self.known: set[tuple[int, str]] = set()
        self.claims: dict[str, set[int]] = {name: set() for name in world.keys}
        self._useless: Counter[str] = Counter()
        self._told: dict[str, tuple[int, float]] = {}  # key → its latest claim that was to be ended, and since when

    def must(self, holds: bool, otherwise: str) -> None:
        """What is demanded of the fleet.

        Raises:
            Broken: it does not hold.
        """
        world = self.world
        if not holds:
            raise Broken(f"seed {world.seed}, step {world.steps}, t={world.now:.4f}: {otherwise}")

    def told(self, process: Process, message: Any, result: Any) -> None:
        """A process is answered: the ledger must have it."""
        world = self.world
        run = world.store.newest(process.group) if world.store.runs.get(process.group) else None
        if isinstance(result, Welcome) or run is None:
            return
        row = run.row(message.key) if isinstance(message, ItemDone | ItemFailed) else None
        match result:
            case DoneAnswer(seq=seq):
                self.must(row is not None and row.seq == seq, f"{message} is acknowledged, the ledger has {row}")
                self.acknowledged[run.run_id, message.key] = seq
            case FailedAnswer(action="final"):
                final = row is not None and (row.state == "failed" or world.requeued)
                self.must(final, f"{message} is final, the ledger has {row}")
            case FailedAnswer():
                self.must(row is not None and row.claim is not None, f"{message} is recorded, the ledger has {row}")
            case Offered() if isinstance(message, ItemsOffer):
                for entry in message.items:
                    key = entry if isinstance(entry, str) else entry.key
                    self.must(key in run.keys, f"{key} is acknowledged as offered and not in the ledger")
                    self.known.add((run.run_id, key))
            case Granted():
                self._granted(process, result)

    def asked(self, op: LeaseFresh) -> None:
        """Nobody may ask for the same again and again while nothing changes."""
        self._useless[repr(op.fronts)] += 1
        self.must(self._useless[repr(op.fronts)] < 50, f"{op} is asked again and again")

    def changed(self) -> None:
        """Something changed in the ledger, or all begins anew: what was asked may be asked again."""
        self._useless.clear()

    def _granted(self, process: Process, granted: Granted) -> None:
        world = self.world
        run = world.store.newest(process.group)
        row = run.row(granted.key)
        self.must(row is not None and row.state == "open", f"{granted} is handed out, the ledger has {row}")
        self.must(granted.claim not in self.claims[process.group], f"claim {granted.claim} is given twice")
        self.claims[process.group].add(granted.claim)
        for other in world.processes.values():
            held = other.group == process.group and granted.key in other.in_hands()
            self.must(not held, f"{granted.key} is in the hands of {other.worker} and handed to {process.worker}")
        held = process.in_hands()
        alone = [run.row(key) for key in held] + [row] * bool(held)
        for one in alone:
            self.must(one is None or not one.alone, f"{granted.key} shares {process.worker}: {process.held}")
        if row is not None:
            self.must(granted.attempt == row.attempts + 1, f"{granted} of {row}")
            early = row.not_before is not None and row.not_before > world.now + 1e-6
            self.must(not early, f"{granted} comes before its time, {row.not_before}")

    def to_end(self, order: ItemCancel) -> None:
        """A worker is told to end an item; that it is reminded, with less time left, is no news."""
        if order.deadline == RUNG and self._told.get(order.key, (0, 0.0))[0] < order.claim:
            self._told[order.key] = (order.claim, self.world.now)

    def killed(self, data: WorkerHung | CleanupInitiated) -> None:
        """Something is killed for an item: nobody may have had less time than the ladder gives."""
        found = re.search(r"(?:did not end|^) ?'([^']+)'", data.reason or "")
        if found is None or found[1] not in self._told:
            return
        least = 2 * RUNG if isinstance(data, WorkerHung) else RUNG
        had = self.world.now - self._told[found[1]][1]
        self.must(had >= least - 1e-6, f"{data} after {had:.3f} s")

    def check(self) -> None:
        """The invariants of every step."""
        world = self.world
        state = world.fleet.state
        for (run_id, key), seq in self.acknowledged.items() if world.steps % 20 == 0 else ():
            row = world.store.run(run_id).row(key)
            self.must(row is not None and row.seq == seq, f"{key} was acknowledged as {seq}, and is {row}")
        for worker in state.workers.values():
            phase, name = worker.life.phase, worker.name
            group = state.groups[worker.group]
            if phase is Phase.SPAWNING:
                self.must((name, worker.life.incarnation) in world.outstanding, f"{name} waits for a spawn never asked")
            elif phase is Phase.BACKOFF:
                self.must(worker.life.deadline is not None, f"{name} is in backoff for ever")
            elif worker.life.alive:
                self.must((name, worker.life.incarnation) in world.processes, f"{name} is thought to live")
            elif phase is Phase.STOPPED and group.state is GroupState.RUNNING and state.phase == "running":
                intent = state.intents.get(name) in ("drained", "stopped")
                self.must(intent or worker.leaving, f"{name} is stopped, wanted and forgotten")
            bound = worker.current.conn is None or worker.current.conn in world.conns or bool(world.inbox)
            self.must(bound, f"{name} is bound to connection {worker.current.conn}, which is closed")
        every = [lane for group in state.groups.values() for lane in group.queue.frontier._lanes.values()]
        for target in state.targets._known.values() if world.steps % 5 == 0 else ():
            of_it = [lane for lane in every if lane.target is target]
            self.must(target.groups == len(of_it), f"{target.name} is known to have {target.groups} groups")
            in_flight = sum(lane.in_flight for lane in of_it)
            self.must(target.in_flight == in_flight, f"{target.name}: {target.in_flight} instead of {in_flight}")
        for group in state.groups.values():
            for held in group.queue._in_flight:
                up = held.ending is not None or state.workers[held.worker].life.up
                self.must(up, f"{held.item.key} is in the hands of {held.worker}, which is down")
            self._bounds(group.queue)
            if world.left is None and group.state is GroupState.RUNNING and not world.plain:
                up = any(one.life.up or one.life.phase is Phase.BACKOFF for one in state.members(group))
                waits = group.completing or state.storage.ledger is not None
                self.must(up or waits or not state.members(group), f"nobody works for {group.name}")
        for place, trouble in ((None, state.storage.ledger), *state.storage.folders.items()):
            if trouble is not None:
                waits = trouble.probe_at is not None or trouble.probe in world.fleet.outbox.pending
                self.must(waits, f"{place or 'the ledger'} refused and is never tried again")

    def _bounds(self, queue: Any) -> None:
        inner = queue.frontier
        for lane in inner._lanes.values():
            fresh = sum(item.due is None for item in lane.ready)
            self.must(fresh <= 3 * lanes.LANE_MOST + 40, f"{fresh} items of {lane.target.name} are held")
            self.must(lane.loaded <= lane.open, f"{lane.target.name}: {lane.loaded} loaded of {lane.open} open")
            self.must(lane.in_flight >= 0, f"{lane.target.name}: {lane.in_flight} in flight")
        self.must(0 <= inner._retries_loaded <= inner.retries_open, f"{inner._retries_loaded} retries loaded")
        self.must(len(inner._heads) <= 1000, f"{len(inner._heads)} heads")
        self.must(queue._changes.offers >= 0, "less than no offer")
        asked = [one.op.ticket for one in self.world.fleet.outbox.pending.values()]
        self.must(len(asked) <= 2000, f"{len(asked)} questions to the store are open")
