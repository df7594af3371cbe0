"""What a group's queue asks of the ledger about items and claims, and what the ledger answers."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from msgspec import Raw, Struct

from scraper_supervisor.core.ops.operation import Operation

RETRY_ORIGIN: Final = 10_000_000_000.0  # subtracted from a retry's wall-clock time, so that retries sort before offers


Outcome: TypeAlias = Literal["done", "failed", "retry", "open"]


ItemState: TypeAlias = Literal["pending", "in_flight", "waiting", "parked", "done", "failed"]


class NewItem(Struct, frozen=True):
    """An item as it is offered; `target` is already derived from the key where none was given."""

    key: str
    target: str | None
    data: Raw
    priority: int


class Entry(Struct, frozen=True):
    """An unfinished item as the queue holds it.

    `order` sorts items of one priority: the order of offer, or for a retry its wall-clock time - RETRY_ORIGIN (which
    is negative). `due_in` is seconds from when the store answered; None for an item never tried or given back.
    """

    id: int
    key: str
    target: str | None
    data: Raw
    priority: int
    order: float
    attempts: int = 0  # charged
    infrastructure: int = 0  # failures that cost no attempt, so far
    blocked: int = 0
    alone: bool = False  # to be handed out to a worker holding nothing else
    due_in: float | None = None
    given: bool = True  # the target is the item's own, not what an attempt reported


class Added(Struct, frozen=True):
    """Which of the offered items were new: (index in the offer, item id, order)."""

    added: tuple[tuple[int, int, float], ...]
    known: int


class AddItems(Operation[Added], frozen=True):
    """Offer items. `last`: with these, a worker has offered its source to the end."""

    group: str
    run_id: int
    items: tuple[NewItem, ...]
    last: bool = False


class Concluded(Struct, frozen=True):
    """`seq` numbers the run's done items from 1 (None unless done); `order` is the retry's new place."""

    seq: int | None
    order: float | None
    offered: Added


class LeaseLost(Struct, frozen=True):
    """The claim is not the latest of its item any more, or another supervisor has the item: nothing was written."""


class Conclude(Operation[Concluded | LeaseLost], frozen=True):
    """End a claim: outcome, result and offers in one transaction, if the claim is still the item's latest.

    outcome "open" gives the item back at no cost (its `alone` changed). `answer` is the recorded reply to item.failed.
    `target` is the item's from now on, `reported` the host that the attempt reported. A result's row carries its
    SHA-256. An item that is done already stays as it is, and its seq is answered.
    """

    group: str
    run_id: int
    item: int
    key: str
    claim: int
    worker: str
    outcome: Outcome
    attempts: int
    infrastructure: int = 0
    blocked: int = 0
    alone: bool = False
    delay: float | None = None
    target: str | None = None
    result: Raw | None = None
    failure: Raw | None = None
    answer: Raw | None = None
    offers: tuple[NewItem, ...] = ()
    reported: str | None = None


class Leased(Struct, frozen=True):
    """Items, in the order asked for; they are this supervisor's to hand out."""

    items: tuple[Entry, ...]


class Front(Struct, frozen=True):
    """Where the items of a target go on: `after` is (-priority, order) of the last one known, None from the start."""

    target: str | None
    after: tuple[int, float] | None


class LeaseFresh(Operation[Leased], frozen=True):
    """Lease the next open items without a time to wait for, of each front, by priority and order; `limit` for each."""

    group: str
    run_id: int
    fronts: tuple[Front, ...]
    limit: int


class LeaseWaiting(Operation[Leased], frozen=True):
    """Lease open items with a time to wait for, earliest first, at most `limit`."""

    group: str
    run_id: int
    limit: int


class ConfirmedClaim(Struct, frozen=True):
    """A claim of which nothing was recorded and whose item is open still."""

    claim: int
    item: Entry


class Confirmed(Struct, frozen=True):
    """The claims that may be taken up again."""

    claims: tuple[ConfirmedClaim, ...]


class NamedClaim(Struct, frozen=True):
    """A claim as its worker names it."""

    key: str
    claim: int


class ConfirmClaims(Operation[Confirmed], frozen=True):
    """Learn which claims, given by a supervisor of which nothing is remembered, may be taken up again.

    Those were really given (their numbers were allotted), and neither they nor later claims of their items have ended.
    """

    group: str
    run_id: int
    claims: tuple[NamedClaim, ...]


class Conclusion(Struct, frozen=True):
    """How an item stands; `claim` is the last concluded one, and `answer` what item.failed was told."""

    state: Literal["done", "failed", "open", "parked"]
    seq: int | None
    claim: int | None
    outcome: Outcome | None
    answer: Raw | None


class FindConclusion(Operation[Conclusion | None], frozen=True):
    """How an item stands and how its last claim ended."""

    group: str
    run_id: int
    key: str


class Reserved(Struct, frozen=True):
    """Numbers of claims, from `first` to before `upto`, that were never given and are this supervisor's to give."""

    first: int
    upto: int


class ReserveClaims(Operation[Reserved], frozen=True):
    """Have `count` numbers allotted, higher than all that were; none is ever allotted again."""

    group: str
    count: int


class Changed(Struct, frozen=True):
    """How many items changed, the keys that are unknown or not in a state to change; and how many had been parked."""

    changed: int
    untouched: tuple[str, ...]
    parked: int = 0


class Requeue(Operation[Changed], frozen=True):
    """Make items pending again with no attempts charged: by key, all failed but what was cancelled, all parked."""

    group: str
    run_id: int
    keys: tuple[str, ...]
    failed: bool
    parked: bool


class Cancel(Operation[Changed], frozen=True):
    """Fail items for good that are not done."""

    group: str
    run_id: int
    keys: tuple[str, ...]


class WholeKeys(Struct, frozen=True):
    """Keys in the order asked for; where none or several fit, as it was given."""

    keys: tuple[str, ...]


class FindKeys(Operation[WholeKeys], frozen=True):
    """Find the whole keys of items that are named as they are shown, with something hidden: `…***…#3fa9c1d0`."""

    group: str
    run_id: int
    shown: tuple[str, ...]


class Park(Operation[Changed], frozen=True):
    """Set open items aside, at most `limit`; to be asked again while it changes as many. None may be in flight."""

    group: str
    run_id: int
    limit: int


class Unpark(Operation[Changed], frozen=True):
    """Take parked items up again where they were, at most `limit`; to be asked again while it changes as many."""

    group: str
    run_id: int
    limit: int


QueueOp: TypeAlias = (
    AddItems
    | Conclude
    | LeaseFresh
    | LeaseWaiting
    | ConfirmClaims
    | FindConclusion
    | ReserveClaims
    | Requeue
    | Cancel
    | FindKeys
    | Park
    | Unpark
)
