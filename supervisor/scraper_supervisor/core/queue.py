"""One group's queue: offers, claims and how each claim ends.

Acknowledgement is a reaction: a call that changes the run yields Persist, and only Persisted yields the Reply. A claim
that is being concluded is `closing`; whatever happens to its worker meanwhile, the outcome on its way to the disk
decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from scraper_supervisor.core.calls import Caller, Requests, new_items, not_claimed, recorded, storage_error
from scraper_supervisor.core.claims import Effect, Hands
from scraper_supervisor.core.conclusions import CANCELLED, Conclusions
from scraper_supervisor.core.events import Refuse, Reply
from scraper_supervisor.core.handout import HandOut
from scraper_supervisor.core.lanes import Lanes
from scraper_supervisor.core.records import (
    Added,
    AddItems,
    Answer,
    Conclude,
    Concluded,
    Conclusion,
    Entries,
    FetchLanes,
    FetchWaiting,
    FindConclusion,
    LedgerOp,
    NewItem,
    ReserveClaims,
    RunImage,
)
from scraper_worker.protocol import (
    Claim,
    Failure,
    Held,
    ItemCounts,
    ItemDone,
    ItemFailed,
    ItemRelease,
    ItemsOffer,
    Nothing,
    Offered,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scraper_supervisor.core.settings import RetrySettings, TargetSettings


class Queue:
    """The queue of one group's current run.

    Args:
        group: its name.
        retry: the group's retry settings; replaceable at any time.
        ticket: mints the numbers under which the store answers.
        seed: makes jitter differ between daemons but not between replays.
    """

    def __init__(self, group: str, retry: RetrySettings, ticket: Callable[[], int], seed: str) -> None:
        self.group = group
        self.lanes = Lanes()
        self.image: RunImage | None = None
        self.done = self.failed = self.parked = 0
        self.offering = 0
        self.frozen: set[int] = set()  # tickets of what operators change: nothing is handed out or fetched meanwhile
        self._requests = Requests(group, ticket)
        self._hands = Hands()
        self._conclusions = Conclusions(retry, self._requests, self.lanes, self._hands, seed)
        self._out = HandOut(self.lanes, self._hands)

    def configure(self, retry: RetrySettings, targets: dict[str, TargetSettings]) -> None:
        """Go on under these settings."""
        self._conclusions.retry = retry
        self.lanes.configure(targets)

    # ---- the run

    def open(self, image: RunImage) -> None:
        """Take over a run as the ledger has it; items in hands stay there."""
        if self.image is None or self.image.run_id != image.run_id:
            self._out.numbers.open(image.next_claim)
            self._conclusions.forget_debts()
        self.image = image
        self._requests.run_id = image.run_id
        self.done, self.failed, self.parked = image.done, image.failed, image.parked
        self._out.forget_reservations()
        self.lanes.open(
            ((lane.target, lane.open) for lane in image.lanes), image.waiting, [hand.item for hand in self._hands]
        )
        self._requests.forget_fetches()

    def close(self) -> None:
        """The run's workers are gone and another run will be opened: nothing stays in memory."""
        self.image = None
        self.frozen.clear()
        self._hands.clear()
        self._out.clear()

    @property
    def unfinished(self) -> bool:
        """Whether an item is pending, waiting or in flight, or an offer is on its way to the disk."""
        return self.image is not None and (self.lanes.open_items > 0 or len(self._hands) > 0 or self.offering > 0)

    @property
    def in_flight(self) -> int:
        """How many items are in workers' hands."""
        return len(self._hands)

    def hands(self, worker: str) -> int:
        """How many items are in this worker's hands."""
        return self._hands.count(worker)

    def busy(self, worker: str) -> bool:
        """Whether an item is in this worker's hands of whose end it has not told yet."""
        return self._hands.busy(worker)

    def open_claim(self, claim: int) -> bool:
        """Whether this claim is in somebody's hands and nothing is being written about it."""
        hand = self._hands.get(claim)
        return hand is not None and hand.closing is None

    @property
    def writing(self) -> bool:
        """Whether something that changes the run is on its way to the disk."""
        return self.offering > 0 or bool(self.frozen) or any(hand.closing is not None for hand in self._hands)

    def owes(self, conn: int) -> bool:
        """Whether a call of this connection that changes the run waits for the disk."""
        closing = (hand.closing for hand in self._hands if hand.closing is not None)
        return self._requests.owes(conn) or any(caller.conn == conn for one in closing for caller in one.callers)

    def open_claims(self) -> list[tuple[str, int, str, float]]:
        """(worker, claim, key, since) of the items in hands that are not being concluded."""
        return [(hand.worker, hand.claim, hand.item.key, hand.since) for hand in self._hands if hand.closing is None]

    def claims(self) -> list[tuple[str, str, int]]:
        """(key, worker, claim) of all items in flight."""
        return [(hand.item.key, hand.worker, hand.claim) for hand in self._hands]

    def stood_still(self, worker: str, since: float, now: float) -> None:
        """The disk refused from `since` to `now`: for that long, the clocks of the items in its hands stood still."""
        for hand in self._hands.of(worker):
            hand.since += max(0.0, now - max(since, hand.since))  # it may have been handed out after that

    def waits(self, worker: str) -> bool:
        """Whether the worker has an item.next open."""
        return self._out.waits(worker)

    def counts(self, now: float) -> tuple[int, int, int]:
        """(pending, in flight, waiting)."""
        waiting = self.lanes.waiting(now)
        return max(0, self.lanes.open_items - len(self._hands) - waiting), len(self._hands), waiting

    def summary(self) -> ItemCounts:
        """The counts that `hello` answers and a checkpoint carries; pending is all that is open."""
        return ItemCounts(self.lanes.open_items, self.done, self.failed)

    # ---- what workers ask

    def offer(self, caller: Caller, message: ItemsOffer) -> list[Effect]:
        """Offer items.

        Raises:
            BadParams: one entry is bad; none is offered.
        """
        items = new_items(message.items, "items")
        if not items:
            return [Reply(caller.conn, caller.call, Offered(0, 0))]
        self.offering += 1
        return [self._requests.ask(AddItems(self._requests.ticket(), self.group, self._requests.run_id, items), caller)]

    def add(self, items: tuple[NewItem, ...]) -> AddItems:
        """Offer items on an operator's behalf; the caller persists the operation and passes the answer on."""
        self.offering += 1
        op = AddItems(self._requests.ticket(), self.group, self._requests.run_id, items)
        self._requests.ask(op)
        return op

    def ask(self, caller: Caller, wait: float | None, now: float) -> None:
        """item.next: to be answered by `pump`."""
        self._out.ask(caller, wait, now)

    def conclude_done(self, caller: Caller, message: ItemDone) -> list[Effect]:
        """item.done.

        Raises:
            BadParams: an offer with it is bad; nothing is recorded.
        """
        offers = new_items(message.offers, "offers")
        hand = self._hands.find(caller, message.key, message.claim)
        if hand is None:
            return self._conclusions.look_up(caller, message)
        if hand.closing is not None:
            return self._conclusions.join(hand.closing, caller, message)
        return self._conclusions.done(hand, caller, message, offers)

    def conclude_failed(self, caller: Caller, message: ItemFailed) -> list[Effect]:
        """item.failed."""
        hand = self._hands.find(caller, message.key, message.claim)
        if hand is None:
            return self._conclusions.look_up(caller, message)
        if hand.closing is not None:
            return self._conclusions.join(hand.closing, caller, message)
        return self._conclusions.fail(hand, message.failure, (caller,), message.seconds, message.target)

    def release(self, caller: Caller, message: ItemRelease) -> list[Effect]:
        """item.release: given back at no cost; needs no disk, since the ledger never knew of the claim."""
        hand = self._hands.find(caller, message.key, message.claim)
        if hand is None:
            if message.claim is not None and self._hands.was_released(message.claim, message.key):
                return [Reply(caller.conn, caller.call, Nothing())]
            return [not_claimed(caller, message.key)]
        if hand.closing is not None:
            return [not_claimed(caller, message.key)]
        return [*self._conclusions.give_back(hand), Reply(caller.conn, caller.call, Nothing())]

    def reclaim(
        self, worker: str, incarnation: int, named: Iterable[Claim], now: float
    ) -> tuple[list[Effect], list[Held]]:
        """A worker came back: what it does not name goes back, what is still its own or nobody's it keeps.

        A claim of which something was recorded is over, even if its item is pending again: the answer was lost on the
        way, and the worker asks for it by repeating the call.
        """
        wanted = {(claim.claim, claim.key) for claim in named}
        effects: list[Effect] = []
        for hand in self._hands.open_of(worker):
            if (hand.claim, hand.item.key) not in wanted:
                effects += self._conclusions.give_back(hand)
        for claim, key in sorted(wanted):
            item = self.lanes.find(key) if self._hands.was_released(claim, key) and not self.frozen else None
            if item is not None:
                self.lanes.pull(item, now)
                self._hands.grip(item, claim, worker, incarnation, now)
        held = (hand for hand in self._hands.of(worker) if hand.closing is None or hand.closing.callers)
        mine = (hand for hand in held if hand.incarnation == incarnation)
        return effects, [Held(hand.item.key, hand.claim, hand.item.attempts + 1) for hand in mine]

    def disconnected(self, conn: int) -> None:
        """Nobody listens there any more; claims stay."""
        self._out.disconnected(conn)

    def end_waiting(self, worker: str, end: Literal["complete", "draining"]) -> list[Effect]:
        """Answer the worker's open item.next calls: there will be nothing more."""
        return self._out.end(worker, end)

    # ---- deaths and orders

    def let_go(self, worker: str) -> list[Effect]:
        """Everything in the worker's hands goes back at no cost (goodbye, a death that the supervisor ordered)."""
        self._leave(worker)
        return [effect for hand in self._hands.open_of(worker) for effect in self._conclusions.give_back(hand)]

    def died(self, worker: str, failure: Failure) -> tuple[list[Effect], str | None]:
        """A worker died by itself: one item in its hands is charged; several go back, each to be handed out alone.

        Returns:
            What to do, and the key of the item that was charged.
        """
        self._leave(worker)
        hands = self._hands.open_of(worker)
        if len(hands) == 1:
            return self._conclusions.fail(hands[0], failure), hands[0].item.key
        effects: list[Effect] = []
        for hand in hands:
            doomed = hand.doomed
            effects += self._conclusions.fail(hand, CANCELLED) if doomed else self._conclusions.set_apart(hand)
        return effects, None

    def charge(self, key: str, worker: str, failure: Failure) -> list[Effect]:
        """That item alone is charged (it was cancelled in vain); the worker's others go back at no cost."""
        self._leave(worker)
        effects: list[Effect] = []
        for hand in self._hands.open_of(worker):
            charged = hand.item.key == key
            effects += self._conclusions.fail(hand, failure) if charged else self._conclusions.give_back(hand)
        return effects

    def doom(self, keys: Iterable[str]) -> list[tuple[str, int, str]]:
        """An operator cancels items that workers hold: unless they end as done, they end as failed.

        Returns:
            (worker, claim, key) of each, also of those of which an end is being written.
        """
        wanted = set(keys)
        doomed = [hand for hand in self._hands if hand.item.key in wanted]
        for hand in doomed:
            hand.doomed = True
        return [(hand.worker, hand.claim, hand.item.key) for hand in doomed]

    # ---- handing out

    def pump(self, now: float, ready: Callable[[str], bool], *, open_: bool = True) -> list[Effect]:
        """Answer as many open item.next calls as there are items for workers that may start one.

        `open_`: whether anything may be handed out at all; calls whose wait is over are answered anyway.
        """
        self.lanes.advance(now)
        effects: list[Effect] = []
        if open_ and self.image is not None and not self.frozen:
            effects += self._out.hand_out(now, ready)
            effects += self._fetch(now)
        return effects + self._out.expire(now, lambda: open_ and self._loading())

    def next_deadline(self) -> float | None:
        """When `pump` may have something new to say by itself."""
        return self._out.next_deadline()

    # ---- what the store answers

    def persisted(self, op: LedgerOp, answer: Answer, now: float) -> list[Effect]:
        """An operation of ours is durable, or a read answered."""
        if isinstance(op, Conclude) and isinstance(answer, Concluded):
            return self._concluded(op, answer, now)
        asked = self._requests.answered(op.ticket)
        if asked is None:
            return []
        caller = asked.caller
        match op, answer:
            case AddItems(), Added():
                self.offering -= 1
                if op.run_id == self._requests.run_id:
                    self._insert(op.items, answer)
                if caller is not None:
                    return [Reply(caller.conn, caller.call, Offered(len(answer.added), answer.known))]
            case FetchLanes(), Entries():
                by_target: dict[str | None, list[int]] = {target: [] for target, _ in op.lanes}
                for index, entry in enumerate(answer.items):
                    by_target[entry.target].append(index)
                for target, indexes in by_target.items():
                    self.lanes.fetched(target, (answer.items[index] for index in indexes), now)
            case FetchWaiting(), Entries():
                self.lanes.retries_fetched(answer.items, now)
            case ReserveClaims(), _:
                self._out.numbers.reserved(op.upto)
            case FindConclusion(), Conclusion() | None if caller is not None and asked.message is not None:
                return [recorded(caller, asked.message, answer)]
            case _:
                pass
        return []

    def persist_failed(self, op: LedgerOp, errno: int, message: str) -> list[Effect]:
        """An operation of ours left no trace: callers are told, our own conclusions are kept to be written again."""
        error = storage_error(errno, message)
        if isinstance(op, Conclude):
            return self._conclusions.refused(op, error)
        asked = self._requests.answered(op.ticket)
        if asked is None:
            return []
        match op:
            case AddItems():
                self.offering -= 1
            case FetchLanes():
                self.lanes.fetch_failed(target for target, _ in op.lanes)
            case FetchWaiting():
                self.lanes.retry_fetch_failed()
            case ReserveClaims():
                self._out.numbers.reserved(None)
            case _:
                pass
        caller = asked.caller
        return [] if caller is None else [Refuse(caller.conn, caller.call, error)]

    def settle(self) -> list[Effect]:
        """The disk works again: write what we owed it."""
        return self._conclusions.settle()

    # ---- inside

    def _concluded(self, op: Conclude, answer: Concluded, now: float) -> list[Effect]:
        effects = self._conclusions.written(op, answer, now)
        if effects is None:
            return []
        if op.outcome == "done":
            self.done += 1
        elif op.outcome == "failed":
            self.failed += 1
        if op.offers:
            self._insert(op.offers, answer.offered)
        return effects

    def _loading(self) -> bool:
        return self.image is None or bool(self.frozen) or self._out.numbers.reserving or self.lanes.fetching

    def _fetch(self, now: float) -> list[Effect]:
        requests, group, run = self._requests, self.group, self._requests.run_id
        effects: list[Effect] = []
        upto = self._out.numbers.wanted()
        if upto is not None:
            effects.append(requests.ask(ReserveClaims(requests.ticket(), group, upto)))
        lanes, limit, retries = self.lanes.wants(now)
        if lanes:
            effects.append(requests.ask(FetchLanes(requests.ticket(), group, run, tuple(lanes), limit)))
        if retries:
            effects.append(requests.ask(FetchWaiting(requests.ticket(), group, run, retries)))
        return effects

    def _leave(self, worker: str) -> None:
        """The worker is gone, or said goodbye: what it called and is not written yet may come to nothing."""
        self._out.unreserve(worker)
        for hand in self._hands.of(worker):
            hand.left = True

    def _insert(self, offers: tuple[NewItem, ...], added: Added) -> None:
        for index, number, order in added.added:
            self.lanes.added(number, offers[index], order)
