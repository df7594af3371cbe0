"""How claims end: what is written about them, who is told, and what comes of it when it is durable, or refused."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final
from zlib import crc32

import msgspec
from msgspec import Raw, Struct

from scraper_supervisor.core.events import ItemsChanged, Refuse
from scraper_supervisor.core.facts import ItemEnded
from scraper_supervisor.core.ops.item_ops import Conclude, Concluded, FindConclusion, LeaseLost, Outcome
from scraper_supervisor.core.queue.in_flight import InFlight, InFlightItem, UnwrittenEnd
from scraper_supervisor.core.queue.item_calls import not_claimed, recorded, storage_error
from scraper_supervisor.core.queue.retry_decision import decide_retry
from scraper_worker.protocol import DoneAnswer, FailedAnswer, Failure, ItemDone, ItemFailed

if TYPE_CHECKING:
    from scraper_supervisor.core.config.settings import RetrySettings
    from scraper_supervisor.core.events import PersistFailed
    from scraper_supervisor.core.ops.item_ops import Conclusion, NewItem
    from scraper_supervisor.core.outbox import Outbox
    from scraper_supervisor.core.queue.frontier import Frontier
    from scraper_supervisor.core.queue.item_calls import Caller, Entries, RunRef

CANCELLED: Final = Failure("permanent", "application", "cancelled", "cancelled by an operator")

_encode = msgspec.json.encode


class Ended(Struct):
    """How many items of the run have ended, and how."""

    done: int = 0
    failed: int = 0
    parked: int = 0

    @property
    def any(self) -> bool:
        """True if there is one at all."""
        return self.done + self.failed + self.parked > 0


class Completion:
    """Ends the claims of one group.

    Args:
        retry: the group's retry settings; replaceable at any time.
        parks: whether what is to be tried again waits for an operator, so that nobody knows when; settable.
        run: the run in held.
        seed: makes jitter differ between daemons but not between replays.
    """

    def __init__(
        self, outbox: Outbox, run: RunRef, retry: RetrySettings, frontier: Frontier, in_flight: InFlight, seed: str
    ) -> None:
        self.retry = retry
        self.parks = False
        self.ended = Ended()
        self._outbox = outbox
        self._run = run
        self._frontier = frontier
        self._in_flight = in_flight
        self._seed = seed
        self._unwritten: list[InFlightItem] = []  # concluded by the supervisor itself while the disk refused

    # ---- begun

    def done(self, held: InFlightItem, caller: Caller, message: ItemDone, offers: Entries) -> None:
        """The item succeeded."""
        item = held.item
        counts = (item.attempts + 1, item.infrastructure, item.blocked)  # the attempt that succeeded is one, too
        op = self._op(held, "done", counts=counts, reported=message.target, result=message.result, offers=offers.items)
        self._write(held, UnwrittenEnd(op, [caller], message.seconds, refused=offers.refused))

    def fail(
        self,
        held: InFlightItem,
        failure: Failure,
        callers: tuple[Caller, ...] = (),
        seconds: float | None = None,
        target: str | None = None,
    ) -> None:
        """The attempt failed; the verdict says what becomes of the item."""
        item = held.item
        if held.cancelled:
            failure = CANCELLED
        elif held.ladder is not None:  # what its worker says of it is how it came to its end, not why
            why = held.ladder.why
            named = {"kind": why.kind, "category": why.category, "signature": why.signature, "message": why.message}
            failure = msgspec.structs.replace(failure, status=None, retry_after=None, **named)
        unit = crc32(f"{self._seed}:{item.key}:{item.attempts}:{item.infrastructure}:{item.blocked}".encode()) / 2**32
        ruling = decide_retry(item, failure, self.retry, unit, spared=held.spared)
        answer = FailedAnswer(ruling.action, item.attempts + 1, ruling.delay, ruling.reason)
        if self.parks and ruling.action == "retry":
            reason = f"{ruling.reason}; parked, since its group is aborted"
            answer = msgspec.structs.replace(answer, delay=None, reason=reason)
        op = self._op(
            held,
            "retry" if ruling.action == "retry" else "failed",
            counts=(ruling.attempts, ruling.infrastructure, ruling.blocked),
            delay=ruling.delay,
            reported=target,
            failure=Raw(_encode(ruling.failure)),
            answer=Raw(_encode(answer)),
        )
        self._write(held, UnwrittenEnd(op, list(callers), seconds, ruling.failure, answer))

    def set_apart(self, held: InFlightItem) -> None:
        """The item goes back at no cost, to be handed out alone from now on, over restarts of the supervisor too."""
        held.item.alone = True
        self._write(held, UnwrittenEnd(self._op(held, "open"), []))

    def give_back(self, held: InFlightItem) -> None:
        """The item goes back at no cost; that needs no disk, since the ledger never knew of the claim."""
        if held.cancelled:
            self.fail(held, CANCELLED)
            return
        self._in_flight.discard(held, released=True)
        self._frontier.put_back(held.item)

    def join(self, ending: UnwrittenEnd, caller: Caller, message: ItemDone | ItemFailed) -> None:
        """The same call again, while its first coming is being written: both get the same answer."""
        same = (ending.op.outcome == "done") == isinstance(message, ItemDone)
        if not ending.callers or not same:
            self.look_up(caller, message)
        else:
            ending.callers.append(caller)

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

    def _written(self, held: InFlightItem, answer: Concluded | LeaseLost, now: float) -> None:
        """The end of a claim is durable, or came too late."""
        ending, item = held.ending, held.item
        if ending is None or self._in_flight.get(held.claim) is not held:
            return  # its run was closed meanwhile
        if isinstance(answer, LeaseLost):
            self._lost(held, ending)
            return
        op = ending.op
        self._in_flight.discard(held)
        if op.outcome == "open":
            self._frontier.reopened(item)
            self._end_once_more(held, now)
            return
        if op.reported is not None and self._run.hosts.learn(op.reported):
            self._frontier.assume(self._run.hosts.host)
        attempt = item.attempts + 1
        first = item.attempts + item.infrastructure + item.blocked == 0
        told: DoneAnswer | FailedAnswer | None = ending.answer
        if op.outcome == "retry":
            item.attempts, item.infrastructure, item.blocked = op.attempts, op.infrastructure, op.blocked
            order = answer.order if answer.order is not None else item.order
            self._frontier.retry(item, now + (op.delay or 0.0), order, op.target, keep=held.cancelled)
        else:
            self._frontier.gone(item)
            if op.outcome == "done":
                self.ended.done += 1
                told = DoneAnswer(answer.seq or 0, False, ending.refused)
            else:
                self.ended.failed += 1
        if op.offers:
            self._frontier.added_all(op.offers, answer.offered)
        for caller in ending.callers:
            self._outbox.reply(caller.conn, caller.call, told)
        self._outbox.facts.append(
            ItemEnded(
                op.group,
                op.run_id,
                item.key,
                held.worker,
                held.incarnation,
                op.outcome,
                attempt,
                op.reported or op.target or self._run.hosts.host,
                ending.seconds if ending.seconds is not None else now - held.since,
                ending.failure,
                ending.answer,
                first,
            )
        )
        if op.outcome == "retry":
            self._end_once_more(held, now)

    def _lost(self, held: InFlightItem, ending: UnwrittenEnd) -> None:
        """Another claim of the item, or another supervisor's, has come before: how it stands only the ledger knows."""
        self._in_flight.discard(held)
        self._frontier.gone(held.item)
        for caller in ending.callers:
            self._not_claimed(caller, held.item.key)
        self._outbox.facts.append(ItemsChanged(self._run.group))

    def _not_claimed(self, caller: Caller, key: str) -> None:
        if caller.call is not None:
            self._outbox.commands.append(Refuse(caller.conn, caller.call, not_claimed(key)))

    def _refused(self, held: InFlightItem, fault: PersistFailed, _: float) -> None:
        """The end of a claim left no trace. Whoever called is told to come again; the supervisor keeps its own."""
        ending = held.ending
        if ending is None or self._in_flight.get(held.claim) is not held:
            return
        if not ending.callers:
            self._unwritten.append(held)
            return
        held.ending = None
        for caller in ending.callers:
            self._unavailable(caller, fault, 0.0)
        if held.left:
            self.give_back(held)

    def flush(self) -> None:
        """The disk works again: write what it refused of the supervisor's own."""
        unwritten, self._unwritten = self._unwritten, []
        for held in unwritten:
            if held.cancelled:  # meanwhile
                self.fail(held, CANCELLED)
            elif held.ending is not None:
                held.ending.op = msgspec.structs.replace(held.ending.op, ticket=self._outbox.ticket())
                self._write(held, held.ending)

    def forget_unwritten(self) -> None:
        """Another run begins."""
        self._unwritten.clear()

    # ---- inside

    def _end_once_more(self, held: InFlightItem, now: float) -> None:
        """Fail an item that an operator cancelled while another end of this claim was being written."""
        if not held.cancelled:
            return
        self._frontier.pull(held.item, now)
        again = self._in_flight.acquire(held.item, held.claim, held.worker, held.incarnation, now)
        again.cancelled = again.left = True
        self.fail(again, CANCELLED)

    def _write(self, held: InFlightItem, ending: UnwrittenEnd) -> None:
        held.ending = ending
        self._outbox.ask(ending.op, partial(self._written, held), partial(self._refused, held))

    def _op(
        self,
        held: InFlightItem,
        outcome: Outcome,
        *,
        counts: tuple[int, int, int] | None = None,
        delay: float | None = None,
        reported: str | None = None,
        result: Raw | None = None,
        failure: Raw | None = None,
        answer: Raw | None = None,
        offers: tuple[NewItem, ...] = (),
    ) -> Conclude:
        item, run = held.item, self._run
        attempts, infrastructure, blocked = counts or (item.attempts, item.infrastructure, item.blocked)
        return Conclude(
            self._outbox.ticket(),
            run.group,
            run.run_id,
            item.id,
            item.key,
            held.claim,
            held.worker,
            outcome,
            attempts,
            infrastructure,
            blocked,
            alone=item.alone,
            delay=delay,
            target=item.target if reported is None or (item.given and item.target is not None) else reported,
            result=result,
            failure=failure,
            answer=answer,
            offers=offers,
            reported=reported,
        )
