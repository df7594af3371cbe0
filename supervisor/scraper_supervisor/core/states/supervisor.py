"""Where the supervisor stands, and what leads from there to where. `docs/states.md` is drawn from the table."""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Final

from scraper_supervisor.core.states.table import STAYS, Table, table


class SupervisorState(StrEnum):
    """Where the supervisor stands; `status` adds "degraded" where its storage is in trouble."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    ABORTING = "aborting"
    ABORTED = "aborted"


class SupervisorTrigger(Enum):
    """What can happen to the supervisor."""

    OPENED = "opened"  # the ledger answered with every group's run
    TERMINATE = "terminate"
    ABORT = "abort"  # the policy aborted everything
    HOLD = "hold"  # the abort is executed, and on_abort says to stay
    CLEAR = "clear"  # an operator gives it another chance


_UP, _AWAY = SupervisorState.RUNNING, SupervisorState.DRAINING


_ENDING, _HELD = SupervisorState.ABORTING, SupervisorState.ABORTED


SUPERVISOR_TABLE: Final[Table[SupervisorState, SupervisorTrigger]] = table(
    SupervisorTrigger,
    (SupervisorState.STARTING, _UP, _AWAY, _ENDING, _HELD),
    {
        SupervisorTrigger.OPENED: (_UP, STAYS, STAYS, STAYS, STAYS),
        SupervisorTrigger.TERMINATE: (_AWAY, _AWAY, STAYS, _AWAY, _AWAY),
        SupervisorTrigger.ABORT: (_ENDING, _ENDING, STAYS, STAYS, STAYS),
        SupervisorTrigger.HOLD: (STAYS, _HELD, STAYS, _HELD, STAYS),
        SupervisorTrigger.CLEAR: (STAYS, STAYS, STAYS, _UP, _UP),
    },
)
