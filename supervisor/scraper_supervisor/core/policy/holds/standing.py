"""Holds and aborts as they outlive the daemon; votes and the clocks of probes do not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from msgspec import Struct

from scraper_supervisor.core.policy.holds.hold import Hold
from scraper_supervisor.core.policy.holds.scopes import ScopeName

if TYPE_CHECKING:
    from scraper_supervisor.core.config.settings import AbortSettings


class Standing(Struct, frozen=True, kw_only=True):
    """A hold or an abort as it outlives the daemon; what is a time there is a number of seconds here.

    `age` is for how long it stands, `retry_in` what is left of a Retry-After, `rest_in` of the rest of an abort that
    gets a chance by itself; both may be over.
    """

    name: ScopeName
    aborted: bool
    evidence: bool
    status: bool
    hand: bool
    items: int
    failures: int
    reason: str
    first_wait: float
    age: float
    retry_in: float | None
    rest_in: float | None


def as_kept(hold: Hold, now: float) -> Standing:
    """What is kept of it."""
    return Standing(
        name=hold.name,
        aborted=hold.aborted,
        evidence=hold.evidence,
        status=hold.status,
        hand=hold.hand,
        items=hold.items,
        failures=hold.failures,
        reason=hold.reason,
        first_wait=hold.first_wait,
        age=now - hold.since,
        retry_in=None if hold.not_before == -math.inf else hold.not_before - now,
        rest_in=None if hold.rests_until is None else hold.rests_until - now,
    )


def as_held(kept: Standing, now: float, settings: AbortSettings) -> Hold:
    """What was kept stands again; its probes begin as those of a new hold."""
    return Hold(
        name=kept.name,
        since=now - kept.age,
        items=kept.items,
        failures=kept.failures,
        reason=kept.reason,
        aborted=kept.aborted,
        evidence=kept.evidence,
        status=kept.status,
        hand=kept.hand,
        first_wait=kept.first_wait,
        wait=settings.probe_interval,
        due=now + settings.probe_interval,
        not_before=-math.inf if kept.retry_in is None else now + kept.retry_in,
        rests_until=None if kept.rest_in is None else now + kept.rest_in,
    )
