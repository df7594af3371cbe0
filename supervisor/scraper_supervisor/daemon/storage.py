"""The two writer threads, one for the ledger and one for checkpoint files, and how their answers come to the loop."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import structlog

from scraper_supervisor.core.events import Persisted, PersistFailed
from scraper_supervisor.core.ops.all_ops import Answer, LedgerOp, Op
from scraper_supervisor.core.ops.run_ops import Probe
from scraper_supervisor.core.ops.state_ops import StateOp
from scraper_supervisor.store.errors import StoreError, StoreFault, disk_fault
from scraper_supervisor.store.files import Files
from scraper_supervisor.store.group_commit import GroupCommit
from scraper_supervisor.store.opening import LedgerLocation, open_for_writing
from scraper_supervisor.store.states.checkpoints import CheckpointFiles

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from scraper_supervisor.core.events import Event


T = TypeVar("T")
StoreAnswers: TypeAlias = list[tuple[Op, Answer | StoreFault]]

_BATCH: Final = 2_048  # operations in one transaction: what came later waits some 50 ms at most for it
_LOOK_EVERY: Final = 1.0  # seconds
ANSWERS_A_TURN: Final = 16
_log = structlog.get_logger()


class StorageThreads:
    """Carries out what the core asks of the store, off the event loop.

    What arrives during a commit goes into the next one; how long that one waits for more, `store.group_commit` says.
    Operations on the ledger are answered in the order in which they were submitted, and so are those on checkpoint
    files; the two do not wait for each other. What waits here is bounded by the callers: each operation stands for an
    open call of a worker or an operator, or for a fetch of the core, and both are limited in number.

    Args:
        where: Where the ledger and the checkpoint files are; the folder exists, and this process has locked it.
        deliver: Called on the loop with what was carried out, once for each batch.
        told: Called on the loop with a fault of the ledger that was found though nothing was asked of it.
        loop: The event loop.
        files: How checkpoint files are reached.

    Raises:
        NetworkFileSystem, LedgerDamaged, LedgerTooNew, LedgerUnusable: The ledger does not open.
    """

    def __init__(
        self,
        where: LedgerLocation,
        deliver: Callable[[StoreAnswers], None],
        told: Callable[[StoreFault], None],
        loop: asyncio.AbstractEventLoop,
        files: Files | None = None,
    ) -> None:
        self._deliver = deliver
        self._told = told
        self._loop = loop
        self._ledger = open_for_writing(where, patient=True, warn=lambda what, why: _log.warning(what, reason=why))
        self._state_dir = where.state_dir
        self._files = files or Files()
        self._checkpoints = CheckpointFiles(where.state_dir, self._files)
        self._ledger_ops: SimpleQueue[list[LedgerOp] | None] = SimpleQueue()  # None: close
        self._state_ops: SimpleQueue[StateOp | None] = SimpleQueue()
        self._closed = False
        self._going = True
        self._group_commit = GroupCommit()
        # As daemon threads they cannot keep a failing process from ending; what they have not answered is not promised.
        self._threads = [
            threading.Thread(target=self._write_ledger, name="ledger", daemon=True),
            threading.Thread(target=self._write_states, name="checkpoints", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, *ops: Op) -> None:
        """Have operations carried out; returns at once.

        Raises:
            RuntimeError: The storage is closed.
        """
        if self._closed:
            raise RuntimeError("the storage is closed")
        ledger_ops: list[LedgerOp] = []
        for op in ops:
            if isinstance(op, StateOp):
                self._state_ops.put(op)
            else:
                ledger_ops.append(op)
        if ledger_ops:
            self._ledger_ops.put(ledger_ops)

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
        except StoreError as error:
            _log.critical("the ledger is not as it was acknowledged", reason=str(error))

    # ---- the ledger's thread -----------------------------------------------------------------------------------------

    def _write_ledger(self) -> None:
        while self._going:
            ops = self._arrived()  # while the last batch was committed
            if not ops and self._going:
                self._tend()
                ops = self._arrived()  # meanwhile
            waiting = len(ops)
            if not ops and self._going:
                ops = self._next()
            if ops:
                self._gather(ops, waiting)
                answers = self._perform(ops)
                self._answer(ops, answers)
                self._group_commit.committed(len(ops), self._ledger.commit_seconds)

    def _arrived(self, patience: float | None = 0.0) -> list[LedgerOp]:
        """What has arrived, waiting for the first so many seconds (None: for as long as it takes)."""
        ops: list[LedgerOp] = []
        with contextlib.suppress(Empty):
            more = self._ledger_ops.get(patience != 0.0, patience)
            while more is not None:
                ops += more
                if len(ops) >= _BATCH:
                    return ops
                more = self._ledger_ops.get_nowait()
            self._going = False
        return ops

    def _next(self) -> list[LedgerOp]:
        """What arrives next; while nothing does, the ledger is looked after each second."""
        while True:
            ops = self._arrived(_LOOK_EVERY)
            if ops or not self._going:
                return ops
            self._tend()

    def _tend(self) -> None:
        """Have the ledger look after itself while nothing is asked; a fault that it finds is told unasked."""
        fault = self._ledger.idle(self._is_asked)
        if fault is not None:
            self._on_the_loop(self._told, fault)

    def _is_asked(self) -> bool:
        return not self._ledger_ops.empty()

    def _gather(self, ops: list[LedgerOp], waiting: int) -> None:
        """Wait a moment for what should join a batch, where that pays."""
        self._group_commit.begin(waiting, time.perf_counter())
        while len(ops) < _BATCH and self._going:
            patience = self._group_commit.patience(len(ops), time.perf_counter())
            if patience <= 0:
                return
            ops += self._arrived(patience)

    def _perform(self, ops: list[LedgerOp]) -> list[Answer | StoreFault]:
        try:
            for op in ops:
                if isinstance(op, Probe):  # the disk is asked for the room that it wants
                    self._files.probe(self._state_dir, op.room)
            return self._ledger.perform(ops)
        except Exception as error:  # noqa: BLE001 - the fault is the answer
            return [_fault(error)] * len(ops)

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
        self._on_the_loop(self._deliver, list(zip(ops, answers, strict=True)))

    def _on_the_loop(self, callback: Callable[[T], None], what: T) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, what)
        except RuntimeError:
            # The loop is closed: nobody is left to tell, and an answer that was not given promises nothing.
            _log.debug("an answer came after the loop was closed")


def _fault(error: Exception) -> StoreFault:
    return disk_fault(error) or StoreFault(errno.EIO, f"{type(error).__name__}: {error}")


class AnswerQueue:
    """Has the fleet take the store's answers a few at a time; between them and the rest the loop looks at its sockets.

    So no batch holds the loop up, and those answered first are back with new calls while others are still being
    answered: the store and the loop work side by side instead of in turn.

    Args:
        loop: The running loop.
        turn: Has the fleet take events at once, after those that wait already.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, turn: Callable[[list[Event]], None]) -> None:
        self._loop = loop
        self._turn = turn
        self._answers: StoreAnswers = []

    def put(self, answers: StoreAnswers) -> None:
        """Have a batch's answers taken, from the loop's next turn on."""
        if not self._answers:
            self._loop.call_soon(self._take)
        self._answers += answers

    def _take(self) -> None:
        answers, self._answers = self._answers[:ANSWERS_A_TURN], self._answers[ANSWERS_A_TURN:]
        if self._answers:
            self._loop.call_soon(self._take)
        events: list[Event] = []
        for op, answer in answers:
            if not isinstance(answer, StoreFault):
                events.append(Persisted(op, answer))
                continue
            if answer.errno == errno.EINVAL:
                _log.error("the store was asked what makes no sense", op=type(op).__name__, why=answer.message)
            events.append(PersistFailed(op, answer.errno, answer.message))
        self._turn(events)
