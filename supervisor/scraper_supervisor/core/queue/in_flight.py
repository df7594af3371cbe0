"""Who holds which item, under which number, and what is being written about it."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from scraper_supervisor.core.ops.item_ops import Conclude
from scraper_supervisor.core.policy.ladder import Ladder
from scraper_supervisor.core.queue.item import Item
from scraper_supervisor.core.queue.item_calls import Caller
from scraper_worker.protocol import FailedAnswer, Failure, ItemProgress, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

REMEMBERED_RELEASES: Final = 10_000


class UnwrittenEnd(Struct):
    """What is being written about a claim, and whom to tell. Where the disk refused it, it waits to be asked anew."""

    op: Conclude
    callers: list[Caller]
    seconds: float | None = None
    failure: Failure | None = None
    answer: FailedAnswer | None = None
    refused: list[Refused] = []  # of its offers


class InFlightItem(Struct):
    """An item in a worker's hands.

    `since` is when it was handed out, `alive` when its worker last told how far it is, or `since`; monotonic seconds.
    """

    item: Item
    claim: int
    worker: str
    incarnation: int
    since: float
    alive: float
    ending: UnwrittenEnd | None = None
    left: bool = False  # its worker is gone: should the write fail, nobody would come again to repeat the call
    told: ItemProgress | None = None  # what its worker last said of it
    cancelled: bool = False  # an operator cancelled it: however it leaves the hands, unless done, it is failed
    ladder: Ladder | None = None  # its time is over, or it was cancelled, and its worker was told
    spared: bool = False  # a neighbour's ladder may have cost it its browser: that is no failure of its own


class Release(Struct, frozen=True):
    """Who gave back which item, with nothing recorded."""

    key: str
    worker: str
    incarnation: int


class OpenClaim(Struct, frozen=True):
    """An item in a worker's hands."""

    worker: str
    claim: int
    key: str


class InHand(Struct, frozen=True):
    """An item in a worker's hands as people are told of it. `seconds` is how long it has been there."""

    key: str
    claim: int
    target: str | None
    seconds: float
    attempt: int
    told: ItemProgress | None  # how far it is, as its worker told last


class InFlight:
    """All hands of one group."""

    def __init__(self) -> None:
        self._in_flight: dict[int, InFlightItem] = {}
        self._of: dict[str, set[int]] = {}  # worker → its claims
        self._released: OrderedDict[int, Release] = OrderedDict()  # the latest that were given back, by claim
        self._unowned: dict[str, int] = {}  # key → the claim that was given back, while nobody else has had the item

    def __len__(self) -> int:
        return len(self._in_flight)

    def __iter__(self) -> Iterator[InFlightItem]:
        return iter(self._in_flight.values())

    def clear(self) -> None:
        """Nothing is in anybody's hands."""
        self._in_flight.clear()
        self._of.clear()
        self._released.clear()
        self._unowned.clear()

    def get(self, claim: int) -> InFlightItem | None:
        """What this claim holds."""
        return self._in_flight.get(claim)

    def count(self, worker: str) -> int:
        """How many items are in this worker's hands."""
        return len(self._of.get(worker, ()))

    def of(self, worker: str) -> list[InFlightItem]:
        """This worker's hands, by claim."""
        return [self._in_flight[claim] for claim in sorted(self._of.get(worker, ()))]

    def in_hand(self, worker: str, assumed: str | None, now: float) -> list[InHand]:
        """This worker's hands as people are told of them, oldest first; `assumed` is the target where none is known."""
        return [
            InHand(
                held.item.key,
                held.claim,
                held.item.target if held.item.target is not None else assumed,
                max(0.0, now - held.since),
                held.item.attempts + 1,
                held.told,
            )
            for held in sorted(self.of(worker), key=lambda held: held.since)
        ]

    def open_of(self, worker: str) -> list[InFlightItem]:
        """Those of this worker's hands of which nothing is being written."""
        return [held for held in self.of(worker) if held.ending is None]

    def alone(self, worker: str) -> bool:
        """True if this worker holds an item that it must hold alone."""
        claims = self._of.get(worker)
        if not claims:
            return False
        return any(self._in_flight[claim].item.alone for claim in claims)

    def find(self, caller: Caller, key: str, claim: int | None) -> InFlightItem | None:
        """The caller's own claim of that key: by its number, else by the key alone."""
        if claim is None:
            return next((held for held in self.of(caller.worker) if self._fits(held, caller, key)), None)
        held = self._in_flight.get(claim)
        return held if held is not None and self._fits(held, caller, key) else None

    @staticmethod
    def _fits(held: InFlightItem, caller: Caller, key: str) -> bool:
        return held.item.key == key and held.worker == caller.worker and held.incarnation == caller.incarnation

    def acquire(self, item: Item, claim: int, worker: str, incarnation: int, now: float) -> InFlightItem:
        """An item goes into a worker's hands."""
        if self._unowned:
            self._released.pop(claim, None)
            self._unowned.pop(item.key, None)
        held = self._in_flight[claim] = InFlightItem(item, claim, worker, incarnation, now, now)
        mine = self._of.get(worker)
        if mine is None:  # once a worker: hands that are empty are soon filled again
            mine = self._of[worker] = set()
        mine.add(claim)
        return held

    def discard(self, held: InFlightItem, *, released: bool = False) -> None:
        """An item leaves the hands; `released`: with nothing recorded, so that its claim may be taken up again."""
        del self._in_flight[held.claim]
        self._of[held.worker].discard(held.claim)
        if released:
            self._released[held.claim] = Release(held.item.key, held.worker, held.incarnation)
            self._unowned[held.item.key] = held.claim
            if len(self._released) > REMEMBERED_RELEASES:
                oldest, release = self._released.popitem(last=False)
                if self._unowned.get(release.key) == oldest:
                    del self._unowned[release.key]

    def was_released(self, claim: int, key: str, worker: str, incarnation: int) -> bool:
        """True if this incarnation gave back this claim of that key, and nothing was recorded of it since."""
        return self._released.get(claim) == Release(key, worker, incarnation)

    def may_return(self, claim: int, key: str, worker: str, incarnation: int) -> bool:
        """True if this incarnation gave back this claim of that key, and nobody has had the item since."""
        return self._unowned.get(key) == claim and self.was_released(claim, key, worker, incarnation)

    def of_item(self, item: int) -> InFlightItem | None:
        """The claim that holds the item of this number."""
        return next((held for held in self._in_flight.values() if held.item.id == item), None)
