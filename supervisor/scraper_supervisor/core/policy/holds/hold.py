"""One scope that is not normal: its probes, one at a time, and when failed ones make it an abort."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from msgspec import Struct

from scraper_supervisor.core.policy.holds.rulings import lasted
from scraper_supervisor.core.policy.holds.scopes import ScopeName

if TYPE_CHECKING:
    from scraper_supervisor.core.config.settings import AbortSettings

AGAIN: Final = 1.0  # seconds from the end of a probe that said nothing to the next
LONGEST_RETRY_AFTER: Final = 3600.0  # seconds that a target may ask us to stay away
LEAST_PROBES: Final = 3  # so many must have failed before time alone makes an abort

Fate: TypeAlias = Literal["done", "failed", "permanent", "infrastructure", "back"]


class Hold(Struct, kw_only=True):
    """A held or aborted scope. Times are monotonic seconds.

    It may stand for more than one cause: `evidence` of votes or deaths, a `status` (429, or 503 with Retry-After), an
    operator's `hand`. `due` is when the next probe may go, `wait` what led there; `not_before` is the latest
    Retry-After. `first_probe` is when the first one began, and `withheld` for how long none went out since then though
    one was due: for that time the clock of confirm_after stands still. `chance` says that one failed probe aborts it
    again, quietly; `rests_until` is when an abort gets that chance. `items`, `failures` and `reason` are what spoke
    against it last.
    """

    name: ScopeName
    since: float
    items: int = 0
    failures: int = 0
    reason: str = ""
    aborted: bool = False
    evidence: bool = False
    status: bool = False
    hand: bool = False
    first_wait: float
    wait: float
    due: float
    not_before: float = -math.inf
    probing: int | None = None
    probed: str | None = None  # the key of the last probe's item
    first_probe: float | None = None
    withheld: float = 0.0
    failed: int = 0  # probes in a row
    chance: bool = False
    rests_until: float | None = None

    @property
    def opens(self) -> float | None:
        """When the next probe may go; None while none will: one is under way, by hand, or aborted."""
        if self.aborted or self.hand or self.probing is not None:
            return None
        return max(self.due, self.not_before)

    def leave(self, now: float) -> bool:
        """True if a probe may go now."""
        opens = self.opens
        return opens is not None and now >= opens

    def begin_probe(self, number: int, item: str, now: float) -> None:
        """A probe goes out."""
        if self.first_probe is None:
            self.first_probe = now
        else:
            self.withheld += max(0.0, now - max(self.due, self.not_before))
        self.probing, self.probed = number, item

    def probe_said_nothing(self, now: float) -> None:
        """The probe was given back, or it told of our browser and not of the target: another soon."""
        self.probing = None
        self.due = now + AGAIN

    def probe_failed(self, now: float, settings: AbortSettings) -> None:
        """The probe failed; the next waits twice as long."""
        self.probing = None
        self.failed += 1
        self.wait = min(2 * self.wait, settings.probe_max)
        self.due = now + self.wait

    def confirmed(self, now: float, settings: AbortSettings) -> str | None:
        """Why failed probes make it an abort by now, or None."""
        if self.chance:
            return "its probe after a rest failed"
        if self.first_probe is None or self.failed < LEAST_PROBES:
            return None
        tried = now - self.first_probe - self.withheld
        if tried < settings.confirm_after:
            return None
        return f"its last {self.failed} probes failed, for {lasted(tried)}"

    def stay_away(self, now: float, retry_after: float) -> None:
        """The target told us for how long, in seconds, it wants no requests."""
        self.not_before = max(self.not_before, now + min(retry_after, LONGEST_RETRY_AFTER))

    def abort(self, settings: AbortSettings, now: float) -> None:
        """Nothing of it goes out any more; with a duration of `parked` it gets a chance after that."""
        rest = settings.parked if isinstance(settings.parked, float) and self.name.scope != "global" else None
        self.aborted, self.probing, self.since = True, None, now
        self.rests_until = None if rest is None else now + rest

    def begin_anew(self, now: float, settings: AbortSettings, *, chance: bool = False) -> None:
        """Hold it, all clocks anew, the first probe at once."""
        self.aborted, self.chance, self.rests_until = False, chance, None
        self.since = self.due = now
        self.first_wait = self.wait = settings.probe_interval
        self.probing, self.first_probe, self.withheld, self.failed = None, None, 0.0, 0
