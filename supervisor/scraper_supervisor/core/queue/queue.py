"""One group's queue: offers, claims and how each claim ends.

Acknowledgement is a reaction: a call that changes the run asks the store, and only the store's answer brings the reply.
A claim that is being concluded is `ending`; whatever happens to its worker meanwhile, the outcome on its way to the
disk decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from scraper_supervisor.core.events import Refuse
from scraper_supervisor.core.facts import RunRead
from scraper_supervisor.core.ops.run_ops import LoadRun, ReportedHosts
from scraper_supervisor.core.queue.completion import Completion
from scraper_supervisor.core.queue.dispatch import Dispatcher
from scraper_supervisor.core.queue.frontier import Frontier
from scraper_supervisor.core.queue.in_flight import InFlight, InHand, OpenClaim
from scraper_supervisor.core.queue.item_calls import (
    Caller,
    RunRef,
    not_claimed,
)
from scraper_supervisor.core.queue.item_changes import ItemChanges
from scraper_supervisor.core.queue.leasing import Leasing
from scraper_supervisor.core.queue.reclaim import Reclaim
from scraper_supervisor.core.queue.stuck import StuckItems, at_the_end
from scraper_supervisor.core.queue.worker_offers import WorkerOffers
from scraper_worker.protocol import (
    Claim,
    Failure,
    Held,
    ItemCounts,
    ItemDone,
    ItemFailed,
    ItemProgress,
    ItemRelease,
    ItemsOffer,
    Nothing,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scraper_supervisor.core.config.settings import RetrySettings
    from scraper_supervisor.core.events import PersistFailed
    from scraper_supervisor.core.ops.item_ops import Confirmed, NamedClaim, NewItem
    from scraper_supervisor.core.ops.run_ops import RunImage
    from scraper_supervisor.core.outbox import Outbox
    from scraper_supervisor.core.queue.completion import Ended
    from scraper_supervisor.core.queue.targets import Targets


class QueueCounts(Struct, frozen=True):
    """How many items of the run are in which state."""

    pending: int
    in_flight: int
    waiting: int
    parked: int
    done: int
    failed: int


class Queue:
    """The queue of one group's current run.

    Args:
        group: its name.
        retry: the group's retry settings; replaceable at any time.
        outbox: takes replies, facts and what the store is asked.
        seed: makes jitter differ between daemons but not between replays.
        targets: what limits the targets, over all groups.
    """

    def __init__(self, group: str, retry: RetrySettings, outbox: Outbox, seed: str, targets: Targets) -> None:
        self.group = group
        self.frontier = Frontier(targets)
        self.image: RunImage | None = None
        self._outbox = outbox
        self._run = RunRef(group)
        self._in_flight = InFlight()
        self._completion = Completion(outbox, self._run, retry, self.frontier, self._in_flight, seed)
        self._out = Dispatcher(outbox, retry, self.frontier, self._in_flight)
        self.stuck = StuckItems(self._in_flight)
        numbers = self._out.numbers
        self._leasing = Leasing(outbox, self._run, self.frontier, numbers)
        self._changes = ItemChanges(outbox, self._run, self.frontier, self.reread)
        self._offers = WorkerOffers(outbox, self._run, self._changes)
        self._reclaim = Reclaim(outbox, self._run, self.frontier, self._in_flight, self._completion, numbers)

    def configure(self, retry: RetrySettings) -> None:
        """Go on under these settings."""
        self._completion.retry = self._out.retry = retry

    def promise_retries(self, *, promised: bool) -> None:
        """Whether the group is aborted, so that what is to be tried again waits for an operator."""
        self._completion.parks = not promised

    # ---- the run

    def open(self, image: RunImage) -> None:
        """Take over a run as the ledger has it; items in hands stay there."""
        if self.image is None or self.image.run_id != image.run_id:
            self._completion.forget_unwritten()
        self._offers.to_the_end = image.offered
        self.image = image
        self._run.run_id, self._run.hosts = image.run_id, ReportedHosts(image.host, image.hosts)
        self.frontier.assume(image.host)
        ended = self.ended
        ended.done, ended.failed, ended.parked = image.done, image.failed, image.parked
        self._out.forget_reservations()
        self.frontier.open(image.lanes, image.waiting, [held.item for held in self._in_flight], image.prefetch)
        self._leasing.begin_anew()

    def read_again(self) -> None:
        """Ask the ledger how the run stands, after operations on many items."""
        self._outbox.ask(LoadRun(self._outbox.ticket(), self.group), self.reread, again=True)

    def reread(self, image: RunImage, _: float) -> None:
        """The run as the ledger has it now."""
        if self.image is None or self.image.run_id != image.run_id:
            return  # a new run is being opened meanwhile
        self._outbox.facts.append(RunRead(self.group, max(0, self.ended.done - image.done)))
        self.open(image)

    def close(self) -> None:
        """The run's workers are gone and another run will be opened: nothing stays in memory."""
        self.image = None
        self._run.run_id = 0  # what is on its way from the ledger is of no run of ours
        self._changes.forget()
        self._in_flight.clear()
        self._out.clear()
        self.frontier.close()
        self._leasing.begin_anew()

    # ---- how it stands

    @property
    def ended(self) -> Ended:
        """How many items have ended, and how."""
        return self._completion.ended

    @property
    def offered(self) -> bool:
        """True if a worker of this run has offered its source to the end."""
        return self._offers.to_the_end

    @property
    def open_items(self) -> int:
        """How many items are pending, waiting or in flight."""
        return self.frontier.open_items

    @property
    def unfinished(self) -> bool:
        """True if an item is pending, waiting or in flight, or an offer is on its way to the disk."""
        return self.image is not None and (
            self.frontier.open_items > 0 or len(self._in_flight) > 0 or self._changes.offers > 0
        )

    @property
    def frozen(self) -> bool:
        """True if an operator's change of many items is under way, during which nothing is handed out."""
        return self._changes.under_way

    @property
    def in_flight(self) -> int:
        """How many items are in workers' hands."""
        return len(self._in_flight)

    def held_by(self, worker: str) -> int:
        """How many items are in this worker's hands."""
        return self._in_flight.count(worker)

    @property
    def writing(self) -> bool:
        """True if something that changes the run is on its way to the disk."""
        return self._changes.offers > 0 or self.frozen or any(held.ending is not None for held in self._in_flight)

    def owes(self, conn: int) -> bool:
        """True if the end of a claim that this connection told of is not written yet."""
        ending = (held.ending for held in self._in_flight if held.ending is not None)
        return any(caller.conn == conn for one in ending for caller in one.callers)

    def claims(self) -> list[tuple[str, str, int]]:
        """(key, worker, claim) of all items in flight, as operators are told of them."""
        return [(held.item.key, held.worker, held.claim) for held in self._in_flight]

    def in_hand(self, worker: str, now: float) -> list[InHand]:
        """The items in this worker's hands, those first that have been there the longest."""
        return self._in_flight.in_hand(worker, self.frontier.assumed, now)

    def waits(self, worker: str) -> bool:
        """True if the worker has an item.next open."""
        return self._out.waits(worker)

    def alone(self, worker: str) -> bool:
        """True if the worker holds an item that it must hold alone, or is to have one."""
        return self._out.alone(worker)

    @property
    def left_since(self) -> float | None:
        """Since when there has been an item to hand out that nobody asked for, in monotonic seconds; None: none is."""
        return self._out.left_since

    @property
    def loading(self) -> bool:
        """True if something that may come first is on its way from the ledger."""
        return self.image is None or self.frozen or self._leasing.under_way

    def next_due(self) -> float | None:
        """When the first of the items that wait is due, in monotonic seconds; None if only the ledger knows."""
        return self.frontier.next_due()

    def counts(self, now: float) -> QueueCounts:
        """How many items are in which state."""
        waiting, in_flight, ended = self.frontier.waiting(now), len(self._in_flight), self.ended
        pending = max(0, self.frontier.open_items - in_flight - waiting)
        return QueueCounts(pending, in_flight, waiting, ended.parked, ended.done, ended.failed)

    def summary(self) -> ItemCounts:
        """The counts that `hello` answers and a checkpoint carries; pending is all that is open."""
        return ItemCounts(self.frontier.open_items, self.ended.done, self.ended.failed)

    # ---- what workers ask

    def offer(self, caller: Caller, message: ItemsOffer) -> None:
        """Offer items; an entry that can be none is left out and told."""
        self._offers.offer(caller, message)

    def ask(self, caller: Caller, wait: float | None, now: float) -> None:
        """item.next: to be answered by `pump`."""
        self._out.ask(caller, wait, now)

    def conclude_done(self, caller: Caller, message: ItemDone) -> None:
        """item.done; an offer with it that can be no item is left out and told."""
        held = self._in_flight.find(caller, message.key, message.claim)
        if held is None:
            self._completion.look_up(caller, message)
        elif held.ending is not None:
            self._completion.join(held.ending, caller, message)
        else:
            self.stuck.ends(held, None)
            self._completion.done(held, caller, message, self._offers.sort(caller, message.offers))

    def conclude_failed(self, caller: Caller, message: ItemFailed) -> None:
        """item.failed."""
        held = self._in_flight.find(caller, message.key, message.claim)
        if held is None:
            self._completion.look_up(caller, message)
        elif held.ending is not None:
            self._completion.join(held.ending, caller, message)
        else:
            self.stuck.ends(held, message.failure)
            self._completion.fail(held, message.failure, (caller,), message.seconds, message.target)

    def release(self, caller: Caller, message: ItemRelease) -> None:
        """item.release: given back at no cost; needs no disk, since the ledger never knew of the claim."""
        held = self._in_flight.find(caller, message.key, message.claim)
        if held is not None and held.ending is None:
            if held.ladder is not None:  # given back too late: its time was over
                self._completion.fail(held, held.ladder.why)
            else:
                self._completion.give_back(held)
            self._outbox.reply(caller.conn, caller.call, Nothing())
        elif held is None and self._gave_back(caller, message):
            self._outbox.reply(caller.conn, caller.call, Nothing())
        elif caller.call is not None:
            self._outbox.commands.append(Refuse(caller.conn, caller.call, not_claimed(message.key)))

    def _gave_back(self, caller: Caller, message: ItemRelease) -> bool:
        claim = message.claim
        return claim is not None and self._in_flight.was_released(claim, message.key, caller.worker, caller.incarnation)

    def progress(self, caller: Caller, message: ItemProgress, now: float) -> None:
        """item.progress: the item is alive, if it is in the caller's hands."""
        held = self._in_flight.find(caller, message.key, message.claim)
        if held is not None:
            held.told, held.alive = message, now

    def of_predecessors(self, named: Iterable[Claim]) -> tuple[NamedClaim, ...]:
        """Those of the claims that a supervisor before this one gave: the ledger has to confirm them."""
        return () if self.frozen else self._reclaim.of_predecessors(named)

    def confirm(
        self,
        named: tuple[NamedClaim, ...],
        confirmed: Callable[[Confirmed, float], None],
        refused: Callable[[PersistFailed, float], None],
    ) -> None:
        """Ask the ledger which of these claims may be taken up again."""
        self._reclaim.confirm(named, confirmed, refused)

    def take_up(
        self, worker: str, incarnation: int, named: Iterable[Claim], confirmed: Confirmed, now: float
    ) -> list[Held]:
        """A worker came back: what it does not name goes back, what is still its own or nobody's it keeps.

        Args:
            worker: its name.
            incarnation: its present one.
            named: the claims that it says it holds.
            confirmed: those of a supervisor before this one that may be taken up again.
            now: monotonic seconds.

        Returns:
            What the worker holds.
        """
        self._reclaim.take_up(worker, incarnation, confirmed, now)
        return self._reclaim.reclaim(worker, incarnation, named, now, frozen=self.frozen)

    def lose(self, claims: Iterable[int]) -> list[OpenClaim]:
        """Others may have these items by now: what is not being written about them is dropped.

        Returns:
            The claims that their workers are to be told of.
        """
        lost = self._reclaim.lose(claims)
        if lost:
            self.read_again()
        return [OpenClaim(held.worker, held.claim, held.item.key) for held in lost]

    def disconnected(self, conn: int) -> None:
        """Nobody listens there any more; claims stay."""
        self._out.disconnected(conn)

    def end_waiting(self, worker: str, end: Literal["complete", "draining"]) -> None:
        """Answer the worker's open item.next calls: there will be nothing more."""
        self._out.end(worker, end)

    # ---- deaths

    def give_back_all(self, worker: str) -> None:
        """Everything in the worker's hands goes back at no cost (goodbye, a death that the supervisor ordered)."""
        self._leave(worker)
        for held in self._in_flight.open_of(worker):
            self._completion.give_back(held)

    def died(self, worker: str, failure: Failure) -> str | None:
        """A worker died by itself, or hung.

        If it was killed for an item that it did not end, that item is charged and the others go back. Else one item in
        its hands is charged, and several go back, each to be handed out alone: of those whose time is over, too, it is
        not known which of them blocked the others.

        Returns:
            The key of the item that was charged.
        """
        self._leave(worker)
        hands = self._in_flight.open_of(worker)
        stuck = list(at_the_end(hands))
        charged = stuck or (hands if len(hands) == 1 else [])
        for held in hands:
            if held in charged:
                self._completion.fail(held, failure)
            elif stuck or held.cancelled:
                self._completion.give_back(held)
            else:
                self._completion.set_apart(held)
        return charged[0].item.key if charged else None

    # ---- what operators change; `request` is told when it is done

    def add(self, request: int, items: tuple[NewItem, ...]) -> None:
        """Offer items on an operator's behalf."""
        self._changes.add(request, items)

    def requeue(self, request: int, keys: tuple[str, ...], *, failed: bool, parked: bool) -> None:
        """Make items pending again: by key, all failed, all parked."""
        self._changes.requeue(request, keys, failed=failed, parked=parked)

    def park(self) -> None:
        """Set everything that is open aside; nothing may be in flight."""
        self._changes.park()

    def unpark(self) -> None:
        """Take up again what was set aside."""
        self._changes.unpark()

    def cancel(self, request: int, keys: tuple[str, ...]) -> None:
        """Fail items for good that are not done; those in hands that are cancelled end by themselves."""
        cancelled = {held.item.key for held in self._in_flight if held.cancelled}
        in_hand = tuple(key for key in dict.fromkeys(keys) if key in cancelled)
        self._changes.cancel(request, tuple(key for key in keys if key not in cancelled), in_hand)

    # ---- handing out

    def pump(self, now: float, ready: Callable[[str], bool], *, open_: bool = True) -> None:
        """Answer as many open item.next calls as there are items for workers that may start one.

        `open_`: whether anything may be handed out at all; calls whose wait is over are answered anyway.
        """
        self.frontier.advance(now)
        if open_ and self.image is not None and not self.frozen:
            self._out.hand_out(now, ready)
            self._leasing.ask(now)
        else:
            self._out.left_since = None
        if self._out.timed:
            self._out.expire(now, loading=open_ and self.loading)

    def next_deadline(self) -> float | None:
        """When `pump` may have something new to say by itself."""
        return self._out.next_deadline()

    def flush(self) -> None:
        """The disk works again: write what it refused of the supervisor's own."""
        self._completion.flush()

    # ---- inside

    def _leave(self, worker: str) -> None:
        """The worker is gone, or said goodbye: what it called and is not written yet may come to nothing."""
        self._out.unreserve(worker)
        for held in self._in_flight.of(worker):
            held.left = True
