"""What the core asks the store to keep, and what the store answers: values only.

The words suit a ledger that several supervisors share: open items are leased, as many as the ledger says; it allots the
numbers of claims; an end of a claim is written only while the claim is still the latest; and the ledger decides whether
a run is complete. A ledger that one supervisor has to itself leases by the lock on its folder.

Each operation carries the `ticket` under which its answer comes back (`Persisted` or `PersistFailed`). Operations on
the ledger are carried out in the order in which they were asked, and answered in that order; so are those on the
checkpoint files of one worker. Wall-clock times are stamped by the store: the core gives delays in seconds.
"""

from __future__ import annotations

from typing import Final, Generic, Literal, TypeAlias, TypeVar

from msgspec import Raw, Struct

RETRY_ORIGIN: Final = 10_000_000_000.0  # subtracted from a retry's wall-clock time, so that retries sort before offers

Outcome: TypeAlias = Literal["done", "failed", "retry", "open"]
ItemState: TypeAlias = Literal["pending", "in_flight", "waiting", "parked", "done", "failed"]
RunState: TypeAlias = Literal["running", "completed", "aborted"]


AnswerT = TypeVar("AnswerT", covariant=True)


class Operation(Struct, Generic[AnswerT], frozen=True):
    """Something that the store is asked, and answers with an AnswerT under the same ticket."""

    ticket: int


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


class Lane(Struct, frozen=True):
    """How many items of a target are open and have no time to wait for."""

    target: str | None
    open: int


class WorkerTotals(Struct, frozen=True):
    """What a worker did in this run, over all its incarnations."""

    worker: str
    done: int
    failed: int


class Prefetch(Struct, frozen=True):
    """How many items a supervisor may lease ahead, about: those without and those with a time to wait for."""

    fresh: int = 4096
    waiting: int = 8192


class RunImage(Struct, frozen=True):
    """A group's run as the ledger has it."""

    run_id: int
    run: int
    state: RunState
    fresh_from: int  # checkpoints of runs before this one are not given at hello
    done: int
    failed: int
    parked: int
    waiting: int  # open with a time to wait for (past or to come)
    lanes: tuple[Lane, ...]
    started_at: str
    finished_at: str | None
    workers: tuple[WorkerTotals, ...]
    owed: tuple[str, ...] = ()  # workers whose imported states are to become checkpoints before any of them starts
    prefetch: Prefetch = Prefetch()


# ---- operations on the ledger ----------------------------------------------------------------------------------------


class OpenRun(Operation[RunImage], frozen=True):
    """Continue the group's newest run, or begin one.

    `mode`: "continue" the newest whatever its state (a first one is begun if there is none), "next": begin a new one if
    the newest is completed, else continue; "fresh": begin a new one, whose workers start without a checkpoint.
    Runs beyond `keep_runs` are removed.
    """

    group: str
    mode: Literal["continue", "next", "fresh"]
    keep_runs: int


class LoadRun(Operation[RunImage], frozen=True):
    """Read a run's image again (after operations on many items)."""

    group: str


class SetRunState(Operation[None], frozen=True):
    """A run is completed, aborted, or running again."""

    group: str
    run_id: int
    state: RunState


class RunEnd(Struct, frozen=True):
    """Whether a run has ended: `state` is "running" while an item of it is open. `image` is the run as it is now."""

    state: RunState
    image: RunImage


class CompleteRun(Operation[RunEnd], frozen=True):
    """End a run if no item of it is open: as completed, or as aborted where items are parked."""

    group: str
    run_id: int


class Added(Struct, frozen=True):
    """Which of the offered items were new: (index in the offer, item id, order)."""

    added: tuple[tuple[int, int, float], ...]
    known: int


class AddItems(Operation[Added], frozen=True):
    """Offer items."""

    group: str
    run_id: int
    items: tuple[NewItem, ...]


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
    A result's row carries its SHA-256. An item that is done already stays as it is, and its seq is answered.
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


class SetIntent(Operation[None], frozen=True):
    """What an operator wants of a group or worker outlives the daemon; None forgets it."""

    name: str
    intent: Literal["paused", "drained", "stopped"] | None


class Intents(Struct, frozen=True):
    """(group or worker, intent), as SetIntent left them."""

    names: tuple[tuple[str, Literal["paused", "drained", "stopped"]], ...]


class LoadIntents(Operation[Intents], frozen=True):
    """What operators want of groups and workers, from before."""


class Changed(Struct, frozen=True):
    """How many items changed, and the keys that are unknown or not in a state to change."""

    changed: int
    untouched: tuple[str, ...]


class Requeue(Operation[Changed], frozen=True):
    """Make items pending again with no attempts charged: by key, all failed, all parked."""

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


class Imported(Struct, frozen=True):
    """How an import stands. With a `problem` it is given up, and the group is as it was."""

    run_id: int
    run: int = 0  # its number, once it is finished
    problem: str | None = None


class ImportBegin(Operation[Imported], frozen=True):
    """Begin a run that is filled by ImportLines; until ImportFinish nobody sees it.

    An import of the group that was begun before and not finished is given up.
    """

    group: str


class ImportLines(Operation[Imported], frozen=True):
    """Put whole lines of an export (see core.portable) into the run that is being imported."""

    group: str
    run_id: int
    lines: bytes


class ImportFinish(Operation[Imported], frozen=True):
    """The run that was imported becomes the group's newest.

    What was removed of older ones is for the next OpenRun to say. The workers' states are still to be taken.
    """

    group: str
    run_id: int


class ImportDrop(Operation[Imported], frozen=True):
    """Give up an import that is not finished; its rows are removed in small steps."""

    group: str
    run_id: int


class StateTaken(Struct, frozen=True):
    """A worker's state as it was imported with that run."""

    run: int
    schema: str
    state: Raw


class TakeState(Operation[StateTaken | None], frozen=True):
    """A state that is owed to a worker of this run, to be saved as a checkpoint."""

    group: str
    run_id: int
    worker: str


class DropState(Operation[None], frozen=True):
    """The state that was owed to a worker is a checkpoint now."""

    group: str
    run_id: int
    worker: str


class Probe(Operation[None], frozen=True):
    """Learn whether the ledger can be written again, with `room` bytes to spare on its disk."""

    room: int = 0


ImportOp: TypeAlias = ImportBegin | ImportLines | ImportFinish | ImportDrop | TakeState | DropState
QueueOp: TypeAlias = (
    AddItems | Conclude | LeaseFresh | LeaseWaiting | ConfirmClaims | FindConclusion | ReserveClaims | Requeue | Cancel
)
RunOp: TypeAlias = OpenRun | LoadRun | SetRunState | CompleteRun
LedgerOp: TypeAlias = QueueOp | ImportOp | RunOp | SetIntent | LoadIntents | Probe

# ---- operations on the checkpoint files -----------------------------------------------------------------------------


class StateSaved(Struct, frozen=True):
    """`seconds` is how long it took; `removed` are the generations that retention removed."""

    generation: int
    sha256: str
    saved_at: str
    seconds: float
    bytes: int
    removed: tuple[int, ...]


class SaveState(Operation[StateSaved], frozen=True):
    """Write a worker's state as its next generation."""

    worker: str
    run: int
    schema: str
    state: Raw
    pending: int
    done: int
    failed: int
    retention: int
    gzip: bool


class Damage(Struct, frozen=True):
    """A file that was moved to corrupt/, and why."""

    path: str
    reason: str


class StateLoaded(Struct, frozen=True):
    """`found` tells a worker without any file ("none") from one whose files are all damaged ("damaged").

    "unknown" is the answer for a `generation` that does not exist; "newer" for a file that a later version wrote, which
    stays where it is: `reason` says what to do. For these, and a damaged `generation`, `there` are the other ones.
    """

    found: Literal["sound", "none", "damaged", "unknown", "newer"]
    generation: int = 0
    run: int = 0
    schema: str = ""
    saved_at: str = ""
    state: Raw = Raw(b"null")
    damage: tuple[Damage, ...] = ()
    reason: str = ""
    there: tuple[int, ...] = ()


class LoadState(Operation[StateLoaded], frozen=True):
    """The newest sound state of a run from `fresh_from` on, or the one of `generation`."""

    worker: str
    fresh_from: int
    generation: int | None = None


class ProbeFolder(Operation[None], frozen=True):
    """Learn whether a worker's folder takes a file of `room` bytes again."""

    worker: str
    room: int


StateOp: TypeAlias = SaveState | LoadState | ProbeFolder
Op: TypeAlias = LedgerOp | StateOp
Answer: TypeAlias = (
    RunImage
    | RunEnd
    | Added
    | Concluded
    | LeaseLost
    | Leased
    | Confirmed
    | Conclusion
    | Reserved
    | Changed
    | Intents
    | Imported
    | StateTaken
    | StateSaved
    | StateLoaded
    | None
)
