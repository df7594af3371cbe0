"""The counts that go with the items: taken up while a batch runs, written once at its end."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from typing import TYPE_CHECKING

from msgspec import Struct

from scraper_supervisor.core.ops.run_ops import ReportedHosts
from scraper_supervisor.store.sqlite.bulk_sql import chunks, flat, values

if TYPE_CHECKING:
    import sqlite3


class WorkerChange(Struct):
    """What a worker did in this batch."""

    done: int = 0
    failed: int = 0


class RunCounters:
    """The counts of one run in one transaction.

    Args:
        cursor: The transaction's.
        run_id: The run.

    Raises:
        LookupError: There is no such run.
    """

    def __init__(self, cursor: sqlite3.Cursor, run_id: int) -> None:
        row = cursor.execute(
            "SELECT done, next_order, host, hosts FROM runs WHERE id = ? AND NOT removed", (run_id,)
        ).fetchone()
        if row is None:
            raise LookupError(f"the ledger has no run {run_id}")
        self.run_id = run_id
        self._done: int = row[0]
        self._next_order: int = row[1]
        self._hosts = ReportedHosts(*row[2:])
        self._failed = self._parked = self._waiting = 0
        self._lanes: defaultdict[str | None, int] = defaultdict(int)
        self._workers: defaultdict[str, WorkerChange] = defaultdict(WorkerChange)

    def next_seq(self) -> int:
        """Number one more done item."""
        self._done += 1
        return self._done

    def next_order(self, items: int = 1) -> int:
        """The place of one more offered item, or the first of so many."""
        self._next_order += items
        return self._next_order - items

    def count(self, state: str, target: str | None, timed: bool, by: int) -> None:
        """An item enters (1) or leaves (-1) a state that is not done."""
        if state == "open":
            if timed:
                self._waiting += by
            else:
                self._lanes[target] += by
        elif state == "failed":
            self._failed += by
        else:
            self._parked += by

    def reported(self, host: str) -> None:
        """An attempt reported its host."""
        self._hosts.learn(host)

    def worker_did(self, worker: str, state: str) -> None:
        """A worker ended an item for good."""
        if state == "done":
            self._workers[worker].done += 1
        else:
            self._workers[worker].failed += 1

    def write(self, cursor: sqlite3.Cursor) -> None:
        """Write the counts and begin to count anew."""
        run_id = self.run_id
        cursor.execute(
            "UPDATE runs SET done = ?, next_order = ?, failed = failed + ?, parked = parked + ?, waiting = waiting + ?,"
            " host = ?, hosts = ? WHERE id = ?",
            (
                *(self._done, self._next_order, self._failed, self._parked, self._waiting),
                *(self._hosts.host, self._hosts.count, run_id),
            ),
        )
        self._write_lanes(cursor)
        totals = [(run_id, worker, change.done, change.failed) for worker, change in self._workers.items()]
        for chunk in chunks(totals):
            cursor.execute(_add_totals(len(chunk)), flat(chunk))
        self._failed = self._parked = self._waiting = 0
        self._lanes.clear()
        self._workers.clear()

    def _write_lanes(self, cursor: sqlite3.Cursor) -> None:
        run_id = self.run_id
        lanes = [(target, by) for target, by in self._lanes.items() if by]
        for chunk in chunks(lanes):
            changes = flat(chunk)
            now_open = cursor.execute(_change_lanes(len(chunk)), (*changes, run_id)).fetchall()
            if len(now_open) < len(chunk):
                cursor.execute(_add_lanes(len(chunk)), (*changes, run_id, run_id))
            if (0,) in now_open:
                cursor.execute(_drop_lanes(len(chunk)), (*changes, run_id))


@lru_cache
def _add_totals(rows: int) -> str:
    return (
        f"INSERT INTO totals (run_id, worker, done, failed) VALUES {values(4, rows)} ON CONFLICT (run_id, worker)"
        " DO UPDATE SET done = done + excluded.done, failed = failed + excluded.failed"
    )


@lru_cache
def _change_lanes(rows: int) -> str:
    return (
        f"WITH new (target, by) AS (VALUES {values(2, rows)})"
        " UPDATE lanes INDEXED BY lanes_target SET open = open + new.by FROM new"
        " WHERE lanes.run_id = ? AND lanes.target IS new.target RETURNING open"
    )


@lru_cache
def _add_lanes(rows: int) -> str:
    return (
        f"WITH new (target, by) AS (VALUES {values(2, rows)})"
        " INSERT INTO lanes (run_id, target, open) SELECT ?, target, by FROM new"
        " WHERE NOT EXISTS (SELECT 1 FROM lanes WHERE run_id = ? AND lanes.target IS new.target)"
    )


@lru_cache
def _drop_lanes(rows: int) -> str:
    return (
        f"WITH new (target, by) AS (VALUES {values(2, rows)}) DELETE FROM lanes WHERE rowid IN"
        " (SELECT lanes.rowid FROM new CROSS JOIN lanes ON lanes.run_id = ? AND lanes.target IS new.target"
        " WHERE open = 0)"
    )
