"""What becomes of an item whose attempt failed: charged or free, tried again or final."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec import Struct

from scraper_worker.protocol import Failure
from scraper_worker.retry import RetryPolicy

if TYPE_CHECKING:
    from scraper_supervisor.core.config.settings import RetrySettings
    from scraper_supervisor.core.queue.item import Item
    from scraper_worker.protocol import Kind

FREE_INFRASTRUCTURE: Final = 3  # failures of browser or driver that cost an item no attempt
FREE_BLOCKED: Final = 20  # refusals by the target with a time to come back that cost an item no attempt


class RetryDecision(Struct, frozen=True):
    """`attempts`, `infrastructure` and `blocked` are the item's counts from now on; `delay` is seconds."""

    action: Literal["retry", "final"]
    delay: float | None
    reason: str
    attempts: int
    infrastructure: int
    blocked: int
    failure: Failure


@lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def reclassify(failure: Failure, settings: RetrySettings) -> Failure:
    """The failure as the operator's patterns and statuses see it; they come before what the worker said."""
    text = f"{failure.signature}\n{failure.message}"
    kind: Kind = failure.kind
    if failure.status is not None and failure.status in settings.permanent_status:
        kind = "permanent"
    elif failure.status is not None and failure.status in settings.retryable_status:
        kind = "transient"
    elif any(_pattern(pattern).search(text) for pattern in settings.permanent_patterns):
        kind = "permanent"
    elif any(_pattern(pattern).search(text) for pattern in settings.transient_patterns):
        kind = "transient"
    return failure if kind == failure.kind else msgspec.structs.replace(failure, kind=kind)


def decide_retry(
    item: Item, failure: Failure, settings: RetrySettings, unit: float, *, spared: bool = False
) -> RetryDecision:
    """What becomes of an item after this failure.

    Args:
        item: its counts so far.
        failure: how the attempt failed.
        settings: the group's retry policy.
        unit: in [0, 1), places the delay within its jitter.
        spared: that its browser was lost is the supervisor's doing, for another item: it uses none of its free tries.
    """
    failure = reclassify(failure, settings)
    infrastructure, blocked, attempts = item.infrastructure, item.blocked, item.attempts
    if failure.kind == "infrastructure" and spared:
        charged = False
    elif failure.kind == "infrastructure" and infrastructure < FREE_INFRASTRUCTURE:
        infrastructure += 1
        charged = False
    elif failure.kind == "blocked" and failure.retry_after is not None and blocked < FREE_BLOCKED:
        blocked += 1
        charged = False
    else:
        attempts += 1
        charged = True
    policy = RetryPolicy(
        max_attempts=settings.max_attempts,
        base_delay=settings.base_delay,
        multiplier=settings.multiplier,
        max_delay=settings.max_delay,
        jitter=settings.jitter,
    )
    verdict = policy.decide(failure, item.attempts + 1, unit, charged=charged)
    delay = verdict.delay if verdict.action == "retry" else None
    return RetryDecision(verdict.action, delay, verdict.reason, attempts, infrastructure, blocked, failure)
