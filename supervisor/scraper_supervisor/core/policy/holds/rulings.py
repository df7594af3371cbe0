"""What the hold policy says: its rulings, and how scopes stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from msgspec import Struct

from scraper_supervisor.core.config.units import format_duration
from scraper_supervisor.core.policy.holds.scopes import ScopeName

if TYPE_CHECKING:
    from scraper_supervisor.core.config.settings import AbortSettings

RulingAction: TypeAlias = Literal["held", "evaluated", "resumed", "aborted"]
StandingState: TypeAlias = Literal["normal", "held", "aborted"]


class Ruling(Struct, frozen=True):
    """What was decided about a scope, and when; "evaluated" is a failed probe.

    Times are monotonic seconds. `items` and `failures` are the votes that were looked at, `limit` is failure_limit, a
    share; `next_probe_at` is None where no probe will go; `reason` is a sentence for the operator. `quiet`: neither
    notify nor a report, for it was known before.
    """

    time: float
    action: RulingAction
    name: ScopeName
    items: int
    failures: int
    limit: float
    reason: str
    next_probe_at: float | None = None
    quiet: bool = False

    @property
    def rate(self) -> float | None:
        """The share that failed; None where no votes were looked at."""
        return self.failures / self.items if self.items else None


class ScopeFigures(Struct, frozen=True):
    """How a scope stands, for `status`. Times are monotonic seconds; a normal scope shows its whole window."""

    name: ScopeName
    state: StandingState
    since: float | None
    next_probe_at: float | None
    items: int
    failures: int
    limit: float
    reason: str | None

    @property
    def rate(self) -> float | None:
        """The share that failed; None where there are no votes."""
        return self.failures / self.items if self.items else None


def against(alarm: tuple[int, int, int, int], settings: AbortSettings) -> str:
    """What speaks against a scope: votes and failures, and the window's n with the failures that make an alarm."""
    items, failures, n, need = alarm
    limits = f"failure_limit {settings.failure_limit:.0%}"
    if settings.rule == "evidence":
        limits += f" and normal_rate {settings.normal_rate:.0%}"
    share = f"{failures} of the last {items} items failed ({failures / items:.0%})"
    return f"{share}, the bound is {need} of {n} for {limits}"


def lasted(seconds: float) -> str:
    """How long something took, as a sentence tells it."""
    return f"{seconds:.1f} s" if seconds < 60 else format_duration(float(round(seconds)))
