"""How well the supervisor keeps the scraper going: `slo` of `status --json`. What is unknown is None, never 0."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable

KEPT: Final = 10_000
"""Recoveries and checkpoints that the percentiles are taken over: the latest."""

UNWANTED: Final = frozenset({"paused", "draining", "completed", "stopped", "held"})
"""States in which nobody expects a worker to run. In every other one but `running`, its time counts as lost."""


class Recovery(Struct, frozen=True):
    """A loss followed by progress. `seconds` run from its detection to the next claim or done."""

    worker: str
    what: str
    seconds: float


class SloView(Struct, frozen=True):
    """The figures as `status --json` has them; percentiles are taken over the latest 10,000."""

    availability: float | None
    recoveries: int
    recovery_p90_seconds: float | None
    recovery_max_seconds: float | None
    checkpoint_p99_seconds: float | None
    items_lost: int | None


class _Lost(Struct, frozen=True):
    what: str
    since: float


class Slo:
    """Adds up the workers' time and recoveries. Times are monotonic seconds; only living workers are remembered."""

    def __init__(self) -> None:
        self._states: dict[str, tuple[str, float]] = {}
        self._running = 0.0
        self._wanted = 0.0
        self._lost: dict[str, _Lost] = {}
        self._recoveries = 0
        self._longest: float | None = None
        self._recovery_seconds: deque[float] = deque(maxlen=KEPT)
        self._checkpoint_seconds: deque[float] = deque(maxlen=KEPT)
        self._items_lost: int | None = None

    def state(self, worker: str, state_name: str, now: float) -> None:
        """Note a worker's state, by its public name, or `held` where an abort keeps it from its items.

        A loss still open when the worker is no longer wanted never becomes a recovery: the time until somebody wants
        it again would say nothing about the supervisor.
        """
        self._add_up(worker, now)
        if state_name in UNWANTED:
            self._states.pop(worker, None)
            self._lost.pop(worker, None)
        else:
            self._states[worker] = (state_name, now)

    def forget(self, worker: str, now: float) -> None:
        """The worker was removed from the configuration; its time so far stays counted."""
        self.state(worker, "stopped", now)

    def lost(self, worker: str, what: str, now: float) -> None:
        """Note that a loss was detected: `what` is "death", "hang" or "browser". One already open goes on."""
        self._lost.setdefault(worker, _Lost(what, now))

    def progress(self, worker: str, now: float) -> Recovery | None:
        """Note a claim or a done; the recovery, if a loss was open."""
        lost = self._lost.pop(worker, None)
        if lost is None:
            return None
        seconds = max(0.0, now - lost.since)
        self._recoveries += 1
        self._recovery_seconds.append(seconds)
        self._longest = seconds if self._longest is None else max(self._longest, seconds)
        return Recovery(worker, lost.what, seconds)

    def checkpoint(self, seconds: float) -> None:
        """Note how long a checkpoint took from its receipt until it was durable."""
        self._checkpoint_seconds.append(seconds)

    def items(self, lost: int) -> None:
        """Note how many acknowledged items a check of the ledger missed, in all; unknown before the first check."""
        self._items_lost = lost

    def view(self, now: float) -> SloView:
        """The figures up to `now`."""
        for worker in self._states:
            self._add_up(worker, now)
        return SloView(
            availability=self._running / self._wanted if self._wanted > 0 else None,
            recoveries=self._recoveries,
            recovery_p90_seconds=percentile(self._recovery_seconds, 0.90),
            recovery_max_seconds=self._longest,
            checkpoint_p99_seconds=percentile(self._checkpoint_seconds, 0.99),
            items_lost=self._items_lost,
        )

    def _add_up(self, worker: str, now: float) -> None:
        known = self._states.get(worker)
        if known is None:
            return
        name, since = known
        elapsed = max(0.0, now - since)
        self._wanted += elapsed
        if name == "running":
            self._running += elapsed
        self._states[worker] = (name, max(now, since))


def percentile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that at least this share (0 < share <= 1) of all values does not exceed; None without any."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
