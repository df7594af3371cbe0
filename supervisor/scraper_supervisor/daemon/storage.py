"""The two writer threads: one commits the ledger in groups, the other writes checkpoint files."""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, TypeAlias

from scraper_supervisor.core.records import Answer, LedgerOp, Op, Probe, StateOp
from scraper_supervisor.store.checkpoints import Checkpoints
from scraper_supervisor.store.faults import StoreError, StoreFault, disk_fault
from scraper_supervisor.store.files import Files
from scraper_supervisor.store.ledger import Ledger
from scraper_supervisor.store.schema import FILE_NAME

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from pathlib import Path


Answered: TypeAlias = list[tuple[Op, Answer | StoreFault]]

_BATCH: Final = 2_048  # operations in one transaction: what came later waits some 50 ms at most for it
_LOOK_EVERY: Final = 1.0  # seconds
_TIDY: Final = 2_000  # items of removed runs that an idle moment removes, some 20 ms
_log = logging.getLogger(__name__)


class Storage:
    """Carries out what the core asks of the store, off the event loop.

    What arrives during a commit goes into the next one. Operations on the ledger are answered in the order in which
    they were submitted, and so are those on checkpoint files; the two do not wait for each other. What waits here is
    bounded by the callers: each operation stands for an open call of a worker or an operator, or for a fetch of the
    core, and both are limited in number.

    Args:
        state_dir: The state folder; it exists, and this process has locked it.
        deliver: Called on the loop with what was carried out, once for each batch.
        loop: The event loop.
        files: How checkpoint files are reached.

    Raises:
        NetworkFileSystem, LedgerDamaged, LedgerTooNew, LedgerUnusable: The ledger does not open.
    """

    def __init__(
        self,
        state_dir: Path,
        deliver: Callable[[Answered], None],
        loop: asyncio.AbstractEventLoop,
        files: Files | None = None,
    ) -> None:
        self._deliver = deliver
        self._loop = loop
        self._ledger = Ledger.open(state_dir / FILE_NAME, patient=True)
        self._state_dir = state_dir
        self._files = files or Files()
        self._checkpoints = Checkpoints(state_dir, self._files)
        self._ledger_ops: SimpleQueue[LedgerOp | None] = SimpleQueue()  # None: close
        self._state_ops: SimpleQueue[StateOp | None] = SimpleQueue()
        self._closed = False
        # As daemon threads they cannot keep a failing process from ending; what they have not answered is not promised.
        self._threads = [
            threading.Thread(target=self._write_ledger, name="ledger", daemon=True),
            threading.Thread(target=self._write_states, name="checkpoints", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, op: Op) -> None:
        """Have an operation carried out; returns at once.

        Raises:
            RuntimeError: The storage is closed.
        """
        if self._closed:
            raise RuntimeError("the storage is closed")
        if isinstance(op, StateOp):
            self._state_ops.put(op)
        else:
            self._ledger_ops.put(op)

    def close(self) -> None:
        """Carry out everything submitted, then end the threads; blocks meanwhile. Harmless when already done.

        The last answers are delivered by the loop's next turn, if it has one.
        """
        if self._closed:
            return
        self._closed = True
        self._ledger_ops.put(None)
        self._state_ops.put(None)
        for thread in self._threads:
            thread.join()
        try:
            self._ledger.close()
        except (sqlite3.Error, StoreError) as error:
            _log.critical("the ledger is not as it was acknowledged: %s", error)

    # ---- the ledger's thread -----------------------------------------------------------------------------------------

    def _write_ledger(self) -> None:
        going = True
        while going:
            if self._ledger.untidy and self._ledger_ops.empty():
                self._tidy()
                continue
            ops, going = self._take()
            if ops:
                self._answer(ops, self._perform(ops))

    def _take(self) -> tuple[list[LedgerOp], bool]:
        """What has arrived, waiting for the first; and whether more may come."""
        ops: list[LedgerOp] = []
        op = self._next()
        while op is not None:
            ops.append(op)
            if len(ops) == _BATCH:
                return ops, True
            try:
                op = self._ledger_ops.get_nowait()
            except Empty:
                return ops, True
        return ops, False

    def _next(self) -> LedgerOp | None:
        """The next operation; while there is none, the ledger is looked after, and a fault of it told unasked."""
        while True:
            try:
                return self._ledger_ops.get(timeout=_LOOK_EVERY)
            except Empty:
                fault = self._ledger.look()
                if fault is not None:
                    self._answer([Probe(0)], [fault])

    def _perform(self, ops: Sequence[LedgerOp]) -> list[Answer | StoreFault]:
        try:
            for op in ops:
                if isinstance(op, Probe):
                    self._files.probe(self._state_dir, op.room)
            return self._ledger.perform(ops)
        except Exception as error:  # noqa: BLE001 - the fault is the answer
            return [_fault(error)] * len(ops)

    def _tidy(self) -> None:
        fault = self._ledger.tidy(_TIDY)
        if fault is not None:
            _log.warning("the rows of removed runs stay for now: %s", fault.message)

    # ---- the thread of the checkpoint files --------------------------------------------------------------------------

    def _write_states(self) -> None:
        while (op := self._state_ops.get()) is not None:
            answer: Answer | StoreFault
            try:
                answer = self._checkpoints.perform(op)
            except Exception as error:  # noqa: BLE001 - the fault is the answer
                answer = _fault(error)
            self._answer([op], [answer])

    # ---- both --------------------------------------------------------------------------------------------------------

    def _answer(self, ops: Sequence[Op], answers: Sequence[Answer | StoreFault]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, list(zip(ops, answers, strict=True)))
        except RuntimeError:
            # The loop is closed: nobody is left to tell, and an answer that was not given promises nothing.
            _log.debug("%d answers came after the loop was closed", len(ops))


def _fault(error: Exception) -> StoreFault:
    return disk_fault(error) or StoreFault(errno.EIO, f"{type(error).__name__}: {error}")
