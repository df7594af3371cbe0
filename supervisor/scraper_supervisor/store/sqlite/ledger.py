"""The ledger: the queue, outcomes and results of every run, written in batches of one transaction each."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from typing import TYPE_CHECKING, Final, Self, TypeAlias

from scraper_supervisor.store.errors import (
    LedgerMoved,
    LedgerUnusable,
    LedgerUnwritable,
    StoreError,
    StoreFault,
    disk_fault,
)
from scraper_supervisor.store.sqlite.batch import Batch
from scraper_supervisor.store.sqlite.integrity.file_identity import Places
from scraper_supervisor.store.sqlite.integrity.seal import seal
from scraper_supervisor.store.sqlite.run_import import forget, give_up_unfinished
from scraper_supervisor.store.sqlite.schema import open_ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from scraper_supervisor.core.ops.all_ops import Answer, LedgerOp

LedgerAnswer: TypeAlias = "Answer | StoreFault"

_FOLD_COMMITS: Final = 256  # each of them has written some ten pages to the log, however small it was
_FOLD_OPS: Final = 4_000  # or pages' worth of what came with them, 16 MiB
_TIDY: Final = 500  # items of removed runs that an idle moment removes, some 4 ms: what arrives then waits for it
_TIDY_BUSY: Final = 250  # and so many, some 2 ms, when no moment is idle:
_TIDY_EVERY: Final = 16  # after so many commits
_TIDY_SECONDS: Final = 0.004  # about; a result of 1 MiB takes longer than that to remove, 500 small ones do not
_CLOCK_STEP: Final = 4e-6  # seconds; a retry's place is a double near -8e9, where neighbours are 1 to 2 µs apart
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_CLOCK_LEAD: Final = 1.0  # seconds; a clock that is set back by more is followed

# By id alone: with the run as a condition too, each step would go through the whole index of the run.
_FORGET_ITEMS: Final = "DELETE FROM items WHERE id IN (SELECT id FROM items WHERE run_id = ? LIMIT ?)"
_FORGET_RESULTS: Final = (
    "DELETE FROM results WHERE run_id = ? AND seq IN (SELECT seq FROM results WHERE run_id = ? ORDER BY seq LIMIT ?)"
)


class Ledger:
    """The ledger on SQLite, open for writing: a LedgerPort. One process has it open for writing.

    Args:
        path: The file.
        db: A connection to it, from `open_ledger`.
        clock: Wall-clock seconds.
        warn: Told of upkeep that failed and can wait: what, and why.
    """

    def __init__(
        self, path: Path, db: sqlite3.Connection, clock: Callable[[], float], warn: Callable[[str, str], None]
    ) -> None:
        self._path = path
        self._db = db
        self._cursor = db.cursor()
        self._clock = clock
        self._warn = warn
        self._last = 0.0  # seconds, as _tick told them last
        self._broken = False
        self._places: Places | None = None  # as the connection's first transaction found them
        self._moved = False
        self._waiting = False  # the file could not be opened yet, and is when the disk allows it
        self._closed = False
        self.commit_seconds = 0.0
        self._unfolded_commits = self._unfolded_ops = 0
        self._fold_fault: StoreFault | None = None
        self._untidy = True  # perhaps there are rows of removed runs left
        self._untidied_commits = 0  # since some of them were last removed
        self._looked = False  # by a commit, just now

    @classmethod
    def open(
        cls,
        path: Path,
        clock: Callable[[], float] = time.time,
        *,
        patient: bool = False,
        warn: Callable[[str, str], None] = lambda _, __: None,
    ) -> Self:
        """Open the ledger; it is made, with mode 0600, if there is none.

        Args:
            path: The file.
            clock: Wall-clock seconds.
            patient: A disk that is full, or takes no writes, is no error: every operation is refused until it does.
            warn: Told of upkeep that failed and can wait: what, and why.

        Raises:
            NetworkFileSystem, LedgerDamaged, LedgerTooNew, LedgerUnusable: See `open_ledger`.
        """
        try:
            db = open_ledger(path)
        except LedgerUnusable as error:
            waits = isinstance(error, LedgerUnwritable) or error.errno in _FULL or _is_full(path.parent)
            if not (patient and waits):
                raise
        else:
            with contextlib.suppress(sqlite3.Error):  # a full disk, say: they are unseen, and can wait
                give_up_unfinished(db)
            return cls(path, db, clock, warn)
        ledger = cls(path, sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False), clock, warn)
        ledger._broken = ledger._waiting = True
        return ledger

    def close(self) -> None:
        """Close the file and seal it; harmless when already done.

        Raises:
            StoreError: It was not in its place any more, and could not be brought back there; or it does not close.
        """
        fault = self._look()
        places, self._places = self._places, None
        rescued = None
        if fault is not None and places is not None and fault.errno == errno.EBUSY:
            with contextlib.suppress(OSError, sqlite3.Error):  # told below all the same
                rescued = places.rescue(self._db)
        try:
            self._db.close()
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: the ledger does not close: {error}") from error
        if fault is not None and places is not None:
            where = "" if rescued is None else f"; what was committed is in {rescued}: put it in its place"
            raise StoreError(fault.message + where)
        if not self._closed and not self._waiting:
            self._closed = True
            with contextlib.suppress(OSError):  # without a seal it opens all the same, and less is known of its bytes
                seal(self._path)

    def perform(self, ops: Sequence[LedgerOp]) -> list[LedgerAnswer]:
        """Carry out operations in one durable transaction, and answer in their order.

        When the disk refuses, nothing of the batch is carried out and every answer is the fault. An operation that
        makes no sense gets a fault with EINVAL, and the others of its batch are carried out.
        """
        self._keep_up()  # before the batch, as those whom the last one answered need not wait for it
        try:
            return self._transact(ops)
        except Exception as error:  # noqa: BLE001 - whatever it is, it becomes an answer
            self._abandon()
            fault = disk_fault(error)
        if fault is None:
            # One of them is at fault by itself: find out which, at the cost of a savepoint for each.
            try:
                return self._transact(ops, apart=True)
            except Exception as error:  # noqa: BLE001 - as above
                self._abandon()
                fault = disk_fault(error) or StoreFault(errno.EIO, _explain(error))
        return [fault] * len(ops)

    def idle(self, asked: Callable[[], bool]) -> StoreFault | None:
        """Look after the file while nothing is asked: fold the log, remove what is left of removed runs, look at it.

        Whatever of it takes long is done in steps of milliseconds, between which `asked` may end it.

        Args:
            asked: Whether an operation is waiting.

        Returns:
            What is wrong with the file, if it is not in its place any more. What is missing is brought back.
        """
        if self._log_is_long:
            self._fold()
        while self._untidy and not asked():
            self._tidy(_TIDY)
        if self._looked:
            self._looked = False
            return None
        return None if asked() else self._look()

    # ---- upkeep ------------------------------------------------------------------------------------------------------

    def _keep_up(self) -> None:
        """What cannot wait for an idle moment: there may be none for long."""
        if self._log_is_long:
            self._fold()
        if self._untidy and self._untidied_commits >= _TIDY_EVERY:
            self._tidy(_TIDY_BUSY)

    def _look(self) -> StoreFault | None:
        """Why the open file is not in its place any more; None if it is. The look costs a few microseconds.

        What is missing is brought back.
        """
        if self._broken:
            return None
        try:
            self._check_places()
        except (StoreError, OSError, sqlite3.Error) as error:
            return disk_fault(error) or StoreFault(errno.EIO, _explain(error))
        return None

    def _tidy(self, limit: int) -> None:
        """Remove up to `limit` items of removed runs, fewer if they are large; `_untidy` tells whether some are left.

        The file does not shrink: what becomes free in it is used again.
        """
        self._untidied_commits = 0
        try:
            self._begin()
            row = self._cursor.execute("SELECT id FROM runs WHERE removed = 1 ORDER BY id LIMIT 1").fetchone()
            if row is not None:
                self._tidy_run(row[0], limit)
            self._untidy = row is not None
            self._cursor.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - as in perform
            self._abandon()
            self._untidy = False  # again after the next run that is removed, or the next start
            fault = disk_fault(error)
            reason = _explain(error) if fault is None else fault.message
            self._warn("the rows of removed runs stay for now", reason)

    @property
    def _log_is_long(self) -> bool:
        """True if the write-ahead log should be folded back."""
        return self._unfolded_commits >= _FOLD_COMMITS or self._unfolded_ops >= _FOLD_OPS

    def _fold(self) -> None:
        """Copy what is new in the write-ahead log into the file, so that the log can begin anew.

        That is ours to do, in slices that cost milliseconds, since SQLite would do it within a commit, and since no
        other connection may: in SQLite before 3.51.3, one that folds while another begins the log anew can lose
        commits (the "WAL-reset bug", https://sqlite.org/wal.html).
        """
        self._unfolded_commits = self._unfolded_ops = 0
        fault = None
        try:
            self._cursor.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            fault = disk_fault(error) or StoreFault(errno.EIO, _explain(error))
        if fault is not None and self._fold_fault is None:  # told once
            self._warn("the ledger's log can't be folded back and grows", fault.message)
        self._fold_fault = fault

    # ---- transactions ------------------------------------------------------------------------------------------------

    def _transact(self, ops: Sequence[LedgerOp], *, apart: bool = False) -> list[LedgerAnswer]:
        self._looked = True
        self._begin()
        batch = Batch(self._cursor, self._tick)
        answers: list[LedgerAnswer] = []
        if apart:
            answers += [self._apart(batch, op) for op in ops]
        else:
            answers += batch.perform(ops)
        batch.write_counters()
        began = time.perf_counter()
        self._cursor.execute("COMMIT")
        self.commit_seconds = time.perf_counter() - began
        self._unfolded_commits += 1
        self._unfolded_ops += batch.weight
        self._untidied_commits += 1
        self._untidy = self._untidy or batch.removed_runs
        return answers

    def _begin(self) -> None:
        if self._broken:
            with contextlib.suppress(sqlite3.Error):  # a connection that cannot even roll back
                self._db.close()
            self._reopen()
        self._check_places()
        self._cursor.execute("BEGIN IMMEDIATE")
        if self._places is None:
            self._places = Places(self._path)

    def _check_places(self) -> None:
        """Nothing is committed into a file that nobody finds again. What is missing is brought back, and told once."""
        if self._places is None:
            return
        try:
            if not self._moved:
                self._places.check()
                return
        except LedgerMoved:
            self._moved = True
            self._bring_back(self._places)
            raise
        self._bring_back(self._places)

    def _bring_back(self, places: Places) -> None:
        places.bring_back(self._db)
        self._broken = True  # it is closed: should it not open now, then the next time
        self._reopen()

    def _reopen(self) -> None:
        self._db = open_ledger(self._path, create=self._waiting)
        self._cursor = self._db.cursor()
        self._broken = self._moved = self._waiting = False
        self._places = None

    def _abandon(self) -> None:
        if self._broken:
            return
        try:
            if self._db.in_transaction:  # SQLite itself has ended it after some errors
                self._cursor.execute("ROLLBACK")
        except sqlite3.Error:  # or it is closed
            self._broken = True

    def _apart(self, batch: Batch, op: LedgerOp) -> LedgerAnswer:
        batch.write_counters()
        self._cursor.execute("SAVEPOINT op")
        try:
            answer: LedgerAnswer = batch.perform([op])[0]
            batch.write_counters()
        except Exception as error:
            if disk_fault(error) is not None:
                raise
            batch.forget_counters()
            self._cursor.execute("ROLLBACK TO op")
            answer = StoreFault(errno.EINVAL, _explain(error))  # it made no sense by itself: the disk is well
        self._cursor.execute("RELEASE op")
        return answer

    def _tick(self) -> float:
        """The time; never twice the same, since the place of a retry in the queue is made of it."""
        now = self._clock()
        ahead = self._last - now
        self._last = self._last + _CLOCK_STEP if -_CLOCK_STEP < ahead < _CLOCK_LEAD else now
        return self._last

    def _tidy_run(self, run_id: int, limit: int) -> None:
        execute = self._cursor.execute
        if not self._forget(_FORGET_RESULTS, (run_id, run_id), limit) or not self._forget(
            _FORGET_ITEMS, (run_id,), limit
        ):
            return
        for table in ("lanes", "totals"):
            execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))
        forget(self._cursor, run_id)
        execute("DELETE FROM runs WHERE id = ?", (run_id,))

    def _forget(self, query: str, run: tuple[int, ...], limit: int) -> bool:
        """Remove up to `limit` rows, at least one, as far as time allows; whether none is left."""
        ends = time.perf_counter() + _TIDY_SECONDS
        step, left = 1, limit
        while left and (left == limit or time.perf_counter() < ends):
            self._cursor.execute(query, (*run, step))
            removed = self._cursor.rowcount
            self._unfolded_ops += removed
            if removed < step:
                return True
            left -= step
            step = min(2 * step, left)
        return False


def _is_full(folder: Path) -> bool:
    """True if the disk has no block left. SQLite has its own words for that, depending on where it meets it."""
    try:
        return os.statvfs(folder).f_bavail == 0
    except OSError:
        return False


def _explain(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
