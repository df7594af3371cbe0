"""Notices that the loop did not run: it was stopped, the host was paused, or a step took its time."""

from __future__ import annotations

from typing import Final

BEAT: Final = 0.25  # seconds between two beats while the loop runs
GAP: Final = 0.5  # seconds over that from which on it did not


class Pulse:
    """When the loop was last seen to run.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self._last = now

    def beat(self, now: float) -> float | None:
        """The loop runs. Since when it did not, in monotonic seconds; None is usual."""
        since, self._last = self._last, now
        return since if now - since >= BEAT + GAP else None
