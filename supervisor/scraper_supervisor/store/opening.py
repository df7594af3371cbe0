"""Opens the ledger that a location names: the one way to it for the daemon and the commands.

Today a location is a state folder, and the ledger in it SQLite's. A later version's may name a PostgreSQL server too;
which implementation of the ports a caller gets is decided here.
"""

from __future__ import annotations

import os
from errno import EACCES, EPERM
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from scraper_supervisor.store.errors import LedgerDamaged, LedgerUnusable
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_supervisor.store.sqlite.reader import LedgerReader
from scraper_supervisor.store.sqlite.run_export import Export
from scraper_supervisor.store.sqlite.schema import FILE_NAME, missing_beside, remains

if TYPE_CHECKING:
    from collections.abc import Callable

    from scraper_supervisor.store.config_file import Place
    from scraper_supervisor.store.ports import ExportPort, LedgerPort, ReaderPort, RunInfo


class LedgerLocation(Struct, frozen=True):
    """Where a supervisor keeps what it keeps: the ledger and, as files wherever that is, the workers' states.

    As a string it is the ledger's place, for people.
    """

    state_dir: Path

    def __str__(self) -> str:
        return str(self.state_dir / FILE_NAME)


def location(place: Place) -> LedgerLocation:
    """The location that a configuration names."""
    return LedgerLocation(Path(place.folders.state_dir))


def is_there(where: LedgerLocation) -> bool:
    """True if there is a ledger, or something that one has left; False where nobody ever made one."""
    path = where.state_dir / FILE_NAME
    return path.exists() or remains(path) is not None


def open_for_writing(
    where: LedgerLocation, *, patient: bool = False, warn: Callable[[str, str], None] = lambda _, __: None
) -> LedgerPort:
    """Open the ledger for writing; it is made if there is none.

    Args:
        where: The location; the caller has its state folder locked.
        patient: A disk that is full, or takes no writes, is no error: every operation is refused until it does.
        warn: Told, in the thread that uses the ledger, of upkeep that failed and can wait: what, and why.

    Raises:
        NetworkFileSystem, LedgerDamaged, LedgerTooNew, LedgerUnusable: It does not open.
    """
    return Ledger.open(where.state_dir / FILE_NAME, patient=patient, warn=warn)


def open_for_reading(where: LedgerLocation) -> ReaderPort:
    """Open the ledger for reading, whoever else has it open.

    Raises:
        FileNotFoundError: There is none, and nothing that one has left.
        PermissionError: It, or its folder, is not for this user to read.
        LedgerDamaged, LedgerTooNew, LedgerUnusable: It does not open, or is missing where one has been.
    """
    path = where.state_dir / FILE_NAME
    must_be_readable(where.state_dir)
    try:
        return LedgerReader(path)
    except FileNotFoundError:
        left = remains(path)
        if left is None:
            raise
        raise LedgerDamaged(path, missing_beside(left)) from None
    except LedgerUnusable as error:
        if error.errno in (EACCES, EPERM):
            raise PermissionError(error.errno, os.strerror(error.errno), str(path)) from None
        raise


def must_be_readable(folder: Path) -> None:
    """Tell a folder that may not be looked into from one in which nothing is.

    Raises:
        PermissionError: This user may not.
    """
    try:
        os.scandir(folder).close()
    except (FileNotFoundError, NotADirectoryError):
        return


def open_for_export(where: LedgerLocation, run: RunInfo) -> ExportPort:
    """Open the newest run of a group to be exported.

    Args:
        where: The location.
        run: The run, as a reader tells it.

    Raises:
        FileNotFoundError: There is no ledger.
        LedgerDamaged, LedgerTooNew, LedgerUnusable: It does not open.
    """
    return Export(where.state_dir, run)
