"""What is asked of the ledger about whole runs, and about what operators want; and what it answers."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from scraper_supervisor.core.ops.operation import Operation

RunState: TypeAlias = Literal["running", "completed", "aborted"]


class Lane(Struct, frozen=True):
    """How many items of a target are open and have no time to wait for."""

    target: str | None
    open: int


class WorkerTotals(Struct, frozen=True):
    """What a worker did in this run, over all its incarnations."""

    worker: str
    done: int
    failed: int


class Prefetch(Struct, frozen=True):
    """How many items a supervisor may lease ahead, about: those without and those with a time to wait for."""

    fresh: int = 4096
    waiting: int = 8192


class ReportedHosts(Struct):
    """What the attempts of a run reported as their host: none, one, or several, which `count` tells as 2."""

    host: str | None = None
    count: int = 0

    def learn(self, host: str) -> bool:
        """An attempt reported this one; true if that changes anything."""
        if self.count == 0:
            self.host, self.count = host, 1
        elif self.count == 1 and host != self.host:
            self.host, self.count = None, 2
        else:
            return False
        return True


class RunImage(Struct, frozen=True):
    """A group's run as the ledger has it."""

    run_id: int
    run: int
    state: RunState
    fresh_from: int  # checkpoints of runs before this one are not given at hello
    done: int
    failed: int
    parked: int
    waiting: int  # open with a time to wait for (past or to come)
    lanes: tuple[Lane, ...]
    started_at: str
    finished_at: str | None
    workers: tuple[WorkerTotals, ...]
    owed: tuple[str, ...] = ()  # workers whose imported states are to become checkpoints before any of them starts
    prefetch: Prefetch = Prefetch()
    offered: bool = False  # a worker has offered its source to the end
    host: str | None = None  # what attempts reported, where all of them reported the same
    hosts: int = 0  # how many they reported: 0, 1, or 2 for several


class OpenRun(Operation[RunImage], frozen=True):
    """Continue the group's newest run, or begin one.

    `mode`: "continue" the newest whatever its state (a first one is begun if there is none), "next": begin a new one if
    the newest is completed, else continue; "fresh": begin a new one, whose workers start without a checkpoint.
    Runs beyond `keep_runs` are removed. `entrypoint` is who works on it from now on; None: that stays as it is.
    """

    group: str
    mode: Literal["continue", "next", "fresh"]
    keep_runs: int
    entrypoint: str | None = None


class LoadRun(Operation[RunImage], frozen=True):
    """Read a run's image again (after operations on many items)."""

    group: str


class SetRunState(Operation[None], frozen=True):
    """A run is completed, aborted, or running again."""

    group: str
    run_id: int
    state: RunState


class RunEnd(Struct, frozen=True):
    """True if a run has ended: `state` is "running" while an item of it is open. `image` is the run as it is now."""

    state: RunState
    image: RunImage


class CompleteRun(Operation[RunEnd], frozen=True):
    """End a run if no item of it is open: as completed, or as aborted where items are parked."""

    group: str
    run_id: int


class SetIntent(Operation[None], frozen=True):
    """What an operator wants of a group or worker outlives the daemon; None forgets it."""

    name: str
    intent: Literal["paused", "drained", "stopped"] | None


class Intents(Struct, frozen=True):
    """(group or worker, intent), as SetIntent left them."""

    names: tuple[tuple[str, Literal["paused", "drained", "stopped"]], ...]


class LoadIntents(Operation[Intents], frozen=True):
    """What operators want of groups and workers, from before."""


class Probe(Operation[None], frozen=True):
    """Learn whether the ledger can be written again, with `room` bytes to spare on its disk."""

    room: int = 0


RunOp: TypeAlias = OpenRun | LoadRun | SetRunState | CompleteRun
