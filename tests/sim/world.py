"""A seeded world around the fleet: processes, disk, operators and clock as heaps, faults as events.

Time is driven by deadlines ± 1 ms rather than by dice alone: what is wrong at a deadline is wrong on its very edge.
After every step, safety; when the faults end, liveness. Every event is logged, so that a failing seed can be replayed.
"""

from __future__ import annotations

import heapq
import pickle
import re
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any
from zlib import crc32

import msgspec
from msgspec import Raw, Struct
from tests.sim.model import ModelStore
from tests.sim.processes import Process

from scraper_supervisor.core.config.settings import (
    AbortSettings,
    GroupSettings,
    ResourceSettings,
    RestartSettings,
    RetrySettings,
    Settings,
    TargetSettings,
)
from scraper_supervisor.core.events import (
    Answered,
    Asked,
    Command,
    Disconnected,
    Due,
    Event,
    Exited,
    HangUp,
    KillBrowser,
    KillTree,
    Leave,
    Persist,
    Persisted,
    PersistFailed,
    Reconfigured,
    Refuse,
    Replied,
    Reply,
    Said,
    Sampled,
    Signal,
    Spawn,
    Spawned,
    SpawnFailed,
    Tell,
    Terminated,
    TreeEnded,
)
from scraper_supervisor.core.fleet import Fleet
from scraper_supervisor.core.measurements import BrowserSample, Sample
from scraper_supervisor.core.ops.item_ops import Added, Concluded, LeaseFresh
from scraper_supervisor.core.ops.run_ops import Prefetch
from scraper_supervisor.core.ops.state_ops import StateOp
from scraper_supervisor.core.queue import frontier as lanes
from scraper_supervisor.core.states.group import GroupState
from scraper_supervisor.core.states.worker_life import Phase
from scraper_worker.protocol import (
    DoneAnswer,
    FailedAnswer,
    Failure,
    Granted,
    ItemDone,
    ItemFailed,
    ItemsOffer,
    Offered,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from scraper_supervisor.core.ops.all_ops import Op

MS = 0.001
RESTARTS = RestartSettings(max_restarts=0, max_unstable=0, max_delay=5.0)
REQUESTS = (
    "start",
    "pause",
    "resume",
    "restart",
    "recycle",
    "items.add",
    "items.requeue",
    "items.cancel",
    "stop",
    "start",
    "drain",
)


FAULTS = {  # how likely each is after a step
    "disconnect": 0.02,
    "second hello": 0.01,
    "death": 0.01,
    "disk": 0.015,
    "folder": 0.005,
    "supervisor": 0.004,
    "operator": 0.02,
    "reload": 0.01,
    "sample": 0.015,
    "stale": 0.02,
    "lie": 0.02,
}


REFUSED = object()  # what the disk answers while it is broken


class Broken(AssertionError):
    """The fleet did what it must never do."""


class World:
    """One run of the simulation.

    Args:
        seed: of everything that happens.
        keys: how many items each group's workers offer.
    """

    def __init__(self, seed: int, keys: int = 30) -> None:
        self.seed, self.rng = seed, Random(seed)
        rng = self.rng
        self.now = 100.0
        self.faults = True
        self.log: list[tuple[float, tuple[Event, ...] | str]] = []
        self.store = ModelStore(Prefetch(fresh=24, waiting=6))
        self._numbers = 0
        self._order = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self.concurrency = rng.choice((1, 1, 2, 4))
        names = ["alpha", "beta"][: rng.choice((1, 1, 2))]
        self.keys = {name: [f"{name}-{index}" for index in range(keys)] for name in names}
        self.poison = {key for all_ in self.keys.values() for key in rng.sample(all_, rng.choice((0, 0, 1, 2)))}
        self.hopeless = {key for all_ in self.keys.values() for key in rng.sample(all_, 2)} - self.poison
        self.processes: dict[tuple[str, int], Process] = {}
        self.plain = rng.random() < 0.1
        self.requeued = False
        self.excused = False  # a worker was stopped by name: what it had still to offer may be missing
        self.slow_disk = rng.random() < 0.3
        self.broken_until = 0.0
        self.broken_folders: dict[str, float] = {}  # worker → until when no checkpoint of it can be read or written
        self._queues: dict[bool, list[Op]] = {True: [], False: []}
        self._committing = {True: False, False: False}
        self.life = 0
        self.commands, self.digesting = 0, True
        self.tastes = {name: rng.choice((0, 1, 1, 1, 4)) for name in FAULTS}
        self.settings = self.whole = self._settings(names)
        self.calls: dict[tuple[int, int], Any] = {}
        self.conns: set[int] = set()  # those whose end was not told yet
        self.requests: dict[int, Asked] = {}
        self.claims: dict[str, set[int]] = {name: set() for name in names}
        self.left: Leave | None = None
        self.acknowledged: dict[tuple[int, str], int] = {}
        self.known: set[tuple[int, str]] = set()
        self._feeding = False
        self._gathering = False
        self._inbox: list[Event] = []
        self._useless: Counter[str] = Counter()
        self.steps = 0
        self.spawns: dict[str, int] = {}
        self._outstanding: set[tuple[str, int]] = set()
        self._boot()

    # ---- settings

    def _settings(self, names: list[str]) -> Settings:
        rng = self.rng
        limits = TargetSettings(max_in_flight=1, delay=0.5)
        targets = rng.choice(({}, {"a.sim": limits}, {"*": limits, "a.sim": TargetSettings(max_in_flight=2)}))
        return Settings(
            groups={name: self._group(name) for name in names},
            retry={
                "default": RetrySettings(
                    max_attempts=3, max_delay=20.0, jitter="none" if rng.random() < 0.5 else "full"
                )
            },
            targets=targets,
            resources=ResourceSettings(),
            restart_policy=RESTARTS,
            abort=AbortSettings(enabled=False, consecutive_crashes=10**6),
        )

    def _group(self, name: str, **changes: Any) -> GroupSettings:
        rng = self.rng
        fields: dict[str, Any] = {
            "name": name,
            "directory": "/",
            "entrypoint": None if self.plain else "a:b",
            "command": ("x",) if self.plain else None,
            "count": rng.choice((1, 2, 3)),
            "item_timeout": rng.choice((None, 8.0)),
            "progress_timeout": 60.0,
            "heartbeat_timeout": 10.0,
            "stop_timeout": 15.0,
            "restart_policy": RESTARTS,
            "on_complete": "stop",
        }
        return GroupSettings(**(fields | changes))

    def target(self, key: str) -> str | None:
        """Where an item goes; some say so only when they fail."""
        return (None, "a.sim", "b.sim")[sum(key.encode()) % 3]

    def priority(self, key: str) -> int:
        """Some come first."""
        return 5 if sum(key.encode()) % 7 == 0 else 0

    def children(self, group: str, key: str) -> list[str]:
        """What is found on the way."""
        return [f"{key}-child"] if "child" not in key and sum(key.encode()) % 5 == 0 and group in self.keys else []

    # ---- clock

    def number(self) -> int:
        """A number never used before."""
        self._numbers += 1
        return self._numbers

    def later(self, delay: float, action: Callable[[], None]) -> None:
        """Have something happen after a while."""
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay, self._order, action))

    def step(self) -> None:
        """Let time pass to some interesting moment, and whatever happens by then happen."""
        self.steps += 1
        deadline = self.fleet.next_deadline()
        heap = self._heap[0][0] if self._heap else None
        roll = self.rng.random()
        if deadline is not None and (roll < 0.5 or heap is None):
            to = deadline + self.rng.choice((-MS, 0.0, MS))
        elif heap is not None:
            to = heap
        else:
            to = self.now + self.rng.choice((0.0, MS, 0.5))
        punctual = self.rng.random() < 0.98  # else the loop was held up, and the timer is late
        to = self._before_late(to, punctual)
        while self._heap and self._heap[0][0] <= to and self.left is None:
            time, _, action = heapq.heappop(self._heap)
            self.now = max(self.now, time)
            self._gathering = self.rng.random() < 0.3  # the loop reads more before it comes to any of it
            action()
            to = self._before_late(to, punctual)
        self._gathering = False
        self._take_in()
        self.now = max(self.now, to)
        deadline = self.fleet.next_deadline()
        if deadline is not None and (self.now >= deadline or self.rng.random() < 0.02):
            self.feed(Due())
            after = self.fleet.next_deadline()
            self._must(
                after is None or after > self.now or self.left is not None,
                f"next_deadline is {after} at {self.now}, after Due",
            )
        if self.faults and self.left is None:
            self._fault()
        self._check()

    def _before_late(self, to: float, punctual: bool) -> float:
        deadline = self.fleet.next_deadline()
        if deadline is not None and punctual:
            to = min(to, deadline + MS)
        return max(to, self.now)

    # ---- events in, commands out

    def feed(self, event: Event) -> None:
        """InFlightItem an event to the fleet, and see what it commands. Never from within another event's commands."""
        if self.left is not None:
            return
        if isinstance(event, Disconnected):
            self.conns.discard(event.conn)
        self._inbox.append(event)
        if not self._gathering:
            self._take_in()

    def _take_in(self) -> None:
        """InFlightItem the fleet all that has gathered, at once; what comes of it by itself comes after that."""
        if self._feeding:
            return
        self._feeding = True
        while self._inbox and self.left is None:
            events, self._inbox = tuple(self._inbox), []
            self.log.append((self.now, events))
            self._carry_out(self.fleet.step(events, self.now))
        self._inbox.clear()
        self._feeding = False

    def _in_this_life(self, event: Event) -> Callable[[], None]:
        """Feeds the event, unless the supervisor was killed meanwhile."""
        life = self.life
        return lambda: self.feed(event) if life == self.life else None

    def _carry_out(self, commands: list[Command]) -> None:
        if self.digesting:
            self.commands = _digest(self.commands, commands)
        for command in commands:
            self._perform(command)

    def _perform(self, command: Command) -> None:  # noqa: C901 - one arm a command
        match command:
            case Persist(op=op):
                self._submit(op)
            case Spawn():
                self._spawn(command)
            case Signal(worker=worker, incarnation=incarnation, signum=signum):
                process = self.processes.get((worker, incarnation))
                if process is not None:
                    process.signalled(signum)
            case KillTree(worker=worker, incarnation=incarnation):
                process = self.processes.get((worker, incarnation))
                if process is not None:
                    self.later(0.01, lambda: process.exit(None, 9))
                self.later(0.03, self._in_this_life(TreeEnded(worker, incarnation, 0)))
            case KillBrowser(worker=worker, incarnation=incarnation, pid=pid):
                process = self.processes.get((worker, incarnation))
                self._must(process is not None, f"a browser of {worker} is to be killed, which does not run")
                if process is not None:
                    killed = process
                    self.later(0.1, lambda: killed.browser_killed(pid))
            case Reply(conn=conn, call=call):
                self._answer(conn, call, command)
            case Refuse(conn=conn, call=call):
                self._answer(conn, call, command)
            case Tell(conn=conn, message=message, call=asked):
                process = self._speaker(conn)
                if process is not None:
                    told = process
                    self.later(0.001, lambda: told.told(message, asked))
            case HangUp(conn=conn):
                self.calls = {key: message for key, message in self.calls.items() if key[0] != conn}
            case Answered(request=request):
                self._must(request in self.requests, f"request {request} is answered twice, or was never asked")
                self.requests.pop(request, None)
            case Leave():
                self._must(not [p for p in self.processes.values() if p.alive], f"{command} with processes alive")
                self.left = command
            case _:
                pass

    # ---- the disk

    def _submit(self, op: Op) -> None:
        if isinstance(op, LeaseFresh):
            self._useless[repr(op.fronts)] += 1
            self._must(self._useless[repr(op.fronts)] < 50, f"{op} is asked again and again")
        kind = isinstance(op, StateOp)
        self._queues[kind].append(op)
        if not self._committing[kind]:
            self._commit(kind)

    def _commit(self, kind: bool) -> None:
        """What waits now is one transaction; what comes meanwhile goes into the next."""
        self._committing[kind] = True
        life = self.life
        delay = self.rng.choice((0.0, 0.001, 0.003))
        if self.faults and self.slow_disk and self.rng.random() < 0.1:
            delay = self.rng.choice((0.5, 5.0, 30.0))

        def commit() -> None:
            if life != self.life:
                return
            ops, self._queues[kind] = self._queues[kind], []
            answers = [REFUSED if self._refuses(op) else self.store.perform(op, self.now) for op in ops]
            self.later(self.rng.choice((0.0, 0.001)), lambda: answer(ops, answers))

        def answer(ops: list[Op], answers: list[Any]) -> None:
            if life != self.life:
                return  # committed, but nobody was told
            for op, one in zip(ops, answers, strict=True):
                if isinstance(one, Added | Concluded):
                    self._useless.clear()
                refused = one is REFUSED
                self.feed(PersistFailed(op, 28, "No space left on device") if refused else Persisted(op, one))
            self._committing[kind] = False
            if self._queues[kind]:
                self._commit(kind)

        self.later(delay, commit)

    def _refuses(self, op: Op) -> bool:
        """Whether the disk, or the folder that this is about, is broken now."""
        folder = self.broken_folders.get(op.worker, 0.0) if isinstance(op, StateOp) else 0.0
        return self.now < max(self.broken_until, folder)

    # ---- processes

    def _spawn(self, command: Spawn) -> None:
        key = (command.worker, command.incarnation)
        others = [one for name, one in self.processes.items() if name[0] == command.worker and one.alive]
        self._must(not others, f"{command.worker} is started while an incarnation of it lives")
        self._outstanding.add(key)
        self.spawns[command.worker] = self.spawns.get(command.worker, 0) + 1
        life = self.life
        if self.faults and self.rng.random() < 0.03:
            self.later(0.01, lambda: self._spawned(life, key, SpawnFailed(*key, "no such file")))
            return
        process = Process(self, *key, command.group.name, plain=command.group.entrypoint is None)

        def run() -> None:
            if life == self.life:
                self.processes[key] = process
                process.begin()
                self.later(self.rng.choice((0.0, 0.1)), known)

        def known() -> None:
            self._spawned(life, key, Spawned(*key, process.pid, process.token))

        self.later(self.rng.choice((0.001, 0.05)), run)

    def _spawned(self, life: int, key: tuple[str, int], event: Spawned | SpawnFailed) -> None:
        if life == self.life:
            self._outstanding.discard(key)
            self.feed(event)

    def dead(self, process: Process) -> None:
        """A process is gone for good."""
        self.processes.pop((process.worker, process.incarnation), None)

    def _speaker(self, conn: int) -> Process | None:
        return next((one for one in self.processes.values() if one.conn == conn and one.alive), None)

    def called(self, conn: int, call: int, message: Any) -> None:
        """A process sends a request."""
        self.conns.add(conn)
        self.calls[conn, call] = message

    def _answer(self, conn: int, call: int, command: Reply | Refuse) -> None:
        message = self.calls.pop((conn, call), None)
        process = self._speaker(conn)
        if process is None:
            return  # its connection is closed: the answer goes nowhere
        self._must(message is not None, f"{command} answers a call that is not open")
        if isinstance(command, Refuse):
            process.refused(command)
            return
        result = command.result
        if isinstance(result, Raw):  # as it was recorded
            result = msgspec.json.decode(result, type=FailedAnswer)
        self._acknowledged(process, message, result)
        process.answered(call, result)

    # ---- safety

    def _must(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Broken(f"seed {self.seed}, step {self.steps}, t={self.now:.4f}: {otherwise}")

    def _acknowledged(self, process: Process, message: Any, result: Any) -> None:
        run = self.store.newest(process.group) if self.store.runs.get(process.group) else None
        if isinstance(result, Welcome) or run is None:
            return
        row = run.row(message.key) if isinstance(message, ItemDone | ItemFailed) else None
        match result:
            case DoneAnswer(seq=seq):
                self._must(row is not None and row.seq == seq, f"{message} is acknowledged, the ledger has {row}")
                self.acknowledged[run.run_id, message.key] = seq
            case FailedAnswer(action="final"):
                final = row is not None and (row.state == "failed" or self.requeued)
                self._must(final, f"{message} is final, the ledger has {row}")
            case FailedAnswer():
                self._must(row is not None and row.claim is not None, f"{message} is recorded, the ledger has {row}")
            case Offered() if isinstance(message, ItemsOffer):
                for entry in message.items:
                    key = entry if isinstance(entry, str) else entry.key
                    self._must(key in run.keys, f"{key} is acknowledged as offered and not in the ledger")
                    self.known.add((run.run_id, key))
            case Granted():
                self._granted(process, result)

    def _granted(self, process: Process, granted: Granted) -> None:
        run = self.store.newest(process.group)
        row = run.row(granted.key)
        self._must(row is not None and row.state == "open", f"{granted} is handed out, the ledger has {row}")
        self._must(granted.claim not in self.claims[process.group], f"claim {granted.claim} is given twice")
        self.claims[process.group].add(granted.claim)
        for other in self.processes.values():
            held = other.group == process.group and granted.key in other.in_hands()
            self._must(not held, f"{granted.key} is in the hands of {other.worker} and handed to {process.worker}")
        held = process.in_hands()
        alone = [run.row(key) for key in held] + [row] * bool(held)
        for one in alone:
            self._must(one is None or not one.alone, f"{granted.key} shares {process.worker}: {process.held}")
        if row is not None:
            self._must(granted.attempt == row.attempts + 1, f"{granted} of {row}")
            early = row.not_before is not None and row.not_before > self.now + 1e-6
            self._must(not early, f"{granted} comes before its time, {row.not_before}")

    def _check(self) -> None:
        state = self.fleet.state
        for (run_id, key), seq in self.acknowledged.items() if self.steps % 20 == 0 else ():
            row = self.store.run(run_id).row(key)
            self._must(row is not None and row.seq == seq, f"{key} was acknowledged as {seq}, and is {row}")
        for worker in state.workers.values():
            phase, name = worker.life.phase, worker.name
            group = state.groups[worker.group]
            if phase is Phase.SPAWNING:
                self._must(
                    (name, worker.life.incarnation) in self._outstanding, f"{name} waits for a spawn never asked"
                )
            elif phase is Phase.BACKOFF:
                self._must(worker.life.deadline is not None, f"{name} is in backoff for ever")
            elif worker.life.alive:
                self._must((name, worker.life.incarnation) in self.processes, f"{name} is thought to live")
            elif phase is Phase.STOPPED and group.state is GroupState.RUNNING and state.phase == "running":
                intent = state.intents.get(name) in ("drained", "stopped")
                self._must(intent or worker.leaving, f"{name} is stopped, wanted and forgotten")
            bound = worker.current.conn is None or worker.current.conn in self.conns or bool(self._inbox)
            self._must(bound, f"{name} is bound to connection {worker.current.conn}, which is closed")
        every = [lane for group in state.groups.values() for lane in group.queue.frontier._lanes.values()]
        for target in state.targets._known.values() if self.steps % 5 == 0 else ():
            of_it = [lane for lane in every if lane.target is target]
            self._must(target.groups == len(of_it), f"{target.name} is known to have {target.groups} groups")
            in_flight = sum(lane.in_flight for lane in of_it)
            self._must(target.in_flight == in_flight, f"{target.name}: {target.in_flight} instead of {in_flight}")
        for group in state.groups.values():
            for one in group.queue.open_claims():
                up = state.workers[one.worker].life.up
                self._must(up, f"{one.key} is in the hands of {one.worker}, which is down")
            self._bounds(group.queue)
            if self.left is None and group.state is GroupState.RUNNING and not self.plain:
                up = any(one.life.up or one.life.phase is Phase.BACKOFF for one in state.members(group))
                waits = group.completing or state.storage.ledger is not None
                self._must(up or waits or not state.members(group), f"nobody works for {group.name}")
        for place, trouble in ((None, state.storage.ledger), *state.storage.folders.items()):
            if trouble is not None:
                waits = trouble.probe_at is not None or trouble.probe in self.fleet.outbox.pending
                self._must(waits, f"{place or 'the ledger'} refused and is never tried again")

    def _bounds(self, queue: Any) -> None:
        inner = queue.frontier
        for lane in inner._lanes.values():
            fresh = sum(item.due is None for item in lane.ready)
            self._must(fresh <= 3 * lanes.LANE_MOST + 40, f"{fresh} items of {lane.target.name} are held")
            self._must(lane.loaded <= lane.open, f"{lane.target.name}: {lane.loaded} loaded of {lane.open} open")
            self._must(lane.in_flight >= 0, f"{lane.target.name}: {lane.in_flight} in flight")
        self._must(0 <= inner._retries_loaded <= inner.retries_open, f"{inner._retries_loaded} retries loaded")
        self._must(len(inner._heads) <= 1000, f"{len(inner._heads)} heads")
        self._must(queue._changes.offers >= 0, "less than no offer")
        asked = [one.op.ticket for one in self.fleet.outbox.pending.values()]
        self._must(len(asked) <= 2000, f"{len(asked)} questions to the store are open")

    # ---- faults

    def _fault(self) -> None:
        """Perhaps something goes wrong. Each seed has its own taste, so that some faults also come in swarms."""
        rng = self.rng
        living = [one for one in self.processes.values() if one.alive]
        some = rng.choice(living) if living else None
        if some is None and rng.random() < 0.5:
            self._operate()
        roll = rng.random()
        for name, share in FAULTS.items():
            roll -= share * self.tastes[name]
            if roll < 0:
                break
        else:
            return
        if name == "disk":
            self.broken_until = self.now + rng.choice((0.01, 1.0, 1.001, 7.0, 40.0))
        elif name == "folder":
            if some is not None:
                self.broken_folders[some.worker] = self.now + rng.choice((0.01, 1.001, 7.0, 300.0))
        elif name == "supervisor":
            self.kill_supervisor()
        elif name == "operator":
            self._operate()
        elif name == "reload":
            self._reload()
        elif name == "sample":
            self._sample()
        elif some is not None:
            self._worker_fault(name, some)

    def _worker_fault(self, name: str, some: Process) -> None:
        if name == "disconnect":
            some.disconnect()
        elif name == "death":
            some.exit(self.rng.choice((0, 1)) if some.ever else 1)
        elif name == "stale":
            self._stale(some)
        elif some.welcomed and not some.goodbye:
            if name == "second hello":
                some.connect()
            else:
                self._lie(some)

    def _operate(self) -> None:
        rng = self.rng
        method = rng.choice(REQUESTS)
        group = rng.choice(list(self.keys))
        keys = tuple(rng.sample(self.keys[group], 3))
        request = self.number()
        fresh = rng.random() < 0.1
        names = (group,) if method.startswith("items") or rng.random() < 0.6 else (f"{group}-0",)
        if method == "items.add":
            keys = (f"{group}-added-{request}",)
        if all(one.state is GroupState.COMPLETED for one in self.fleet.state.groups.values()):
            method = rng.choice(("start", "items.add", "items.requeue"))
        if self.plain and method.startswith("items"):
            return
        self.requeued = self.requeued or method == "items.requeue"
        self.excused = self.excused or (method in ("stop", "drain") and names[0] != group)
        self.ask(Asked(request, method, names, keys if method.startswith("items") else (), fresh, rng.random() < 0.3))
        if method in ("pause", "stop", "drain"):
            undo = Asked(self.number(), "resume" if method == "pause" else "start", names)
            self.later(rng.uniform(0, 30), lambda: self.ask(undo))

    def ask(self, asked: Asked) -> None:
        """An operator asks."""
        self.requests[asked.request] = asked
        self.feed(asked)

    def _reload(self) -> None:
        rng = self.rng
        name = rng.choice(list(self.keys))
        old = self.settings.groups.get(name)
        if old is None:
            return
        change: dict[str, Any] = rng.choice(
            (
                {"count": rng.choice((1, 2, 3, 4))},
                {"env": {"X": str(self.number())}},
                {"heartbeat_timeout": rng.choice((10.0, 12.0)), "item_timeout": rng.choice((None, 8.0))},
            )
        )
        groups = self.settings.groups | {name: msgspec.structs.replace(old, **change)}
        if len(groups) == 2 and rng.random() < 0.2:
            del groups[name]
            self.later(rng.uniform(0, 20), lambda: self._configure(self.whole))
        self._configure(msgspec.structs.replace(self.settings, groups=groups))

    def _configure(self, settings: Settings) -> None:
        self.settings = settings
        self.feed(Reconfigured(settings))

    def _sample(self) -> None:
        rng = self.rng
        samples = []
        for process in self.processes.values():
            if process.alive and process.browser is not None:
                size = rng.choice((10**8, 10**8, 2**30 + 1, 2**31 + 1))
                browser = BrowserSample(process.browser, 100_000 + process.pid, size, 5.0, None)
                own = rng.choice((10**8, 10**8, 10**8, 2**30 + 1, 2**31 + 1))
                samples.append(Sample(self.now, process.worker, own, own, 5.0, 3, (browser,)))
        free = 10**6 if self.faults and rng.random() < 0.1 else 10**11
        self.feed(Sampled(tuple(samples), 50.0, free))

    def _stale(self, some: Process) -> None:
        """Words about what is over, and nonsense."""
        rng = self.rng
        self.feed(TreeEnded("alpha-0", 10_000, 3))
        if some.conn is not None:
            self.feed(Replied(some.conn, 10**9, None))
            self.feed(Spawned(some.worker, some.incarnation - 1, 1, "old"))
            self.feed(Exited(some.worker, some.incarnation - 1, 1, None))
        self.feed(Said(10**9 + rng.randrange(5), None, ItemDone("alpha-1")))

    def _lie(self, process: Process) -> None:
        """Calls about claims that are others', or nobody's."""
        rng = self.rng
        key = rng.choice(self.keys[process.group])
        claim = rng.choice((None, rng.randrange(1, 60)))
        mine = key in process.held.values() or claim in process.held
        if not mine and process.conn is not None:
            call = self.number()
            message: Any = rng.choice((ItemDone(key, claim), ItemFailed(key, _FAILURE, claim)))
            self.called(process.conn, call, message)
            self.feed(Said(process.conn, call, message))

    def kill_supervisor(self) -> None:
        """kill -9 of the supervisor: what was committed stays; its workers are ended by the successor."""
        self.log.append((self.now, "killed"))
        for process in self.processes.values():
            process.alive = False
        for ops in self._queues.values():  # what was being committed is there as a whole, or not at all
            if ops and self.rng.random() < 0.5 and self.now >= self.broken_until:
                for op in ops:
                    self.store.perform(op, self.now)
        self._boot()

    def _boot(self) -> None:
        self.life += 1
        self.processes, self.calls, self.requests = {}, {}, {}
        self._queues, self._committing = {True: [], False: []}, {True: False, False: False}
        self._outstanding.clear()
        self._useless.clear()
        self._inbox.clear()
        self.log.append((self.now, f"boot {self.seed}-{self.life}"))
        self.fleet = Fleet(self.settings, f"boot {self.seed}-{self.life}")
        self._carry_out(self.fleet.start(self.now))

    # ---- the end of the faults

    def heal(self) -> None:
        """No fault from here on, and everything that was stopped is started."""
        self.faults, self.broken_until, self.slow_disk = False, 0.0, False
        self.broken_folders.clear()
        self._sample()
        self._configure(msgspec.structs.replace(self.settings, groups=self.whole.groups))
        while self.fleet.state.phase == "starting":
            self.step()
        for name in self.keys:
            self.ask(Asked(self.number(), "resume", (name,)))
            group = self.fleet.state.groups[name]
            if group.state is not GroupState.COMPLETED or group.queue.unfinished:
                self.ask(Asked(self.number(), "start", (name,)))

    def finish(self, steps: int = 20_000, seconds: float = 20_000.0) -> None:
        """Run until every group is completed.

        Raises:
            Broken: it takes too long.
        """
        until = self.now + seconds
        while not self.completed():
            stopped = [name for name, one in self.fleet.state.groups.items() if one.state is GroupState.STOPPED]
            if stopped and not self.requests:  # a worker that was stopped by name has left its group without anybody
                self.ask(Asked(self.number(), "start", (stopped[0],)))
            self._must(self.steps < steps and self.now < until, f"not completed: {self.describe()}")
            self.step()
        for name in self.keys:
            if name not in self.fleet.state.groups:
                continue
            run = self.store.newest(name)
            left = [row for row in run.items.values() if row.state not in ("done", "failed")]
            self._must(not left, f"{name} is completed with {left}")
            missing = [key for key in self.keys[name] if key not in run.keys]
            self._must(not missing or self.plain or self.excused, f"{name} is completed without {missing}")
        for key in self.poison:
            row = next((run.row(key) for name in self.keys if (run := self.store.newest(name)).row(key)), None)
            self._must(row is None or row.state == "failed", f"the poisoned {row}")

    def completed(self) -> bool:
        """Whether nothing is left to do, or to answer."""
        groups = self.fleet.state.groups.values()
        ended = all(group.state is GroupState.COMPLETED for group in groups)
        frozen = any(group.queue.frozen for group in groups)
        idle = not any(self._committing.values()) and not frozen and self.fleet.state.clocks_run()
        return ended and idle and not self.requests and not any(one.alive for one in self.processes.values())

    def describe(self) -> str:
        """How things stand, for a failure's message."""
        state = self.fleet.state
        groups = [
            (group.name, group.state.name, group.completing, group.queue.counts(self.now), group.queue.claims())
            for group in state.groups.values()
        ]
        workers = [(worker.name, worker.life.phase.name, worker.current.goodbye) for worker in state.workers.values()]
        return f"{groups} {workers} {self.requests} storage {state.storage}"

    def terminate(self) -> None:
        """SIGTERM, and everything ends."""
        self.feed(Terminated("SIGTERM"))
        for _ in range(3000):
            if self.left is not None:
                return
            self.step()
        self._must(False, f"the drain does not end: {self.describe()}")


_FAILURE = Failure("transient", "network", "lie", "it is not mine to tell")


class Record(Struct, frozen=True):
    """A line of a saved log."""

    time: float
    event: str
    pickled: bytes  # the events themselves; what the line says is for people


def save(world: World, path: Any) -> None:
    """Write a world's events, one a line, so that `replay` can read them."""
    lines = [
        msgspec.json.encode(Record(time, event if isinstance(event, str) else repr(event), pickle.dumps(event)))
        for time, event in world.log
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")


def replay(path: Any, settings: Settings) -> int:
    """Run a saved log through the fleet again; a digest of all its commands, as in `World.commands`."""
    digest, fleet = 0, None
    for line in path.read_bytes().splitlines():
        record = msgspec.json.decode(line, type=Record)
        if record.event.startswith("boot "):
            fleet = Fleet(settings, record.event)
            commands = fleet.start(record.time)
        elif record.event == "killed" or fleet is None:
            continue
        else:
            events = pickle.loads(record.pickled)
            settings = ([settings] + [event.settings for event in events if isinstance(event, Reconfigured)])[-1]
            commands = fleet.step(events, record.time)
        digest = _digest(digest, commands)
    return digest


def _digest(before: int, commands: list[Command]) -> int:
    return crc32(re.sub(r" at 0x[0-9a-f]+", "", repr(commands)).encode(), before)  # a Raw shows its address
