#!/usr/bin/env python3
"""Draw the tables of states that are in force: docs/states.md.

Run it after a change of a table in `core/states/`; a test fails while the page is stale.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from scraper_supervisor.core.states.group import GROUP_TABLE, GroupState, GroupTrigger
from scraper_supervisor.core.states.supervisor import SUPERVISOR_TABLE, SupervisorState, SupervisorTrigger
from scraper_supervisor.core.states.worker_life import TABLE, Phase, Trigger

if TYPE_CHECKING:
    from enum import Enum

    from scraper_supervisor.core.states.table import Table

PAGE = Path(__file__).parent.parent / "docs" / "states.md"

HEAD = """\
# The states of a worker, a group and the supervisor

Drawn by `scripts/draw_states.py` from the tables in force; do not edit. Every cell is written down in the code. One
that shows a dot leaves the state as it is: the trigger is stale there, or already being obeyed.
"""
WORKER = """\
## A worker

From `core/states/worker_life.py`. `status` shows *spawning* as starting: there is no process yet, while from
*starting* on a hello is owed. One clock runs at a time: to the hello (`start_timeout`), to the end of a drain or after
goodbye (`stop_timeout`), to SIGKILL after a SIGTERM (5 s), to the next start in *backoff* (`restart_policy`). A reload
computes it anew.
"""
GROUP = """\
## A group

From `core/states/group.py`. `status` shows *opening* as running: its run is being read from the ledger.
"""
SUPERVISOR = """\
## The supervisor

From `core/states/supervisor.py`. `status` shows starting and running as degraded while the store is in trouble.
"""


def name(state: Enum) -> str:
    """The state's name in the drawing."""
    return state.name.lower()


def drawing(first: Enum, states: type[Enum], triggers: type[Enum], table: Table[Enum, Enum]) -> str:
    """One table as a diagram and as rows."""
    edges: dict[tuple[Enum, Enum], list[str]] = {}
    for state in states:
        for trigger in triggers:
            after = table[state, trigger]
            if after is not state:
                edges.setdefault((state, after), []).append(trigger.value)
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {name(first)}"]
    lines += [f"    {name(before)} --> {name(after)}: {' / '.join(words)}" for (before, after), words in edges.items()]
    lines += ["```", ""]
    lines.append(f"| | {' | '.join(name(state) for state in states)} |")
    lines.append(f"|---|{'---|' * len(states)}")
    for trigger in triggers:
        after_each = ((state, table[state, trigger]) for state in states)
        shown = (name(after) if after is not state else "·" for state, after in after_each)
        lines.append(f"| {trigger.value} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    parts = [
        HEAD,
        WORKER,
        drawing(Phase.STOPPED, Phase, Trigger, TABLE),
        GROUP,
        drawing(GroupState.OPENING, GroupState, GroupTrigger, GROUP_TABLE),
        SUPERVISOR,
        drawing(SupervisorState.STARTING, SupervisorState, SupervisorTrigger, SUPERVISOR_TABLE),
    ]
    return "\n".join(parts)


def main() -> int:
    """Write the page."""
    PAGE.write_text(page())
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
