"""The ports of the ledger: what the daemon and the commands ask of it, whatever database keeps it.

One implementation is there, on SQLite: `ledger.Ledger`, `reader.LedgerReader` and `run_export.Export`. What another
one, on PostgreSQL, would do in its place stands with each method. `opening` alone knows which one a location needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, Self

from msgspec import Raw, Struct

from scraper_supervisor.core.ops.item_ops import ItemState
from scraper_supervisor.core.ops.run_ops import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from scraper_supervisor.core.ops.all_ops import Answer, LedgerOp
    from scraper_supervisor.store.errors import StoreFault


class LedgerPort(Protocol):
    """The ledger, open for writing. One thread at a time uses it; every method blocks meanwhile.

    On PostgreSQL: one connection, which is opened anew when it broke. Several supervisors may then write to one ledger,
    each of them through a port of its own.
    """

    @property
    def commit_seconds(self) -> float:
        """Seconds that the last commit took, without the statements in it: how long the next may wait for company.

        On PostgreSQL: the round trip of COMMIT.
        """
        ...

    def perform(self, ops: Sequence[LedgerOp]) -> list[Answer | StoreFault]:
        """Carry out operations in one durable transaction.

        On PostgreSQL: the same transaction, with `synchronous_commit` on; a lost connection is a fault like a disk's.

        Returns:
            One answer an operation, in their order. When the database refuses, nothing of the batch is carried out and
            each of them is the fault. An operation that makes no sense gets a fault with EINVAL, and the others of its
            batch are carried out.
        """
        ...

    def idle(self, asked: Callable[[], bool]) -> StoreFault | None:
        """Look after the ledger while nothing is asked of it: at once after the last batch, and each second from then.

        It returns soon after `asked` says yes. Upkeep that cannot wait for such a moment is done by `perform`.

        On PostgreSQL: learn whether the connection still lives, take what NOTIFY sent, and delete rows of removed runs.

        Args:
            asked: Whether an operation is waiting.

        Returns:
            What is wrong with the ledger, if that was found just now: nobody had asked.
        """
        ...

    def close(self) -> None:
        """Close it; harmless when already done.

        Raises:
            StoreError: What was acknowledged may not be found again; the message says where it is.
        """
        ...


class ReaderPort(Protocol):
    """The ledger, open for reading, also while others write to it; a context manager.

    What it yields is read in steps, each of them a view of its own: a queue that moves meanwhile may show an item as it
    was or as it is, and no done item is missed. Every method raises LedgerUnreadable where the ledger cannot be read.

    On PostgreSQL: a connection with `default_transaction_read_only`, each step a transaction.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def groups(self) -> list[str]:
        """The names of the groups that have a run, sorted."""
        ...

    def entrypoint(self, group: str) -> str | None:
        """Who works on a group's newest run; None if it has none, or nobody has written that down."""

    def runs(self, group: str) -> list[RunInfo]:
        """A group's runs, the newest first."""
        ...

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

        `state` "open" is pending, waiting or in flight. `after`: only those added after the item of this key;
        `containing`: only those whose keys hold this text.

        Raises:
            LookupError: There is no such group, run or key, or the run is removed meanwhile (RunGone).
        """
        ...

    def results(self, group: str, run: int | None = None, after: int = 0) -> Iterator[ResultRow]:
        """The done items of a run, the latest unless `run` is given, by seq, from the one after `after` on.

        Raises:
            LookupError: There is no such group or run, or it is removed meanwhile (RunGone).
            LedgerUnreadable: A result is not what was stored; those before it were told.
        """
        ...

    def verify(self) -> str | None:
        """Read the whole ledger and every result; tells what is wrong, None if nothing is.

        On PostgreSQL: the results against their checksums and the counts against the rows; the pages are the server's.
        """
        ...


class ExportPort(Protocol):
    """A group's run on its way out as portable JSON Lines; a context manager.

    On PostgreSQL: the same lines from one transaction, REPEATABLE READ; the workers' states are files either way.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def lines(self, now: float) -> Iterator[bytes]:
        """The lines, the last of which says that it is whole.

        Args:
            now: Wall-clock seconds.

        Raises:
            RunGone: The run is removed meanwhile.
            LedgerUnreadable: The ledger cannot be read.
            NotExportable: A result or the states of a worker are damaged, or not there yet.
            OSError: A checkpoint file cannot be read.
        """
        ...


# ---- what readers are told -------------------------------------------------------------------------------------------


class RunGone(LookupError):
    """The run was removed while it was read: newer ones began, and keep_runs says how many stay."""

    def __init__(self, group: str, run: int) -> None:
        super().__init__(f"{group}: run {run} was removed while it was read; keep_runs says how many runs stay")


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
