"""How claims end: what is written about them, who is told, and what comes of it when it is durable, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from zlib import crc32

import msgspec
from msgspec import Raw

from scraper_supervisor.core.claims import Closing, Effect, Hand, Hands, ItemEnded
from scraper_supervisor.core.events import Persist, Refuse, Reply
from scraper_supervisor.core.records import Conclude, Concluded, FindConclusion, NewItem, Outcome
from scraper_supervisor.core.verdicts import judge
from scraper_worker.protocol import DoneAnswer, FailedAnswer, Failure, ItemDone, ItemFailed

if TYPE_CHECKING:
    from scraper_supervisor.core.calls import Caller, Requests
    from scraper_supervisor.core.lanes import Lanes
    from scraper_supervisor.core.settings import RetrySettings
    from scraper_worker.protocol import RpcError

CANCELLED: Final = Failure("permanent", "application", "cancelled", "cancelled by an operator")

_encode = msgspec.json.encode


class Conclusions:
    """Ends the claims of one group.

    Args:
        retry: the group's retry settings; replaceable at any time.
        requests: what is asked of the ledger.
        seed: makes jitter differ between daemons but not between replays.
    """

    def __init__(self, retry: RetrySettings, requests: Requests, lanes: Lanes, hands: Hands, seed: str) -> None:
        self.retry = retry
        self._requests = requests
        self._lanes = lanes
        self._hands = hands
        self._seed = seed
        self._debts: list[Hand] = []  # concluded by the supervisor itself while the disk refused

    # ---- begun

    def done(self, hand: Hand, caller: Caller, message: ItemDone, offers: tuple[NewItem, ...]) -> list[Effect]:
        """The item succeeded."""
        item = hand.item
        counts = (item.attempts + 1, item.infrastructure, item.blocked)  # the attempt that succeeded is one, too
        op = self._op(hand, "done", counts=counts, target=message.target, result=message.result, offers=offers)
        return self._write(hand, Closing(op, [caller], message.seconds))

    def fail(
        self,
        hand: Hand,
        failure: Failure,
        callers: tuple[Caller, ...] = (),
        seconds: float | None = None,
        target: str | None = None,
    ) -> list[Effect]:
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
        return self._write(hand, Closing(op, list(callers), seconds, ruling.failure, answer))

    def set_apart(self, hand: Hand) -> list[Effect]:
        """The item goes back at no cost, to be handed out alone from now on, over restarts of the supervisor too."""
        hand.item.alone = True
        return self._write(hand, Closing(self._op(hand, "open"), []))

    def give_back(self, hand: Hand) -> list[Effect]:
        """The item goes back at no cost; that needs no disk, since the ledger never knew of the claim."""
        if hand.doomed:
            return self.fail(hand, CANCELLED)
        self._hands.drop(hand, released=True)
        self._lanes.put_back(hand.item)
        return []

    def join(self, closing: Closing, caller: Caller, message: ItemDone | ItemFailed) -> list[Effect]:
        """The same call again, while its first coming is being written: both get the same answer."""
        same = (closing.op.outcome == "done") == isinstance(message, ItemDone)
        if not closing.callers or not same:
            return self.look_up(caller, message)
        closing.callers.append(caller)
        return []

    def look_up(self, caller: Caller, message: ItemDone | ItemFailed) -> list[Effect]:
        """A call about a claim that is not open: the ledger knows how it ended."""
        requests = self._requests
        op = FindConclusion(requests.ticket(), requests.group, requests.run_id, message.key)
        return [requests.ask(op, caller, message)]

    # ---- ended

    def written(self, op: Conclude, answer: Concluded, now: float) -> list[Effect] | None:
        """A conclusion is durable; None if it is about nothing that is known any more."""
        hand = self._closing(op)
        if hand is None or hand.closing is None:
            return None
        closing, item = hand.closing, hand.item
        self._hands.drop(hand)
        if op.outcome == "open":
            self._lanes.reopened(item)
            return self._cancel(hand, now)
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
                told = DoneAnswer(answer.seq or 0, False)
        effects: list[Effect] = [Reply(caller.conn, caller.call, told) for caller in closing.callers]
        effects.append(
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
        return effects + (self._cancel(hand, now) if op.outcome == "retry" else [])

    def refused(self, op: Conclude, error: RpcError) -> list[Effect]:
        """A conclusion left no trace: whoever called is told to come again; what we owe ourselves is kept."""
        hand = self._closing(op)
        if hand is None or hand.closing is None:
            return []
        callers = hand.closing.callers
        if not callers:
            self._debts.append(hand)
            return []
        hand.closing = None
        refusals: list[Effect] = [Refuse(caller.conn, caller.call, error) for caller in callers]
        return refusals + (self.give_back(hand) if hand.left else [])

    def settle(self) -> list[Effect]:
        """The disk works again: write what we owed it."""
        debts, self._debts = self._debts, []
        effects: list[Effect] = []
        for hand in debts:
            if hand.doomed:  # meanwhile
                effects += self.fail(hand, CANCELLED)
            elif hand.closing is not None:
                hand.closing.op = msgspec.structs.replace(hand.closing.op, ticket=self._requests.ticket())
                effects.append(Persist(hand.closing.op))
        return effects

    def forget_debts(self) -> None:
        """Another run begins."""
        self._debts.clear()

    # ---- inside

    def _cancel(self, hand: Hand, now: float) -> list[Effect]:
        """An operator cancelled the item while another end of this claim was being written: it ends once more."""
        if not hand.doomed:
            return []
        self._lanes.pull(hand.item, now)
        self._hands.grip(hand.item, hand.claim, hand.worker, hand.incarnation, now)
        again = self._hands.get(hand.claim)
        if again is None:
            return []
        again.doomed = again.left = True
        return self.fail(again, CANCELLED)

    def _closing(self, op: Conclude) -> Hand | None:
        hand = self._hands.get(op.claim)
        known = hand is not None and hand.closing is not None and hand.closing.op.ticket == op.ticket
        return hand if known else None

    def _write(self, hand: Hand, closing: Closing) -> list[Effect]:
        hand.closing = closing  # which is how the answer is known: it needs no entry among the requests
        return [Persist(closing.op)]

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
        item, requests = hand.item, self._requests
        attempts, infrastructure, blocked = counts or (item.attempts, item.infrastructure, item.blocked)
        return Conclude(
            requests.ticket(),
            requests.group,
            requests.run_id,
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
