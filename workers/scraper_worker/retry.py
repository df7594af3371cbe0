"""When a failed attempt is tried again: a policy and a failure in, a verdict with its reason out.

Pure: the clock and the dice are the caller's. The supervisor's queue and the SDK's `retry(...)` decide by this code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from msgspec import Struct

if TYPE_CHECKING:
    from scraper_worker.protocol import Failure

Jitter: TypeAlias = Literal["full", "equal", "none"]
Action: TypeAlias = Literal["retry", "final"]

MAX_RETRY_AFTER: Final = 3600.0  # seconds; a target that asks for more is asked again after this long


class Verdict(Struct, frozen=True):
    """What becomes of a failed item.

    Args:
        action: "retry" or "final".
        delay: seconds to wait before the next attempt; 0 for a final verdict.
        reason: one sentence with its figures, fit for an operator to read.
    """

    action: Action
    delay: float
    reason: str


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """How often and after what delays an item is tried.

    Args:
        max_attempts: attempts in all, the first included; at least 1.
        base_delay: seconds before the first retry.
        multiplier: growth of the delay from one retry to the next; at least 1.
        max_delay: seconds that no delay exceeds, a target's own Retry-After aside.
        jitter: "full" draws from 0 up to the delay, "equal" from its upper half, "none" draws nothing.

    Raises:
        ValueError: a figure is out of its range; the message names it.
    """

    max_attempts: int = 5
    base_delay: float = 1.0
    multiplier: float = 2.0
    max_delay: float = 60.0
    jitter: Jitter = "full"

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, not {self.max_attempts}")
        if not self.base_delay >= 0:
            raise ValueError(f"base_delay must not be negative, not {self.base_delay}")
        if not self.multiplier >= 1:
            raise ValueError(f"multiplier must be at least 1, not {self.multiplier}")
        if not self.max_delay >= 0:
            raise ValueError(f"max_delay must not be negative, not {self.max_delay}")
        if self.jitter not in ("full", "equal", "none"):
            raise ValueError(f'jitter must be "full", "equal" or "none", not "{self.jitter}"')

    def delay(self, attempt: int, unit: float) -> float:
        """Seconds to wait after the failure of `attempt`.

        Args:
            attempt: 1-based number of the attempt just made.
            unit: a random number in [0, 1).
        """
        ceiling = self._ceiling(attempt)
        if self.jitter == "full":
            return unit * ceiling
        if self.jitter == "equal":
            return ceiling / 2 + unit * ceiling / 2
        return ceiling

    def _ceiling(self, attempt: int) -> float:
        try:
            return min(self.max_delay, self.base_delay * self.multiplier ** (max(1, attempt) - 1))
        except OverflowError:  # a float's powers end near 1e308; whatever the base, that is beyond max_delay
            return self.max_delay if self.base_delay else 0.0

    def decide(self, failure: Failure, attempt: int, unit: float, *, charged: bool = True) -> Verdict:
        """Whether, when and why an item is tried again.

        Args:
            failure: how the attempt failed.
            attempt: 1-based number of the attempt just made.
            unit: a random number in [0, 1).
            charged: whether the failure costs an attempt; one that costs none is retried however many there were.
        """
        if failure.kind == "permanent":
            return Verdict("final", 0.0, f"{failure.signature} is permanent: not tried again after attempt {attempt}")
        if charged and attempt >= self.max_attempts:
            return Verdict(
                "final", 0.0, f"{failure.signature} on attempt {attempt} of {self.max_attempts}, the last one"
            )
        delay = self.delay(attempt, unit)
        count = f"attempt {attempt} of {self.max_attempts}" if charged else f"attempt {attempt}, at no cost"
        asked = min(failure.retry_after or 0.0, MAX_RETRY_AFTER)
        if asked > delay:
            return Verdict("retry", asked, f"{failure.signature} on {count}: the target asked for {asked:.1f} s")
        return Verdict("retry", delay, f"{failure.signature} on {count}: tried again in {delay:.1f} s")
