"""Runs that are imported: filled in steps while nobody sees them, then made the newest of their group at once.

Until it is finished, such a run has `removed` = 2 and a number below 1, so that whatever looks for a group's runs
passes it by; an older version of this program removes it like any other removed run. Its times are those of the import,
since a group's runs follow each other in time. The workers' states wait in a table of their own until they are
checkpoints: a crash in between loses none.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, assert_never

from msgspec import UNSET, Raw

from scraper_supervisor.core.formats import run_export as portable
from scraper_supervisor.core.formats.run_export import NotPortable, PortableItem, Record, RunHeader, WorkerState
from scraper_supervisor.core.formats.timestamps import seconds, timestamp
from scraper_supervisor.core.ops.import_ops import (
    DropState,
    ImportBegin,
    ImportDrop,
    Imported,
    ImportFinish,
    ImportLines,
    ImportOp,
    StateTaken,
    TakeState,
)
from scraper_supervisor.core.ops.run_ops import WorkerTotals
from scraper_supervisor.store.sqlite.run_numbers import next_number

if TYPE_CHECKING:
    from collections.abc import Iterable

IMPORTING: Final = 2  # runs.removed of a run that is being imported

# Made when it is first wanted: a ledger without imports needs none, and its schema version stays what it is.
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS imported_states (run_id INTEGER NOT NULL, worker TEXT NOT NULL, schema TEXT NOT NULL,"
    " state TEXT NOT NULL, PRIMARY KEY (run_id, worker))"
)
_ITEM: Final = (
    "INSERT INTO items (run_id, key, target, data, rank, ord, state, not_before, attempts, infrastructure, blocked,"
    " alone, last_failure, worker, seq, given)"
    " VALUES (?, ?, ?, CAST(? AS TEXT), ?, ?, ?, ?, ?, ?, ?, ?, CAST(? AS TEXT), ?, ?, ?)"
)
_RESULT: Final = (
    "INSERT INTO results (run_id, seq, item_id, result, sha256, attempts, finished_at)"
    " VALUES (?, ?, ?, CAST(? AS TEXT), ?, ?, ?)"
)
_TOTALS: Final = (
    "INSERT INTO totals (run_id, worker, done, failed) VALUES (?, ?, ?, ?) ON CONFLICT (run_id, worker)"
    " DO UPDATE SET done = done + excluded.done, failed = failed + excluded.failed"
)
_STATES: Final = {"pending": "open", "waiting": "open"}  # in the ledger, of those that are called otherwise there
_NULL: Final = b"null"
# The runs whose states a run goes on from: its own, and those of its group before it that are not fresh since.
_OWING: Final = (
    "SELECT older.id FROM runs AS older JOIN runs AS this ON older.group_id = this.group_id"
    " WHERE this.id = ? AND NOT older.removed AND older.run BETWEEN this.fresh_from AND this.run"
)


def perform(cursor: sqlite3.Cursor, op: ImportOp, now: float) -> Imported | StateTaken | None:
    """Carry out one operation in a transaction that has begun.

    Args:
        cursor: The transaction's.
        op: What to do.
        now: Wall-clock seconds.

    Raises:
        sqlite3.Error: SQLite refused; the transaction is to be rolled back.
    """
    execute = cursor.execute
    match op:
        case ImportBegin():
            return _begin(cursor, op, now)
        case ImportLines():
            return _put(cursor, op, now)
        case ImportFinish():
            return _finish(cursor, op)
        case ImportDrop():
            return _give_up(cursor, op.run_id, None)
        case TakeState():
            return _take(cursor, op)
        case DropState():
            execute(f"DELETE FROM imported_states WHERE worker = ? AND run_id IN ({_OWING})", (op.worker, op.run_id))
        case _:
            assert_never(op)
    return None


def owed(cursor: sqlite3.Cursor, run_id: int) -> tuple[str, ...]:
    """The workers of a run whose imported states are not checkpoints yet."""
    if not _has_table(cursor):
        return ()
    query = f"SELECT DISTINCT worker FROM imported_states WHERE run_id IN ({_OWING}) ORDER BY worker"
    return tuple(worker for (worker,) in cursor.execute(query, (run_id,)).fetchall())


def forget(cursor: sqlite3.Cursor, run_id: int) -> None:
    """Remove the imported states of a run that is removed."""
    if _has_table(cursor):
        cursor.execute("DELETE FROM imported_states WHERE run_id = ?", (run_id,))


def give_up_unfinished(db: sqlite3.Connection) -> None:
    """Have what a process left that did not finish its import removed with the removed runs.

    Raises:
        sqlite3.Error: SQLite refused; they stay unseen, and are given up another time.
    """
    if db.execute("SELECT 1 FROM runs WHERE removed = ?", (IMPORTING,)).fetchone() is not None:
        db.execute("UPDATE runs SET removed = 1 WHERE removed = ?", (IMPORTING,))


# ---- inside ----------------------------------------------------------------------------------------------------------


def _begin(cursor: sqlite3.Cursor, op: ImportBegin, now: float) -> Imported:
    execute = cursor.execute
    execute(_TABLE)
    execute("INSERT INTO groups (name) VALUES (?) ON CONFLICT (name) DO NOTHING", (op.group,))
    (group_id,) = execute("SELECT id FROM groups WHERE name = ?", (op.group,)).fetchone()
    execute("UPDATE runs SET removed = 1 WHERE group_id = ? AND removed = ?", (group_id, IMPORTING))
    (lowest,) = execute("SELECT min(run) FROM runs WHERE group_id = ?", (group_id,)).fetchone()
    execute(
        "INSERT INTO runs (group_id, run, state, fresh_from, started_at, removed) VALUES (?, ?, 'running', 0, ?, ?)",
        (group_id, min(lowest or 0, 0) - 1, timestamp(now), IMPORTING),
    )
    return Imported(cursor.lastrowid or 0)


def _put(cursor: sqlite3.Cursor, op: ImportLines, now: float) -> Imported:
    if (unknown := _unknown(cursor, op.group, op.run_id)) is not None:
        return unknown
    try:
        lines = filter(None, op.lines.split(b"\n"))  # and not by splitlines: JSON may hold a carriage return
        _put_records(cursor, op.run_id, op.group, map(portable.parse, lines), now)
    except NotPortable as error:
        return _give_up(cursor, op.run_id, str(error))
    return Imported(op.run_id)


def _put_records(cursor: sqlite3.Cursor, run_id: int, group: str, records: Iterable[Record], now: float) -> None:
    execute = cursor.execute
    counts: Counter[str] = Counter()
    lanes: Counter[str | None] = Counter()
    done: Counter[str] = Counter()  # by worker
    next_order = 1
    for record in records:
        match record:
            case PortableItem():
                _put_item(cursor, run_id, group, record)
                if record.state == "pending":
                    lanes[record.target] += 1
                counts[record.state] += 1
                if record.state == "done" and record.worker is not None:
                    done[portable.renamed(record.worker, group)] += 1
                if record.order >= next_order:
                    next_order = int(record.order) + 1
            case WorkerState():
                worker = portable.renamed(record.name, group)
                state = (run_id, worker, record.schema, bytes(record.state))
                _insert(cursor, "INSERT INTO imported_states VALUES (?, ?, ?, CAST(? AS TEXT))", state, worker)
            case WorkerTotals():
                worker = portable.renamed(record.worker, group)
                execute(_TOTALS, (run_id, worker, 0, record.failed))  # the done ones are counted, not told
            case RunHeader():
                finished = None if record.finished_at is None else timestamp(now)
                execute("UPDATE runs SET state = ?, finished_at = ? WHERE id = ?", (record.state, finished, run_id))
            case _:
                pass  # the end was checked by who read the file
    execute(
        "UPDATE runs SET done = done + ?, failed = failed + ?, parked = parked + ?, waiting = waiting + ?,"
        " next_order = max(next_order, ?) WHERE id = ?",
        (counts["done"], counts["failed"], counts["parked"], counts["waiting"], next_order, run_id),
    )
    for worker, number in done.items():
        execute(_TOTALS, (run_id, worker, number, 0))
    for target, by in lanes.items():
        execute("UPDATE lanes SET open = open + ? WHERE run_id = ? AND target IS ?", (by, run_id, target))
        if not cursor.rowcount:
            execute("INSERT INTO lanes (run_id, target, open) VALUES (?, ?, ?)", (run_id, target, by))


def _put_item(cursor: sqlite3.Cursor, run_id: int, group: str, item: PortableItem) -> None:
    data = bytes(item.data)
    values = (
        run_id,
        item.key,
        item.target,
        None if data == _NULL else data,
        -item.priority,
        item.order,
        _STATES.get(item.state, item.state),
        None if item.not_before is None else seconds(item.not_before),
        item.attempts,
        item.infrastructure,
        item.blocked,
        item.alone,
        None if item.last_failure is UNSET else bytes(item.last_failure),
        None if item.worker is None else portable.renamed(item.worker, group),
        None if item.result is None else item.result.seq,
        item.target is not None,
    )
    _insert(cursor, _ITEM, values, f"item {item.key!r}")
    result = item.result
    if result is not None:
        row = (run_id, result.seq, cursor.lastrowid, bytes(result.result), result.sha256, item.attempts)
        _insert(cursor, _RESULT, (*row, result.finished_at), f"seq {result.seq}, of item {item.key!r},")


def _insert(cursor: sqlite3.Cursor, statement: str, values: tuple[Any, ...], what: str) -> None:
    try:
        cursor.execute(statement, values)
    except sqlite3.IntegrityError as error:
        if error.sqlite_errorcode not in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY):
            raise
        raise NotPortable(f"{what} comes twice") from None


def _finish(cursor: sqlite3.Cursor, op: ImportFinish) -> Imported:
    if (unknown := _unknown(cursor, op.group, op.run_id)) is not None:
        return unknown
    done, largest = cursor.execute(
        "SELECT done, (SELECT coalesce(max(seq), 0) FROM results WHERE run_id = runs.id) FROM runs WHERE id = ?",
        (op.run_id,),
    ).fetchone()
    if done != largest:  # a new result would get a number that is taken
        return _give_up(cursor, op.run_id, f"expected seqs 1 to {done} of {done} done items, the last is {largest}")
    (newest,) = cursor.execute(
        "SELECT coalesce(max(run), 0) FROM runs WHERE NOT removed"
        " AND group_id = (SELECT group_id FROM runs WHERE id = ?)",
        (op.run_id,),
    ).fetchone()
    run = next_number(cursor, op.group, newest)
    cursor.execute("UPDATE runs SET removed = 0, run = ?, fresh_from = ? WHERE id = ?", (run, run, op.run_id))
    return Imported(op.run_id, run)


def _take(cursor: sqlite3.Cursor, op: TakeState) -> StateTaken | None:
    if not _has_table(cursor):
        return None
    row = cursor.execute(
        "SELECT run, schema, CAST(imported_states.state AS BLOB) FROM imported_states"
        f" JOIN runs ON runs.id = run_id WHERE worker = ? AND run_id IN ({_OWING}) ORDER BY run DESC LIMIT 1",
        (op.worker, op.run_id),
    ).fetchone()
    return None if row is None else StateTaken(row[0], row[1], Raw(row[2]))


def _give_up(cursor: sqlite3.Cursor, run_id: int, problem: str | None) -> Imported:
    cursor.execute("UPDATE runs SET removed = 1 WHERE id = ? AND removed = ?", (run_id, IMPORTING))
    return Imported(run_id, problem=problem)


def _unknown(cursor: sqlite3.Cursor, group: str, run_id: int) -> Imported | None:
    row = cursor.execute(
        "SELECT name FROM runs JOIN groups ON groups.id = group_id WHERE runs.id = ? AND removed = ?",
        (run_id, IMPORTING),
    ).fetchone()
    if row == (group,):
        return None
    return Imported(run_id, problem="it was given up: another import of this group was begun, or the daemon restarted")


def _has_table(cursor: sqlite3.Cursor) -> bool:
    query = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'imported_states'"
    return cursor.execute(query).fetchone() is not None
