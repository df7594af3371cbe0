"""What goes wrong in a world: connections, deaths, disk, orders, reloads, samples, stale words and lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from scraper_supervisor.core.events import Asked, Exited, Replied, Said, Sampled, Spawned, Stalled, TreeEnded
from scraper_supervisor.core.measurements import BrowserSample, Sample
from scraper_supervisor.core.states.group import GroupState
from scraper_worker.protocol import Failure, ItemDone, ItemFailed

if TYPE_CHECKING:
    from tests.sim.processes import Process
    from tests.sim.world import World

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
    "stall": 0.01,
}
FAILURE = Failure("transient", "network", "lie", "it is not mine to tell")


class Mischief:
    """Who does it to a world."""

    def __init__(self, world: World) -> None:
        self.world, self.rng = world, world.rng
        self.tastes = {name: self.rng.choice((0, 1, 1, 1, 4)) for name in FAULTS}

    def strike(self) -> None:
        """Perhaps something goes wrong. Each seed has its own taste, so that some faults also come in swarms."""
        world, rng = self.world, self.rng
        living = [one for one in world.processes.values() if one.alive]
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
            world.disk.broken_until = world.now + rng.choice((0.01, 1.0, 1.001, 7.0, 40.0))
        elif name == "folder":
            if some is not None:
                world.disk.broken_folders[some.worker] = world.now + rng.choice((0.01, 1.001, 7.0, 300.0))
        elif name == "supervisor":
            world.kill_supervisor()
        elif name == "operator":
            self._operate()
        elif name == "reload":
            self._reload()
        elif name == "sample":
            self.sample()
        elif name == "stall":
            since = world.now
            world.now += rng.choice((0.8, 5.0, 60.0))
            world.feed(Stalled(since))
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
        world, rng = self.world, self.rng
        method = rng.choice(REQUESTS)
        group = rng.choice(list(world.keys))
        keys = tuple(rng.sample(world.keys[group], 3))
        request = world.number()
        fresh = rng.random() < 0.1
        names = (group,) if method.startswith("items") or rng.random() < 0.6 else (f"{group}-0",)
        if method == "items.add":
            keys = (f"{group}-added-{request}",)
        if all(one.state is GroupState.COMPLETED for one in world.fleet.state.groups.values()):
            method = rng.choice(("start", "items.add", "items.requeue"))
        if world.plain and method.startswith("items"):
            return
        world.requeued = world.requeued or method == "items.requeue"
        world.excused = world.excused or (method in ("stop", "drain") and names[0] != group)
        world.ask(Asked(request, method, names, keys if method.startswith("items") else (), fresh, rng.random() < 0.3))
        if method in ("pause", "stop", "drain"):
            undo = Asked(world.number(), "resume" if method == "pause" else "start", names)
            world.later(rng.uniform(0, 30), lambda: world.ask(undo))

    def _reload(self) -> None:
        world, rng = self.world, self.rng
        name = rng.choice(list(world.keys))
        old = world.settings.groups.get(name)
        if old is None:
            return
        change: dict[str, Any] = rng.choice(
            (
                {"count": rng.choice((1, 2, 3, 4))},
                {"env": {"X": str(world.number())}},
                {"heartbeat_timeout": rng.choice((10.0, 12.0)), "item_timeout": rng.choice((None, 8.0))},
            )
        )
        groups = world.settings.groups | {name: msgspec.structs.replace(old, **change)}
        if len(groups) == 2 and rng.random() < 0.2:
            del groups[name]
            world.later(rng.uniform(0, 20), lambda: world.configure(world.whole))
        world.configure(msgspec.structs.replace(world.settings, groups=groups))

    def sample(self) -> None:
        """Processes and browsers are measured; some are fat, and the disk may be nearly full."""
        world, rng = self.world, self.rng
        samples = []
        for process in world.processes.values():
            if process.alive and process.browser is not None:
                size = rng.choice((10**8, 10**8, 2**30 + 1, 2**31 + 1))
                browser = BrowserSample(process.browser, 100_000 + process.pid, size, 5.0, None)
                own = rng.choice((10**8, 10**8, 10**8, 2**30 + 1, 2**31 + 1))
                samples.append(Sample(world.now, process.worker, own, own, 5.0, 3, (browser,)))
        free = 10**6 if world.faults and rng.random() < 0.1 else 10**11
        world.feed(Sampled(tuple(samples), 50.0, free))

    def _stale(self, some: Process) -> None:
        """Words about what is over, and nonsense."""
        world, rng = self.world, self.rng
        world.feed(TreeEnded("alpha-0", 10_000, 3))
        if some.conn is not None:
            world.feed(Replied(some.conn, 10**9, None))
            world.feed(Spawned(some.worker, some.incarnation - 1, 1, "old"))
            world.feed(Exited(some.worker, some.incarnation - 1, 1, None))
        world.feed(Said(10**9 + rng.randrange(5), None, ItemDone("alpha-1")))

    def _lie(self, process: Process) -> None:
        """Calls about claims that are others', or nobody's."""
        world, rng = self.world, self.rng
        key = rng.choice(world.keys[process.group])
        claim = rng.choice((None, rng.randrange(1, 60)))
        mine = key in process.held.values() or claim in process.held
        if not mine and process.conn is not None:
            call = world.number()
            message: Any = rng.choice((ItemDone(key, claim), ItemFailed(key, FAILURE, claim)))
            world.called(process.conn, call, message)
            world.feed(Said(process.conn, call, message))
