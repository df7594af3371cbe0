"""Who is handed which item next: the open item.next calls, the claims' numbers, and items that must be alone."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct, field

from scraper_supervisor.core.facts import Claimed
from scraper_supervisor.core.ops.item_ops import Reserved
from scraper_supervisor.core.queue.item_calls import Caller
from scraper_worker.protocol import End, Granted

if TYPE_CHECKING:
    from collections.abc import Callable

    from scraper_supervisor.core.config.settings import RetrySettings
    from scraper_supervisor.core.outbox import Outbox
    from scraper_supervisor.core.queue.frontier import Frontier
    from scraper_supervisor.core.queue.in_flight import InFlight
    from scraper_supervisor.core.queue.item import Item

CLAIMS_A_RESERVATION: Final = 1000
LOADING_PATIENCE: Final = 5.0  # seconds that an item.next with `wait` may be answered late while the front is loaded


class ClaimNumbers(Struct):
    """Claims are numbered from blocks that the ledger allots, so that no number is ever given twice."""

    next: int = 0
    upto: int = 0  # of the block in use, from here on
    left: int = 0  # numbers that may be given, of all blocks
    blocks: deque[Reserved] = field(default_factory=deque)  # to be used after that
    lowest: int | None = None  # of all that were ever allotted to this supervisor
    reserving: bool = False

    def wanted(self) -> int | None:
        """How many numbers the ledger should be asked for now, if any; marked as asked."""
        if self.left >= CLAIMS_A_RESERVATION // 2 or self.reserving:
            return None
        self.reserving = True
        return CLAIMS_A_RESERVATION

    def reserved(self, block: Reserved | None) -> None:
        """The ledger answered; None: it could not."""
        self.reserving = False
        if block is not None:
            self.blocks.append(block)
            self.left += block.upto - block.first
            self.lowest = block.first if self.lowest is None else self.lowest

    @property
    def available(self) -> bool:
        """True if a number may be given."""
        return self.left > 0

    def take(self) -> int:
        """The next number."""
        if self.next >= self.upto:
            block = self.blocks.popleft()
            self.next, self.upto = block.first, block.upto
        self.left -= 1
        self.next += 1
        return self.next - 1

    def is_older(self, claim: int) -> bool:
        """True if a claim was given by a supervisor before this one, of which nothing is remembered."""
        return self.lowest is None or claim < self.lowest


class _Waiter(Struct):
    caller: Caller
    expires: float | None  # monotonic seconds
    patience: float | None = None  # until then, once expired, what is being loaded is waited for


class Dispatcher:
    """Hands items from the lanes to the workers that ask.

    Args:
        retry: the group's retry settings; replaceable at any time.
    """

    def __init__(self, outbox: Outbox, retry: RetrySettings, frontier: Frontier, in_flight: InFlight) -> None:
        self.retry = retry
        self.numbers = ClaimNumbers()
        self._outbox = outbox
        self._frontier = frontier
        self._in_flight = in_flight
        self._waiters: deque[_Waiter] = deque()
        self.left_since: float | None = None
        """Since when there has been an item to hand out that no open call got; monotonic seconds."""
        self.timed = False  # whether a waiter may be among them whose wait ends
        self._reserved: dict[str, Item] = {}  # worker → the item that it gets alone, once its hands are empty

    def clear(self) -> None:
        """Nobody asks, nothing is reserved."""
        self._waiters.clear()
        self._reserved.clear()

    def forget_reservations(self) -> None:
        """The lanes begin anew from the ledger, where what was reserved is open: it comes again."""
        self._reserved.clear()

    def ask(self, caller: Caller, wait: float | None, now: float) -> None:
        """item.next: answered by `hand_out` or `expire`."""
        self._waiters.append(_Waiter(caller, None if wait is None else now + max(0.0, wait)))
        self.timed = self.timed or wait is not None

    def waits(self, worker: str) -> bool:
        """True if the worker has an item.next open."""
        return any(waiter.caller.worker == worker for waiter in self._waiters)

    def alone(self, worker: str) -> bool:
        """True if the worker holds an item that it must hold alone, or is to have one when its hands are empty."""
        return worker in self._reserved or self._in_flight.alone(worker)

    def disconnected(self, conn: int) -> None:
        """Nobody listens there any more."""
        self._waiters = deque(waiter for waiter in self._waiters if waiter.caller.conn != conn)

    def end(self, worker: str, end: Literal["complete", "draining"]) -> None:
        """Answer the worker's open item.next calls: there will be nothing more."""
        ended = [waiter.caller for waiter in self._waiters if waiter.caller.worker == worker]
        self._waiters = deque(waiter for waiter in self._waiters if waiter.caller.worker != worker)
        self.unreserve(worker)
        for caller in ended:
            self._outbox.reply(caller.conn, caller.call, End(end))

    def unreserve(self, worker: str) -> None:
        """Give back the item that was kept for the worker to hold alone, if there is one."""
        item = self._reserved.pop(worker, None)
        if item is not None:
            self._frontier.put_back(item)

    def hand_out(self, now: float, ready: Callable[[str], bool]) -> None:
        """Answer as many open item.next calls as there are items for workers that may start one."""
        if self._reserved:
            self._hand_out_reserved(now, ready)
        blocked: set[str] = set()
        index = 0
        while index < len(self._waiters):
            caller = self._waiters[index].caller
            if caller.worker in blocked or not self._may_start(caller.worker, ready):
                blocked.add(caller.worker)
                index += 1
                continue
            item = self._frontier.peek(now)
            if item is None or not self.numbers.available:
                break
            self._frontier.take(item, now)
            if item.alone and self._in_flight.count(caller.worker):
                self._reserve(item, ready)
                self._hand_out_reserved(now, ready)
                index = 0
                continue
            if index:
                del self._waiters[index]
            else:
                self._waiters.popleft()
            self._grant(caller, item, now)
        if self._frontier.peek(now) is None:
            self.left_since = None
        elif self.left_since is None:
            self.left_since = now

    def expire(self, now: float, *, loading: bool) -> None:
        """Answer the calls whose wait is over: "empty", unless something is just being loaded for them."""
        timed = [one for one in self._waiters if one.expires is not None]
        self.timed = bool(timed)
        for waiter in [one for one in timed if one.expires is not None and one.expires <= now]:
            if waiter.patience is None and waiter.expires is not None:
                waiter.patience = waiter.expires + LOADING_PATIENCE
            if waiter.patience is not None and now < waiter.patience and loading:
                continue
            self._waiters.remove(waiter)
            self._outbox.reply(waiter.caller.conn, waiter.caller.call, End("empty"))

    def next_deadline(self) -> float | None:
        """When a call is to be answered, or an item may be handed out, though nothing happens."""
        times = [waiter.patience or waiter.expires for waiter in self._waiters]
        if self._waiters:
            times.append(self._frontier.next_deadline())
        return min((time for time in times if time is not None), default=None)

    # ---- inside

    def _may_start(self, worker: str, ready: Callable[[str], bool]) -> bool:
        return ready(worker) and not self.alone(worker)

    def _reserve(self, item: Item, ready: Callable[[str], bool]) -> None:
        """Find the worker that gets this item alone: one with empty hands, else the first that asks."""
        able = [w.caller.worker for w in self._waiters if self._may_start(w.caller.worker, ready)]
        chosen = next((worker for worker in able if not self._in_flight.count(worker)), able[0])
        self._reserved[chosen] = item

    def _hand_out_reserved(self, now: float, ready: Callable[[str], bool]) -> None:
        for worker, item in list(self._reserved.items()):
            index = next((i for i, w in enumerate(self._waiters) if w.caller.worker == worker), None)
            if index is None or not ready(worker):  # it is away, paused or recycling: others may come first now
                self.unreserve(worker)
                continue
            if self._in_flight.count(worker) or not self.numbers.available:
                continue
            caller = self._waiters[index].caller
            del self._waiters[index]
            del self._reserved[worker]
            self._grant(caller, item, now)

    def _grant(self, caller: Caller, item: Item, now: float) -> None:
        claim = self.numbers.take()
        self._in_flight.acquire(item, claim, caller.worker, caller.incarnation, now)
        attempt = item.attempts + 1
        target = item.target if item.target is not None else self._frontier.assumed
        granted = Granted(item.key, claim, target, item.data, attempt, attempt >= self.retry.max_attempts)
        self._outbox.reply(caller.conn, caller.call, granted)
        self._outbox.facts.append(Claimed(caller.worker, caller.incarnation, item.key))
