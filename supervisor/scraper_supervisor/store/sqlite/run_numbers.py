"""Which number a new run gets: one that no run of its group had, those included that a restored ledger does not know.

A worker's checkpoints tell their run, and its mark the last fresh one: were a number given again, a run that is fresh
would go on from the states of the other one that had it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from scraper_supervisor.core.formats import checkpoint_file as sealed
from scraper_supervisor.core.formats.checkpoint_file import Damaged, TooNew
from scraper_supervisor.store.files import Files, NotAFile
from scraper_supervisor.store.states.generation_mark import read_mark
from scraper_supervisor.store.states.reading import FOLDER
from scraper_worker.protocol import is_slot

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# Made by the first restore: a ledger that never was needs none, and its schema version stays what it is.
_TABLE: Final = "CREATE TABLE IF NOT EXISTS used_runs (name TEXT PRIMARY KEY, run INTEGER NOT NULL) WITHOUT ROWID"


def note_used(db: sqlite3.Connection, used: Mapping[str, int]) -> None:
    """Have later runs get higher numbers than these, by group; the group need not have a run.

    Raises:
        sqlite3.Error: SQLite refused.
    """
    db.execute(_TABLE)
    db.executemany(
        "INSERT INTO used_runs (name, run) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET run = max(run, excluded.run)",
        sorted(used.items()),
    )


def next_number(cursor: sqlite3.Cursor, group: str, newest: int) -> int:
    """The number of a group's next run.

    Args:
        cursor: The transaction's.
        group: Its name.
        newest: The number of its newest run; 0 if it has none.

    Raises:
        sqlite3.Error: SQLite refused.
    """
    has_table = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'used_runs'"
    if cursor.execute(has_table).fetchone() is None:
        return newest + 1
    row = cursor.execute("SELECT run FROM used_runs WHERE name = ?", (group,)).fetchone()
    return max(newest, 0 if row is None else row[0]) + 1


def told_by_states(state_dir: Path) -> dict[str, int]:
    """The highest run of each group that its workers' checkpoints and marks tell of.

    All of them are read; one that is damaged, or that the disk does not give, tells of none.

    Raises:
        OSError: The folder of all workers cannot be read.
    """
    files, highest = Files(), dict[str, int]()
    for worker in files.folders(state_dir / FOLDER):
        group, folder = worker.rpartition("-")[0], state_dir / FOLDER / worker
        highest[group] = max([highest.get(group, 0), *_runs(files, worker, folder)])
        with contextlib.suppress(OSError):
            for slot in filter(is_slot, files.folders(folder)):
                highest[group] = max([highest[group], *_runs(files, worker, folder / slot)])
    return highest


def _runs(files: Files, worker: str, folder: Path) -> Iterator[int]:
    with contextlib.suppress(Damaged, OSError):
        mark = read_mark(files, folder)
        if mark is not None:
            yield mark.fresh_from
    with contextlib.suppress(OSError):
        for file in sealed.newest_first(files.names(folder)):
            with contextlib.suppress(Damaged, TooNew, NotAFile, OSError):
                yield sealed.unseal_file(file, worker, files.read(folder / file.name)).header.run
