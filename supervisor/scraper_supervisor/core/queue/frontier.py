"""The open items of a run in their order, a lane a target, of which memory holds only the front.

The ledger holds every item; a lane's `ready` list is the beginning of its order (due retries and the first offers), and
what lies behind its `cursor` is fetched when the list runs low. So a blocked target starves nobody, and a million
pending keys cost what a few hundred cost. Retries wait in one list by time; of these, too, only the earliest are held.
"""

from __future__ import annotations

import heapq
import math
from bisect import insort
from operator import attrgetter
from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec import Struct

from scraper_supervisor.core.ops.item_ops import Front
from scraper_supervisor.core.ops.run_ops import Prefetch
from scraper_supervisor.core.queue.item import Item, Rank, from_entry
from scraper_supervisor.core.queue.targets import Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scraper_supervisor.core.ops.item_ops import Added, Entry, NewItem
    from scraper_supervisor.core.ops.run_ops import Lane
    from scraper_supervisor.core.queue.targets import Targets

Place: TypeAlias = tuple[int, float]  # (-priority, order)

LANE_MOST: Final = 512  # of one target
LANE_LEAST: Final = 8
LANES_A_FETCH: Final = 64
FETCH_AGAIN: Final = 1.0  # seconds, at least, between two looks for waiting items that are due


_rank: Final = attrgetter("rank")


class _Lane(Struct):
    target: Target
    open: int = 0  # fresh items in the ledger, those in memory and in hands included
    loaded: int = 0  # of these, how many are in memory or in hands
    cursor: Place | None = None  # of the last fresh item ever loaded
    ready: list[Item] = []
    fetching: bool = False
    in_flight: int = 0  # of this group

    @property
    def stored(self) -> int:
        return self.open - self.loaded


class Wanted(Struct, frozen=True):
    """What to fetch from the ledger."""

    fronts: tuple[Front, ...] = ()
    limit: int = 0  # items of each
    waiting: int = 0  # waiting items, 0: none


NOTHING_WANTED: Final = Wanted()


class Frontier:
    """Which item is next. Knows nothing of workers, claims or the ledger's writes.

    Args:
        targets: what limits the targets, over all groups.
    """

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._prefetch = Prefetch()
        self.assumed: str | None = None  # the target of the items that have none, where all attempts had but one
        self._lanes: dict[str | None, _Lane] = {}
        self._heads: list[tuple[Rank, int, _Lane]] = []  # lanes by their first item, but for those that are blocked
        self._pushed = 0  # numbers what is pushed, since lanes can't be compared
        self._retries: list[tuple[float, int, Item]] = []
        self._retry_ids: set[int] = set()
        self._held: set[int] = set()  # ids in memory or in hands
        self.retries_open = 0  # in the ledger, those in memory and in hands included
        self._retries_loaded = 0
        self._fetching_retries = False
        self._stored_due = -math.inf  # no waiting item that is in the ledger alone is due before
        self._advanced = 0.0  # when time was last told; with it comes the question what to fetch
        self._fresh_open = 0
        self._running_low: dict[str | None, None] = {}  # lanes of which more may have to be fetched; an ordered set

    @property
    def fetching(self) -> bool:
        """True if items that may come first are on their way from the ledger."""
        return self._fetching_retries or any(lane.fetching and not lane.ready for lane in self._lanes.values())

    # ---- what comes in

    def open(
        self, lanes: Iterable[Lane], waiting: int, hands: Iterable[Item] = (), prefetch: Prefetch | None = None
    ) -> None:
        """Start from what the ledger holds, forgetting what was in memory but for the items in `hands`.

        `prefetch` is how many items are held in all lanes together, about; the rest stays in the ledger.
        """
        self._prefetch = prefetch or self._prefetch
        for lane in self._lanes.values():
            self._targets.leave(lane.target, self, lane.in_flight)
        self._lanes = {one.target: _Lane(self._join(one.target), one.open) for one in lanes}
        self._fresh_open = sum(lane.open for lane in self._lanes.values())
        self._heads.clear()
        self._retries.clear()
        self._retry_ids.clear()
        self._held.clear()
        self._running_low = dict.fromkeys(self._lanes)
        self.retries_open, self._retries_loaded, self._fetching_retries = waiting, 0, False
        self._stored_due = -math.inf
        for item in hands:
            self._held.add(item.id)
            lane = self._lane(item.target)
            lane.in_flight += 1
            self._targets.held(lane.target)
            if item.due is None:
                lane.loaded += 1
            else:
                self._retries_loaded += 1

    def assume(self, target: str | None) -> None:
        """From now on, items without a target talk to this one; None: nobody knows."""
        if target == self.assumed:
            return
        self.assumed = target
        lane = self._lanes.get(None)
        if lane is not None:
            before, lane.target = lane.target, self._join(None)
            for _ in range(lane.in_flight):
                self._targets.held(lane.target)
            self._targets.leave(before, self, lane.in_flight)
            self._look_at(before.name)
            self._push_head(lane)

    def close(self) -> None:
        """Hold nothing any more, and no target."""
        self.open((), 0)

    @property
    def open_items(self) -> int:
        """All open items: pending, waiting and in hands."""
        return self._fresh_open + self.retries_open

    def added(self, number: int, offer: NewItem, order: float) -> None:
        """A new item is in the ledger, under this number and in this place."""
        lane = self._lane(offer.target)
        lane.open += 1
        self._fresh_open += 1
        place = (-offer.priority, order)
        behind = lane.cursor is not None and place > lane.cursor
        full = len(lane.ready) >= self._limit()
        if (full or lane.stored > 1) and (behind or lane.cursor is None):
            self._running_low[offer.target] = None  # it is fetched in its turn: others come first, or memory is full
            return
        lane.loaded += 1
        self._held.add(number)
        if lane.cursor is None or behind:
            lane.cursor = place
        self._insert(lane, Item(number, offer.key, offer.target, offer.data, offer.priority, order))
        if full and not lane.fetching:  # what is being fetched lies behind the cursor as it was asked
            self._shed(lane)

    def added_all(self, offers: Sequence[NewItem], answer: Added) -> None:
        """Those of the offered items that the run did not know are in the ledger."""
        for index, number, order in answer.added:
            self.added(number, offers[index], order)

    def fetched(self, target: str | None, entries: Iterable[Entry], now: float) -> None:
        """The next items of a lane came from the ledger."""
        lane = self._lane(target)
        lane.fetching = False
        self._running_low[target] = None
        for entry in entries:
            place = (-entry.priority, entry.order)
            if lane.cursor is None or place > lane.cursor:
                lane.cursor = place
            if entry.id not in self._held:
                self._held.add(entry.id)
                lane.loaded += 1
                self._insert(lane, from_entry(entry, now))

    def fetch_failed(self, targets: Iterable[str | None]) -> None:
        """These lanes could not be read."""
        for target in targets:
            self.fetched(target, (), 0.0)

    def retries_fetched(self, entries: Iterable[Entry], now: float) -> None:
        """The earliest waiting items came from the ledger; those in the ledger alone come after the last of them."""
        self._fetching_retries = False
        self._stored_due = now + FETCH_AGAIN
        for entry in entries:
            self._stored_due = max(self._stored_due, now + (entry.due_in or 0.0))
            if entry.id not in self._held:
                self._held.add(entry.id)
                self._retries_loaded += 1
                self._wait(from_entry(entry, now))

    def retry_fetch_failed(self) -> None:
        """The waiting items could not be read."""
        self._fetching_retries = False

    def wants(self, now: float) -> Wanted:
        """What to fetch now; marked as asked."""
        fronts, limit = self._wanted_fronts() if self._running_low else ((), 0)
        if self._fetching_retries or not self._wants_retries(now):
            return Wanted(fronts, limit) if fronts else NOTHING_WANTED
        self._fetching_retries = True
        waiting = self._prefetch.waiting // 2 + self._retries_loaded  # those that are held again, and new ones
        return Wanted(fronts, limit, waiting)

    def _wanted_fronts(self) -> tuple[tuple[Front, ...], int]:
        limit = self._limit()
        wanted: list[Front] = []
        for target in list(self._running_low):
            lane = self._lanes.get(target)
            if lane is not None and lane.stored > 0 and not lane.fetching and len(lane.ready) <= limit // 2:
                lane.fetching = True
                wanted.append(Front(target, lane.cursor))
            del self._running_low[target]  # what empties the lane, or ends the fetch, makes it hungry again
            if len(wanted) == LANES_A_FETCH:
                break
        return tuple(wanted), limit

    # ---- what goes out

    def peek(self, now: float) -> Item | None:
        """The next item whose target may be started now."""
        while self._heads:
            rank, _, lane = self._heads[0]
            if lane.ready and lane.ready[0].rank == rank and not self._targets.blocks(lane.target, self, now):
                return lane.ready[0]
            heapq.heappop(self._heads)  # stale, or pushed again when the target may be free
        return None

    def look_again(self, target: str | None) -> None:
        """A target that was blocked may be free."""
        self._look_at(target)

    def take(self, item: Item, now: float) -> None:
        """The item that `peek` gave goes into a worker's hands."""
        lane = self._lane(item.target)
        if lane.ready[0] is item:
            del lane.ready[0]
        else:
            lane.ready.remove(item)
        if lane.open > lane.loaded:
            self._running_low[item.target] = None
        self._start(lane, now)

    def put_back(self, item: Item) -> None:
        """An item left the hands unchanged in the ledger."""
        lane = self._left_hands(item.target)
        self._insert(lane, item)

    def reopened(self, item: Item) -> None:
        """An item left the hands and has no time to wait for any more, in the ledger either."""
        if item.due is not None:
            lane = self._lane(item.target)
            self.retries_open -= 1
            self._retries_loaded -= 1
            self._fresh_open += 1
            lane.open += 1
            lane.loaded += 1
            item.due = None
        self.put_back(item)

    def retry(self, item: Item, due: float, order: float, target: str | None, *, keep: bool = False) -> None:
        """An item left the hands and waits until `due`; `order` is its new place, `target` where the attempt went.

        `keep`: in memory, however many wait there.
        """
        lane = self._left_hands(item.target)
        if item.due is None:
            self._fresh_open -= 1
            lane.open -= 1
            lane.loaded -= 1
            self.retries_open += 1
            self._retries_loaded += 1
        if target != item.target:
            self._drop_if_empty(item.target, lane)
        item.due, item.target = due, target
        item.move(order)
        if keep or self._retries_loaded <= self._prefetch.waiting:
            self._wait(item)
        else:  # it is fetched again when fewer wait, or when it is due and nothing else is
            self._held.discard(item.id)
            self._retries_loaded -= 1
            self._stored_due = min(self._stored_due, due)

    def gone(self, item: Item) -> None:
        """An item left the hands for good."""
        lane = self._left_hands(item.target)
        self._held.discard(item.id)
        if item.due is not None:
            self.retries_open -= 1
            self._retries_loaded -= 1
        else:
            self._fresh_open -= 1
            lane.open -= 1
            lane.loaded -= 1
        self._drop_if_empty(item.target, lane)

    def find(self, key: str) -> Item | None:
        """The open item of that key, if memory holds it outside anybody's hands."""
        for lane in self._lanes.values():
            for item in lane.ready:
                if item.key == key:
                    return item
        return next((item for _, _, item in self._retries if item.key == key and item.id in self._retry_ids), None)

    def pull(self, item: Item, now: float) -> None:
        """Take an item that `find` gave out of the order, into a worker's hands."""
        if item.id in self._retry_ids:
            self._retry_ids.discard(item.id)
            self._start(self._lane(item.target), now)
        else:
            self.take(item, now)

    def hold(self, entry: Entry, now: float) -> Item:
        """Take an item that is in the ledger alone into a worker's hands, out of the order."""
        item = from_entry(entry, now)
        self._held.add(item.id)
        lane = self._lane(item.target)
        if item.due is None:
            lane.loaded += 1
        else:
            self._retries_loaded += 1
        self._start(lane, now)
        return item

    def waiting(self, now: float) -> int:
        """How many open items wait for a time to come (those only in the ledger included)."""
        held = sum(1 for due, _, item in self._retries if due > now and item.id in self._retry_ids)
        return held + self.retries_open - self._retries_loaded

    def next_due(self) -> float | None:
        """When the first of the waiting items is due, in monotonic seconds; None if memory holds none of them."""
        while self._retries and self._retries[0][2].id not in self._retry_ids:
            heapq.heappop(self._retries)
        return self._retries[0][0] if self._retries else None

    def next_deadline(self) -> float | None:
        """When an item becomes due, or a target's delay is over."""
        times = [time for time in (self.next_due(), self._targets.next_deadline()) if time is not None]
        if self.retries_open > self._retries_loaded:
            times.append(max(self._stored_due, self._advanced + FETCH_AGAIN))
        return min(times, default=None)

    # ---- inside

    def _wants_retries(self, now: float) -> bool:
        """Few waiting items are held, or one that is not may be due and nothing that is held can be handed out."""
        if self.retries_open <= self._retries_loaded:
            return False
        if self._retries_loaded < self._prefetch.waiting // 2:
            return True
        room = self._retries_loaded < 2 * self._prefetch.waiting
        return self._stored_due <= now and room and self.peek(now) is None

    def _lane(self, target: str | None) -> _Lane:
        lane = self._lanes.get(target)
        if lane is None:
            lane = self._lanes[target] = _Lane(self._join(target))
        return lane

    def _drop_if_empty(self, name: str | None, lane: _Lane) -> None:
        if not (lane.open or lane.in_flight or lane.ready or lane.fetching):
            del self._lanes[name]
            self._targets.leave(lane.target, self)
            self._look_at(lane.target.name)  # two lanes may have one target, and wait for it together

    def _join(self, target: str | None) -> Target:
        return self._targets.join(target if target is not None else self.assumed)

    def _look_at(self, target: str | None) -> None:
        """Look again at the lanes of this target: its own, and that of the items without one where it is theirs."""
        names = (target,) if self.assumed is None or target != self.assumed else (target, None)
        for name in names:
            lane = self._lanes.get(name)
            if lane is not None:
                self._push_head(lane)

    def _start(self, lane: _Lane, now: float) -> None:
        lane.in_flight += 1
        self._targets.started(lane.target, self, now)
        if self.assumed is None:
            self._push_head(lane)
        else:
            self._look_at(lane.target.name)

    def _left_hands(self, target: str | None) -> _Lane:
        lane = self._lane(target)
        lane.in_flight -= 1
        self._targets.ended(lane.target)
        return lane

    def _limit(self) -> int:
        return max(LANE_LEAST, min(LANE_MOST, self._prefetch.fresh // max(1, len(self._lanes))))

    def _insert(self, lane: _Lane, item: Item) -> None:
        ready = lane.ready
        if ready and item.rank > ready[-1].rank:  # most come in their order
            ready.append(item)
            return
        insort(ready, item, key=_rank)
        if ready[0] is item:
            self._push_head(lane)

    def _shed(self, lane: _Lane) -> None:
        """Let the last fresh item go back to being in the ledger alone; the cursor moves before it."""
        for index in range(len(lane.ready) - 1, 0, -1):
            if lane.ready[index].due is None:
                item = lane.ready.pop(index)
                self._held.discard(item.id)
                lane.loaded -= 1
                last = next((one for one in reversed(lane.ready) if one.due is None), None)
                lane.cursor = None if last is None else (-last.priority, last.order)
                self._running_low[item.target] = None
                return

    def _push_head(self, lane: _Lane) -> None:
        if lane.ready:
            self._pushed += 1
            heapq.heappush(self._heads, (lane.ready[0].rank, self._pushed, lane))

    def _wait(self, item: Item) -> None:
        if item.due is not None:
            self._retry_ids.add(item.id)
            heapq.heappush(self._retries, (item.due, item.id, item))

    def advance(self, now: float) -> None:
        """Let time pass: what is due by now waits no more."""
        self._advanced = now
        while self._retries and self._retries[0][0] <= now:
            _, _, item = heapq.heappop(self._retries)
            if item.id in self._retry_ids:
                self._retry_ids.discard(item.id)
                self._insert(self._lane(item.target), item)
