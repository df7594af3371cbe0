"""How items are offered and claims ended, many at once in a few statements (see `bulk_sql`)."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from scraper_supervisor.core.formats.timestamps import timestamp
from scraper_supervisor.core.ops.item_ops import RETRY_ORIGIN, Added, Conclude, Concluded, LeaseLost, NewItem
from scraper_supervisor.store.sqlite.bulk_sql import Row, chunks, flat, values

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    from scraper_supervisor.store.sqlite.run_counters import RunCounters

NOTHING_ADDED: Final = Added((), 0)

_RESULT: Final = ("run_id", "seq", "item_id", "result", "sha256", "attempts", "finished_at")
_NEW: Final = ("run_id", "key", "target", "data", "given", "rank", "ord")
_ITEM: Final = (
    "id", "state", "target", "ord", "not_before", "attempts", "infrastructure", "blocked", "alone", "last_claim",
    "last_outcome", "last_answer", "last_failure", "worker", "seq",
)  # fmt: skip
_KEPT: Final = ("ord", "last_failure")  # what stays as it is where nothing new is given
_STATES: Final = {"done": "done", "failed": "failed", "retry": "open", "open": "open"}  # of an item by the outcome

_Known: TypeAlias = tuple[int, str, str | None, int, int | None, int | None]  # as _select_items reads them
_decode_new = msgspec.json.Decoder(list[tuple[int, int]]).decode  # id, order
_decode = msgspec.json.Decoder(list[_Known]).decode


def offer(cursor: sqlite3.Cursor, counters: RunCounters, items: Sequence[NewItem]) -> Added:
    """Add items to a run but for those whose keys it knows.

    Args:
        cursor: The transaction's.
        counters: The run's.
        items: What was offered.

    Raises:
        sqlite3.Error: SQLite refused; the transaction is to be rolled back.
    """
    run_id, added = counters.run_id, []
    rows: list[Row] = []
    first = counters.next_order(len(items))
    for order, item in enumerate(items, first):
        data = str(item.data, "utf-8")
        told = (run_id, item.key, item.target, None if data == "null" else data, item.target is not None)
        row = (*told, -item.priority, float(order))
        rows.append(row)
    for chunk in chunks(rows):
        cursor.execute(_insert_items(len(chunk)), flat(chunk))
        keys = (row[1] for row in chunk)
        (found,) = cursor.execute(_select_new(len(chunk)), (run_id, chunk[0][-1], *keys)).fetchone()
        for item_id, order in sorted(_decode_new(found), key=itemgetter(1)):
            added.append((order - first, item_id, float(order)))
            counters.count("open", items[order - first].target, False, 1)
    return Added(tuple(added), len(items) - len(added))


def conclude(
    cursor: sqlite3.Cursor,
    counters: RunCounters,
    ops: Sequence[Conclude],
    tick: Callable[[], float],
    add: Callable[[RunCounters, Sequence[NewItem]], Added],
) -> list[Concluded | LeaseLost]:
    """End claims of one run, each of another item. What is done already stays as it is, offers included.

    A claim that is not the latest any more ends nothing.

    Args:
        cursor: The transaction's.
        counters: The run's.
        ops: What to write.
        tick: Wall-clock seconds, never twice the same.
        add: Adds what was offered with an end.

    Raises:
        LookupError: One names an item that is not there.
        sqlite3.Error: SQLite refused; the transaction is to be rolled back.
    """
    known = _known(cursor, counters.run_id, [op.item for op in ops])
    answers: list[Concluded | LeaseLost] = []
    results: list[Row] = []
    items: list[Row] = []
    now = tick()
    finished_at = timestamp(now)
    for op in ops:
        row = known.get(op.item)
        if row is None:
            raise LookupError(f"{op.group}: the ledger has no item {op.key!r} in run {op.run_id}")
        _, was, was_target, was_timed, seq, last_claim = row
        if was == "done":
            answers.append(Concluded(seq, None, NOTHING_ADDED))
            continue
        if last_claim is not None and last_claim > op.claim:
            answers.append(LeaseLost())
            continue
        counters.count(was, was_target, bool(was_timed), -1)
        if op.reported is not None:
            counters.reported(op.reported)
        state = _STATES[op.outcome]
        target = op.target if op.target is not None else was_target
        order = not_before = None
        if state == "done":
            seq = counters.next_seq()
            result = b"null" if op.result is None else op.result
            digest = hashlib.sha256(result).hexdigest()
            results.append((counters.run_id, seq, op.item, str(result, "utf-8"), digest, op.attempts, finished_at))
        else:
            if state == "open":
                now = tick()
                not_before = None if op.delay is None else now + op.delay
                if op.outcome == "retry":
                    order = (now if not_before is None else not_before) - RETRY_ORIGIN
                else:
                    (order,) = cursor.execute("SELECT ord FROM items WHERE id = ?", (op.item,)).fetchone()
            counters.count(state, target, not_before is not None, 1)
        if state != "open":
            counters.worker_did(op.worker, state)
        items.append(
            (
                op.item, state, target, order, not_before, op.attempts, op.infrastructure, op.blocked, op.alone,
                op.claim, op.outcome, None if op.answer is None else str(op.answer, "utf-8"),
                None if op.failure is None else str(op.failure, "utf-8"), op.worker, seq,
            )
        )  # fmt: skip
        added = add(counters, op.offers) if op.offers else NOTHING_ADDED
        answers.append(Concluded(seq, order, added))
    for chunk in chunks(results):
        cursor.execute(_insert_results(len(chunk)), flat(chunk))
    for chunk in chunks(items):
        cursor.execute(_update_items(len(chunk)), flat(chunk))
    return answers


def _known(cursor: sqlite3.Cursor, run_id: int, items: list[int]) -> dict[int, _Known]:
    """How these items stand, fetched as one row, since each row is a step of its own."""
    known: dict[int, _Known] = {}
    for chunk in chunks(items):
        (found,) = cursor.execute(_select_items(len(chunk)), (run_id, *chunk)).fetchone()
        known.update((row[0], row) for row in _decode(found))
    return known


@lru_cache
def _select_items(rows: int) -> str:
    # Places in the queue are not among it: JSON would round them. The sign keeps SQLite from looking for the run, which
    # has them all, instead of the few rows by their numbers.
    return (
        "SELECT json_group_array(json_array(id, state, target, not_before IS NOT NULL, seq, last_claim)) FROM items"
        f" WHERE +run_id = ? AND id IN ({', '.join('?' * rows)})"
    )


@lru_cache
def _insert_items(rows: int) -> str:
    new = values(len(_NEW), rows)
    return f"INSERT INTO items ({', '.join(_NEW)}) VALUES {new} ON CONFLICT (run_id, key) DO NOTHING"


@lru_cache
def _select_new(rows: int) -> str:
    return (
        "SELECT json_group_array(json_array(id, CAST(ord AS INTEGER))) FROM items"
        f" WHERE run_id = ? AND +ord >= ? AND key IN ({', '.join('?' * rows)})"
    )


@lru_cache
def _insert_results(rows: int) -> str:
    return f"INSERT INTO results ({', '.join(_RESULT)}) VALUES {values(len(_RESULT), rows)}"


@lru_cache
def _update_items(rows: int) -> str:
    new = (f"coalesce(new.{name}, items.{name})" if name in _KEPT else f"new.{name}" for name in _ITEM[1:])
    changes = ", ".join(f"{name} = {value}" for name, value in zip(_ITEM[1:], new, strict=True))
    return (
        f"WITH new ({', '.join(_ITEM)}) AS (VALUES {values(len(_ITEM), rows)})"
        f" UPDATE items NOT INDEXED SET {changes} FROM new WHERE items.id = new.id"
    )
