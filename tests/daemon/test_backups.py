"""When the daemon backs the ledger up."""

from __future__ import annotations

import io
import os
import time
from typing import TYPE_CHECKING

import pytest
import structlog

from scraper_supervisor.core.ops.run_ops import Probe
from scraper_supervisor.daemon.backups import Backups
from scraper_supervisor.daemon.telling.log import configure_logging
from scraper_supervisor.store.opening import LedgerLocation
from scraper_supervisor.store.sqlite.backups.backup import backups
from scraper_supervisor.store.sqlite.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(tmp_path / "ledger.db")
    ledger.perform([Probe(1)])
    yield ledger
    ledger.close()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The log as the daemon sets it up by default."""
    stream = io.StringIO()
    writer = configure_logging("info", "json", stream)
    yield stream
    writer.close()
    structlog.reset_defaults()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_backup_soon_after_the_start_and_one_after_the_end(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "backups").mkdir()
    (tmp_path / "backups" / "ledger-20260501T120000.000Z.db.new").touch()
    made = Backups(LedgerLocation(tmp_path), lambda: None, soon=(0.0,))
    wait_for(lambda: backups(tmp_path))
    assert len(list((tmp_path / "backups").iterdir())) == 2
    ledger.perform([Probe(1)])
    made.stop()
    ledger.close()
    made.make_last()
    assert len(backups(tmp_path)) == 2
    for name in ("ledger.db", "ledger.db.sha256"):
        os.utime(tmp_path / name, (1, 1))
    made.make_last()  # nothing changed
    assert len(backups(tmp_path)) == 2
    assert {file.name for file in tmp_path.iterdir()} == {"ledger.db", "ledger.db.sha256", "backups"}


def test_a_backup_is_told_at_level_info(ledger: Ledger, tmp_path: Path, log: io.StringIO) -> None:
    made = Backups(LedgerLocation(tmp_path), lambda: None, soon=(0.0,))
    wait_for(lambda: "the ledger was backed up" in log.getvalue())
    made.stop()
    assert str(backups(tmp_path)[0].path) in log.getvalue()


def test_no_backup_without_room(ledger: Ledger, tmp_path: Path, log: io.StringIO) -> None:
    made = Backups(LedgerLocation(tmp_path), lambda: 1 << 60, soon=(0.0,))
    wait_for(lambda: "the ledger was not backed up" in log.getvalue())
    made.stop()
    assert f"{1 << 60} stay free" in log.getvalue()
    assert backups(tmp_path) == []


def test_a_backup_that_fails_is_logged_and_harms_nothing(ledger: Ledger, tmp_path: Path, log: io.StringIO) -> None:
    (tmp_path / "backups").write_bytes(b"in the way")
    made = Backups(LedgerLocation(tmp_path), lambda: None, soon=(0.0,))
    wait_for(lambda: "the ledger was not backed up" in log.getvalue())
    assert ledger.perform([Probe(1)]) == [None]
    made.stop()


def test_a_failure_that_nobody_thought_of_ends_neither_the_backups_nor_the_daemon(
    ledger: Ledger, tmp_path: Path, log: io.StringIO
) -> None:
    failing = [True]

    def reserve() -> int | None:
        if failing:
            failing.pop()
            raise TypeError("no such number")
        return None

    made = Backups(LedgerLocation(tmp_path), reserve, soon=(0.0, 0.0))
    wait_for(lambda: backups(tmp_path))
    wait_for(lambda: "TypeError: no such number" in log.getvalue())
    made.stop()
    ledger.perform([Probe(1)])
    failing.append(True)
    made.make_last()
    assert len(backups(tmp_path)) == 1
