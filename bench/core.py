"""What an item costs on the core: microseconds of `Fleet.step` from its item.next to the reply to its item.done.

Run: `python bench/core.py [--against REV]`. A store in memory answers every operation at once and in order, as many a
turn as the daemon takes; the workers answer in the next turn. That session is played once and recorded, then its events
are given again to fresh fleets, and this alone is timed. `--against` also does so with the sources of another revision,
slice by slice in turns and on one processor, since a busy machine's speed changes from one moment to the next. A pair's
ratio is the median of its slices', this tree's cost over the other's: above 1 is slower.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import pkgutil
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from itertools import islice
from pathlib import Path
from typing import Any

from msgspec import Raw, Struct
from msgspec.structs import fields

ROOT = Path(__file__).resolve().parent.parent
WORKERS = (1, 32, 100)
ITEMS = 20_000
TARGETS = 24
PORTION = 500  # items an offer
ANSWERS_A_TURN = 16  # as daemon/storage.py takes them
TURN = 0.0005  # seconds that a turn lasts for the core
LOOK_EVERY = 20  # turns between two looks for the next deadline
SLICES = 40  # of a session, some 10 ms each
RESULT = Raw(b'{"home": 2, "away": 1, "events": [4, 17, 62]}')
GROUP = "g"


def classes(package: str) -> dict[str, Any]:
    """Every class of a package by its name, wherever a revision keeps it; of two of one name, that of the words."""
    found: dict[str, Any] = {}
    root = importlib.import_module(package)
    names = [package, *(one.name for one in pkgutil.walk_packages(getattr(root, "__path__", ()), package + "."))]
    for name in sorted(names, key=lambda name: any(word in name for word in ("events", "records", "ops", "settings"))):
        module = importlib.import_module(name)
        found |= {key: kind for key, kind in vars(module).items() if getattr(kind, "__module__", None) == name}
    return found


def make(kind: Any, **values: Any) -> Any:
    """A Struct of these values, those left out that a revision does not know."""
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in known})


class Row(Struct):
    """An open item."""

    id: int
    order: float
    offer: Any
    open: bool = True


class MemoryStore:
    """Answers what a run without failures asks, by the operations' names."""

    def __init__(self, core: dict[str, Any]) -> None:
        self._core = core
        self._rows: list[Row] = []
        self._lanes: dict[str | None, list[Row]] = {}
        self._known: set[str] = set()
        self._claim = 1
        self._done = 0
        same = {"FetchLanes": self._fresh, "LeaseFresh": self._fresh}
        same |= {"FetchWaiting": self._none_waiting, "LeaseWaiting": self._none_waiting}
        self._answers = same | {
            "LoadIntents": lambda _: core["Intents"](()),
            "OpenRun": self._image,
            "LoadState": lambda _: core["StateLoaded"]("none"),
            "SetRunState": lambda _: None,
            "AddItems": lambda op: self._add(op.items),
            "ReserveClaims": self._reserve,
            "Conclude": self._conclude,
        }

    def perform(self, op: Any) -> Any:
        """Carry out an operation."""
        return self._answers[type(op).__name__](op)

    def _image(self, _: Any) -> Any:
        return make(
            self._core["RunImage"],
            run_id=1,
            run=1,
            state="running",
            fresh_from=1,
            done=0,
            failed=0,
            parked=0,
            waiting=0,
            lanes=(),
            next_claim=1,
            started_at="2026-01-01T00:00:00Z",
            finished_at=None,
            workers=(),
        )

    def _add(self, items: tuple[Any, ...]) -> Any:
        added = []
        for index, item in enumerate(items):
            if item.key not in self._known:
                self._known.add(item.key)
                row = Row(len(self._rows) + 1, float(len(self._rows) + 1), item)
                self._rows.append(row)
                self._lanes.setdefault(item.target, []).append(row)
                added.append((index, row.id, row.order))
        return self._core["Added"](tuple(added), len(items) - len(added))

    def _reserve(self, op: Any) -> Any:
        if hasattr(op, "upto"):
            return None
        first, self._claim = self._claim, self._claim + op.count
        return self._core["Reserved"](first, self._claim)

    def _conclude(self, op: Any) -> Any:
        self._rows[op.item - 1].open = False
        self._done += 1
        return make(self._core["Concluded"], seq=self._done, order=None, offered=self._add(op.offers))

    def _fresh(self, op: Any) -> Any:
        found: list[Any] = []
        for lane in op.fronts if hasattr(op, "fronts") else op.lanes:
            target, after = (lane.target, lane.after) if hasattr(lane, "target") else lane
            rows = self._lanes.get(target, [])
            begin = 0 if after is None else bisect_right(rows, after[1], key=lambda row: row.order)
            found += map(self._entry, islice((row for row in islice(rows, begin, None) if row.open), op.limit))
        return self._leased(found)

    def _none_waiting(self, _: Any) -> Any:
        return self._leased([])

    def _leased(self, entries: list[Any]) -> Any:
        return self._core.get("Leased", self._core.get("Entries"))(tuple(entries))

    def _entry(self, row: Row) -> Any:
        offer = row.offer
        return make(
            self._core["Entry"],
            id=row.id,
            key=offer.key,
            target=offer.target,
            data=offer.data,
            priority=offer.priority,
            order=row.order,
        )


class Turn(Struct):
    """What was known together, at which monotonic second; how many commands came of it."""

    events: tuple[Any, ...]
    now: float
    commands: int = 0


class Session:
    """A fleet with its workers, turn by turn, until so many items are done."""

    def __init__(self, core: dict[str, Any], said: dict[str, Any], workers: int, items: int) -> None:
        self._core = core
        self._said = said
        self._store = MemoryStore(core)
        group = make(core["GroupSettings"], name=GROUP, directory="/", entrypoint="a:b", count=workers)
        self._settings = make(core["Settings"], groups={GROUP: group}, retry={"default": core["RetrySettings"]()})
        self._workers = workers
        self._turns: list[Turn] = []
        self._persisted: list[Any] = []
        self._inbox: list[Any] = []
        self._calls = 0
        self._done = 0
        self._offered = items + workers + PORTION  # more than are done, so that the run is not complete
        self.fleet = self.new_fleet()
        self._take(self.fleet.start(0.0))
        while len(self.fleet.state.conns) < workers or self._inbox or self._persisted:
            self._turn()
        self._offer()
        self.prepared = len(self._turns)  # turns before the first item.next
        self._inbox = [self._call(conn, said["ItemNext"]()) for conn in range(1, workers + 1)]
        while self._done < items:
            self._turn()
        self.turns = self._turns
        self.done = self._done

    def new_fleet(self) -> Any:
        """A fleet that has seen nothing yet."""
        return self._core["Fleet"](self._settings, "bench")

    def _call(self, conn: int, message: Any, ancestry: tuple[int, ...] = ()) -> Any:
        self._calls += 1
        return self._core["Said"](conn, self._calls, message, ancestry)

    def _offer(self) -> None:
        offer = self._said["Offer"]
        for begin in range(0, self._offered, PORTION):
            keys = range(begin, min(begin + PORTION, self._offered))
            items = [offer(f"match/{key:08d}", f"host-{key % TARGETS}.example") for key in keys]
            self._inbox = [self._call(1, self._said["ItemsOffer"](items))]
            while self._inbox or self._persisted:
                self._turn()

    def _turn(self) -> None:
        taken, self._persisted = self._persisted[:ANSWERS_A_TURN], self._persisted[ANSWERS_A_TURN:]
        events, self._inbox = (*taken, *self._inbox), []
        now = TURN * (len(self._turns) + 1)
        if not events:
            raise SystemExit("nothing happens any more")
        commands = self.fleet.step(events, now)
        self._turns.append(Turn(events, now, len(commands)))
        self._take(commands)

    def _take(self, commands: list[Any]) -> None:
        for command in commands:
            match type(command).__name__:
                case "Persist":
                    self._persisted.append(self._core["Persisted"](command.op, self._store.perform(command.op)))
                case "Reply":
                    self._replied(command)
                case "Spawn":
                    self._spawned(command)
                case "Refuse" | "HangUp" | "KillTree" | "Leave":
                    raise SystemExit(f"not expected in a run without failures: {command}")
                case _:
                    pass  # what nobody answers

    def _replied(self, reply: Any) -> None:
        match type(reply.result).__name__:
            case "Granted":
                done = self._said["ItemDone"](reply.result.key, reply.result.claim, 0.1, None, RESULT)
                self._inbox.append(self._call(reply.conn, done))
            case "DoneAnswer":
                self._done += 1
                self._inbox.append(self._call(reply.conn, self._said["ItemNext"]()))
            case _:
                pass  # to hello, to an offer

    def _spawned(self, spawn: Any) -> None:
        number = int(spawn.worker.rpartition("-")[2]) + 1
        self._inbox.append(self._core["Spawned"](spawn.worker, spawn.incarnation, 1000 + number, "token"))
        hello = self._said["Hello"](1, spawn.worker, "token")
        self._inbox.append(self._call(number, hello, (1000 + number, 1)))


class Replay:
    """Gives a session's events to fresh fleets, a slice at a time."""

    def __init__(self, workers: int, items: int) -> None:
        self._session = Session(classes("scraper_supervisor.core"), classes("scraper_worker.protocol"), workers, items)
        self.done = self._session.done
        self.sources = str(importlib.import_module("scraper_supervisor").__file__)
        self._fleet: Any = None
        gc.collect()
        gc.freeze()  # the recording is no work of the core's

    def begin(self) -> float:
        """Bring a fresh fleet to where the first item.next is said; no time counts."""
        session = self._session
        self._fleet = session.new_fleet()
        self._fleet.start(0.0)
        for turn in session.turns[: session.prepared]:
            self._fleet.step(turn.events, turn.now)
        gc.collect()
        return 0.0

    def slice(self, number: int) -> float:
        """Seconds of the processor for that one of SLICES parts of the session."""
        timed = self._session.turns[self._session.prepared :]
        turns = timed[len(timed) * number // SLICES : len(timed) * (number + 1) // SLICES]
        fleet, commands = self._fleet, 0
        step = fleet.step
        begin = time.process_time()
        for index, turn in enumerate(turns):
            commands += len(step(turn.events, turn.now))
            if not index % LOOK_EVERY:
                fleet.next_deadline()
        seconds = time.process_time() - begin
        if commands != sum(turn.commands for turn in turns):
            raise SystemExit("the same events gave other commands")
        return seconds

    def obey(self) -> None:
        """Do what the lines of stdin say: "begin", or a slice's number; print the seconds of each."""
        print(json.dumps({"sources": self.sources, "done": self.done}), flush=True)
        for line in sys.stdin:
            print(self.begin() if line.strip() == "begin" else self.slice(int(line)), flush=True)


class Tree:
    """A replay of the sources in some folder, in a process of its own."""

    def __init__(self, root: Path, workers: int, items: int) -> None:
        paths = os.pathsep.join(str(root / name) for name in ("supervisor", "workers"))
        command = [sys.executable, str(Path(__file__).resolve()), "--obey", f"--items={items}", f"--workers={workers}"]
        self._process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": paths}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        document = json.loads(self._line())
        if not Path(document["sources"]).is_relative_to(root.resolve()):
            raise SystemExit(f"{document['sources']} would be measured instead of {root}")
        self._done = document["done"]

    def ask(self, what: object) -> float:
        """Have it do something; microseconds an item of the whole session."""
        if self._process.stdin is None:
            raise SystemExit("it has no stdin")
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return float(self._line()) / self._done * 1e6

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()

    def _line(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise SystemExit("the replay ended early; it says why above")
        return line


def measure(workers: int, items: int, rounds: int) -> None:
    """This tree alone."""
    replay = Replay(workers, items)
    costs = []
    for _ in range(rounds):
        replay.begin()
        costs.append(sum(replay.slice(number) for number in range(SLICES)) / replay.done * 1e6)
    gc.unfreeze()
    cost, least = statistics.median(costs), min(costs)
    print(f"  {workers:3d} workers: {cost:6.1f} µs an item (least {least:.1f}), {1e6 / cost:6.0f} items/s", flush=True)


def compare(ours: Tree, theirs: Tree, workers: int, rounds: int) -> str:
    """Both trees in turns; a line with the medians."""
    ratios = []
    for number in range(1, rounds + 1):
        ours.ask("begin")
        theirs.ask("begin")
        pairs = [(ours.ask(part), theirs.ask(part)) for part in range(SLICES)]
        here, there = (sum(costs) for costs in zip(*pairs, strict=True))
        ratios.append(statistics.median(one / other for one, other in pairs))
        line = f"pair {number}: {here:5.1f} µs an item here, {there:5.1f} µs there, ratio {ratios[-1]:.3f}"
        print(f"  {workers:3d} workers, {line}", flush=True)
    return f"  {workers:3d} workers: {statistics.median(ratios):.3f}"


def against(revision: str, options: argparse.Namespace) -> None:
    """This tree and that revision."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # of both children, too
    with tempfile.TemporaryDirectory(prefix="bench-core-") as folder:
        other = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(other), revision], check=True)
        try:
            lines = []
            for workers in options.workers:
                trees = [Tree(root, workers, options.items) for root in (ROOT, other)]
                lines.append(compare(*trees, workers, options.rounds))
                for tree in trees:
                    tree.close()
            print(f"== what an item costs here / at {revision}, {options.rounds} pairs ==")
            print("\n".join(lines))
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REV", help="compare with another revision of this repository")
    parser.add_argument("--rounds", type=int, default=7, help="how often the recorded session is given again")
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--obey", action="store_true", help="replay what stdin says, for --against")
    options = parser.parse_args()
    if options.obey:
        Replay(options.workers[0], options.items).obey()
    elif options.against is not None:
        against(options.against, options)
    else:
        print(
            f"== an item on the core: {options.items} items, {TARGETS} targets, medians of {options.rounds} rounds =="
        )
        for workers in options.workers:
            measure(workers, options.items, options.rounds)


if __name__ == "__main__":
    main()
