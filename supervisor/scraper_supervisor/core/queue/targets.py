"""The hosts that items talk to, each the same for all groups: what is in flight there, and when the next may start.

A group asks whether a target is blocked when the target's item is its best. If it is, the group is called when the
target may be free again: an item left the hands, the delay is over, or the limits changed. Of several groups that are
called the one comes first whose last item of the target is the longest ago, so they take turns.
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from msgspec import Struct

from scraper_supervisor.core.config.settings import TargetSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

EVERY_OTHER: Final = "*"  # the name of the limits of each host that has none of its own

Q = TypeVar("Q")


class Contender(Protocol):
    """What competes for targets: the open items of one group."""

    def look_again(self, target: str | None) -> None:
        """A target that was blocked may be free."""
        ...


class Target(Struct):
    """A host, or None for the items of no known host. Times are monotonic seconds."""

    name: str | None
    limits: TargetSettings | None
    groups: int = 0  # how many have items of it
    in_flight: int = 0  # counted whatever the limits are, since a reload may bring some
    last_start: float | None = None
    timed: bool = False  # whether the end of its delay is waited for
    blocked: dict[Contender, None] = {}  # to be called when it may be free; an ordered set
    served: dict[Contender, int] = {}  # the running number of each one's last start, while there are limits

    @property
    def free_at(self) -> float:
        """When the delay after the last start is over."""
        if self.limits is None or self.last_start is None or not self.limits.delay:
            return -math.inf
        return self.last_start + self.limits.delay


class Targets:
    """All targets of which some group has items, or whose delay runs.

    Args:
        settings: the limits by host; those of "*" hold for each host that is not named.
    """

    def __init__(self, settings: Mapping[str, TargetSettings]) -> None:
        self._settings = settings
        self._known: dict[str | None, Target] = {}
        self._timed: list[tuple[float, int, Target]] = []  # by the end of their delay
        self._number = 0  # numbers starts, and what is pushed
        self._called: dict[Contender, int] = {}  # whose target may be free → when it was served there last

    def configure(self, settings: Mapping[str, TargetSettings]) -> None:
        """Go on under these limits; what is in flight counts, and who was blocked by the old ones looks again."""
        self._settings = settings
        self._timed.clear()
        for target in list(self._known.values()):
            target.limits = self._limits(target.name)
            target.timed = False
            self._call(target)
            if not target.groups:
                self._forget(target)

    # ---- who has items of it

    def join(self, name: str | None) -> Target:
        """A group has items of this target from now on."""
        target = self._known.get(name)
        if target is None:
            target = self._known[name] = Target(name, self._limits(name))
        target.groups += 1
        return target

    def leave(self, target: Target, group: Contender, in_flight: int = 0) -> None:
        """A group has none any more; so many of its items were in flight."""
        target.groups -= 1
        target.in_flight -= in_flight
        target.blocked.pop(group, None)
        target.served.pop(group, None)
        if not target.groups:
            self._forget(target)
        elif in_flight:
            self._call(target)

    # ---- items

    def held(self, target: Target) -> None:
        """An item of the target is in hands already, as its group reads its items again."""
        target.in_flight += 1

    def blocks(self, target: Target, group: Contender, now: float) -> bool:
        """True if no item of the target may start. The group is called when that may have changed."""
        limits = target.limits
        if limits is None:
            return False
        if limits.max_in_flight is None or target.in_flight < limits.max_in_flight:
            if now >= target.free_at:
                return False
            self._wait(target)
        target.blocked[group] = None
        return True

    def started(self, target: Target, group: Contender, now: float) -> None:
        """An item of the target was handed out."""
        target.in_flight += 1
        target.last_start = now
        if target.limits is not None:
            self._number += 1
            target.served[group] = self._number
            target.blocked.pop(group, None)  # it looks at its next item of the target by itself

    def ended(self, target: Target) -> None:
        """An item of the target left the hands."""
        target.in_flight -= 1
        if target.blocked:
            self._call(target)

    # ---- time and turns

    def advance(self, now: float) -> None:
        """Let time pass: who waited for the end of a delay looks again."""
        while self._timed and self._timed[0][0] <= now:
            target = heapq.heappop(self._timed)[2]
            target.timed = False
            if target.groups:
                self._call(target)
            elif target.free_at <= now:
                del self._known[target.name]
            else:
                self._wait(target)

    def next_deadline(self) -> float | None:
        """When the next delay is over: one that somebody waited for, or one for whose sake a target is known still."""
        return self._timed[0][0] if self._timed else None

    def in_turn(self, queues: list[Q], group: Callable[[Q], Contender], now: float) -> list[Q]:
        """All queues, in the order in which they are to hand out items now.

        Those come first whose targets may be free since the last time; of these, who was served longest ago.
        """
        if self._timed:
            self.advance(now)
        return self._sorted(queues, group) if self._called else queues

    def called(self, queues: list[Q], group: Callable[[Q], Contender]) -> list[Q]:
        """Those whose targets may be free since the last time, in the same order."""
        if not self._called:
            return []
        called = self._called
        return self._sorted([queue for queue in queues if group(queue) in called], group)

    # ---- inside

    def _limits(self, name: str | None) -> TargetSettings | None:
        if name is None:
            return None
        return self._settings.get(name) or self._settings.get(EVERY_OTHER)

    def _sorted(self, queues: list[Q], group: Callable[[Q], Contender]) -> list[Q]:
        called, self._called = self._called, {}
        return sorted(queues, key=lambda queue: called.get(group(queue), math.inf))

    def _call(self, target: Target) -> None:
        """Have everyone look again who found the target blocked."""
        blocked, target.blocked = target.blocked, {}
        for group in blocked:
            served = target.served.get(group, 0)
            self._called[group] = min(served, self._called.get(group, served))
            group.look_again(target.name)

    def _wait(self, target: Target) -> None:
        """Have the end of the target's delay noticed."""
        if not target.timed:
            target.timed = True
            self._number += 1
            heapq.heappush(self._timed, (target.free_at, self._number, target))

    def _forget(self, target: Target) -> None:
        """Drop the target when nobody has items of it: at once, or at the end of its delay."""
        if target.free_at == -math.inf:
            del self._known[target.name]
        else:
            self._wait(target)
