"""Claims of which the owner, or this supervisor, lost sight: taken up again, given back, or lost to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scraper_supervisor.core.ops.item_ops import ConfirmClaims, NamedClaim
from scraper_worker.protocol import Held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scraper_supervisor.core.events import PersistFailed
    from scraper_supervisor.core.ops.item_ops import Confirmed
    from scraper_supervisor.core.outbox import Outbox
    from scraper_supervisor.core.queue.completion import Completion
    from scraper_supervisor.core.queue.dispatch import ClaimNumbers
    from scraper_supervisor.core.queue.frontier import Frontier
    from scraper_supervisor.core.queue.in_flight import InFlight, InFlightItem
    from scraper_supervisor.core.queue.item_calls import RunRef
    from scraper_worker.protocol import Claim


class Reclaim:
    """Settles who holds what, for one group."""

    def __init__(
        self,
        outbox: Outbox,
        run: RunRef,
        frontier: Frontier,
        in_flight: InFlight,
        completion: Completion,
        numbers: ClaimNumbers,
    ) -> None:
        self._outbox = outbox
        self._run = run
        self._frontier = frontier
        self._in_flight = in_flight
        self._completion = completion
        self._numbers = numbers

    def of_predecessors(self, named: Iterable[Claim]) -> tuple[NamedClaim, ...]:
        """Those of the claims that a supervisor before this one gave: the ledger has to confirm them."""
        return tuple(NamedClaim(one.key, one.claim) for one in named if self._numbers.is_older(one.claim))

    def confirm(
        self,
        named: tuple[NamedClaim, ...],
        confirmed: Callable[[Confirmed, float], None],
        refused: Callable[[PersistFailed, float], None],
    ) -> None:
        """Ask the ledger which of these claims may be taken up again."""
        op = ConfirmClaims(self._outbox.ticket(), self._run.group, self._run.run_id, named)
        self._outbox.ask(op, confirmed, refused)

    def take_up(self, worker: str, incarnation: int, confirmed: Confirmed, now: float) -> None:
        """A worker goes on with claims that a supervisor before this one gave it.

        Numbers of claims rise: of two claims of one item the later one was given when the earlier had been given back.
        """
        for one in confirmed.claims:
            if self._in_flight.get(one.claim) is not None:
                continue
            other = self._in_flight.of_item(one.item.id)
            if other is not None:
                if other.claim > one.claim or other.ending is not None:
                    continue
                self._in_flight.discard(other)
                self._frontier.put_back(other.item)
            item = self._frontier.find(one.item.key)
            if item is None:
                item = self._frontier.hold(one.item, now)
            else:
                self._frontier.pull(item, now)
            self._in_flight.acquire(item, one.claim, worker, incarnation, now)

    def reclaim(self, worker: str, incarnation: int, named: Iterable[Claim], now: float, *, frozen: bool) -> list[Held]:
        """A worker came back: what it does not name goes back, what is still its own or nobody's it keeps.

        A claim of which something was recorded is over, even if its item is pending again: the answer was lost on the
        way, and the worker asks for it by repeating the call. While items are `frozen` none is taken up again.

        Returns:
            What the worker holds.
        """
        wanted = {(claim.claim, claim.key) for claim in named}
        for held in self._in_flight.open_of(worker):
            if (held.claim, held.item.key) not in wanted:
                self._completion.give_back(held)
        for claim, key in sorted(wanted):
            released = self._in_flight.may_return(claim, key, worker, incarnation) and not frozen
            item = self._frontier.find(key) if released else None
            if item is not None:
                self._frontier.pull(item, now)
                self._in_flight.acquire(item, claim, worker, incarnation, now)
        kept = (held for held in self._in_flight.of(worker) if held.ending is None or held.ending.callers)
        mine = (held for held in kept if held.incarnation == incarnation)
        return [Held(held.item.key, held.claim, held.item.attempts + 1) for held in mine]

    def lose(self, claims: Iterable[int]) -> list[InFlightItem]:
        """Others may have these items by now: what is not being written about them is dropped, and told."""
        lost = [held for held in map(self._in_flight.get, claims) if held is not None and held.ending is None]
        for held in lost:
            self._in_flight.discard(held)
            self._frontier.gone(held.item)
        return lost
