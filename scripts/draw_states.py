#!/usr/bin/env python3
"""Draw a worker's life from the table that is in force: docs/worker-states.md.

Run it after a change of `core/worker.py`; a test fails while the page is stale.
"""

from __future__ import annotations

import sys
from pathlib import Path

from scraper_supervisor.core.worker import TABLE, Phase, Trigger

PAGE = Path(__file__).parent.parent / "docs" / "worker-states.md"

HEAD = """\
# A worker's life

Drawn by `scripts/draw_states.py` from the table in `core/worker.py`; do not edit. A cell that shows a dot leaves the
phase as it is: the word is stale, or already being obeyed. *starting* has two phases: before there is a process
(`spawning`) and from then to hello (`starting`).

"""


def name(phase: Phase) -> str:
    """The phase's name in the drawing."""
    return phase.name.lower()


def page() -> str:
    """The whole page."""
    edges: dict[tuple[Phase, Phase], list[str]] = {}
    for (phase, trigger), after in TABLE.items():
        if after is not phase:
            edges.setdefault((phase, after), []).append(trigger.value)
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {name(Phase.STOPPED)}"]
    lines += [
        f"    {name(before)} --> {name(after)}: {' / '.join(triggers)}" for (before, after), triggers in edges.items()
    ]
    lines += ["```", ""]
    lines.append(f"| | {' | '.join(name(phase) for phase in Phase)} |")
    lines.append(f"|---|{'---|' * len(Phase)}")
    for trigger in Trigger:
        cells = (TABLE[phase, trigger] for phase in Phase)
        shown = (name(after) if after is not phase else "·" for phase, after in zip(Phase, cells, strict=True))
        lines.append(f"| {trigger.value} | {' | '.join(shown)} |")
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page())
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
