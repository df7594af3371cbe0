"""A seeded world around the fleet: processes, disk, operators and clock as heaps, faults as events.

Time is driven by deadlines ± 1 ms rather than by dice alone: what is wrong at a deadline is wrong on its very edge.
After every step, safety; when the faults end, liveness. Every event is logged, so that a failing seed can be replayed.
"""

from __future__ import annotations

import heapq
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw
from tests.sim.configuration import some_settings
from tests.sim.disk import Disk
from tests.sim.faults import Mischief
from tests.sim.model import ModelStore
from tests.sim.processes import Process
from tests.sim.recording import digest
from tests.sim.safety import Safety

from scraper_supervisor.core.events import (
    Answered,
    Asked,
    Command,
    Disconnected,
    Due,
    Event,
    HangUp,
    KillBrowser,
    KillTree,
    Leave,
    Persist,
    Publish,
    Reconfigured,
    Refuse,
    Reply,
    Signal,
    Spawn,
    Spawned,
    SpawnFailed,
    StackTold,
    Tell,
    Terminated,
    TreeEnded,
)
from scraper_supervisor.core.fleet import Fleet
from scraper_supervisor.core.formats.worker_payloads import CleanupInitiated, WorkerHung
from scraper_supervisor.core.ops.run_ops import Prefetch
from scraper_supervisor.core.states.group import GroupState
from scraper_worker.protocol import FailedAnswer, ItemCancel

if TYPE_CHECKING:
    from collections.abc import Callable

    from scraper_supervisor.core.config.settings import Settings

MS = 0.001


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
        self.disk = Disk(self)
        self.life = 0
        self.commands, self.digesting = 0, True
        self.mischief = Mischief(self)
        self.settings = self.whole = some_settings(rng, names, plain=self.plain)
        self.safety = Safety(self)
        self.calls: dict[tuple[int, int], Any] = {}
        self.conns: set[int] = set()  # those whose end was not told yet
        self.requests: dict[int, Asked] = {}
        self.left: Leave | None = None
        self._feeding = False
        self._gathering = False
        self.inbox: list[Event] = []
        self.steps = 0
        self.spawns: dict[str, int] = {}
        self.outstanding: set[tuple[str, int]] = set()
        self._boot()

    # ---- items

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
            self.safety.must(
                after is None or after > self.now or self.left is not None,
                f"next_deadline is {after} at {self.now}, after Due",
            )
        if self.faults and self.left is None:
            self.mischief.strike()
        self.safety.check()

    def _before_late(self, to: float, punctual: bool) -> float:
        deadline = self.fleet.next_deadline()
        if deadline is not None and punctual:
            to = min(to, deadline + MS)
        return max(to, self.now)

    # ---- events in, commands out

    def feed(self, event: Event) -> None:
        """Hand an event to the fleet, and see what it commands. Never from within another event's commands."""
        if self.left is not None:
            return
        if isinstance(event, Disconnected):
            self.conns.discard(event.conn)
        self.inbox.append(event)
        if not self._gathering:
            self._take_in()

    def _take_in(self) -> None:
        """Hand the fleet all that has gathered, at once; what comes of it by itself comes after that."""
        if self._feeding:
            return
        self._feeding = True
        while self.inbox and self.left is None:
            events, self.inbox = tuple(self.inbox), []
            self.log.append((self.now, events))
            self._carry_out(self.fleet.step(events, self.now))
        self.inbox.clear()
        self._feeding = False

    def _in_this_life(self, event: Event) -> Callable[[], None]:
        """Feeds the event, unless the supervisor was killed meanwhile."""
        life = self.life
        return lambda: self.feed(event) if life == self.life else None

    def _carry_out(self, commands: list[Command]) -> None:
        if self.digesting:
            self.commands = digest(self.commands, commands)
        for command in commands:
            self._perform(command)

    def _perform(self, command: Command) -> None:  # noqa: C901 - one arm a command
        match command:
            case Persist(op=op):
                self.disk.submit(op)
            case Spawn():
                self._spawn(command)
            case Signal(worker=worker, incarnation=incarnation, signum=signum):
                process = self.processes.get((worker, incarnation))
                if process is not None:
                    process.signalled(signum)
            case KillTree(worker=worker, incarnation=incarnation, ask=ask):
                if ask and self.rng.random() < 0.9:
                    self.later(0.005, self._in_this_life(StackTold(worker, incarnation, ("  File x, line 1 in y",))))
                process = self.processes.get((worker, incarnation))
                if process is not None:
                    self.later(0.01, lambda: process.exit(None, 9))
                self.later(0.03, self._in_this_life(TreeEnded(worker, incarnation, 0)))
            case KillBrowser(worker=worker, incarnation=incarnation, pid=pid):
                process = self.processes.get((worker, incarnation))
                self.safety.must(process is not None, f"a browser of {worker} is to be killed, which does not run")
                if process is not None:
                    killed = process
                    self.later(0.1, lambda: killed.browser_killed(pid))
            case Reply(conn=conn, call=call):
                self._answer(conn, call, command)
            case Refuse(conn=conn, call=call):
                self._answer(conn, call, command)
            case Publish(data=WorkerHung() | CleanupInitiated() as data):
                self.safety.killed(data)
            case Tell(conn=conn, message=message, call=asked):
                if isinstance(message, ItemCancel):
                    self.safety.to_end(message)
                process = self._speaker(conn)
                if process is not None:
                    told = process
                    self.later(0.001, lambda: told.told(message, asked))
            case HangUp(conn=conn):
                self.calls = {key: message for key, message in self.calls.items() if key[0] != conn}
            case Answered(request=request):
                self.safety.must(request in self.requests, f"request {request} is answered twice, or was never asked")
                self.requests.pop(request, None)
            case Leave():
                self.safety.must(not [p for p in self.processes.values() if p.alive], f"{command} with processes alive")
                self.left = command
            case _:
                pass

    # ---- processes

    def _spawn(self, command: Spawn) -> None:
        key = (command.worker, command.incarnation)
        others = [one for name, one in self.processes.items() if name[0] == command.worker and one.alive]
        self.safety.must(not others, f"{command.worker} is started while an incarnation of it lives")
        self.outstanding.add(key)
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
            self.outstanding.discard(key)
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
        self.safety.must(message is not None, f"{command} answers a call that is not open")
        if isinstance(command, Refuse):
            process.refused(command)
            return
        result = command.result
        if isinstance(result, Raw):  # as it was recorded
            result = msgspec.json.decode(result, type=FailedAnswer)
        self.safety.told(process, message, result)
        process.answered(call, result)

    # ---- orders, and the supervisor's own death

    def ask(self, asked: Asked) -> None:
        """An operator asks."""
        self.requests[asked.request] = asked
        self.feed(asked)

    def configure(self, settings: Settings) -> None:
        """The configuration is read again."""
        self.settings = settings
        self.feed(Reconfigured(settings))

    def kill_supervisor(self) -> None:
        """kill -9 of the supervisor: what was committed stays; its workers are ended by the successor."""
        self.log.append((self.now, "killed"))
        for process in self.processes.values():
            process.alive = False
        self.disk.killed()
        self._boot()

    def _boot(self) -> None:
        self.life += 1
        self.processes, self.calls, self.requests = {}, {}, {}
        self.disk.boot()
        self.outstanding.clear()
        self.safety.changed()
        self.inbox.clear()
        self.log.append((self.now, f"boot {self.seed}-{self.life}"))
        self.fleet = Fleet(self.settings, f"boot {self.seed}-{self.life}")
        self._carry_out(self.fleet.start(self.now))

    # ---- the end of the faults

    def heal(self) -> None:
        """No fault from here on, and everything that was stopped is started."""
        self.faults = False
        self.disk.heal()
        self.mischief.sample()
        self.configure(msgspec.structs.replace(self.settings, groups=self.whole.groups))
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
            ended = (GroupState.STOPPED, GroupState.FAILED)  # a worker may not have been back in time after a reload
            stopped = [name for name, one in self.fleet.state.groups.items() if one.state in ended]
            if stopped and not self.requests:  # a worker that was stopped by name has left its group without anybody
                self.ask(Asked(self.number(), "start", (stopped[0],)))
            self.safety.must(self.steps < steps and self.now < until, f"not completed: {self.describe()}")
            self.step()
        for name in self.keys:
            if name not in self.fleet.state.groups:
                continue
            run = self.store.newest(name)
            left = [row for row in run.items.values() if row.state not in ("done", "failed")]
            self.safety.must(not left, f"{name} is completed with {left}")
            missing = [key for key in self.keys[name] if key not in run.keys]
            self.safety.must(not missing or self.plain or self.excused, f"{name} is completed without {missing}")
        for key in self.poison:
            row = next((run.row(key) for name in self.keys if (run := self.store.newest(name)).row(key)), None)
            self.safety.must(row is None or row.state == "failed", f"the poisoned {row}")

    def completed(self) -> bool:
        """Whether nothing is left to do, or to answer."""
        groups = self.fleet.state.groups.values()
        ended = all(group.state is GroupState.COMPLETED for group in groups)
        frozen = any(group.queue.frozen for group in groups)
        idle = self.disk.idle() and not frozen and self.fleet.state.clocks_run()
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
        self.safety.must(False, f"the drain does not end: {self.describe()}")
