"""The clocks of one group's items in hand: whose time is over, and how far up the ladder each is.

Every clock of an item is here, so that one function moves them all where they stood still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from scraper_supervisor.core.policy import ladder
from scraper_supervisor.core.policy.ladder import Ladder
from scraper_supervisor.core.queue.completion import CANCELLED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from scraper_supervisor.core.config.settings import GroupSettings
    from scraper_supervisor.core.queue.in_flight import InFlight, InFlightItem
    from scraper_worker.protocol import Failure


class Step(Struct, frozen=True):
    """An item reached a rung of the ladder: its worker is to be told, or its browsers, or the worker, killed."""

    worker: str
    claim: int
    key: str
    ladder: Ladder


class StuckItems:
    """Leads the items of a group's hands up the ladder."""

    def __init__(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight

    def due(self, settings: GroupSettings, now: float, runs: Callable[[str], bool]) -> list[Step]:
        """Every item that reaches its next rung now.

        Args:
            settings: the group's.
            now: monotonic seconds.
            runs: tells of a worker whether the clocks of its items run.
        """
        steps: list[Step] = []
        for held in self._in_flight:
            at = self._next_at(held, settings)
            if at is not None and now >= at and runs(held.worker):
                if held.ladder is None:
                    why = CANCELLED if held.cancelled else ladder.overdue(held.since, settings, now)
                    held.ladder = ladder.begin(why, now)
                else:
                    held.ladder = held.ladder.climbed(now)
                steps.append(_step(held, held.ladder))
        for step in steps:
            self.spare_others(step.worker)
        return steps

    def next_deadline(self, settings: GroupSettings, runs: Callable[[str], bool]) -> float | None:
        """When `due` has something to say."""
        first: float | None = None
        for held in self._in_flight:
            at = self._next_at(held, settings)
            if at is not None and (first is None or at < first) and runs(held.worker):
                first = at
        return first

    def cancel(self, keys: Iterable[str], now: float) -> list[Step]:
        """Have those of the items that workers hold end as failed, unless they end as done.

        Returns:
            What their workers are to be told. One that was told before, since its time is over, is on its way.
        """
        wanted = set(keys)
        steps: list[Step] = []
        for held in self._in_flight:
            if held.item.key not in wanted:
                continue
            held.cancelled = True
            if held.ending is None and held.ladder is None:
                held.ladder = ladder.begin(CANCELLED, now)
                steps.append(_step(held, held.ladder))
        for step in steps:
            self.spare_others(step.worker)
        return steps

    def told(self, worker: str) -> list[Step]:
        """Those of the worker's items that it was told to end: it may not have heard."""
        return [_step(held, held.ladder) for held in self._in_flight.open_of(worker) if held.ladder is not None]

    def spare_others(self, worker: str) -> None:
        """A browser that the worker loses now is lost for a stuck item: its other items are not to blame."""
        for held in self._in_flight.open_of(worker):
            held.spared = held.spared or held.ladder is None

    def ends(self, held: InFlightItem, failure: Failure | None) -> None:
        """The worker tells an item's end: what it loses with a stuck item, or for one, is to be known by then."""
        lost = failure is not None and failure.kind == "infrastructure"
        if held.ladder is not None or (lost and self.told(held.worker)):
            self.spare_others(held.worker)

    def stood_still(self, worker: str, since: float, now: float) -> None:
        """Nobody could end an item from `since` to `now`: for that long, the clocks of these stood still."""
        for held in self._in_flight.of(worker):
            still = max(0.0, now - max(since, held.since))  # it may have been handed out after that
            held.since += still
            held.alive += max(0.0, now - max(since, held.alive))
            if held.ladder is not None:
                held.ladder = held.ladder.shifted(max(0.0, now - max(since, held.ladder.since)))

    @staticmethod
    def _next_at(held: InFlightItem, settings: GroupSettings) -> float | None:
        if held.ending is not None:
            return None
        if held.ladder is not None:
            return held.ladder.next_at
        if held.cancelled:  # while an end was being written that the disk refused
            return held.since
        return ladder.overdue_at(held.since, held.alive, settings)


def _step(held: InFlightItem, reached: Ladder) -> Step:
    return Step(held.worker, held.claim, held.item.key, reached)


def at_the_end(hands: Iterable[InFlightItem]) -> Iterator[InFlightItem]:
    """Those of the items for which their worker was killed."""
    return (held for held in hands if held.ladder is not None and held.ladder.rung == "worker")
