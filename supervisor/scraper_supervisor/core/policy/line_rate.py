"""How much of what a worker prints is kept: `lines_per_second`, with a second's worth at once.

Over that, all is dropped until half a second's worth is there again, so that a flood is told as a few gaps and not as
one for each line.
"""

from __future__ import annotations

from typing import Final

LINE_COSTS: Final = 1024  # bytes; a longer line counts as several


class LineRate:
    """One worker's share.

    Args:
        rate: lines per second.
        now: monotonic seconds.

    Attributes:
        rate: may be changed at any time.
        dropped: how many lines were not kept, since the beginning.
    """

    def __init__(self, rate: int, now: float) -> None:
        self.rate = rate
        self.dropped = 0
        self._tokens = float(rate)
        self._at = now
        self._open = True

    def allowed(self, now: float) -> int:
        """How many lines may be kept now."""
        self._tokens = min(float(self.rate), self._tokens + max(0.0, now - self._at) * self.rate)
        self._at = max(self._at, now)
        if not self._open and self._tokens >= max(1.0, self.rate / 2):
            self._open = True
        return max(0, int(self._tokens)) if self._open else 0

    def kept(self, size: int) -> None:
        """A line of so many bytes was kept."""
        self._tokens -= 1 + size // LINE_COSTS

    def drop(self, lines: int) -> None:
        """So many lines were not kept."""
        self.dropped += lines
        self._open = False
