"""The counts that go with the items: taken up while a batch runs, written once at its end."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    import sqlite3


class Change(Struct):
    """What a worker did in this batch."""

    done: int = 0
    failed: int = 0


class Tally:
    """The counts of one run in one transaction.

    Args:
        cursor: The transaction's.
        run_id: The run.

    Raises:
        LookupError: There is no such run.
    """

    def __init__(self, cursor: sqlite3.Cursor, run_id: int) -> None:
        row = cursor.execute("SELECT done, next_order FROM runs WHERE id = ? AND NOT removed", (run_id,)).fetchone()
        if row is None:
            raise LookupError(f"the ledger has no run {run_id}")
        self.run_id = run_id
        self._done: int = row[0]
        self._next_order: int = row[1]
        self._failed = self._parked = self._waiting = 0
        self._lanes: defaultdict[str | None, int] = defaultdict(int)
        self._workers: defaultdict[str, Change] = defaultdict(Change)

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
            "UPDATE runs SET done = ?, next_order = ?, failed = failed + ?, parked = parked + ?, waiting = waiting + ?"
            " WHERE id = ?",
            (self._done, self._next_order, self._failed, self._parked, self._waiting, run_id),
        )
        for target, by in self._lanes.items():
            if not by:
                continue
            cursor.execute("UPDATE lanes SET open = open + ? WHERE run_id = ? AND target IS ?", (by, run_id, target))
            if not cursor.rowcount:
                cursor.execute("INSERT INTO lanes (run_id, target, open) VALUES (?, ?, ?)", (run_id, target, by))
            elif by < 0:
                cursor.execute("DELETE FROM lanes WHERE run_id = ? AND target IS ? AND open = 0", (run_id, target))
        for worker, change in self._workers.items():
            cursor.execute(
                "INSERT INTO totals (run_id, worker, done, failed) VALUES (?, ?, ?, ?) ON CONFLICT (run_id, worker)"
                " DO UPDATE SET done = done + excluded.done, failed = failed + excluded.failed",
                (run_id, worker, change.done, change.failed),
            )
        self._failed = self._parked = self._waiting = 0
        self._lanes.clear()
        self._workers.clear()
