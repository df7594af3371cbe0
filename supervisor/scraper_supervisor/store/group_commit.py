"""How long a commit waits for others to join it, which is the whole art of group commit on a slow disk.

What arrives during a commit goes into the next one. Without waiting, the callers of a slow disk part into two crowds:
while one is being written the other is away, and each commit carries half of them. Those whom the last commit answered
are likely to come back at once; a commit that waits a fraction of its own cost for them joins the crowds for good. On a
fast disk what counts is the cost of a batch, and of two threads that want the interpreter at the same time: there, too,
one crowd is served faster than two. For callers that come singly there is nothing to wait for.
"""

from __future__ import annotations

from typing import Final

SHARE: Final = 0.4  # of what a commit costs may be spent on waiting for its callers
LEAST: Final = 0.001  # seconds that may be, however fast the disk
MOST: Final = 0.005  # seconds
SMOOTHING: Final = 0.2  # weight of the newest commit in the estimate of what one costs


class GroupCommit:
    """Knows the last commits. Times are seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self._cost = 0.0
        self._expected = 0
        self._until = 0.0

    def begin(self, waiting: int, now: float) -> None:
        """A batch is begun, for which so many operations waited while the last one was committed."""
        self._expected += waiting
        self._until = now + min(MOST, max(LEAST, SHARE * self._cost))

    def patience(self, gathered: int, now: float) -> float:
        """How long to wait for a further operation; 0: commit now, as all who are expected have come or time is up."""
        return 0.0 if gathered >= self._expected else max(0.0, self._until - now)

    def committed(self, gathered: int, seconds: float) -> None:
        """A batch of so many operations was committed, which took so long without the waiting."""
        self._cost += SMOOTHING * (seconds - self._cost) if self._cost else seconds
        self._expected = gathered
