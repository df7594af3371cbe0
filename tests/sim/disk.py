"""A world's disk: what is asked of it together is one transaction, it may be slow, and refuse for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scraper_supervisor.core.events import Persisted, PersistFailed
from scraper_supervisor.core.ops.item_ops import Added, Concluded, LeaseFresh
from scraper_supervisor.core.ops.state_ops import StateOp

if TYPE_CHECKING:
    from tests.sim.world import World

    from scraper_supervisor.core.ops.all_ops import Op

REFUSED = object()  # what the disk answers while it is broken


class Disk:
    """The ledger and the folders of states, each with a writer of its own."""

    def __init__(self, world: World) -> None:
        self.world, self.rng = world, world.rng
        self.slow = self.rng.random() < 0.3
        self.broken_until = 0.0
        self.broken_folders: dict[str, float] = {}  # worker → until when no checkpoint of it can be read or written
        self.boot()

    def boot(self) -> None:
        """Nothing is asked of it yet."""
        self._queues: dict[bool, list[Op]] = {True: [], False: []}
        self._committing = {True: False, False: False}

    def killed(self) -> None:
        """Who asked is gone; what was being committed is there as a whole, or not at all."""
        for ops in self._queues.values():
            if ops and self.rng.random() < 0.5 and self.world.now >= self.broken_until:
                for op in ops:
                    self.world.store.perform(op, self.world.now)

    def heal(self) -> None:
        """It is fast and sound from here on."""
        self.broken_until, self.slow = 0.0, False
        self.broken_folders.clear()

    def idle(self) -> bool:
        """Whether it has answered all it was asked."""
        return not any(self._committing.values())

    def submit(self, op: Op) -> None:
        """It is asked something."""
        if isinstance(op, LeaseFresh):
            self.world.safety.asked(op)
        kind = isinstance(op, StateOp)
        self._queues[kind].append(op)
        if not self._committing[kind]:
            self._commit(kind)

    def _commit(self, kind: bool) -> None:
        """What waits now is one transaction; what comes meanwhile goes into the next."""
        self._committing[kind] = True
        life = self.world.life
        delay = self.rng.choice((0.0, 0.001, 0.003))
        if self.world.faults and self.slow and self.rng.random() < 0.1:
            delay = self.rng.choice((0.5, 5.0, 30.0))

        def commit() -> None:
            if life != self.world.life:
                return
            ops, self._queues[kind] = self._queues[kind], []
            answers = [REFUSED if self._refuses(op) else self.world.store.perform(op, self.world.now) for op in ops]
            self.world.later(self.rng.choice((0.0, 0.001)), lambda: answer(ops, answers))

        def answer(ops: list[Op], answers: list[Any]) -> None:
            if life != self.world.life:
                return  # committed, but nobody was told
            for op, one in zip(ops, answers, strict=True):
                if isinstance(one, Added | Concluded):
                    self.world.safety.changed()
                refused = one is REFUSED
                self.world.feed(PersistFailed(op, 28, "No space left on device") if refused else Persisted(op, one))
            self._committing[kind] = False
            if self._queues[kind]:
                self._commit(kind)

        self.world.later(delay, commit)

    def _refuses(self, op: Op) -> bool:
        """Whether the disk, or the folder that this is about, is broken now."""
        folder = self.broken_folders.get(op.worker, 0.0) if isinstance(op, StateOp) else 0.0
        return self.world.now < max(self.broken_until, folder)
