"""Reading the ledger beside the daemon, or without one: the queue, the runs and the results."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from msgspec import Raw

from scraper_supervisor.core.formats.timestamps import timestamp
from scraper_supervisor.store.errors import LedgerUnreadable
from scraper_supervisor.store.ports import ItemRow, ResultRow, RunGone, RunInfo
from scraper_supervisor.store.sqlite.integrity.verify import find_damage
from scraper_supervisor.store.sqlite.schema import open_reader

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path
    from types import TracebackType

    from scraper_supervisor.core.ops.item_ops import ItemState

# What is read at once. While a statement is open the writer's log cannot be begun anew: it is never open for long, and
# never while somebody else is to take what was read.
_ROWS: Final = 1_000
_BYTES: Final = 4 * 1024 * 1024
_IDS: Final = 20_000  # that are looked at for such rows, some 10 ms
_STATES: Final = {
    "pending": " AND state = 'open' AND not_before IS NULL",
    "waiting": " AND state = 'open' AND not_before IS NOT NULL",
    "in_flight": " AND 0",
    "open": " AND state = 'open'",
    "parked": " AND state = 'parked'",
    "done": " AND state = 'done'",
    "failed": " AND state = 'failed'",
}


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

    def entrypoint(self, group: str) -> str | None:
        """Who works on a group's newest run; None if it has none, or nobody has written that down."""
        if not list(self._rows("SELECT 1 FROM pragma_table_info('runs') WHERE name = 'entrypoint'")):
            return None  # of a version before 4, which only a daemon migrates
        query = (
            "SELECT entrypoint FROM runs JOIN groups ON groups.id = group_id WHERE name = ? AND NOT removed"
            " ORDER BY run DESC LIMIT 1"
        )
        return next((entrypoint for (entrypoint,) in self._rows(query, (group,))), None)

    def items(
        self,
        group: str,
        run: int | None = None,
        state: ItemState | Literal["open"] | None = None,
        *,
        after: str | None = None,
        containing: str | None = None,
    ) -> Iterator[ItemRow]:
        """The items of a run, the latest unless `run` is given, in the order in which they were added.

        Args:
            group: Its name.
            run: Which one.
            state: Only those in this state; "open" are those that are pending, waiting or in flight.
            after: Only those added after the item of this key.
            containing: Only those whose keys hold this text.

        Raises:
            LookupError: There is no such group, run or key, or the run is removed meanwhile (RunGone).
        """
        info = self._run(group, run)
        first = None if after is None else self._id(info, after) + 1
        where = "" if state is None else _STATES[state]
        values: tuple[object, ...] = ()
        if containing is not None:
            where, values = f"{where} AND instr(key, ?)", (containing,)
        columns = "id, key, state, attempts, target, not_before, worker, CAST(last_failure AS BLOB)"
        for rows in scan_items(self._path, self._db, info, columns, where=where, values=values, first=first):
            for row in rows:
                yield _item(*row[1:])

    def results(self, group: str, run: int | None = None, after: int = 0) -> Iterator[ResultRow]:
        """The done items of a run, the latest unless `run` is given, by seq, from the one after `after` on.

        Raises:
            LookupError: There is no such group or run, or it is removed meanwhile (RunGone).
            LedgerUnreadable: A result is not what was stored; those before it were told.
        """
        info = self._run(group, run)
        query = (
            "SELECT results.seq, key, CAST(result AS BLOB), sha256, results.attempts, finished_at"
            " FROM results JOIN items ON items.id = item_id"
            f" WHERE results.run_id = ? AND results.seq > ? ORDER BY results.seq LIMIT {_ROWS}"
        )
        while rows := self._some(info, query, after):
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
        with readable(self._path):
            return self._db.execute(query, values).fetchall()

    def _some(self, run: RunInfo, query: str, after: int) -> list[tuple[Any, ...]]:
        with readable(self._path):
            rows, _ = _some(self._db, query, (run.run_id, after))
            check_there(self._db, run)
        return rows

    def _id(self, run: RunInfo, key: str) -> int:
        for (item,) in self._rows("SELECT id FROM items WHERE run_id = ? AND key = ?", (run.run_id, key)):
            return int(item)
        raise LookupError(f"{run.group}: its run {run.run} has no item {key!r}")

    def _run(self, group: str, run: int | None) -> RunInfo:
        for info in self.runs(group):
            if run in (None, info.run):
                return info
        raise LookupError(f"the ledger has no run{'' if run is None else f' {run}'} of group {group!r}")


def scan_items(
    path: Path,
    db: sqlite3.Connection,
    run: RunInfo,
    columns: str,
    *,
    where: str = "",
    values: tuple[object, ...] = (),
    first: int | None = None,
    upto: int | None = None,
) -> Iterator[list[tuple[Any, ...]]]:
    """The items of a run in the order of their ids, in steps of bounded rows, bytes and time.

    Args:
        path: The ledger.
        db: A connection to it.
        run: Which run.
        columns: What to select, from `items` (and `results`, if the columns name it in a sub-select); `id` first.
        where: More conditions, each with its AND.
        values: Of the conditions.
        first: The first id; from the run's first one on if it is None.
        upto: The last id; what is added meanwhile is read too if it is None.

    Raises:
        RunGone: The run is removed meanwhile.
        LedgerUnreadable: SQLite can't read them.
    """
    # By id alone, whatever else is indexed: in another index' order, each step would sort the rows that are left.
    query = f"SELECT {columns} FROM items WHERE +run_id = ? AND id > ? AND id <= ?{where} ORDER BY id LIMIT {_ROWS}"
    if first is None:
        with readable(path):
            (first,) = db.execute("SELECT min(id) FROM items WHERE run_id = ?", (run.run_id,)).fetchone()
    last = (first or 1) - 1
    while True:
        with readable(path):
            end = _last_id(db) if upto is None else upto
            stop = min(last + _IDS, end)
            rows, whole = _some(db, query, (run.run_id, last, stop, *values))
            check_there(db, run)
        if rows:
            yield rows
        last = stop if whole else rows[-1][0]
        if last >= end:
            return


@contextlib.contextmanager
def readable(path: Path) -> Generator[None]:
    """What SQLite can't read of this ledger is LedgerUnreadable."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise LedgerUnreadable(path, str(error)) from error


def check_there(db: sqlite3.Connection, run: RunInfo) -> None:
    """Make sure that the run was there when its rows were read: they are removed after it is marked as removed.

    Raises:
        RunGone: It is removed.
    """
    if db.execute("SELECT 1 FROM runs WHERE id = ? AND NOT removed", (run.run_id,)).fetchone() is None:
        raise RunGone(run.group, run.run)


def _last_id(db: sqlite3.Connection) -> int:
    (last,) = db.execute("SELECT max(id) FROM items").fetchone()
    return last or 0


def _some(db: sqlite3.Connection, query: str, values: tuple[object, ...]) -> tuple[list[tuple[Any, ...]], bool]:
    """The first rows, as many as memory is to hold, and whether these are all; the statement is closed."""
    rows, size = [], 0
    with contextlib.closing(db.execute(query, values)) as cursor:
        for row in cursor:
            rows.append(row)
            size += sum([len(value) for value in row if type(value) is bytes])
            if size > _BYTES:
                return rows, False
    return rows, len(rows) < _ROWS


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
        None if not_before is None or state == "parked" else timestamp(not_before),  # kept for when it goes on
        worker,
        None if last_failure is None else Raw(last_failure),
    )
