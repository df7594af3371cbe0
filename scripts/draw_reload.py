#!/usr/bin/env python3
"""Draw what a reload does with each key of the configuration, from the table that is in force: docs/reload.md.

Run it after a change of `core/config/uses.py`; a test fails while the page is stale.
"""

from __future__ import annotations

import sys
from pathlib import Path

from scraper_supervisor.core.config.settings import NAMED_TABLES, TABLES
from scraper_supervisor.core.config.uses import REFUSED, USES

PAGE = Path(__file__).parent.parent / "docs" / "reload.md"

HEAD = """\
# What a reload does with each key

Drawn by `scripts/draw_reload.py` from the table in `core/config/uses.py`; do not edit. `reload` (or SIGHUP) takes the
whole new file or nothing of it. Groups that are new start, groups that are gone drain. A key that is not used by this
version yet is checked all the same, and `check` warns of it where it is set. Keys that count for the whole host have no
effect in a group's `resources`, and a group's `abort` is not used by this version yet.

| key | a change |
|---|---|
"""


def page() -> str:
    """The whole page."""
    titles = {"workers": "workers.NAME", "retry": "retry.NAME", "targets": 'targets."HOST"'}
    rows = []
    for table in (*NAMED_TABLES, *TABLES):
        for key, use in USES[table].items():
            name = "count, the upper end of a range" if key == "count_max" else key
            notes = [f"takes effect {use.change.how}" if use.change.effect == "in place" else use.change.how]
            if use.doubt is not None and use.change is REFUSED:
                notes.append(use.doubt)
            if use.host:
                notes.append("counts for the whole host")
            rows.append(f"| `[{titles.get(table, table)}]` {name} | {'; '.join(notes)} |\n")
    return HEAD + "".join(rows)


def main() -> int:
    """Write the page."""
    PAGE.write_text(page())
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
