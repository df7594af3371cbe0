"""What changes many items of a run in one operation: requeued, cancelled, parked and taken up again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scraper_supervisor.core.formats.redaction import digest_of, hidden_in
from scraper_supervisor.core.ops.item_ops import Cancel, Changed, FindKeys, Park, Requeue, Unpark, WholeKeys

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from scraper_supervisor.store.sqlite.run_counters import RunCounters

LAST: Final = "\U0010ffff"  # no key has a character after it
_CANCELLED: Final = (
    '{"kind":"permanent","category":"application","signature":"cancelled","message":"cancelled by an operator"}'
)
# What an operator cancelled is to stay so; a scraper's own failure of that name has another message.
_NOT_CANCELLED: Final = (
    " AND NOT coalesce(json_extract(last_failure, '$.signature') = 'cancelled'"
    " AND json_extract(last_failure, '$.message') = 'cancelled by an operator', 0)"
)
_FAILED: Final = f"SELECT id, target FROM items WHERE run_id = ? AND state = 'failed'{_NOT_CANCELLED}"
_PARKED: Final = "SELECT id, target FROM items WHERE run_id = ? AND state = 'parked'"
# A place in the queue and a time to wait for are kept: taken up again, an item is where it was.
_MOVE: Final = (
    "UPDATE items SET state = ? WHERE id IN (SELECT id FROM items WHERE run_id = ? AND state = ? LIMIT ?)"
    " RETURNING target, not_before IS NOT NULL"
)


def change(cursor: sqlite3.Cursor, counters: RunCounters, op: Requeue | Cancel | Park | Unpark) -> Changed:
    """Carry out one of these operations.

    Args:
        cursor: The transaction's.
        counters: The run's.
        op: What to do.

    Raises:
        sqlite3.Error: SQLite refused; the transaction is to be rolled back.
    """
    match op:
        case Requeue():
            return _requeue(cursor, counters, op)
        case Cancel():
            return _cancel(cursor, counters, op)
        case Park():
            return _move(cursor, counters, op, "open", "parked")
        case Unpark():
            return _move(cursor, counters, op, "parked", "open")


def _requeue(cursor: sqlite3.Cursor, counters: RunCounters, op: Requeue) -> Changed:
    rows, untouched = _named(cursor, op.run_id, op.keys, ("failed", "parked"))
    for state, query, wanted in (("failed", _FAILED, op.failed), ("parked", _PARKED, op.parked)):
        if wanted:
            rows |= {item: (state, target, False) for item, target in cursor.execute(query, (op.run_id,))}
    for item, (state, target, timed) in sorted(rows.items()):
        cursor.execute(
            "UPDATE items SET state = 'open', ord = ?, not_before = NULL, attempts = 0, infrastructure = 0,"
            " blocked = 0, alone = 0 WHERE id = ?",
            (float(counters.next_order()), item),
        )
        counters.count(state, target, timed, -1)
        counters.count("open", target, False, 1)
    return Changed(len(rows), untouched, sum(state == "parked" for state, _, _ in rows.values()))


def _cancel(cursor: sqlite3.Cursor, counters: RunCounters, op: Cancel) -> Changed:
    rows, untouched = _named(cursor, op.run_id, op.keys, ("open", "parked"))
    for item, (state, target, timed) in rows.items():
        cursor.execute(
            "UPDATE items SET state = 'failed', not_before = NULL, last_failure = ? WHERE id = ?", (_CANCELLED, item)
        )
        counters.count(state, target, timed, -1)
        counters.count("failed", target, False, 1)
    return Changed(len(rows), untouched)


def _move(cursor: sqlite3.Cursor, counters: RunCounters, op: Park | Unpark, before: str, after: str) -> Changed:
    moved = cursor.execute(_MOVE, (after, op.run_id, before, op.limit)).fetchall()
    for target, timed in moved:
        counters.count(before, target, bool(timed), -1)
        counters.count(after, target, bool(timed), 1)
    return Changed(len(moved), ())


def _named(
    cursor: sqlite3.Cursor, run_id: int, keys: Iterable[str], states: tuple[str, ...]
) -> tuple[dict[int, tuple[str, str | None, bool]], tuple[str, ...]]:
    """The items of these keys that are in one of the states, as id: (state, target, timed); and the other keys."""
    rows: dict[int, tuple[str, str | None, bool]] = {}
    others = []
    for key in dict.fromkeys(keys):
        row = cursor.execute(
            "SELECT id, state, target, not_before IS NOT NULL FROM items WHERE run_id = ? AND key = ?", (run_id, key)
        ).fetchone()
        if row is not None and row[1] in states:
            rows[row[0]] = (row[1], row[2], bool(row[3]))
        else:
            others.append(key)
    return rows, tuple(others)


def find_keys(cursor: sqlite3.Cursor, op: FindKeys) -> WholeKeys:
    """Find whole keys by what is shown of them. It looks at each key that begins as one of them does."""
    return WholeKeys(tuple(_whole(cursor, op.run_id, shown) for shown in op.shown))


def _whole(cursor: sqlite3.Cursor, run_id: int, shown: str) -> str:
    known = hidden_in(shown)
    if known is None:
        return shown
    beginning, digest = known
    rows = cursor.execute(
        "SELECT key FROM items WHERE run_id = ? AND key >= ? AND key < ?", (run_id, beginning, beginning + LAST)
    )
    found = [key for (key,) in rows if key == shown or digest_of(key) == digest]
    return found[0] if len(found) == 1 else shown
