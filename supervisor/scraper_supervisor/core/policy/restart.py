"""Decides whether a worker that ended is started again, when, and why: `[restart_policy]`.

A history is a value and the policy is handed in anew each time, so a reload needs no step of its own. The wait before
the restart number n after the last immediate one (n = 1, 2, …) is

    d = min(base_delay * multiplier ** (n - 1), max_delay), shortened to d / 2 + unit * d / 2     ("equal jitter")

so that no wait is longer than it says, none is less than half of it, and workers that fell together rise apart.

Two limits give up, since neither is enough: `max_restarts` within a time never ends a worker that lives long enough
to stay below it, and `max_unstable` in a row is slow where a worker dies at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from scraper_supervisor.core.config.units import format_duration

if TYPE_CHECKING:
    from scraper_supervisor.core.config.settings import RestartSettings

KEPT: Final = 64
"""Deaths that are remembered at least, so that a reload which lowers or sets a limit finds something to count."""


class Death(Struct, frozen=True):
    """An end of the worker that was answered or gave it up. `item` is the key charged with it, if one was."""

    time: float
    item: str | None


class RestartHistory(Struct, frozen=True):
    """What one worker's restarts depend on. Start with `RestartHistory()`; times are monotonic seconds."""

    started_at: float | None = None
    """When it last started; None before, and after it ended: such an end counts as one without any uptime."""
    deaths: tuple[Death, ...] = ()
    """Oldest first, one for each item that was charged (its latest), bounded."""
    streak: tuple[Death, ...] = ()
    """Those since the last stable period, in the same manner."""
    ends: int = 0
    """Restarts granted since the worker was new, or reset."""
    waits: int = 0
    """Restarts since the last immediate one: the exponent."""


class Verdict(Struct, frozen=True):
    """What to do about an end. `delay` is in seconds; `reason` is a sentence for the operator."""

    action: Literal["restart", "fail"]
    delay: float
    reason: str


def on_start(history: RestartHistory, now: float) -> RestartHistory:
    """Note that the worker started at `now`."""
    return replace(history, started_at=now)


def reset(history: RestartHistory) -> RestartHistory:
    """Forget every restart, as when an operator starts the worker; a start already noted stays."""
    return RestartHistory(started_at=history.started_at)


def on_exit(
    history: RestartHistory,
    policy: RestartSettings,
    now: float,
    *,
    blamed: str | None,
    unit: float,
    cause: str = "the worker ended",
) -> tuple[RestartHistory, Verdict]:
    """Judge an end that calls for a restart, whether a death or a limit that was crossed.

    Args:
        history: what came before.
        policy: the policy in force now.
        now: monotonic seconds.
        blamed: the key of the item charged with this death. All deaths charged to one item count once in both limits,
            since the item, not the worker, is at fault; they wait like any other.
        unit: jitter, 0 <= unit < 1.
        cause: what happened, as the reason's opening words.

    Returns:
        The history to go on with and the verdict.
    """
    uptime = 0.0 if history.started_at is None else max(0.0, now - history.started_at)
    stable = history.started_at is not None and uptime >= policy.stable_after
    death = Death(now, blamed)
    recent = _with(_within(history.deaths, policy.within, now), death)
    streak = () if stable else _with(history.streak, death)
    waits = 0 if stable or not history.ends else history.waits + 1
    after = RestartHistory(
        deaths=recent[-max(KEPT, policy.max_restarts + 1) :],
        streak=streak[-max(KEPT, policy.max_unstable + 1) :],
        ends=history.ends + 1,
        waits=waits,
    )
    what = f"{cause} after {uptime:.1f} s"
    if 0 < policy.max_restarts < len(recent):
        reason = (
            f"{what}: this would be restart {len(recent)} within {format_duration(policy.within)}, "
            f"over max_restarts {policy.max_restarts}"
        )
        return after, Verdict("fail", 0.0, reason)
    if 0 < policy.max_unstable < len(streak):
        reason = (
            f"{what}: this would be restart {len(streak)} in a row without a stable period of "
            f"{format_duration(policy.stable_after)}, over max_unstable {policy.max_unstable}"
        )
        return after, Verdict("fail", 0.0, reason)
    wait = delay(policy, waits, unit)
    if stable:
        why = f"at once, since it ran for stable_after {format_duration(policy.stable_after)}"
    elif waits == 0:
        why = "at once, as its first restart"
    else:
        why = f"in {wait:.1f} s, restart {waits + 1} without a stable period"
    tally = f"{len(recent)} within {format_duration(policy.within)}"
    bound = f" of max_restarts {policy.max_restarts}" if policy.max_restarts else ""
    once = ", deaths charged to one item counted once" if blamed is not None else ""
    return after, Verdict("restart", wait, f"{what}: restarted {why} ({tally}{bound}{once})")


def delay(policy: RestartSettings, waits: int, unit: float) -> float:
    """The wait in seconds after `waits` - 1 others since the last immediate restart; `unit` in [0, 1) is its jitter."""
    if waits == 0 or policy.base_delay <= 0:
        return 0.0
    full = min(policy.base_delay, policy.max_delay)
    if policy.multiplier > 1 and full < policy.max_delay:
        # By logarithms, since a worker that is never given up would bring the plain power to overflow.
        steps = math.log(policy.max_delay / policy.base_delay) / math.log(policy.multiplier)
        full = policy.max_delay
        if waits - 1 < steps:
            full = min(full, policy.base_delay * policy.multiplier ** (waits - 1))
    return full / 2 + unit * full / 2


def _within(deaths: tuple[Death, ...], span: float, now: float) -> tuple[Death, ...]:
    return tuple(death for death in deaths if now < death.time + span)


def _with(deaths: tuple[Death, ...], death: Death) -> tuple[Death, ...]:
    """Add a death, in the place of an earlier one charged to the same item."""
    others = deaths if death.item is None else tuple(other for other in deaths if other.item != death.item)
    return (*others, death)
