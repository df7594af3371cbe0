"""After a restore no run gets a number that one had before: a fresh one would go on from the other's states."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal

import pytest
from msgspec import Raw

from scraper_supervisor.core.ops.import_ops import ImportBegin, Imported, ImportFinish
from scraper_supervisor.core.ops.run_ops import LoadRun, OpenRun, RunImage, SetRunState
from scraper_supervisor.core.ops.state_ops import LoadState, SaveState, StateLoaded, StateSaved
from scraper_supervisor.store.sqlite.backups.backup import back_up
from scraper_supervisor.store.sqlite.backups.restore import restore
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_supervisor.store.sqlite.reader import LedgerReader
from scraper_supervisor.store.states.checkpoints import CheckpointFiles

if TYPE_CHECKING:
    from pathlib import Path

G = "matches"
WORKER = "matches-0"


def begin(ledger: Ledger, mode: Literal["continue", "next", "fresh"], group: str = G) -> RunImage:
    (image,) = ledger.perform([OpenRun(1, group, mode, 5)])
    assert isinstance(image, RunImage)
    return image


def finish(ledger: Ledger) -> None:
    (image,) = ledger.perform([LoadRun(1, G)])
    assert isinstance(image, RunImage)
    assert ledger.perform([SetRunState(1, G, image.run_id, "completed")]) == [None]


def hello(states: CheckpointFiles, fresh_from: int, worker: str = WORKER) -> str | None:
    """The state that a worker is given, None for none."""
    answer = states.perform(LoadState(1, worker, fresh_from, None))
    assert isinstance(answer, StateLoaded)
    assert answer.found in ("sound", "none")
    return str(bytes(answer.state), "utf-8") if answer.found == "sound" else None


def save(states: CheckpointFiles, run: int, worker: str = WORKER) -> None:
    op = SaveState(1, worker, run, "s/1", Raw(b'"run %d"' % run), 0, 0, 0, 10, "none")
    assert isinstance(states.perform(op), StateSaved)


def damage(path: Path, *, readable: bool) -> None:
    """Damage that leaves the rows, in the last bytes of the header that SQLite does not use, or that leaves none."""
    content = path.read_bytes()
    path.write_bytes(content[:80] + b"x" + content[81:] if readable else b"x" * 100 + content[100:])


@pytest.mark.parametrize("readable", [True, False])
def test_a_fresh_run_after_a_restore_has_no_state(tmp_path: Path, readable: bool) -> None:
    """The backup is of run 4. Run 5, which is fresh, is lost with the ledger, and its states are not."""
    path, states = tmp_path / "ledger.db", CheckpointFiles(tmp_path)
    ledger = Ledger.open(path)
    for _ in range(4):
        begin(ledger, "fresh")
    back_up(tmp_path, threading.Event())
    assert begin(ledger, "fresh").run == 5
    assert hello(states, 5) is None
    save(states, 5)
    ledger.close()
    damage(path, readable=readable)
    restore(tmp_path)
    states = CheckpointFiles(tmp_path)
    ledger = Ledger.open(path)
    assert begin(ledger, "continue").run == 4
    assert hello(states, 4) == '"run 5"'
    fresh = begin(ledger, "fresh")
    assert (fresh.run, fresh.fresh_from) == (6, 6)
    assert hello(states, 6) is None
    save(states, 6)
    assert hello(states, 6) == '"run 6"'
    finish(ledger)
    assert begin(ledger, "next").run == 7
    ledger.close()
    with LedgerReader(path) as reader:
        assert reader.verify() is None
        assert [run.run for run in reader.runs(G)] == [7, 6, 4, 3, 2]


def test_the_damaged_ledger_tells_of_runs_that_no_state_tells_of(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(path)
    begin(ledger, "continue")
    back_up(tmp_path, threading.Event())
    for _ in range(8):  # the first are removed since: five stay
        begin(ledger, "fresh")
    ledger.close()
    damage(path, readable=True)
    restore(tmp_path)
    ledger = Ledger.open(path)
    finish(ledger)
    after = begin(ledger, "next")
    assert (after.run, after.fresh_from) == (10, 1)
    ledger.close()


def test_an_import_and_a_group_that_the_backup_does_not_know_get_new_numbers_too(tmp_path: Path) -> None:
    path, states = tmp_path / "ledger.db", CheckpointFiles(tmp_path)
    ledger = Ledger.open(path)
    begin(ledger, "continue")
    back_up(tmp_path, threading.Event())
    ledger.close()
    save(states, 3)
    save(states, 2)  # of an older run that was continued
    assert hello(states, 9, "odds-1") is None  # by its mark alone
    save(states, 4, "odds-0")
    for name in ("strange", ".hidden"):
        (tmp_path / "checkpoints" / name).mkdir()
    spoilt = tmp_path / "checkpoints" / "odds-0" / "checkpoint-000000000002.json"
    spoilt.write_bytes(b"nonsense")
    damage(path, readable=False)
    restore(tmp_path)
    ledger = Ledger.open(path)
    (began,) = ledger.perform([ImportBegin(1, G)])
    assert isinstance(began, Imported)
    (done,) = ledger.perform([ImportFinish(1, G, began.run_id)])
    assert isinstance(done, Imported)
    assert done.run == 4
    assert begin(ledger, "fresh", "odds").run == 10
    assert begin(ledger, "fresh", "odds").run == 11
    assert begin(ledger, "continue", "new").run == 1
    ledger.close()
