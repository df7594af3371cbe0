"""What a group's queue asks of the ledger so that it has something to hand out: items to lease, numbers of claims."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from scraper_supervisor.core.ops.item_ops import LeaseFresh, LeaseWaiting, ReserveClaims

if TYPE_CHECKING:
    from scraper_supervisor.core.events import PersistFailed
    from scraper_supervisor.core.ops.item_ops import Leased, Reserved
    from scraper_supervisor.core.outbox import Outbox
    from scraper_supervisor.core.queue.dispatch import ClaimNumbers
    from scraper_supervisor.core.queue.frontier import Frontier
    from scraper_supervisor.core.queue.item_calls import RunRef


class Leasing:
    """Keeps the lanes and the numbers filled."""

    def __init__(self, outbox: Outbox, run: RunRef, frontier: Frontier, numbers: ClaimNumbers) -> None:
        self._outbox = outbox
        self._run = run
        self._frontier = frontier
        self._numbers = numbers
        self._readings = 0  # of the run; what was leased for an earlier one is none of the lanes' any more

    def begin_anew(self) -> None:
        """The lanes begin at their front: what is on its way would move them past items that they do not hold."""
        self._readings += 1

    @property
    def under_way(self) -> bool:
        """True if something that may come first is on its way from the ledger."""
        return self._numbers.reserving or self._frontier.fetching

    def ask(self, now: float) -> None:
        """Ask for what runs low."""
        outbox, run, reading = self._outbox, self._run, self._readings
        count = self._numbers.wanted()
        if count is not None:
            outbox.ask(ReserveClaims(outbox.ticket(), run.group, count), self._reserved, self._not_reserved)
        wanted = self._frontier.wants(now)
        if wanted.fronts:
            op = LeaseFresh(outbox.ticket(), run.group, run.run_id, wanted.fronts, wanted.limit)
            outbox.ask(op, partial(self._leased, op, reading), partial(self._not_leased, op, reading))
        if wanted.waiting:
            waiting = LeaseWaiting(outbox.ticket(), run.group, run.run_id, wanted.waiting)
            outbox.ask(waiting, partial(self._waiting_leased, reading), partial(self._waiting_not_leased, reading))

    def _reserved(self, block: Reserved, _: float) -> None:
        self._numbers.reserved(block)

    def _not_reserved(self, _: PersistFailed, __: float) -> None:
        self._numbers.reserved(None)

    def _leased(self, op: LeaseFresh, reading: int, answer: Leased, now: float) -> None:
        if reading != self._readings:
            return
        by_target: dict[str | None, list[int]] = {front.target: [] for front in op.fronts}
        for index, entry in enumerate(answer.items):
            by_target[entry.target].append(index)
        for target, indexes in by_target.items():
            self._frontier.fetched(target, (answer.items[index] for index in indexes), now)

    def _not_leased(self, op: LeaseFresh, reading: int, _: PersistFailed, __: float) -> None:
        if reading == self._readings:
            self._frontier.fetch_failed(front.target for front in op.fronts)

    def _waiting_leased(self, reading: int, answer: Leased, now: float) -> None:
        if reading == self._readings:
            self._frontier.retries_fetched(answer.items, now)

    def _waiting_not_leased(self, reading: int, _: PersistFailed, __: float) -> None:
        if reading == self._readings:
            self._frontier.retry_fetch_failed()
