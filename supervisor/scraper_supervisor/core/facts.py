"""What one room of the core found out and others act upon: values that the fleet passes on within the same step.

A room puts a fact into the outbox and never calls the rooms that care; the fleet knows who they are.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from scraper_supervisor.core.events import ItemsChanged
from scraper_supervisor.core.ops.run_ops import RunImage
from scraper_worker.protocol import FailedAnswer, Failure


class Claimed(Struct, frozen=True):
    """A worker was handed an item."""

    worker: str
    incarnation: int
    key: str


class ItemEnded(Struct, frozen=True):
    """An attempt was recorded in the ledger: what the abort window, the event log and the figures learn from.

    `seconds` is how long the attempt took. `first` says that it is the item's first recorded outcome, so far as memory
    knows.
    """

    group: str
    run_id: int
    key: str
    worker: str
    incarnation: int
    outcome: Literal["done", "retry", "failed"]
    attempt: int
    target: str | None
    seconds: float | None
    failure: Failure | None
    action: FailedAnswer | None
    first: bool


class ProcessKnown(Struct, frozen=True):
    """A worker's process runs, or could not be started: what waited for its PID waits no longer."""

    worker: str


class ProcessEnded(Struct, frozen=True):
    """A worker's process is gone, and its browsers with it.

    `died` says that nobody ordered the end and the worker did not announce it; `charged` is the key of the item that is
    charged for the death.
    """

    worker: str
    group: str
    died: bool
    charged: str | None


class PlaceHealed(Struct, frozen=True):
    """A place of the store takes writes again: the ledger, or the folder of `worker`. It refused from `since` on.

    Times are monotonic seconds.
    """

    worker: str | None
    since: float


class RunRead(Struct, frozen=True):
    """A group's run was read again. The ledger lacks `missing` of the items that were acknowledged as done."""

    group: str
    missing: int


class RunOpened(Struct, frozen=True):
    """The ledger answered with a group's run, and the group, unless it was removed, works on that."""

    group: str


class StatesOwed(Struct, frozen=True):
    """A run can't be opened yet: states that were imported with it are to become checkpoints first."""

    group: str
    image: RunImage


class ParkedWanted(Struct, frozen=True):
    """An operator requeued parked items of this group: what stopped them gets another chance."""

    group: str


Fact: TypeAlias = (
    Claimed
    | ParkedWanted
    | ItemEnded
    | ItemsChanged
    | ProcessKnown
    | ProcessEnded
    | PlaceHealed
    | RunRead
    | RunOpened
    | StatesOwed
)
