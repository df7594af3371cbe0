"""A run as portable JSON Lines, read from the ledger and the checkpoint files beside a daemon or without one."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Self

from msgspec import UNSET, Raw

from scraper_supervisor.core.formats.checkpoint_file import Damaged, TooNew
from scraper_supervisor.core.formats.run_export import (
    FORMAT,
    KIND,
    PortableItem,
    Result,
    RunHeader,
    WorkerState,
    Writer,
)
from scraper_supervisor.core.formats.timestamps import timestamp
from scraper_supervisor.core.ops.run_ops import WorkerTotals
from scraper_supervisor.store.errors import NotExportable
from scraper_supervisor.store.files import Files
from scraper_supervisor.store.sqlite import run_import as importing
from scraper_supervisor.store.sqlite.reader import check_there, readable, scan_items
from scraper_supervisor.store.sqlite.schema import FILE_NAME, open_reader
from scraper_supervisor.store.states.reading import FOLDER, CheckpointReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from scraper_supervisor.store.ports import RunInfo

_COLUMNS = (
    "id, key, target, CAST(data AS BLOB), -rank, ord, state, not_before, attempts, infrastructure, blocked, alone,"
    " worker, CAST(last_failure AS BLOB), seq,"
    " (SELECT CAST(result AS BLOB) FROM results WHERE results.run_id = items.run_id AND results.seq = items.seq),"
    " (SELECT sha256 FROM results WHERE results.run_id = items.run_id AND results.seq = items.seq),"
    " (SELECT finished_at FROM results WHERE results.run_id = items.run_id AND results.seq = items.seq)"
)


class Export:
    """The newest run of a group; a context manager.

    A run that moves meanwhile is read in steps, so that the writer's log can be begun anew: done are the items that
    were done when the items were begun with, each of the others is told as it was when it was reached, and what was
    added later is left out. The workers' states are older than the items, never newer: what a worker offers again
    is known then, while an item of which its state knows could be missing.

    Args:
        state_dir: The state folder.
        run: The run, as LedgerReader tells it.

    Raises:
        FileNotFoundError: There is no ledger.
        LedgerUnusable: It does not open.
    """

    def __init__(self, state_dir: Path, run: RunInfo) -> None:
        self._state_dir = state_dir
        self._run = run
        self._path = state_dir / FILE_NAME
        self._db = open_reader(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def lines(self, now: float) -> Iterator[bytes]:
        """The lines, the last of which says that it is whole.

        Args:
            now: Wall-clock seconds.

        Raises:
            RunGone: The run is removed meanwhile.
            LedgerUnreadable: SQLite can't read it.
            NotExportable: A result or the states of a worker are damaged.
            OSError: A checkpoint file cannot be read.
        """
        run, writer = self._run, Writer()
        yield writer.line(
            RunHeader(FORMAT, KIND, run.group, run.run, run.state, run.started_at, run.finished_at, timestamp(now))
        )
        for state in self._states():
            yield writer.line(state)
        with readable(self._path):
            done, last, totals = self._snapshot()
        for total in totals:
            yield writer.line(total)
        for rows in scan_items(self._path, self._db, run, _COLUMNS, upto=last):
            for row in rows:
                yield writer.line(self._item(row, done))
        yield writer.end()

    def _states(self) -> Iterator[WorkerState]:
        with readable(self._path):
            owed = importing.owed(self._db.cursor(), self._run.run_id)
        if owed:  # its import was cut off just before its end
            remedy = "the supervisor does so when it starts"
            raise NotExportable(f"{owed[0]}: the state that was imported is not saved as a checkpoint yet; {remedy}")
        names = Files().folders(self._state_dir / FOLDER)
        store = CheckpointReader(self._state_dir)
        for name in names:
            if re.fullmatch(re.escape(self._run.group) + "-[0-9]+", name, re.ASCII) is None:
                continue
            try:
                found = store.newest(name, self._run.fresh_from)
            except Damaged as error:
                remedy = f"restore one first: checkpoint restore {name} --generation N"
                raise NotExportable(f"{name}: none of its checkpoints is sound ({error.reason}); {remedy}") from None
            except TooNew as error:
                raise NotExportable(f"{name}: its newest checkpoint cannot be read: {error.reason}") from None
            if found is not None:
                header = found.header
                yield WorkerState(name, header.run, header.generation, header.schema, header.saved_at, found.state)

    def _snapshot(self) -> tuple[int, int, list[WorkerTotals]]:
        """At one moment: how many items were done, the last item's id, and what each worker did."""
        execute, run_id = self._db.execute, self._run.run_id
        execute("BEGIN")
        try:
            check_there(self._db, self._run)
            (done,) = execute("SELECT done FROM runs WHERE id = ?", (run_id,)).fetchone()
            (last,) = execute("SELECT coalesce(max(id), 0) FROM items").fetchone()
            query = "SELECT worker, done, failed FROM totals WHERE run_id = ? ORDER BY worker"
            totals = [WorkerTotals(*row) for row in execute(query, (run_id,)).fetchall()]
        finally:
            execute("COMMIT")
        return done, last, totals

    def _item(self, row: tuple[Any, ...], done: int) -> PortableItem:
        (
            _, key, target, data, priority, order, state, not_before, attempts, infrastructure, blocked, alone,
            worker, failure, seq, result, sha256, finished_at,
        ) = row  # fmt: skip
        if state == "open":
            state = "pending" if not_before is None else "waiting"
        outcome = None
        if state == "done" and seq > done:  # since the items were begun with
            state, attempts = "pending", max(0, attempts - 1)
        elif state == "done":
            if result is None or hashlib.sha256(result).hexdigest() != sha256:
                found = f"the ledger's result {seq} of {key!r} is damaged: its checksum does not fit"
                raise NotExportable(f"{found}; 'checkpoint verify' tells what else is damaged")
            outcome = Result(seq, Raw(result), finished_at, sha256)
        return PortableItem(
            key,
            target,
            Raw(b"null" if data is None else data),
            priority,
            order,
            state,
            attempts,
            infrastructure,
            blocked,
            bool(alone),
            None if not_before is None else timestamp(not_before, "microseconds"),
            worker,
            UNSET if failure is None else Raw(failure),
            outcome,
        )
