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
    from scraper_supervisor.core.queue.completion import Conclusions
    from scraper_supervisor.core.queue.dispatch import Numbers
    from scraper_supervisor.core.queue.frontier import Lanes
    from scraper_supervisor.core.queue.in_flight import Hand, Hands
    from scraper_supervisor.core.queue.item_calls import RunRef
    from scraper_worker.protocol import Claim


class Reclaim:
    """Settles who holds what, for one group."""

    def __init__(
        self, outbox: Outbox, run: RunRef, lanes: Lanes, hands: Hands, conclusions: Conclusions, numbers: Numbers
    ) -> None:
        self._outbox = outbox
        self._run = run
        self._lanes = lanes
        self._hands = hands
        self._conclusions = conclusions
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
            if self._hands.get(one.claim) is not None:
                continue
            other = self._hands.of_item(one.item.id)
            if other is not None:
                if other.claim > one.claim or other.closing is not None:
                    continue
                self._hands.drop(other)
                self._lanes.put_back(other.item)
            item = self._lanes.find(one.item.key)
            if item is None:
                item = self._lanes.hold(one.item, now)
            else:
                self._lanes.pull(item, now)
            self._hands.grip(item, one.claim, worker, incarnation, now)

    def reclaim(self, worker: str, incarnation: int, named: Iterable[Claim], now: float, *, frozen: bool) -> list[Held]:
        """A worker came back: what it does not name goes back, what is still its own or nobody's it keeps.

        A claim of which something was recorded is over, even if its item is pending again: the answer was lost on the
        way, and the worker asks for it by repeating the call. While items are `frozen` none is taken up again.

        Returns:
            What the worker holds.
        """
        wanted = {(claim.claim, claim.key) for claim in named}
        for hand in self._hands.open_of(worker):
            if (hand.claim, hand.item.key) not in wanted:
                self._conclusions.give_back(hand)
        for claim, key in sorted(wanted):
            released = self._hands.was_released(claim, key, worker) and not frozen
            item = self._lanes.find(key) if released else None
            if item is not None:
                self._lanes.pull(item, now)
                self._hands.grip(item, claim, worker, incarnation, now)
        held = (hand for hand in self._hands.of(worker) if hand.closing is None or hand.closing.callers)
        mine = (hand for hand in held if hand.incarnation == incarnation)
        return [Held(hand.item.key, hand.claim, hand.item.attempts + 1) for hand in mine]

    def lose(self, claims: Iterable[int]) -> list[Hand]:
        """Others may have these items by now: what is not being written about them is dropped, and told."""
        lost = [hand for hand in map(self._hands.get, claims) if hand is not None and hand.closing is None]
        for hand in lost:
            self._hands.drop(hand)
            self._lanes.gone(hand.item)
        return lost
