"""How claims end: what is written about them, who is told, and what comes of it when it is durable, or refused."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final
from zlib import crc32

import msgspec
from msgspec import Raw, Struct

from scraper_supervisor.core.events import ItemsChanged, Refuse
from scraper_supervisor.core.facts import ItemEnded
from scraper_supervisor.core.ops.item_ops import Conclude, Concluded, FindConclusion, LeaseLost, NewItem, Outcome
from scraper_supervisor.core.queue.in_flight import Closing, Hand, Hands
from scraper_supervisor.core.queue.item_calls import not_claimed, recorded, storage_error
from scraper_supervisor.core.queue.retry_decision import judge
from scraper_worker.protocol import DoneAnswer, FailedAnswer, Failure, ItemDone, ItemFailed

if TYPE_CHECKING:
    from scraper_supervisor.core.config.settings import RetrySettings
    from scraper_supervisor.core.events import PersistFailed
    from scraper_supervisor.core.ops.item_ops import Conclusion
    from scraper_supervisor.core.outbox import Outbox
    from scraper_supervisor.core.queue.frontier import Lanes
    from scraper_supervisor.core.queue.item_calls import Caller, RunRef

CANCELLED: Final = Failure("permanent", "application", "cancelled", "cancelled by an operator")

_encode = msgspec.json.encode


class Ended(Struct):
    """How many items of the run have ended, and how."""

    done: int = 0
    failed: int = 0
    parked: int = 0

    @property
    def any(self) -> bool:
        """Whether there is one at all."""
        return self.done + self.failed + self.parked > 0


class Conclusions:
    """Ends the claims of one group.

    Args:
        retry: the group's retry settings; replaceable at any time.
        run: the run in hand.
        seed: makes jitter differ between daemons but not between replays.
    """

    def __init__(
        self, outbox: Outbox, run: RunRef, retry: RetrySettings, lanes: Lanes, hands: Hands, seed: str
    ) -> None:
        self.retry = retry
        self.ended = Ended()
        self._outbox = outbox
        self._run = run
        self._lanes = lanes
        self._hands = hands
        self._seed = seed
        self._debts: list[Hand] = []  # concluded by the supervisor itself while the disk refused

    # ---- begun

    def done(self, hand: Hand, caller: Caller, message: ItemDone, offers: tuple[NewItem, ...]) -> None:
        """The item succeeded."""
        item = hand.item
        counts = (item.attempts + 1, item.infrastructure, item.blocked)  # the attempt that succeeded is one, too
        op = self._op(hand, "done", counts=counts, target=message.target, result=message.result, offers=offers)
        self._write(hand, Closing(op, [caller], message.seconds))

    def fail(
        self,
        hand: Hand,
        failure: Failure,
        callers: tuple[Caller, ...] = (),
        seconds: float | None = None,
        target: str | None = None,
    ) -> None:
        """The attempt failed; the verdict says what becomes of the item."""
        item = hand.item
        unit = crc32(f"{self._seed}:{item.key}:{item.attempts}:{item.infrastructure}:{item.blocked}".encode()) / 2**32
        ruling = judge(item, CANCELLED if hand.doomed else failure, self.retry, unit)
        answer = FailedAnswer(ruling.action, item.attempts + 1, ruling.delay, ruling.reason)
        op = self._op(
            hand,
            "retry" if ruling.action == "retry" else "failed",
            counts=(ruling.attempts, ruling.infrastructure, ruling.blocked),
            delay=ruling.delay,
            target=target,
            failure=Raw(_encode(ruling.failure)),
            answer=Raw(_encode(answer)),
        )
        self._write(hand, Closing(op, list(callers), seconds, ruling.failure, answer))

    def set_apart(self, hand: Hand) -> None:
        """The item goes back at no cost, to be handed out alone from now on, over restarts of the supervisor too."""
        hand.item.alone = True
        self._write(hand, Closing(self._op(hand, "open"), []))

    def give_back(self, hand: Hand) -> None:
        """The item goes back at no cost; that needs no disk, since the ledger never knew of the claim."""
        if hand.doomed:
            self.fail(hand, CANCELLED)
            return
        self._hands.drop(hand, released=True)
        self._lanes.put_back(hand.item)

    def join(self, closing: Closing, caller: Caller, message: ItemDone | ItemFailed) -> None:
        """The same call again, while its first coming is being written: both get the same answer."""
        same = (closing.op.outcome == "done") == isinstance(message, ItemDone)
        if not closing.callers or not same:
            self.look_up(caller, message)
        else:
            closing.callers.append(caller)

    def look_up(self, caller: Caller, message: ItemDone | ItemFailed) -> None:
        """A call about a claim that is not open: the ledger knows how it ended."""
        op = FindConclusion(self._outbox.ticket(), self._run.group, self._run.run_id, message.key)
        self._outbox.ask(
            op, partial(self._found, caller, message), partial(self._unavailable, caller), conn=caller.conn
        )

    def _found(self, caller: Caller, message: ItemDone | ItemFailed, found: Conclusion | None, _: float) -> None:
        answer = recorded(message, found)
        if answer is not None:
            self._outbox.reply(caller.conn, caller.call, answer)
        else:
            self._not_claimed(caller, message.key)

    def _unavailable(self, caller: Caller, fault: PersistFailed, _: float) -> None:
        if caller.call is not None:
            self._outbox.commands.append(Refuse(caller.conn, caller.call, storage_error(fault)))

    # ---- ended

    def _written(self, hand: Hand, answer: Concluded | LeaseLost, now: float) -> None:
        """A conclusion is durable, or came too late."""
        closing, item = hand.closing, hand.item
        if closing is None or self._hands.get(hand.claim) is not hand:
            return  # its run was closed meanwhile
        if isinstance(answer, LeaseLost):
            self._lost(hand, closing)
            return
        op = closing.op
        self._hands.drop(hand)
        if op.outcome == "open":
            self._lanes.reopened(item)
            self._end_once_more(hand, now)
            return
        attempt = item.attempts + 1
        first = item.attempts + item.infrastructure + item.blocked == 0
        told: DoneAnswer | FailedAnswer | None = closing.answer
        if op.outcome == "retry":
            item.attempts, item.infrastructure, item.blocked = op.attempts, op.infrastructure, op.blocked
            order = answer.order if answer.order is not None else item.order
            self._lanes.retry(item, now + (op.delay or 0.0), order, op.target, keep=hand.doomed)
        else:
            self._lanes.gone(item)
            if op.outcome == "done":
                self.ended.done += 1
                told = DoneAnswer(answer.seq or 0, False)
            else:
                self.ended.failed += 1
        if op.offers:
            self._lanes.added_all(op.offers, answer.offered)
        for caller in closing.callers:
            self._outbox.reply(caller.conn, caller.call, told)
        self._outbox.facts.append(
            ItemEnded(
                op.group,
                item.key,
                hand.worker,
                hand.incarnation,
                op.outcome,
                attempt,
                op.target,
                closing.seconds if closing.seconds is not None else now - hand.since,
                closing.failure,
                closing.answer,
                first,
            )
        )
        if op.outcome == "retry":
            self._end_once_more(hand, now)

    def _lost(self, hand: Hand, closing: Closing) -> None:
        """Another claim of the item, or another supervisor's, has come before: how it stands only the ledger knows."""
        self._hands.drop(hand)
        self._lanes.gone(hand.item)
        for caller in closing.callers:
            self._not_claimed(caller, hand.item.key)
        self._outbox.facts.append(ItemsChanged(self._run.group))

    def _not_claimed(self, caller: Caller, key: str) -> None:
        if caller.call is not None:
            self._outbox.commands.append(Refuse(caller.conn, caller.call, not_claimed(key)))

    def _refused(self, hand: Hand, fault: PersistFailed, _: float) -> None:
        """A conclusion left no trace: whoever called is told to come again; the supervisor's own is kept."""
        closing = hand.closing
        if closing is None or self._hands.get(hand.claim) is not hand:
            return
        if not closing.callers:
            self._debts.append(hand)
            return
        hand.closing = None
        for caller in closing.callers:
            self._unavailable(caller, fault, 0.0)
        if hand.left:
            self.give_back(hand)

    def settle(self) -> None:
        """The disk works again: write what it refused of the supervisor's own."""
        debts, self._debts = self._debts, []
        for hand in debts:
            if hand.doomed:  # meanwhile
                self.fail(hand, CANCELLED)
            elif hand.closing is not None:
                hand.closing.op = msgspec.structs.replace(hand.closing.op, ticket=self._outbox.ticket())
                self._write(hand, hand.closing)

    def forget_debts(self) -> None:
        """Another run begins."""
        self._debts.clear()

    # ---- inside

    def _end_once_more(self, hand: Hand, now: float) -> None:
        """Fail an item that an operator cancelled while another end of this claim was being written."""
        if not hand.doomed:
            return
        self._lanes.pull(hand.item, now)
        again = self._hands.grip(hand.item, hand.claim, hand.worker, hand.incarnation, now)
        again.doomed = again.left = True
        self.fail(again, CANCELLED)

    def _write(self, hand: Hand, closing: Closing) -> None:
        hand.closing = closing
        self._outbox.ask(closing.op, partial(self._written, hand), partial(self._refused, hand))

    def _op(
        self,
        hand: Hand,
        outcome: Outcome,
        *,
        counts: tuple[int, int, int] | None = None,
        delay: float | None = None,
        target: str | None = None,
        result: Raw | None = None,
        failure: Raw | None = None,
        answer: Raw | None = None,
        offers: tuple[NewItem, ...] = (),
    ) -> Conclude:
        item, run = hand.item, self._run
        attempts, infrastructure, blocked = counts or (item.attempts, item.infrastructure, item.blocked)
        return Conclude(
            self._outbox.ticket(),
            run.group,
            run.run_id,
            item.id,
            item.key,
            hand.claim,
            hand.worker,
            outcome,
            attempts,
            infrastructure,
            blocked,
            alone=item.alone,
            delay=delay,
            target=item.target if item.target is not None else target,
            result=result,
            failure=failure,
            answer=answer,
            offers=offers,
        )
