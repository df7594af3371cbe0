"""What is told of how everything stands: the answer to `status`, and systemd's line."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from scraper_supervisor import __version__
from scraper_supervisor.core.snapshot import Daemon, snapshot
from scraper_supervisor.daemon.telling.log import utc_now

if TYPE_CHECKING:
    from collections.abc import Callable

    from scraper_supervisor.core.fleet import Fleet
    from scraper_supervisor.daemon.reload import InForce
    from scraper_supervisor.daemon.telling.sinks import Telling
    from scraper_supervisor.daemon.upkeep.threads import Threads

EVENTS_WITHIN: Final = 0.05  # seconds that an answer waits for the event log


class Status:
    """Made from the fleet's state and what the daemon knows of itself.

    Args:
        fleet: what is told of.
        in_force: where its settings are from.
        telling: what the answer shows is in the event log by then.
        turn: has the fleet take what was asked before.
        threads: wait for the event log.
        lines_dropped: tells by worker how many lines it printed that were not kept.
    """

    def __init__(
        self,
        fleet: Fleet,
        in_force: InForce,
        telling: Telling,
        turn: Callable[[], None],
        threads: Threads,
        lines_dropped: Callable[[], dict[str, int]],
    ) -> None:
        self._fleet = fleet
        self._in_force = in_force
        self._telling = telling
        self._turn = turn
        self._threads = threads
        self._lines_dropped = lines_dropped
        self._started_at = utc_now()
        self._started = time.monotonic()

    async def answer(self, names: tuple[str, ...] = ()) -> tuple[bool, Any]:
        """The status; what it shows is in the event log by then, if the disk takes that.

        Args:
            names: workers of which everything is told.
        """
        self._turn()  # what was asked before shows
        status = self._telling.shown(self.document(names))
        await self._threads.run(partial(self._telling.settle, EVENTS_WITHIN))
        return True, status

    def document(self, names: tuple[str, ...] = ()) -> dict[str, Any]:
        """The `status --json` document, as everything stands now."""
        config = self._in_force
        daemon = Daemon(
            os.getpid(),
            __version__,
            self._started_at,
            config.path,
            config.loaded_at,
            config.error,
            time.monotonic(),
            time.time(),
            time.monotonic() - self._started,
            self._lines_dropped(),
        )
        return snapshot(self._fleet, daemon, names)

    def line(self) -> str:
        """One line: the supervisor's state, and the items of all groups' runs that are done and that are left."""
        document = self.document()
        counts = [group["items"] for group in document["groups"]]
        done = sum(items["done"] or 0 for items in counts)
        left = sum(items[state] or 0 for items in counts for state in ("pending", "in_flight", "waiting", "parked"))
        return f"{document['supervisor']['state']}: {done} items done, {left} to do"
