"""Reading the ledger beside the daemon, or without one: the queue, the runs and the results."""

from __future__ import annotations

import hashlib
import sqlite3
from typing import TYPE_CHECKING, Any, Final, Self

from msgspec import Raw, Struct

from scraper_supervisor.core.records import ItemState, RunState
from scraper_supervisor.core.wall import timestamp
from scraper_supervisor.store.faults import LedgerUnreadable
from scraper_supervisor.store.schema import open_reader
from scraper_supervisor.store.verify import find_damage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

_CHUNK: Final = 1_000  # rows read at once: a reader that is slow must not keep the writer's log from shrinking
_STATES: Final = {
    "pending": " AND state = 'open' AND not_before IS NULL",
    "waiting": " AND state = 'open' AND not_before IS NOT NULL",
    "in_flight": " AND 0",
    "parked": " AND state = 'parked'",
    "done": " AND state = 'done'",
    "failed": " AND state = 'failed'",
}


class RunInfo(Struct, frozen=True):
    """A run and its counts. `pending` holds what is in flight too: who holds an item only the daemon knows."""

    run_id: int
    group: str
    run: int
    state: RunState
    fresh_from: int
    pending: int
    waiting: int
    parked: int
    done: int
    failed: int
    started_at: str
    finished_at: str | None


class ItemRow(Struct, frozen=True):
    """An item as `items list` shows it; one in flight is told as what it was before."""

    key: str
    state: ItemState
    attempts: int
    target: str | None
    not_before: str | None
    worker: str | None
    last_failure: Raw | None


class ResultRow(Struct, frozen=True):
    """A done item as `results` shows it."""

    seq: int
    key: str
    result: Raw
    attempts: int
    finished_at: str


class LedgerReader:
    """A ledger opened for reading only; a context manager.

    What it yields is read in steps, each of them a view of its own: a queue that moves meanwhile may show an item as it
    was or as it is, and no done item is missed.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is none.
        LedgerDamaged, LedgerTooNew, LedgerUnusable: It does not open.

    Every method raises LedgerUnreadable where the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = open_reader(path)

    def close(self) -> None:
        """Close the file; harmless when already done."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def groups(self) -> list[str]:
        """The names of the groups that have a run."""
        query = "SELECT name FROM groups WHERE id IN (SELECT group_id FROM runs) ORDER BY name"
        return [name for (name,) in self._rows(query)]

    def runs(self, group: str) -> list[RunInfo]:
        """A group's runs, the newest first."""
        rows = self._rows(
            "SELECT runs.id, name, run, state, fresh_from,"
            " (SELECT coalesce(sum(open), 0) FROM lanes WHERE run_id = runs.id),"
            " waiting, parked, done, failed, started_at, finished_at"
            " FROM runs JOIN groups ON groups.id = group_id WHERE name = ? AND NOT removed ORDER BY run DESC",
            (group,),
        )
        return [RunInfo(*row) for row in rows]

    def items(self, group: str, run: int | None = None, state: ItemState | None = None) -> Iterator[ItemRow]:
        """The items of a run, the latest unless `run` is given, in the order in which they were added.

        Raises:
            LookupError: There is no such group or run.
        """
        run_id, last = self._run_id(group, run), 0
        query = (
            "SELECT id, key, state, attempts, target, not_before, worker, CAST(last_failure AS BLOB) FROM items"
            f" WHERE run_id = ? AND id > ?{'' if state is None else _STATES[state]} ORDER BY id LIMIT {_CHUNK}"
        )
        while rows := self._rows(query, (run_id, last)):
            last = rows[-1][0]
            for row in rows:
                yield _item(*row[1:])

    def results(self, group: str, run: int | None = None, after: int = 0) -> Iterator[ResultRow]:
        """The done items of a run, the latest unless `run` is given, by seq, from the one after `after` on.

        Raises:
            LookupError: There is no such group or run.
            LedgerUnreadable: A result is not what was stored; those before it were told.
        """
        run_id = self._run_id(group, run)
        query = (
            "SELECT results.seq, key, CAST(result AS BLOB), sha256, results.attempts, finished_at"
            " FROM results JOIN items ON items.id = item_id"
            f" WHERE results.run_id = ? AND results.seq > ? ORDER BY results.seq LIMIT {_CHUNK}"
        )
        while rows := self._rows(query, (run_id, after)):
            after = rows[-1][0]
            for seq, key, result, sha256, attempts, finished_at in rows:
                if hashlib.sha256(result).hexdigest() != sha256:
                    raise LedgerUnreadable(self._path, f"the checksum of result {seq} ({key!r}) does not fit")
                yield ResultRow(seq, key, Raw(result), attempts, finished_at)

    def verify(self) -> str | None:
        """Read the whole file and every result; tells what is wrong, None if nothing is."""
        try:
            return find_damage(self._path, self._db)
        except OSError as error:
            return f"it can't be read: {error.strerror or error}"

    def _rows(self, query: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query.

        Raises:
            LedgerUnreadable: SQLite can't read them.
        """
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise LedgerUnreadable(self._path, str(error)) from error

    def _run_id(self, group: str, run: int | None) -> int:
        for info in self.runs(group):
            if run in (None, info.run):
                return info.run_id
        raise LookupError(f"the ledger has no run{'' if run is None else f' {run}'} of group {group!r}")


def _item(
    key: str,
    state: Any,
    attempts: int,
    target: str | None,
    not_before: float | None,
    worker: str | None,
    last_failure: bytes | None,
) -> ItemRow:
    if state == "open":
        state = "pending" if not_before is None else "waiting"
    return ItemRow(
        key,
        state,
        attempts,
        target,
        None if not_before is None else timestamp(not_before),
        worker,
        None if last_failure is None else Raw(last_failure),
    )
