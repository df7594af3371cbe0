"""Where a group stands, and what leads from there to where. `docs/states.md` is drawn from the table."""

from __future__ import annotations

from enum import Enum
from typing import Final

from scraper_supervisor.core.states.table import STAYS, Table, table


class GroupState(Enum):
    """Where a group stands."""

    OPENING = "opening"  # its run is being read from the ledger
    RUNNING = "running"
    PAUSED = "paused"
    DRAINING = "draining"
    COMPLETED = "completed"
    FAILED = "failed"
    ABORTED = "aborted"
    STOPPED = "stopped"

    __hash__ = object.__hash__  # as of a worker's Phase

    @property
    def public(self) -> str:
        """The state's name in `status`."""
        return "running" if self is GroupState.OPENING else self.value


class GroupTrigger(Enum):
    """What can happen to a group."""

    OPEN = "open"  # its run is asked for
    STAFF = "staff"  # its workers are wanted
    STAFF_PAUSED = "staff, paused"  # they are wanted, and handed nothing
    PAUSE = "pause"
    RESUME = "resume"
    DRAIN = "drain"
    DOWN = "down"  # no worker is up, and none is wanted
    COMPLETE = "complete"  # every item has ended
    FAIL = "fail"  # no worker is able
    ABORT = "abort"
    REOPEN = "reopen"  # it was completed and has items again, but none of its workers is wanted


ENDED = frozenset({GroupState.COMPLETED, GroupState.FAILED, GroupState.ABORTED, GroupState.STOPPED})


_OPENING, _RUNNING, _PAUSED, _DRAINING = (
    GroupState.OPENING, GroupState.RUNNING, GroupState.PAUSED, GroupState.DRAINING,
)  # fmt: skip


_COMPLETED, _FAILED, _ABORTED, _STOPPED = (
    GroupState.COMPLETED, GroupState.FAILED, GroupState.ABORTED, GroupState.STOPPED,
)  # fmt: skip


GROUP_TABLE: Final[Table[GroupState, GroupTrigger]] = table(
    GroupTrigger,
    (_OPENING, _RUNNING, _PAUSED, _DRAINING, _COMPLETED, _FAILED, _ABORTED, _STOPPED),
    {
        GroupTrigger.OPEN: (STAYS, _OPENING, _OPENING, _OPENING, _OPENING, _OPENING, _OPENING, _OPENING),
        GroupTrigger.STAFF: (_RUNNING, STAYS, _RUNNING, _RUNNING, _RUNNING, _RUNNING, _RUNNING, _RUNNING),
        GroupTrigger.STAFF_PAUSED: (_PAUSED, _PAUSED, STAYS, _PAUSED, _PAUSED, _PAUSED, _PAUSED, _PAUSED),
        GroupTrigger.PAUSE: (STAYS, _PAUSED, STAYS, STAYS, STAYS, STAYS, STAYS, STAYS),
        GroupTrigger.RESUME: (STAYS, STAYS, _RUNNING, STAYS, STAYS, STAYS, STAYS, STAYS),
        GroupTrigger.DRAIN: (STAYS, _DRAINING, _DRAINING, STAYS, STAYS, STAYS, STAYS, STAYS),
        GroupTrigger.DOWN: (_STOPPED, _STOPPED, _STOPPED, _STOPPED, STAYS, STAYS, STAYS, STAYS),
        GroupTrigger.COMPLETE: (_COMPLETED, _COMPLETED, _COMPLETED, _COMPLETED, STAYS, STAYS, STAYS, STAYS),
        GroupTrigger.FAIL: (STAYS, _FAILED, _FAILED, STAYS, STAYS, STAYS, STAYS, STAYS),
        GroupTrigger.REOPEN: (STAYS, STAYS, STAYS, STAYS, _STOPPED, STAYS, STAYS, STAYS),
        GroupTrigger.ABORT: (_ABORTED, _ABORTED, _ABORTED, _ABORTED, STAYS, STAYS, STAYS, STAYS),
    },
)
