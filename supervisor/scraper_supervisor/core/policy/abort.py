"""When scraping on would only do harm: the sliding window of outcomes, per scope, and its verdicts.

An item has one vote, its latest outcome: counting attempts, 10% poisoned items would read as 35% failures. A scope is
judged on its last votes within `window`; which scopes there are is one line, in `_scopes_of`.

Scopes lie within each other, and of those that alarm at the same vote the narrowest is suspected. While one is not
normal its votes, those before included, count in no wider one: what is wrong with one group says nothing of the others.

Rule "evidence" looks at nested windows of the last n = 20, 28, 40, … 905 votes (ratio √2) and alarms when the failures
in one of them reach both ceil(failure_limit * n) and c(n), the smallest count that a healthy scope, failing at
`normal_rate`, reaches with a probability of at most 1e-9. Votes still to come in a window count as successes, so 14
failures out of 14 need no six more. Rule "rate" has one full window of `min_items`, and no c(n).

An alarm makes a scope suspected; one that stands for `confirm_after` is aborted. Every rule that sees an outage within
seconds also sees a blip of 20 s; only time tells them apart. So a slice of votes cast since the alarm that an outage
would hardly ever produce ends the suspicion and takes everything before it out of the window.

One more end comes at once: deaths in a group with no item done between them.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from msgspec import Struct

from scraper_supervisor.core.config.units import format_duration
from scraper_supervisor.core.formats.event_payloads import ScopeKind
from scraper_supervisor.core.policy.evidence import LUCKY_SLICE, MOST_VOTES, bound, windows

if TYPE_CHECKING:
    from scraper_supervisor.core.config.settings import AbortSettings

SLICE: Final = 20  # votes that may end a suspicion, unless min_items asks for more
SPARE: Final = 64  # votes over those that count which a scope may hold: dropping one at a time would cost more

ScopeId: TypeAlias = tuple[ScopeKind, str]
ScopeState: TypeAlias = Literal["normal", "suspected", "aborted"]
AbortAction: TypeAlias = Literal["suspected", "cleared", "aborted"]

GLOBAL: Final[ScopeId] = ("global", "")


class Decision(Struct, frozen=True):
    """A scope's change of state. `rate` and `limit` are shares; `reason` is a sentence for the operator."""

    time: float
    action: AbortAction
    scope: ScopeKind
    key: str
    items: int
    failures: int
    rate: float | None
    limit: float
    reason: str


class ScopeView(Struct, frozen=True):
    """A scope as it stands. A normal one shows all its votes; others the window that speaks against them."""

    scope: ScopeKind
    key: str
    state: ScopeState
    items: int
    failures: int
    rate: float | None
    limit: float
    reason: str | None


class _Ballot(Struct, gc=False):
    """One item's vote, shared by the scopes it counts in; `places` is how many still hold it."""

    number: int
    time: float
    item: tuple[str, str]
    failed: bool
    scopes: tuple[ScopeId, ...]
    places: int


class _Scope:
    """A scope's votes, oldest first, and its state."""

    __slots__ = ("failed", "flags", "id", "number", "quiet", "shown", "since", "state", "votes")

    def __init__(self, id_: ScopeId) -> None:
        self.id = id_
        self.votes: list[_Ballot] = []
        self.flags = bytearray()  # 1 where the vote is a failure: counted in C, faster than any sum kept in Python
        self.failed = 0
        self.state: ScopeState = "normal"
        self.number = 0  # the newest vote's when it became suspected
        self.since = 0.0  # how long the alarm has stood, or since a vote was quiet
        self.quiet = 0  # votes since then without an alarm: near the bound it must not come and go with each of them
        self.shown: tuple[int, int, str] = (0, 0, "")  # items, failures and reason of the last decision


class AbortWindow:
    """The machine over all scopes. Feed it votes and deaths; fetch what follows with `evaluate`.

    Times are monotonic seconds and never go back: an earlier one counts as the latest seen. A vote costs microseconds,
    and a scope remembers some 970 of them at most (or a little over min_items).
    """

    def __init__(self, settings: AbortSettings) -> None:
        self._take(settings)
        self._now = -math.inf
        self._number = 0
        self._latest: dict[tuple[str, str], _Ballot] = {}
        self._scopes: dict[ScopeId, _Scope] = {}
        self._suspected: dict[ScopeId, _Scope] = {}
        self._crashes: dict[str, list[tuple[float, str | None]]] = {}
        self._pending: list[Decision] = []

    # ---- what happened -------------------------------------------------------------------------------------------

    def vote(
        self,
        now: float,
        group: str,
        item: str,
        *,
        failed: bool,
        target: str | None = None,
        signature: str | None = None,
    ) -> None:
        """Count an item's latest outcome, in place of its earlier one. A success also ends a streak of crashes."""
        now = self._pass(now)
        if not failed:
            self._crashes.pop(group, None)
        identity = (group, item)
        touched = ids = self._counting(self._scopes_of(group, target, signature))
        earlier = self._latest.get(identity)
        if earlier is not None:
            touched = tuple(sorted({*earlier.scopes, *ids}, key=_width))
            for id_ in earlier.scopes:
                self._withdraw(id_, earlier)
        self._number += 1
        ballot = _Ballot(self._number, now, identity, failed, ids, len(ids))
        self._latest[identity] = ballot
        for id_ in ids:
            scope = self._scopes.get(id_) or self._scopes.setdefault(id_, _Scope(id_))
            votes = scope.votes
            if votes and votes[0].time + self._settings.window <= now:
                self._age(scope, now)
            votes.append(ballot)
            scope.flags.append(failed)
            scope.failed += failed
            if len(votes) > self._kept + SPARE:
                self._drop(scope, len(votes) - self._kept)
        # A success raises no alarm, unless it fills the window of "rate", or a replaced vote lets older ones back in.
        anyway = failed or earlier is not None or self._settings.rule == "rate"
        for id_ in touched if anyway or self._suspected else ():
            if (scope_ := self._scopes.get(id_)) and (anyway or scope_.state == "suspected"):
                self._judge(scope_)

    def crash(self, now: float, group: str, charged: str | None) -> None:
        """Count a worker's death. Deaths charged to one item (its key) count once."""
        now = self._pass(now)
        settings = self._settings
        deaths = [
            (time, item)
            for time, item in self._crashes.get(group, ())
            if now < time + settings.crash_window and (item is None or item != charged)
        ]
        deaths.append((now, charged))
        self._crashes[group] = deaths[-settings.consecutive_crashes :]
        if len(deaths) >= settings.consecutive_crashes:
            span = format_duration(settings.crash_window)
            bounds = f"consecutive_crashes is {settings.consecutive_crashes}"
            self._abort_now(group, f"{len(deaths)} deaths within {span} with no item done between them, {bounds}")

    def done(self, group: str) -> None:
        """Note that an item of the group is done: its streak of crashes is over."""
        self._crashes.pop(group, None)

    # ---- what follows --------------------------------------------------------------------------------------------

    def evaluate(self, now: float) -> list[Decision]:
        """What was decided since the last call, in order, with each decision's own time."""
        self._pass(now)
        if not self._pending:
            return []
        decided, self._pending = self._pending, []
        return sorted(decided, key=attrgetter("time"))

    def next_deadline(self) -> float | None:
        """When `evaluate` has something to say though nothing happens; None: not before something does."""
        if self._pending:
            return self._now
        return min((self._ends(scope) for scope in self._suspected.values()), default=None)

    def scopes(self, now: float, largest: int = 50) -> list[ScopeView]:
        """Every scope that isn't normal, and the `largest` of those that are, by their votes."""
        self._pass(now)
        for scope in list(self._scopes.values()):
            self._age(scope, self._now)
            if not scope.votes and scope.state == "normal":
                del self._scopes[scope.id]
        normal = sorted((s for s in self._scopes.values() if s.state == "normal"), key=lambda s: (-len(s.votes), s.id))
        views = []
        for scope in (*(s for s in self._scopes.values() if s.state != "normal"), *normal[:largest]):
            items, failures, reason = scope.shown
            if scope.state == "normal":
                items, failures, reason = len(scope.votes), scope.failed, ""
            rate = failures / items if items else None
            views.append(
                ScopeView(*scope.id, scope.state, items, failures, rate, self._settings.failure_limit, reason or None)
            )
        return views

    # ---- what an operator does -----------------------------------------------------------------------------------

    def reconfigure(self, settings: AbortSettings) -> None:
        """Go on under new settings with what was counted. Suspicions are judged anew; aborts stay."""
        self._take(settings)
        for scope in sorted(self._scopes.values(), key=lambda scope: _width(scope.id)):
            self._drop(scope, max(0, len(scope.votes) - self._kept))
            self._age(scope, self._now)
            if scope.state == "normal":
                self._judge(scope)
            else:
                self._reconsider(scope, "the configuration changed")

    def clear(self) -> None:
        """Begin anew on an operator's word: every scope is normal and nothing counts that came before."""
        for scope in self._scopes.values():
            if scope.state != "normal":
                self._settle(scope, self._now, "cleared by an operator")
        for known in (self._latest, self._scopes, self._crashes):
            known.clear()

    def forget(self, group: str, reason: str = "a new run begins") -> None:
        """Begin anew for one group, as at a new run: its scope, its votes everywhere and its crashes."""
        self._crashes.pop(group, None)
        own = self._scopes.get(("group", group))
        if own is not None and own.state != "normal":
            self._settle(own, self._now, reason)
        for ballot in [ballot for ballot in self._latest.values() if ballot.item[0] == group]:
            for id_ in ballot.scopes:
                self._withdraw(id_, ballot)
        self._scopes.pop(("group", group), None)
        for scope in list(self._suspected.values()):
            self._reconsider(scope, f"group {group}: {reason}")

    # ---- inside --------------------------------------------------------------------------------------------------

    def _take(self, settings: AbortSettings) -> None:
        self._settings = settings
        self._windows = windows(settings)
        self._kept = max(MOST_VOTES, settings.min_items)
        # A slice ends a suspicion with at most `_lucky` failures, which is to say with that many others at least.
        self._slice = size = max(SLICE, settings.min_items)
        self._lucky = size - bound(size, 1 - settings.failure_limit, LUCKY_SLICE) if settings.rule == "evidence" else -1

    def _scopes_of(self, group: str, target: str | None, signature: str | None) -> tuple[ScopeId, ...]:
        """Where a vote counts, the narrowest first; the one place that knows which kinds of scope there are."""
        del target, signature  # told already, so that a scope of either kind changes nothing but this line
        return _scopes_of_group(group)

    def _counting(self, ids: tuple[ScopeId, ...]) -> tuple[ScopeId, ...]:
        """The scopes up to the narrowest that is not normal: in wider ones the vote does not count."""
        for place, id_ in enumerate(ids, 1):
            scope = self._scopes.get(id_)
            if scope is not None and scope.state != "normal":
                return ids[:place]
        return ids

    def _keep_from_wider(self, scope: _Scope) -> None:
        """The scope alarms: none of its votes counts in a wider one any more."""
        wider: set[ScopeId] = set()
        for ballot in scope.votes:
            outside = ballot.scopes[ballot.scopes.index(scope.id) + 1 :]
            wider.update(outside)
            for id_ in outside:
                self._withdraw(id_, ballot)
        for id_ in sorted(wider, key=_width):
            if id_ in self._suspected:
                self._reconsider(self._suspected[id_], f"{_label(scope.id)} alarms by itself")

    def _pass(self, now: float) -> float:
        """Let time pass, so that what fell due before `now` is decided before what happens now."""
        self._now = now = max(now, self._now)
        confirm, window = self._settings.confirm_after, self._settings.window
        for scope in list(self._suspected.values()) if self._suspected else ():
            if now >= scope.since + confirm or (scope.votes and now >= scope.votes[0].time + window):
                due = self._ends(scope, min(now, scope.since + confirm))
                if due <= now:
                    self._end(scope, due)
        return now

    def _ends(self, scope: _Scope, until: float = math.inf) -> float:
        """When a suspicion ends if no votes come: confirmed, or, looked for up to `until`, by votes that leave."""
        confirmed = scope.since + self._settings.confirm_after
        votes, window, until = scope.votes, self._settings.window, min(until, confirmed)
        if scope.quiet or not votes or votes[0].time + window > until:
            return confirmed
        leaving = bisect_right(votes, until, key=lambda ballot: ballot.time + window)
        enough = bisect_left(range(leaving + 1), True, lo=1, key=lambda gone: self._alarm(scope, gone) is None)
        return confirmed if enough > leaving else votes[enough - 1].time + window

    def _end(self, scope: _Scope, due: float) -> None:
        self._age(scope, due)
        if alarm := self._alarm(scope):
            lasted = f"suspected for {format_duration(self._settings.confirm_after)} and no better: "
            self._decide(scope, "aborted", due, *alarm[:2], lasted + self._against(alarm))
        else:
            self._settle(scope, due, "time has passed")

    def _judge(self, scope: _Scope) -> None:
        """Compare a scope with the rule, after its votes changed."""
        if scope.state == "aborted" or not self._settings.enabled:
            return
        alarm = self._alarm(scope)
        if scope.state == "normal":
            if alarm is not None:
                self._decide(scope, "suspected", self._now, *alarm[:2], self._against(alarm))
            return
        votes, size = scope.votes, self._slice
        if len(votes) >= size and votes[-size].number > scope.number and scope.flags.count(1, -size) <= self._lucky:
            self._drop(scope, len(votes) - size)
            self._settle(scope, self._now, "well again since the alarm")
        elif alarm is None:
            scope.quiet += 1
            if scope.quiet == 1:
                scope.since = self._now
            elif scope.quiet > size:
                self._settle(scope, self._now, f"below the bound for {size} votes")
        else:
            if scope.quiet:
                scope.quiet, scope.since = 0, self._now
            scope.shown = (*alarm[:2], f"{_label(scope.id)}: {self._against(alarm)}")

    def _reconsider(self, scope: _Scope, reason: str) -> None:
        """End a suspicion at once if nothing speaks for it any more."""
        if scope.state == "suspected" and not (self._settings.enabled and self._alarm(scope)):
            self._settle(scope, self._now, reason)

    def _alarm(self, scope: _Scope, gone: int = 0) -> tuple[int, int, int, int] | None:
        """The first window against the scope, without its `gone` oldest votes: items, failures, n, failures needed."""
        flags = scope.flags
        end = len(flags)
        size = end - gone
        failed = scope.failed - flags.count(1, 0, gone) if gone else scope.failed
        for n, need in self._windows:
            if failed < need or (n > size and self._settings.rule == "rate"):
                return None  # what is needed rises with n
            failures = flags.count(1, end - n) if n < size else failed
            if failures >= need:
                return min(n, size), failures, n, need
        return None

    def _age(self, scope: _Scope, now: float) -> None:
        votes, window = scope.votes, self._settings.window
        gone = 0
        while gone < len(votes) and votes[gone].time + window <= now:
            gone += 1
        if gone:
            self._drop(scope, gone)

    def _drop(self, scope: _Scope, count: int) -> None:
        """Let the scope's oldest votes go."""
        for ballot in scope.votes[:count]:
            self._release(ballot)
        scope.failed -= scope.flags.count(1, 0, count)
        del scope.votes[:count], scope.flags[:count]

    def _withdraw(self, id_: ScopeId, ballot: _Ballot) -> None:
        """Take one vote out of a scope that may hold it."""
        scope = self._scopes.get(id_)
        if scope is None:
            return
        place = bisect_left(scope.votes, ballot.number, key=attrgetter("number"))
        if place < len(scope.votes) and scope.votes[place] is ballot:
            scope.failed -= scope.flags[place]
            del scope.votes[place], scope.flags[place]
            self._release(ballot)

    def _release(self, ballot: _Ballot) -> None:
        ballot.places -= 1
        if not ballot.places and self._latest.get(ballot.item) is ballot:
            del self._latest[ballot.item]

    def _abort_now(self, group: str, reason: str) -> None:
        if not self._settings.enabled:
            return
        scope = self._scopes.setdefault(("group", group), _Scope(("group", group)))
        if scope.state != "aborted":
            self._age(scope, self._now)
            self._decide(scope, "aborted", self._now, len(scope.votes), scope.failed, reason)

    def _settle(self, scope: _Scope, time: float, reason: str) -> None:
        """Back to normal."""
        last = min(len(scope.flags), self._slice)
        failures = scope.flags.count(1, len(scope.flags) - last)
        self._decide(scope, "cleared", time, last, failures, f"{reason}; {failures} of the last {last} items failed")

    def _decide(self, scope: _Scope, action: AbortAction, time: float, items: int, failures: int, reason: str) -> None:
        scope.state = "normal" if action == "cleared" else action
        if action == "suspected":
            scope.since, scope.number, scope.quiet = time, self._number, 0
            self._suspected[scope.id] = scope
        else:
            self._suspected.pop(scope.id, None)
        if action != "cleared":
            self._keep_from_wider(scope)
        reason = f"{_label(scope.id)}: {reason}"
        scope.shown = (items, failures, reason)
        rate, limit = failures / items if items else None, self._settings.failure_limit
        self._pending.append(Decision(time, action, *scope.id, items, failures, rate, limit, reason))

    def _against(self, alarm: tuple[int, int, int, int]) -> str:
        (items, failures, n, need), settings = alarm, self._settings
        limits = f"failure_limit {settings.failure_limit:.0%}"
        if settings.rule == "evidence":
            limits += f" and normal_rate {settings.normal_rate:.0%}"
        share = f"{failures} of the last {items} items failed ({failures / items:.0%})"
        return f"{share}, the bound is {need} of {n} for {limits}"


@lru_cache
def _scopes_of_group(group: str) -> tuple[ScopeId, ...]:
    return (("group", group), GLOBAL)


def _width(id_: ScopeId) -> int:
    """A scope's place among those that a vote counts in, the narrowest first."""
    return 1 if id_ == GLOBAL else 0


def _label(id_: ScopeId) -> str:
    return "all groups" if id_ == GLOBAL else f"{id_[0]} {id_[1]}"
