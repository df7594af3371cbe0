"""What is asked of the ledger about a run that is imported, and what it answers."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Raw, Struct

from scraper_supervisor.core.ops.operation import Operation


class Imported(Struct, frozen=True):
    """How an import stands. With a `problem` it is given up, and the group is as it was."""

    run_id: int
    run: int = 0  # its number, once it is finished
    problem: str | None = None


class ImportBegin(Operation[Imported], frozen=True):
    """Begin a run that is filled by ImportLines; until ImportFinish nobody sees it.

    An import of the group that was begun before and not finished is given up.
    """

    group: str


class ImportLines(Operation[Imported], frozen=True):
    """Put whole lines of an export (see core.formats.run_export) into the run that is being imported."""

    group: str
    run_id: int
    lines: bytes


class ImportFinish(Operation[Imported], frozen=True):
    """The run that was imported becomes the group's newest.

    What was removed of older ones is for the next OpenRun to say. The workers' states are still to be taken.
    """

    group: str
    run_id: int


class ImportDrop(Operation[Imported], frozen=True):
    """Give up an import that is not finished; its rows are removed in small steps."""

    group: str
    run_id: int


class StateTaken(Struct, frozen=True):
    """A worker's state as it was imported with that run."""

    run: int
    schema: str
    state: Raw


class TakeState(Operation[StateTaken | None], frozen=True):
    """A state that is owed to a worker of this run, to be saved as a checkpoint."""

    group: str
    run_id: int
    worker: str


class DropState(Operation[None], frozen=True):
    """The state that was owed to a worker is a checkpoint now."""

    group: str
    run_id: int
    worker: str


ImportOp: TypeAlias = ImportBegin | ImportLines | ImportFinish | ImportDrop | TakeState | DropState
