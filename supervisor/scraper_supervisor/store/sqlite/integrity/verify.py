"""Finds out whether a ledger is sound: its pages, log, seal and results, and whether its tables say the same."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from scraper_supervisor.store.sqlite.integrity import wal_check as wal
from scraper_supervisor.store.sqlite.integrity.seal import broken_seal

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

_CHUNK: Final = 1_000  # results read at once, each time a view of its own
_RESULTS: Final = (
    "SELECT results.seq, CAST(result AS BLOB), sha256, results.attempts, items.run_id, items.seq, items.state,"
    " items.attempts FROM results LEFT JOIN items ON items.id = item_id"
    f" WHERE results.run_id = ? AND results.seq > ? ORDER BY results.seq LIMIT {_CHUNK}"
)
# One pass over the rows: by the index of run and key each of them would be looked up. SQLite checks no CHECK where it
# has a file open for reading only: states and outcomes are looked at here.
_COUNTS: Final = (
    "SELECT run_id, state, not_before IS NOT NULL, CASE state WHEN 'done' THEN worker END, count(*), count(seq),"
    " coalesce(sum(last_outcome NOT IN ('done', 'failed', 'retry', 'open')), 0)"
    " FROM items NOT INDEXED GROUP BY 1, 2, 3, 4"
)
_STATES: Final = frozenset({"open", "parked", "done", "failed"})
_TABLES: Final = (
    "groups", "runs", "items", "results", "lanes", "totals", "intents", "probes", "restores", "imported_states",
    "used_runs",
)  # fmt: skip
_LANES: Final = (
    "SELECT run_id, target, count(*) FROM items WHERE state = 'open' AND not_before IS NULL GROUP BY run_id, target"
)


class _Run(Struct):
    name: str
    done: int
    failed: int
    parked: int
    waiting: int


def find_damage(path: Path, db: sqlite3.Connection, *, quick: bool = False) -> str | None:
    """Read the whole ledger; tells what is wrong, None if nothing is. A daemon may be writing to it.

    No view of it is held for longer than one pass over a table takes: the writer's log can shrink meanwhile.

    Args:
        path: The file.
        db: A connection to it that is in no transaction.
        quick: Leave out the results' checksums and whether indexes fit: what takes the interpreter's time, and most of
            it.

    Raises:
        OSError: The disk does not give it.
    """
    try:
        # The seal last: what another finds says more.
        found = wal.first_bad(path) or _broken_pages(db, "quick_check" if quick else "integrity_check")
        found = found or _broken_types(db)  # before anything is made of the values
        if not quick:
            found = found or _broken_results(db)
        return found or _broken_counts(db) or broken_seal(path)
    except sqlite3.DatabaseError as error:
        return f"SQLite finds: {error}"
    except UnicodeDecodeError:  # of SQLite's message, which quotes a damaged schema
        return "its schema is damaged"


def _broken_pages(db: sqlite3.Connection, check: str) -> str | None:
    ((found,),) = db.execute(f"PRAGMA {check}(1)").fetchall()
    return None if found == "ok" else f"SQLite finds: {found}"


def _broken_types(db: sqlite3.Connection) -> str | None:
    """Values of a type that their column never has.

    A row's header tells the types, and one changed byte of it makes another value that SQLite finds nothing wrong with:
    it holds a table to its declared types only as values are written. Of each value the header alone is read.
    """
    for table in _TABLES:  # one that the ledger does not have has no columns
        columns = db.execute(f"PRAGMA table_info({table})").fetchall()
        wrong = " OR ".join(_is_of_other_type(*column) for column in columns)
        if wrong and db.execute(f"SELECT 1 FROM {table} NOT INDEXED WHERE {wrong} LIMIT 1").fetchone() is not None:
            return f"a row of {table} has a value of a type that it can't have"
    return None


def _is_of_other_type(_at: int, column: str, declared: str, required: int, _default: object, key: int) -> str:
    """A condition, of a row that `PRAGMA table_info` gives for a column."""
    is_other = f"typeof({column}) != '{declared.lower()}'"
    return is_other if required or key else f"{column} IS NOT NULL AND {is_other}"


def _broken_results(db: sqlite3.Connection) -> str | None:
    """Results that are not what was stored, or not those of the items that are done."""
    for run_id, run in _runs(db).items():
        reason = _broken_results_of(db, run_id)
        if reason is not None and run_id in _runs(db):  # else it is being removed
            return f"{run.name}: {reason}"
    return None


def _broken_results_of(db: sqlite3.Connection, run_id: int) -> str | None:
    last = 0
    while rows := db.execute(_RESULTS, (run_id, last)).fetchall():
        for seq, result, sha256, attempts, *item in rows:
            if seq != last + 1:
                return f"result {last + 1} is missing"
            if hashlib.sha256(result).hexdigest() != sha256:
                return f"the checksum of result {seq} does not fit"
            if item != [run_id, seq, "done", attempts]:
                return f"result {seq} is not the one of its item"
            last = seq
    return None


def _broken_counts(db: sqlite3.Connection) -> str | None:
    """Counts that are not those of the rows; all of it is one view."""
    with _view(db):
        runs = _runs(db)
        counted = {run_id: _Run(run.name, 0, 0, 0, 0) for run_id, run in runs.items()}
        workers: defaultdict[int, dict[str, int]] = defaultdict(dict)
        for run_id, state, timed, worker, count, numbered, unknown in db.execute(_COUNTS):
            run = counted.get(run_id)
            if run is None:
                continue
            if unknown or state not in _STATES:
                return f"{run.name}: {unknown or count} items have a state or an outcome that there is not"
            if numbered != (count if state == "done" else 0):
                return f"{run.name}: {abs(count - numbered)} items are {state} and have no result, or the reverse"
            if state == "done":
                run.done += count
                workers[run_id][worker] = count
            elif state != "open":
                setattr(run, state, getattr(run, state) + count)
            elif timed:
                run.waiting += count
        for run_id, run in runs.items():
            if counted[run_id] != run:
                return f"{run.name}: the items are {_tell(counted[run_id])}, and counted as {_tell(run)}"
        results = dict(db.execute("SELECT run_id, count(*) FROM results GROUP BY run_id"))
        lanes, told_lanes = _by_run(db, _LANES), _by_run(db, "SELECT run_id, target, open FROM lanes WHERE open != 0")
        told_workers = _by_run(db, "SELECT run_id, worker, done FROM totals WHERE done != 0")
        for run_id, run in runs.items():
            if results.get(run_id, 0) != run.done:
                return f"{run.name}: {run.done} items are done, and there are {results.get(run_id, 0)} results"
            if lanes.get(run_id) != told_lanes.get(run_id):
                return f"{run.name}: the counts of its targets are not those of its items"
            if workers.get(run_id) != told_workers.get(run_id):
                return f"{run.name}: the counts of its workers are not those of its items"
    return None


def _runs(db: sqlite3.Connection) -> dict[int, _Run]:
    """What the ledger tells of each run, those being removed left out."""
    rows = db.execute(
        "SELECT runs.id, name, run, done, failed, parked, waiting FROM runs JOIN groups ON groups.id = group_id"
        " WHERE NOT removed"
    )
    return {run_id: _Run(f"run {run} of {name}", *counts) for run_id, name, run, *counts in rows.fetchall()}


def _by_run(db: sqlite3.Connection, query: str) -> dict[int, dict[Any, int]]:
    found: defaultdict[int, dict[Any, int]] = defaultdict(dict)
    for run_id, name, count in db.execute(query):
        found[run_id][name] = found[run_id].get(name, 0) + count
    return found


def _tell(run: _Run) -> str:
    return f"{run.done} done, {run.failed} failed, {run.parked} parked, {run.waiting} waiting"


@contextlib.contextmanager
def _view(db: sqlite3.Connection) -> Generator[None]:
    db.execute("BEGIN")
    try:
        yield
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
