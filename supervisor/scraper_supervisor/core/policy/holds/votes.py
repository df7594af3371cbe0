"""What is counted: an item's latest outcome, in rows for alarms and in slices of time for the whole window.

A *row* has what a scope's last votes say to the evidence windows. Votes that do not exist count as done, so it keeps
the places of the failures alone, and a done item costs it an addition. A *leaf* counts all votes of one target in one
group by slices of time, for the share over the whole window. The memory of neither depends on how many votes there are.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from scraper_supervisor.core.policy.evidence import MOST_VOTES
from scraper_supervisor.core.policy.holds.scopes import EVERYTHING, ScopeName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scraper_supervisor.core.policy.holds.evidence import Windows

SPARE: Final = 64  # failures over those that count which a row may have: dropping one at a time would cost more
REMEMBERED: Final = 65_536  # failed items that are known, so that their next vote takes the place of the last
FINENESS: Final = 60  # slices in a window
ROOM: Final = 1024  # targets that there may be before old ones are looked for
COARSEST: Final = 1000  # slices in the longest of the windows that a leaf serves, at most


class Ballot(Struct, gc=False):
    """An item's latest vote, where it is a failure: its number, when it was cast, and of which target."""

    number: int
    time: float
    target: str | None


class Count(Struct, frozen=True):
    """Votes and how many of them failed; `since` is when the first of the scope was cast, monotonic seconds."""

    items: int
    failures: int
    since: float = math.inf


class Row:
    """A scope's votes that may raise an alarm: how many, and of the failures number, place and time, oldest first.

    `slack` is how many more failures there must be at least before any window alarms.
    """

    __slots__ = ("count", "numbers", "places", "slack", "times")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Nothing counts that was cast so far."""
        self.count = self.slack = 0
        self.numbers: list[int] = []
        self.places: list[int] = []
        self.times: list[float] = []

    def fail(self, number: int, now: float, most: int) -> None:
        """The vote that was just counted is a failure; at most about so many votes count."""
        self.slack -= 1
        self.numbers.append(number)
        self.places.append(self.count)
        self.times.append(now)
        if len(self.numbers) > SPARE and self.places[SPARE] <= self.count - most:
            self._drop(SPARE)

    def age(self, oldest: float) -> None:
        """Let failures go that were not cast after `oldest`."""
        if self.times and self.times[0] <= oldest:
            self._drop(bisect_right(self.times, oldest))

    def withdraw(self, numbers: set[int]) -> None:
        """These failures are votes no more: those before them move up."""
        if not numbers.isdisjoint(self.numbers):
            kept, gone = [], 0
            for number, place, time in zip(self.numbers, self.places, self.times, strict=True):
                if number in numbers:
                    gone += 1
                else:
                    kept.append((number, place - gone, time))
            self.count -= gone
            self.slack = 0
            self.numbers = [one[0] for one in kept]
            self.places = [one[1] for one in kept]
            self.times = [one[2] for one in kept]

    def withdraw_one(self, number: int) -> None:
        """This failure is a vote no more."""
        at = bisect_left(self.numbers, number)
        if at < len(self.numbers) and self.numbers[at] == number:
            del self.numbers[at], self.places[at], self.times[at]
            self.places[at:] = [place - 1 for place in self.places[at:]]
            self.count -= 1
            self.slack = 0

    def alarm(self, windows: Windows, size: int | None = None) -> tuple[int, int, int, int] | None:
        """The first window against the scope: votes, failures, its n, failures needed.

        `size` is how many votes there are, where those that do not exist must not count as done.
        """
        places, slack = self.places, len(self.places) + 1
        for n, need in windows:
            if size is not None and n > size:
                return None
            failures = len(places) - bisect_right(places, self.count - n)
            if failures >= need:
                return min(n, self.count), failures, n, need
            slack = min(slack, need - failures)
        self.slack = max(1, slack)
        return None

    def _drop(self, count: int) -> None:
        del self.numbers[:count], self.places[:count], self.times[:count]


class Leaf:
    """The votes of one target in one group (None: of no target) by slices of time, and the rows that they are in."""

    __slots__ = ("closed", "current", "ends", "horizon", "rows", "since", "slices", "till", "width", "window")

    def __init__(self, rows: tuple[Row, ...], window: float, horizon: float) -> None:
        self.rows = rows
        self.slices: dict[int, list[int]] = {}  # number of the slice → [votes, failures], oldest first
        self.current = [0, 0]
        self.closed = (0, 0)  # the sum of the other slices
        self.ends = self.till = -math.inf
        self.since = math.inf
        self.cut(window, horizon)

    def cut(self, window: float, horizon: float) -> None:
        """Windows are so long from now on: the group's, and the longest that asks for these votes."""
        width = max(min(window, horizon) / FINENESS, horizon / COARSEST)
        slices, before = self.slices, getattr(self, "width", width)
        self.window, self.horizon, self.width = window, horizon, width
        if width != before:
            self.slices, self.ends = {}, -math.inf
            self.current, self.closed = [0, 0], (0, 0)
            for number, (votes, failed) in slices.items():
                one = self.slices.setdefault(int(number * before // width), [0, 0])
                one[0] += votes
                one[1] += failed
                self.closed = (self.closed[0] + votes, self.closed[1] + failed)

    def turn(self, now: float) -> None:
        """The slice that was counted in is over."""
        number = int(now // self.width)
        if self.till + self.horizon <= now:
            self.slices.clear()
            self.since = now
        oldest = int((now - self.horizon) // self.width)
        while self.slices and (first := next(iter(self.slices))) < oldest:
            del self.slices[first]
        self.current = self.slices.setdefault(number, [0, 0])
        others = [one for one in self.slices.values() if one is not self.current]
        self.closed = (sum(one[0] for one in others), sum(one[1] for one in others))
        self.ends = (number + 1) * self.width
        self.till = max(now, self.ends)

    def withdraw(self, time: float) -> None:
        """A failed item votes again: its vote of that time does not count."""
        one = self.slices.get(int(time // self.width))
        if one is not None and one[1]:
            one[0] -= 1
            one[1] -= 1
            if one is not self.current:
                self.closed = (self.closed[0] - 1, self.closed[1] - 1)

    def count(self, oldest: float) -> tuple[int, int]:
        """Votes and failures of the slices that ended after `oldest`."""
        first = int(oldest // self.width)
        if not self.slices or next(iter(self.slices)) >= first:
            return self.closed[0] + self.current[0], self.closed[1] + self.current[1]
        counted = [one for number, one in self.slices.items() if number >= first]
        return sum(one[0] for one in counted), sum(one[1] for one in counted)


class Votes:
    """All that was counted.

    Args:
        span: the window of a group, and of everything (None), in seconds.
        most: how many votes the widest evidence window may have.
    """

    def __init__(self, span: Callable[[str | None], float], most: int = MOST_VOTES) -> None:
        self.most = most
        self._span = span
        self._number = 0
        self._failed: OrderedDict[tuple[str, str], Ballot] = OrderedDict()
        self._rows: dict[ScopeName, Row] = {EVERYTHING: Row()}
        self._leaves: dict[str, dict[str | None, Leaf]] = {}
        self._new = 0  # leaves made since old ones were looked for
        self._room = ROOM

    # ---- counted

    def cast(self, now: float, group: str, item: str, target: str | None, failed: bool, alarming: bool) -> None:
        """Count an item's latest outcome, in place of its earlier one; `alarming`: it may raise an alarm."""
        earlier = self._failed.pop((group, item), None) if self._failed else None
        if earlier is not None:
            self._withdraw(group, earlier)
        leaves = self._leaves.get(group)
        leaf = leaves.get(target) if leaves is not None else None
        if leaf is None:
            self._make_room(now)
            leaf = self._leaf(group, target)
        if now >= leaf.ends:
            leaf.turn(now)
        leaf.current[0] += 1
        if alarming:
            for row in leaf.rows:
                row.count += 1
        if failed:
            self._number += 1
            leaf.current[1] += 1
            self._failed[group, item] = Ballot(self._number, now, target)
            if len(self._failed) > REMEMBERED:
                self._failed.popitem(last=False)
            for row in leaf.rows if alarming else ():
                row.fail(self._number, now, self.most)

    def row(self, name: ScopeName) -> Row | None:
        """The votes of a scope that may raise an alarm."""
        return self._rows.get(name)

    def rows(self) -> list[ScopeName]:
        """All scopes that have a row, the narrowest first."""
        return sorted(self._rows, key=lambda name: ("target", "group", "global").index(name.scope))

    def silence(self, name: ScopeName) -> None:
        """What was cast in this scope so far raises no alarm any more, here or in a wider scope."""
        if name.scope == "target" and name.group is None:
            for group in self._leaves:
                self.silence(ScopeName("target", name.key, group))
            return
        row = self._rows.get(name)
        if row is None:
            return
        numbers = set(row.numbers)
        for other in (ScopeName("group", name.group, name.group) if name.group is not None else None, EVERYTHING):
            if other is not None and other != name and (wider := self._rows.get(other)) is not None:
                wider.withdraw(numbers)
        row.clear()

    # ---- the whole window

    def whole(self, name: ScopeName, now: float, without: Callable[[ScopeName], bool]) -> Count:
        """All votes of a scope in its window, but those of narrower scopes that are left out."""
        oldest = now - self._span(name.group)
        items = failures = 0
        since = math.inf
        for group, target, leaf in self._leaves_in(name):
            if leaf.till <= oldest or any(without(one) for one in _narrower(name, group, target)):
                continue
            votes, failed = leaf.count(oldest)
            items, failures, since = items + votes, failures + failed, min(since, leaf.since)
        return Count(items, failures, since)

    def tidy(self, now: float) -> None:
        """Forget what is too old to count."""
        longest = self._span(None)
        for group, leaves in list(self._leaves.items()):
            for target, leaf in list(leaves.items()):
                longest = max(longest, leaf.horizon)
                if leaf.till + leaf.horizon <= now:
                    del leaves[target]
                    if target is not None:
                        self._rows.pop(ScopeName("target", target, group), None)
            if not leaves:
                del self._leaves[group]
                self._rows.pop(ScopeName("group", group, group), None)
        while self._failed and next(iter(self._failed.values())).time + longest <= now:
            self._failed.popitem(last=False)

    def names(self) -> list[ScopeName]:
        """All scopes of which there are votes."""
        found = [ScopeName("group", group, group) for group in self._leaves]
        found += [
            ScopeName("target", key, group) for group, of in self._leaves.items() for key in of if key is not None
        ]
        return [EVERYTHING, *found] if found else []

    def forget(self, group: str) -> None:
        """A group's votes count nowhere any more."""
        for identity in [identity for identity in self._failed if identity[0] == group]:
            del self._failed[identity]
        self.silence(ScopeName("group", group, group))
        self._leaves.pop(group, None)
        for name in [name for name in self._rows if name.group == group]:
            del self._rows[name]

    def reconfigured(self) -> None:
        """Windows have other lengths: what was counted by slices is counted by slices of another width."""
        for group, leaves in self._leaves.items():
            for leaf in leaves.values():
                leaf.cut(*self._spans(group))

    # ---- inside

    def _make_room(self, now: float) -> None:
        """Forget old targets whenever there may be twice as many as last time, so that it costs each of them once."""
        self._new += 1
        if self._new > self._room:
            self.tidy(now)
            self._new, self._room = 0, max(ROOM, sum(map(len, self._leaves.values())))

    def _leaf(self, group: str, target: str | None) -> Leaf:
        names = [ScopeName("group", group, group), EVERYTHING]
        if target is not None:
            names.insert(0, ScopeName("target", target, group))
        rows = tuple(self._rows.setdefault(name, Row()) for name in names)
        leaf = self._leaves.setdefault(group, {})[target] = Leaf(rows, *self._spans(group))
        return leaf

    def _spans(self, group: str) -> tuple[float, float]:
        return self._span(group), max(self._span(group), self._span(None))

    def _withdraw(self, group: str, ballot: Ballot) -> None:
        leaf = self._leaves.get(group, {}).get(ballot.target)
        if leaf is not None:
            leaf.withdraw(ballot.time)
            for row in leaf.rows:
                row.withdraw_one(ballot.number)

    def _leaves_in(self, name: ScopeName) -> Iterator[tuple[str, str | None, Leaf]]:
        for group in self._leaves if name.group is None else (name.group,):
            leaves = self._leaves.get(group, {})
            if name.scope != "target":
                yield from ((group, target, leaf) for target, leaf in leaves.items())
            elif name.key in leaves:
                yield group, name.key, leaves[name.key]


def _narrower(name: ScopeName, group: str, target: str | None) -> Iterator[ScopeName]:
    """The scopes of a leaf that lie within `name` and are not it: a host of all groups counts as within a group."""
    if target is not None and name.scope != "target":
        yield ScopeName("target", target, group)
        yield ScopeName("target", target, None)
    if name.scope == "global":
        yield ScopeName("group", group, group)
