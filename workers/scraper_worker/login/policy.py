"""When to log in, when to try an item again, and when to give up: decisions alone, of what happened and the time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from scraper_worker.protocol import RestartDelays

GIVE_UP_AFTER: Final = 5  # logins in a row that did not succeed

Answer = Literal["again", "fail"]


class LoginPolicy(Struct):
    """How it stands with a worker's session.

    Attributes:
        has_session: there is one, as far as is known; else a login comes before the next try.
        epoch: how many logins have succeeded. A try remembers in which epoch it began.
        proven: an item was done since the last login.
        failures: logins in a row that raised, or after which no item was done before the next one.
        not_before: when the next login may be tried, by the caller's clock.
    """

    has_session: bool = False
    epoch: int = 0
    proven: bool = True
    failures: int = 0
    not_before: float = 0.0

    def expired(self, epoch: int, before: int) -> Answer:
        """A try raised SessionExpired.

        Args:
            epoch: in which it began.
            before: how many tries of the same claim raised it before.

        Returns:
            "again": the item is tried again, after a login unless there was one since the try began. "fail": the item
            itself fails.
        """
        if before:
            return "fail"
        if epoch == self.epoch:
            self.has_session = False
        return "again"

    def done(self, epoch: int) -> None:
        """An item was done by a try that began in `epoch`: if that is the present one, its login was good."""
        if epoch == self.epoch:
            self.proven = True
            self.failures = 0

    def succeeded(self) -> None:
        """A login came to its end."""
        self.has_session, self.proven = True, False
        self.epoch += 1

    @property
    def in_vain(self) -> bool:
        """Whether the last login has to count as one that failed, now that another is wanted."""
        return not self.proven

    def failed(self, now: float, delays: RestartDelays) -> bool:
        """A login raised, or turns out to have been in vain.

        Args:
            now: the time.
            delays: how the waits grow, as those between restarts.

        Returns:
            Whether that was the last one: the worker is to give up.
        """
        self.proven = True  # it has counted
        self.failures += 1
        self.not_before = now + delays.after(self.failures)
        return self.failures >= GIVE_UP_AFTER
