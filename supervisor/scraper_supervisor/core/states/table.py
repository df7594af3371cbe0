"""Tables of states and triggers in which every cell is written down.

A cell that says STAYS was thought of and changes nothing; a cell that is missing is an error at import. The pages in
docs/ are drawn from these tables.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

StateT = TypeVar("StateT", bound=Enum)
TriggerT = TypeVar("TriggerT", bound=Enum)
Table: TypeAlias = "Mapping[tuple[StateT, TriggerT], StateT]"

STAYS: Final = None
"""The trigger is stale in this state, or being obeyed already."""


def table(
    triggers: type[TriggerT], states: Sequence[StateT], rows: Mapping[TriggerT, Sequence[StateT | None]]
) -> Table[StateT, TriggerT]:
    """The state that follows each state upon each trigger.

    Args:
        triggers: everything that can happen.
        states: the columns, every state once.
        rows: for each trigger a cell for each column: the next state, or STAYS.

    Raises:
        ValueError: a state, a trigger or a cell is missing.
    """
    if set(states) != set(type(states[0])) or set(rows) != set(triggers):
        raise ValueError(f"the table of {triggers.__name__} does not name every state and every trigger")
    return {
        (state, trigger): state if cell is None else cell  # it STAYS
        for trigger, cells in rows.items()
        for state, cell in zip(states, cells, strict=True)
    }
