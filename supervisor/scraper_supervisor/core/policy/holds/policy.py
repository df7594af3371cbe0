"""The machine over all scopes: what is held, probed, resumed and aborted.

It is told of votes, deaths, statuses and the fates of probes; it is asked whether an item may be handed out; what it
decided is fetched with `evaluate`. Times are monotonic seconds and never go back: an earlier one counts as the latest.
"""

from __future__ import annotations

import math
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from scraper_supervisor.core.config.units import format_duration
from scraper_supervisor.core.policy.evidence import MOST_VOTES
from scraper_supervisor.core.policy.holds.crashes import Crashes
from scraper_supervisor.core.policy.holds.evidence import alarm_windows
from scraper_supervisor.core.policy.holds.hold import Fate, Hold
from scraper_supervisor.core.policy.holds.rulings import Ruling, RulingAction, ScopeFigures, against, lasted
from scraper_supervisor.core.policy.holds.scopes import ScopeName, judged, scopes_of
from scraper_supervisor.core.policy.holds.standing import as_held, as_kept
from scraper_supervisor.core.policy.holds.votes import Count, Votes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from scraper_supervisor.core.config.settings import AbortSettings
    from scraper_supervisor.core.policy.holds.standing import Standing

FLAPPING: Final = 60.0  # seconds after a hold's end within which the next hold by status waits twice as long
LONGEST_FIRST_WAIT: Final = 60.0  # seconds

Gate: TypeAlias = Literal["open", "probe", "shut"]


class HoldPolicy:
    """All scopes.

    Args:
        settings: `[abort]`: for everything, and for hosts in all groups.
        groups: each group's own, for it and for its targets.
    """

    def __init__(self, settings: AbortSettings, groups: Mapping[str, AbortSettings]) -> None:
        self._settings = settings
        self._groups = groups
        self._plain = self._any_plain()
        self._now = -math.inf
        self._votes = Votes(lambda group: self._of(group).window, self._most_votes())
        self._holds: dict[ScopeName, Hold] = {}
        self._crashes = Crashes()
        self._probes: dict[int, tuple[ScopeName, ...]] = {}
        self._number = 0
        self._ended: dict[str, tuple[float, float]] = {}  # host → when its last hold ended, and that one's first wait
        self._rulings: list[Ruling] = []

    # ---- what happened

    def vote(
        self, now: float, group: str, item: str, *, failed: bool, target: str | None, infrastructure: bool = False
    ) -> None:
        """Count an item's latest outcome; what tells of our own browsers votes in no target."""
        if self._holds or now < self._now:
            now = self._pass(now)
        else:
            self._now = now  # as `_pass` does: most votes are cast while nothing is held, and this is each item's cost
        if not failed and self._crashes.deaths:
            self._crashes.forget(group)
        host = None if infrastructure else target
        holds = self._over(group, target) if self._holds else ()
        self._votes.cast(now, group, item, host, failed, not holds)
        if holds or not (failed or self._plain):
            return  # a done item speaks for its scopes, unless it fills a window of "rate"
        for name in judged(group, host):
            if self._judge(name):
                break

    def told(
        self, now: float, group: str, host: str | None, status: int | None, retry_after: float | None, *, start: bool
    ) -> bool:
        """A target answered with a status, or said for how long, in seconds, it wants no requests.

        Args:
            now: monotonic seconds.
            group: whose item it was.
            host: that the attempt reported.
            status: the answer's.
            retry_after: seconds.
            start: whether this item may start a hold.

        Returns:
            Whether a hold of the host begins with it.
        """
        now = self._pass(now)
        if host is None:
            return False
        name = ScopeName("target", host, None)
        hold, settings = self._holds.get(name), self._settings
        asks_to_wait = status == 429 or (status == 503 and retry_after is not None)
        begins = asks_to_wait and hold is None and start and settings.enabled
        if begins:
            wait = settings.probe_interval
            ended = self._ended.get(host)
            if ended is not None and now < ended[0] + FLAPPING:
                wait = max(wait, min(2 * ended[1], LONGEST_FIRST_WAIT))
            hold = Hold(name=name, since=now, first_wait=wait, wait=wait, due=now + wait, status=True)
            asked = "" if retry_after is None else f" and asks for {lasted(retry_after)}"
            self._begin(hold, self._whole(name), f"it answers {status}{asked}", retry_after)
        elif hold is not None and asks_to_wait and not hold.aborted:
            hold.status = True
        for held in self._over(group, host) if retry_after is not None else ():
            if held.name.scope == "target" and retry_after is not None:
                held.stay_away(now, retry_after)
        return begins

    def crash(self, now: float, group: str, charged: str | None) -> None:
        """Count a worker's death, charged to the item of this key."""
        now = self._pass(now)
        settings, name = self._of(group), ScopeName("group", group, group)
        hold = self._holds.get(name)
        if not settings.enabled or (hold is not None and hold.aborted):
            return
        reason = self._crashes.died(now, group, charged, settings)
        if reason is None:
            return
        if hold is None:
            wait = settings.probe_interval
            hold = self._holds[name] = Hold(name=name, since=now, first_wait=wait, wait=wait, due=now + wait)
            self._votes.silence(name)
        hold.evidence = True
        self._abort(hold, self._whole(name), reason)
        self._crashes.forget(group)

    def done(self, group: str) -> None:
        """An item of the group is done, whatever it voted: its streak of deaths is over."""
        self._crashes.forget(group)

    # ---- may an item be handed out

    @property
    def all_open(self) -> bool:
        """True if nothing is held or aborted."""
        return not self._holds

    def stands(self, group: str, target: str | None) -> bool:
        """True if a scope of the item is held or aborted: a failure costs it nothing."""
        return bool(self._holds) and any(name in self._holds for name in scopes_of(group, target))

    def gate(self, now: float, group: str, target: str | None) -> Gate:
        """Whether an item may be handed out: as any other, as a probe, or not now."""
        holds = self._over(group, target) if self._holds else ()
        if not holds:
            return "open"
        return "probe" if all(hold.leave(now) for hold in holds) else "shut"

    def aborted(self, group: str, target: str | None) -> ScopeName | None:
        """The widest aborted scope that the item is in."""
        found = [hold.name for hold in self._over(group, target) if hold.aborted] if self._holds else []
        return found[-1] if found else None

    def probed(self, group: str, target: str | None) -> frozenset[str]:
        """The keys of the items that were the last probes of the item's scopes: another is to be next."""
        return frozenset(hold.probed for hold in self._over(group, target) if hold.probed is not None)

    def begin_probe(self, now: float, group: str, target: str | None, item: str) -> int:
        """An item goes out as the probe of all its held scopes; its number is for `end_probe`."""
        self._pass(now)
        holds = self._over(group, target)
        self._number += 1
        self._probes[self._number] = tuple(hold.name for hold in holds)
        for hold in holds:
            hold.begin_probe(self._number, item, now)
        return self._number

    def end_probe(self, now: float, number: int, fate: Fate) -> None:
        """How a probe ended, for all scopes that it was of and that still wait for it; its vote comes before."""
        now = self._pass(now)
        for name in self._probes.pop(number, ()):
            hold = self._holds.get(name)
            if hold is None or hold.probing != number:
                continue
            if fate == "done":
                self._end(hold, "its probe is done")
            elif fate == "back" or (fate == "infrastructure" and name.scope == "target"):
                hold.probe_said_nothing(now)
            elif fate == "permanent" and hold.status and not hold.evidence:
                self._end(hold, "its probe got an answer")
            else:
                self._probe_failed(hold)

    # ---- what follows

    def evaluate(self, now: float) -> list[Ruling]:
        """What was decided since the last call, in order, with each ruling's own time."""
        self._pass(now)
        if not self._rulings:
            return []
        rulings, self._rulings = self._rulings, []
        return sorted(rulings, key=attrgetter("time"))

    def next_deadline(self) -> float | None:
        """When a probe may go, or `evaluate` has something to say though nothing happens."""
        if self._rulings:
            return self._now
        opens = (hold.opens for hold in self._holds.values())
        rests = (hold.rests_until for hold in self._holds.values())
        return min((time for time in (*opens, *rests) if time is not None and time > self._now), default=None)

    def figures(self, now: float, largest: int = 50) -> list[ScopeFigures]:
        """Every scope that isn't normal, and the `largest` of those that are, by their votes."""
        now = self._pass(now)
        self._votes.tidy(now)
        found = []
        for hold in self._holds.values():
            state: Literal["held", "aborted"] = "aborted" if hold.aborted else "held"
            counted = (hold.items, hold.failures, self._of(hold.name.group).failure_limit, hold.reason)
            found.append(ScopeFigures(hold.name, state, hold.since, hold.opens, *counted))
        normal = [(self._whole(name), name) for name in self._votes.names() if name not in self._holds]
        for count, name in sorted(normal, key=lambda one: (-one[0].items, one[1]))[:largest]:
            limit = self._of(name.group).failure_limit
            found.append(ScopeFigures(name, "normal", None, None, count.items, count.failures, limit, None))
        return found

    def settle(self, now: float, occupied: Callable[[ScopeName], bool]) -> None:
        """End what is held without an open or parked item, though not before its Retry-After, nor what is by hand."""
        now = self._pass(now)
        for hold in list(self._holds.values()):
            if not hold.hand and now >= hold.not_before and not occupied(hold.name):
                self._end(hold, "it has no items left")

    # ---- what an operator does

    def hold_by_hand(self, now: float, host: str) -> None:
        """Hold a target in all groups until it is cleared, without probes."""
        now = self._pass(now)
        name = ScopeName("target", host, None)
        hold = self._holds.get(name)
        if hold is not None:
            hold.hand = True
            hold.probing = None
            self._rule("held", hold, "held by an operator")
            return
        wait = self._settings.probe_interval
        hold = Hold(name=name, since=now, first_wait=wait, wait=wait, due=now, hand=True)
        self._begin(hold, self._whole(name), "held by an operator", None)

    def clear(self, now: float, names: Iterable[ScopeName] | None = None) -> list[ScopeName]:
        """Give held and aborted scopes (these, or all) another chance; what was held by hand alone goes on.

        Returns:
            Which they were.
        """
        now = self._pass(now)
        wanted = self._holds.keys() if names is None else set(names)
        chosen = [hold for hold in self._holds.values() if hold.name in wanted]
        for hold in chosen:
            by_hand, hold.hand = hold.hand, False
            if by_hand and not (hold.evidence or hold.status):
                self._end(hold, "cleared by an operator")
                continue
            hold.not_before = -math.inf
            hold.begin_anew(now, self._of(hold.name.group))
            if hold.name.group is not None:
                self._crashes.forget(hold.name.group)
            self._rule("held", hold, "another chance, by an operator")
        return [hold.name for hold in chosen]

    def forget(self, group: str) -> None:
        """A new run of a group begins: its votes and deaths count no more; what is held stays so."""
        self._crashes.forget(group)
        self._votes.forget(group)

    def reconfigure(self, settings: AbortSettings, groups: Mapping[str, AbortSettings]) -> None:
        """Go on under new settings with what was counted; clocks that run are computed anew, aborts stay."""
        self._settings, self._groups = settings, groups
        self._plain = self._any_plain()
        self._votes.most = self._most_votes()
        self._votes.reconfigured()
        for hold in list(self._holds.values()):
            own = self._of(hold.name.group)
            if hold.aborted:
                rests = isinstance(own.parked, float) and hold.name.scope != "global"
                hold.rests_until = hold.since + own.parked if rests and isinstance(own.parked, float) else None
            elif not own.enabled:
                hold.evidence = hold.status = False
                if not hold.hand:
                    self._end(hold, "the abort policy is switched off")
            else:
                hold.wait = min(hold.wait, max(own.probe_interval, own.probe_max))
                hold.due = min(hold.due, self._now + max(own.probe_interval, own.probe_max))
        for name in self._votes.rows():
            self._judge(name)

    # ---- what outlives the daemon

    def standing(self, now: float) -> list[Standing]:
        """All that is held or aborted, to be kept."""
        now = self._pass(now)
        return [as_kept(hold, now) for hold in self._holds.values()]

    def restore(self, now: float, standing: Iterable[Standing], *, clean: bool) -> None:
        """Take over what was kept; after a clean end all that was held or aborted gets another chance."""
        now = self._pass(now)
        for kept in standing:
            hold = as_held(kept, now, self._of(kept.name.group))
            self._holds[kept.name] = hold
            if clean and (kept.evidence or kept.status):
                hold.begin_anew(now, self._of(kept.name.group))
                self._rule("held", hold, f"another chance after a restart ({kept.reason})")

    # ---- inside

    def _of(self, group: str | None) -> AbortSettings:
        return self._settings if group is None else self._groups.get(group, self._settings)

    def _any_plain(self) -> bool:
        return any(one.rule == "rate" for one in (self._settings, *self._groups.values()))

    def _most_votes(self) -> int:
        return max([MOST_VOTES, self._settings.min_items, *(one.min_items for one in self._groups.values())])

    def _over(self, group: str, target: str | None) -> tuple[Hold, ...]:
        holds = self._holds
        return tuple(holds[name] for name in scopes_of(group, target) if name in holds)

    def _whole(self, name: ScopeName) -> Count:
        return self._votes.whole(name, self._now, self._holds.__contains__)

    def _pass(self, now: float) -> float:
        """Let time pass: an abort that gets its chance by itself is held for one probe."""
        if now > self._now:
            self._now = now
        if not self._holds:
            return self._now
        now = self._now
        for hold in list(self._holds.values()):
            if hold.rests_until is not None and now >= hold.rests_until:
                rested = hold.rests_until - hold.since
                hold.begin_anew(hold.rests_until, self._of(hold.name.group), chance=True)
                self._rule("held", hold, f"one probe after a rest of {lasted(rested)}", quiet=True)
        return now

    def _judge(self, name: ScopeName) -> bool:
        """Compare a scope with the rule, after its votes changed; whether it is held for it."""
        row, settings = self._votes.row(name), self._of(name.group)
        plain = settings.rule == "rate"
        if row is None or (row.slack > 0 and not plain) or not settings.enabled:
            return False
        row.age(self._now - settings.window)
        size = min(row.count, self._whole(name).items) if plain else None
        alarm = row.alarm(alarm_windows(settings), size)
        if alarm is None or any(one.covers(name) for one in self._holds):
            return False
        wait = settings.probe_interval
        hold = Hold(name=name, since=self._now, first_wait=wait, wait=wait, due=self._now + wait, evidence=True)
        self._begin(hold, Count(alarm[0], alarm[1]), against(alarm, settings), None)
        return True

    def _begin(self, hold: Hold, count: Count, reason: str, retry_after: float | None) -> None:
        self._holds[hold.name] = hold
        self._votes.silence(hold.name)
        hold.items, hold.failures = count.items, count.failures
        if retry_after is not None:
            hold.stay_away(self._now, retry_after)
        self._rule("held", hold, reason)
        self._judge_window(hold)

    def _judge_window(self, hold: Hold) -> None:
        """Abort a held scope of whose whole window more than failure_limit failed, whatever its probes say.

        Asked when a hold begins and when a probe of it failed: that what was in hand fails, too, is the same trouble,
        and may be a blip. Nor is a target dead that told us how long it wants no requests.
        """
        settings = self._of(hold.name.group)
        if hold.aborted or hold.hand or self._now < hold.not_before or not settings.enabled:
            return
        count = self._whole(hold.name)
        too_many = count.items >= settings.min_items and count.failures > settings.failure_limit * count.items
        if too_many and self._now >= count.since + settings.window:
            share = f"{count.failures} of its {count.items} items in the last {format_duration(settings.window)} failed"
            limit = f"more than failure_limit {settings.failure_limit:.0%}"
            self._abort(hold, count, f"{share} ({count.failures / count.items:.0%}), {limit}")

    def _probe_failed(self, hold: Hold) -> None:
        settings = self._of(hold.name.group)
        hold.probe_failed(self._now, settings)
        count, reason = self._whole(hold.name), hold.confirmed(self._now, settings)
        tried = f"probe {hold.failed} of {hold.name} failed"
        self._rule("evaluated", hold, tried, quiet=hold.chance, keep=False)
        if reason is not None:
            self._abort(hold, count, reason, quiet=hold.chance)
        else:
            self._judge_window(hold)

    def _abort(self, hold: Hold, count: Count, reason: str, *, quiet: bool = False) -> None:
        hold.abort(self._of(hold.name.group), self._now)
        hold.items, hold.failures = count.items, count.failures
        self._rule("aborted", hold, reason, quiet=quiet)

    def _end(self, hold: Hold, reason: str) -> None:
        """Back to normal."""
        del self._holds[hold.name]
        if hold.name.scope == "target":
            self._ended = {host: one for host, one in self._ended.items() if self._now < one[0] + FLAPPING}
            self._ended[hold.name.key] = (self._now, hold.first_wait)
        self._rule("resumed", hold, f"{reason}, after {lasted(self._now - hold.since)}")

    def _rule(self, action: RulingAction, hold: Hold, reason: str, *, quiet: bool = False, keep: bool = True) -> None:
        reason = f"{hold.name}: {reason}"
        if keep:
            hold.reason = reason
        limit, probe_at = self._of(hold.name.group).failure_limit, None if action == "resumed" else hold.opens
        told = (self._now, action, hold.name, hold.items, hold.failures, limit, reason, probe_at, quiet)
        self._rulings.append(Ruling(*told))


def spread(now: float, count: int, over: float = 5.0) -> list[float]:
    """When each of so many waiting calls is answered after a hold: evenly over the next seconds, the first at once."""
    return [now + over * place / count for place in range(count)]
