"""An item that takes too long, or that an operator cancelled: how hard it is ended, and when.

One ladder for all of them. Its worker is told (`item.cancel`); a RUNG later the worker's browsers are killed, if it has
any, which frees who waits for a page; another RUNG later the worker. An end that the worker tells before that is the
item's own: done counts, and anything else is `why`.

A ladder is a value, and its times are monotonic seconds that `shifted` moves: while nobody can end an item, for want of
a disk say, its clocks stand still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from scraper_worker.protocol import Failure

if TYPE_CHECKING:
    from scraper_supervisor.core.config.settings import GroupSettings

RUNG: Final = 10.0  # seconds that each step has to end the item, before the next and harder one

Rung: TypeAlias = Literal["told", "browsers", "worker"]
_NEXT: Final[dict[Rung, Rung]] = {"told": "browsers", "browsers": "worker"}


class Ladder(Struct, frozen=True):
    """Where an item stands on it. `why` is what the item ends as, unless it ends as done.

    `told` is when the ladder began, and what the worker started after that has nothing to do with the item; `since` is
    when the present rung was reached.
    """

    why: Failure
    told: float
    since: float
    rung: Rung = "told"

    @property
    def next_at(self) -> float | None:
        """When the next rung is reached; None on the last one."""
        return None if self.rung == "worker" else self.since + RUNG

    def climbed(self, now: float) -> Ladder:
        """On the next rung, from now on."""
        return self if self.rung == "worker" else replace(self, rung=_NEXT[self.rung], since=now)

    def shifted(self, seconds: float) -> Ladder:
        """So much later, since its clocks stood still."""
        return replace(self, told=self.told + seconds, since=self.since + seconds)

    def left(self, now: float) -> float:
        """Seconds until the next rung, at least 0."""
        return 0.0 if self.next_at is None else max(0.0, self.next_at - now)


def begin(why: Failure, now: float) -> Ladder:
    """The first rung."""
    return Ladder(why, now, now)


def overdue_at(since: float, alive: float, settings: GroupSettings) -> float:
    """When an item takes too long.

    Args:
        since: when it was handed out, in monotonic seconds.
        alive: when its worker last told how far it is (`item.progress`), else `since`.
        settings: the group's.
    """
    at = alive + settings.progress_timeout
    return at if settings.item_timeout is None else min(at, since + settings.item_timeout)


def overdue(since: float, settings: GroupSettings, now: float) -> Failure:
    """What an item ends as whose time is over; `since` as above. Where both limits are, item_timeout is named."""
    if settings.item_timeout is not None and now >= since + settings.item_timeout:
        reason = f"item_timeout of {settings.item_timeout:g} s"
        return Failure("transient", "system", "item-timeout", reason)
    reason = f"progress_timeout of {settings.progress_timeout:g} s"
    return Failure("transient", "system", "progress-timeout", reason)
