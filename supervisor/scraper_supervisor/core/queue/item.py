"""An open item as a group's queue holds it in memory, and its rank among the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from msgspec import Raw, Struct

if TYPE_CHECKING:
    from scraper_supervisor.core.ops.item_ops import Entry

Rank: TypeAlias = tuple[int, float, int]  # (-priority, order, id)


class Item(Struct):
    """An open item in memory. `due` is monotonic seconds, None for one that never had to wait."""

    id: int
    key: str
    target: str | None
    data: Raw
    priority: int
    order: float
    attempts: int = 0
    infrastructure: int = 0
    blocked: int = 0
    alone: bool = False
    due: float | None = None
    given: bool = True  # the target is the item's own, not what an attempt reported
    rank: Rank = ()  # type: ignore[assignment]  # made of the others

    def __post_init__(self) -> None:
        """Higher priority first; due retries (whose order is negative), then order of offer."""
        self.rank = (-self.priority, self.order, self.id)

    def move(self, order: float) -> None:
        """Take another place among those of its priority."""
        self.order = order
        self.rank = (-self.priority, order, self.id)


def from_entry(entry: Entry, now: float) -> Item:
    """The store's item, its delay turned into a time."""
    return Item(
        entry.id,
        entry.key,
        entry.target,
        entry.data,
        entry.priority,
        entry.order,
        entry.attempts,
        entry.infrastructure,
        entry.blocked,
        entry.alone,
        None if entry.due_in is None else now + entry.due_in,
        entry.given,
    )
