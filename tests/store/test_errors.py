from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest

from scraper_supervisor.store.errors import LedgerUnusable, StoreFault, disk_fault


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StoreFault(errno.ENOSPC, "No space left on device")),
        (OSError(errno.EINVAL, "Invalid argument", "x"), StoreFault(errno.EIO, "x: Invalid argument")),
        (OSError("it broke"), StoreFault(errno.EIO, "it broke")),
        (
            LedgerUnusable(Path("x"), "Invalid argument", errno.EINVAL),
            StoreFault(errno.EIO, "x: the ledger does not open: Invalid argument"),
        ),
        (LookupError("no such run"), None),
        (sqlite3.ProgrammingError("closed"), None),
    ],
)
def test_only_an_operation_that_made_no_sense_is_einval(error: Exception, fault: StoreFault | None) -> None:
    assert disk_fault(error) == fault
