"""Items that come into a run or change in it many at a time: what workers and operators offer, requeue and cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scraper_supervisor.core.facts import ParkedWanted
from scraper_supervisor.core.ops.item_ops import AddItems, Cancel, NewItem, Park, Requeue, Unpark
from scraper_supervisor.core.ops.run_ops import LoadRun

if TYPE_CHECKING:
    from collections.abc import Callable

    from scraper_supervisor.core.events import PersistFailed
    from scraper_supervisor.core.ops.item_ops import Added, Changed
    from scraper_supervisor.core.ops.run_ops import RunImage
    from scraper_supervisor.core.outbox import Outbox
    from scraper_supervisor.core.queue.frontier import Frontier
    from scraper_supervisor.core.queue.item_calls import RunRef

SWEEP: Final = 2_000  # items that are parked, or taken up again, in one transaction: some 40 ms


class ItemChanges:
    """Changes the items of one group's run. An operator's `request` is told when it is done.

    Args:
        reread: takes the run as the ledger has it after a change of many items.
    """

    def __init__(
        self, outbox: Outbox, run: RunRef, frontier: Frontier, reread: Callable[[RunImage, float], None]
    ) -> None:
        self._outbox = outbox
        self._run = run
        self._frontier = frontier
        self._reread = reread
        self._under_way: set[int] = set()  # tickets of changes after which the run is not read again yet
        self.offers = 0  # on their way to the ledger

    @property
    def under_way(self) -> bool:
        """True if a change of many items is under way, during which nothing is handed out."""
        return bool(self._under_way)

    def forget(self) -> None:
        """Another run is opened."""
        self._under_way.clear()

    def offer(
        self,
        items: tuple[NewItem, ...],
        told: Callable[[Added], None],
        refused: Callable[[PersistFailed], None],
        conn: int | None = None,
        *,
        last: bool = False,
    ) -> None:
        """Have items added to the run, the `last` ones of a worker's source perhaps, and tell whoever offered them."""
        op = AddItems(self._outbox.ticket(), self._run.group, self._run.run_id, items, last)

        def added(answer: Added, _: float) -> None:
            self.offers -= 1
            if op.run_id == self._run.run_id:
                self._frontier.added_all(items, answer)
            told(answer)

        def not_added(fault: PersistFailed, _: float) -> None:
            self.offers -= 1
            refused(fault)

        self.offers += 1
        self._outbox.ask(op, added, not_added, conn=conn)

    def add(self, request: int, items: tuple[NewItem, ...]) -> None:
        """Offer items on an operator's behalf."""
        self.offer(
            items,
            lambda answer: self._outbox.answer(request, True, {"added": len(answer.added), "known": answer.known}),
            lambda fault: self._outbox.answer(request, False, f"storage unavailable: {fault.message}"),
        )

    def requeue(self, request: int, keys: tuple[str, ...], *, failed: bool, parked: bool) -> None:
        """Make items pending again: by key, all failed, all parked."""
        op = Requeue(self._outbox.ticket(), self._run.group, self._run.run_id, keys, failed, parked)
        self._change(op, request, ())

    def cancel(self, request: int, keys: tuple[str, ...], held: tuple[str, ...]) -> None:
        """Fail items for good that are not done. Workers hold those in `held`, which are ended by others."""
        self._change(Cancel(self._outbox.ticket(), self._run.group, self._run.run_id, keys), request, held)

    def park(self) -> None:
        """Set everything that is open aside; nothing may be in flight."""
        self._sweep(Park)

    def unpark(self) -> None:
        """Take up again what was set aside."""
        self._sweep(Unpark)

    def _sweep(self, kind: type[Park | Unpark]) -> None:
        """Have the ledger change so many items at a time that others need not wait for it."""
        op = kind(self._outbox.ticket(), self._run.group, self._run.run_id, SWEEP)
        self._under_way.add(op.ticket)

        def swept(answer: Changed, _: float) -> None:
            if op.run_id != self._run.run_id:
                return
            if answer.changed == SWEEP:
                self._sweep(kind)
                self._under_way.discard(op.ticket)
            else:
                self._outbox.ask(LoadRun(self._outbox.ticket(), self._run.group), read, again=True)

        def read(image: RunImage, now: float) -> None:
            self._reread(image, now)
            self._under_way.discard(op.ticket)

        self._outbox.ask(op, swept, again=True)

    def _change(self, op: Requeue | Cancel, request: int, held: tuple[str, ...]) -> None:
        """Hand nothing out until the change is written and the run is read again."""
        self._under_way.add(op.ticket)

        def changed(answer: Changed, _: float) -> None:
            document = {"changed": answer.changed, "untouched": answer.untouched, "cancelling": held}
            self._outbox.answer(request, True, document)
            if answer.parked:
                self._outbox.facts.append(ParkedWanted(self._run.group))
            self._outbox.ask(LoadRun(self._outbox.ticket(), self._run.group), read, again=True)

        def read(image: RunImage, now: float) -> None:
            self._reread(image, now)
            self._under_way.discard(op.ticket)

        def refused(fault: PersistFailed, _: float) -> None:
            self._outbox.answer(request, False, f"storage unavailable: {fault.message}")
            self._under_way.discard(op.ticket)

        self._outbox.ask(op, changed, refused)
