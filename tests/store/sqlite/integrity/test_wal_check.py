"""Damage to the ledger's log: what was acknowledged never vanishes in silence."""

from __future__ import annotations

import shutil
import sqlite3
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.store.sqlite.ledger_writer import contents, killed

from scraper_supervisor.store.errors import LedgerDamaged
from scraper_supervisor.store.sqlite.integrity import wal_check as wal
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_supervisor.store.sqlite.reader import LedgerReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FRAME = 24 + 4096


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("origin")
    killed(folder / "ledger.db", 60)
    return folder


@pytest.fixture
def folder(origin: Path, tmp_path: Path) -> Path:
    return shutil.copytree(origin, tmp_path / "state")


def log(folder: Path) -> bytearray:
    return bytearray((folder / "ledger.db-wal").read_bytes())


def change(folder: Path, at: int, by: int = 0x40) -> None:
    content = log(folder)
    content[at] ^= by
    (folder / "ledger.db-wal").write_bytes(content)


def commits(folder: Path) -> list[int]:
    """The numbers of the frames that end a transaction."""
    content = log(folder)
    count = (len(content) - 32) // FRAME
    return [n + 1 for n in range(count) if struct.unpack_from(">I", content, 32 + n * FRAME + 4) != (0,)]


def refused(folder: Path) -> str:
    """Both refuse, and leave the files as they are; tells why."""
    before = (folder / "ledger.db").read_bytes(), log(folder)
    with pytest.raises(LedgerDamaged) as writer:
        Ledger.open(folder / "ledger.db")
    with pytest.raises(LedgerDamaged):
        LedgerReader(folder / "ledger.db")
    assert ((folder / "ledger.db").read_bytes(), log(folder)) == before
    return writer.value.reason


def test_a_log_that_a_killed_process_left_is_taken_up(folder: Path, origin: Path) -> None:
    found = contents(folder / "ledger.db")
    assert len(found) > 20
    Ledger.open(folder / "ledger.db").close()
    assert contents(folder / "ledger.db") == found


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("part", [0, 4, 8, 16, 20, 24, 2000, 4119])  # number, size, salts, checksum, page
def test_a_changed_byte_before_the_last_commit(folder: Path, part: int, with_index: bool) -> None:
    if not with_index:  # as after a power cut
        (folder / "ledger.db-shm").unlink()
    frames = commits(folder)
    for frame in (1, 2, frames[3], frames[3] + 1, frames[-2]):
        at = 32 + (frame - 1) * FRAME + part
        change(folder, at)
        assert "log" in refused(folder)
        change(folder, at)


def test_any_byte_of_the_logs_header(folder: Path) -> None:
    (folder / "ledger.db-shm").unlink()
    for at in range(32):
        change(folder, at)
        assert refused(folder) == "the header of its log is damaged"
        change(folder, at)


@pytest.mark.parametrize("part", [0, 5, 8, 16, 24, 4119])
def test_a_changed_byte_in_the_last_transaction(folder: Path, part: int) -> None:
    """Nothing follows it, but the -shm of the killed process tells that it was committed."""
    change(folder, 32 + (commits(folder)[-1] - 1) * FRAME + part)
    assert "of its log does not fit its checksum" in refused(folder)


def cut(content: bytearray) -> bytearray:
    return content[: len(content) // 2]


def cut_within_a_frame(content: bytearray) -> bytearray:
    return content[:-5000]


def cut_the_last_frame(content: bytearray) -> bytearray:
    return content[:-FRAME]


def empty(content: bytearray) -> bytearray:
    return content[:0]


def header_alone(content: bytearray) -> bytearray:
    return content[:32]


@pytest.mark.parametrize("how", [cut, cut_within_a_frame, cut_the_last_frame, empty, header_alone])
def test_a_shorter_log(folder: Path, how: Callable[[bytearray], bytearray]) -> None:
    (folder / "ledger.db-wal").write_bytes(how(log(folder)))
    assert "lacks what was committed to it" in refused(folder)


def test_a_missing_log(folder: Path) -> None:
    (folder / "ledger.db-wal").unlink()
    with pytest.raises(LedgerDamaged, match="lacks what was committed to it"):
        Ledger.open(folder / "ledger.db")


def test_a_log_that_is_folded_back_may_be_missing_but_not_shorter(tmp_path: Path) -> None:
    """Its beginning alone would hide the newer pages of the file."""
    path = tmp_path / "ledger.db"
    program = """
import os, sys
from pathlib import Path
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_supervisor.core.ops.run_ops import SetIntent
ledger = Ledger.open(Path(sys.argv[1]))
for number in range(9):
    ledger.perform([SetIntent(1, f"name-{number}", "paused")])
(busy, frames, folded) = ledger._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
os._exit(9 if (busy, frames) == (0, folded) else 1)
"""
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 9
    whole = log(tmp_path)
    index = path.with_name("ledger.db-shm").read_bytes()
    for content in (whole, empty(whole), header_alone(whole)):
        path.with_name("ledger.db-wal").write_bytes(content)
        path.with_name("ledger.db-shm").write_bytes(index)
        with LedgerReader(path) as reader:
            assert reader._db.execute("SELECT count(*) FROM intents").fetchone() == (9,)
    for content in (cut(whole), cut_the_last_frame(whole)):
        path.with_name("ledger.db-wal").write_bytes(content)
        path.with_name("ledger.db-shm").write_bytes(index)
        assert "lacks what was committed to it" in refused(tmp_path)


def test_an_older_log_in_place_of_the_newer(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "older").mkdir()
    killed(tmp_path / "older" / "ledger.db", 5)
    shutil.copy(tmp_path / "older" / "ledger.db-wal", folder)
    assert "lacks what was committed to it" in refused(folder)


def test_a_torn_last_transaction_is_no_damage(folder: Path) -> None:
    """As a power cut leaves it: any of its frames may be missing, and nothing follows its commit."""
    (folder / "ledger.db-shm").unlink()
    *_, before, last = commits(folder)
    whole = log(folder)
    expected = None
    for torn in range(before + 1, last + 1):
        content = whole.copy()
        at = 32 + (torn - 1) * FRAME
        content[at + 600 : at + FRAME] = bytes(FRAME - 600)
        (folder / "ledger.db-wal").write_bytes(content)
        found = contents(folder / "ledger.db")
        assert expected in (None, found)
        expected = found
    assert expected is not None


def test_what_a_rolled_back_transaction_left_behind_is_no_damage(tmp_path: Path) -> None:
    """Frames spilled before the rollback stay in the file, chained to each other and with the log's own salts."""
    path = tmp_path / "ledger.db"
    program = """
import os, sqlite3, sys
from pathlib import Path
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_supervisor.core.ops.run_ops import Probe
ledger = Ledger.open(Path(sys.argv[1]))
db = ledger._db
db.execute("PRAGMA cache_size = 5")
db.execute("BEGIN")
db.executemany("INSERT INTO intents VALUES (?, ?)", ((f"n{n}", "x" * 3000) for n in range(100)))
db.execute("ROLLBACK")
assert ledger.perform([Probe(1)]) == [None]
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 9
    frames = (path.with_name("ledger.db-wal").stat().st_size - 32) // FRAME
    assert frames > 50
    path.with_name("ledger.db-shm").unlink()
    with LedgerReader(path) as reader:
        found = wal.mark(path)
        assert found is not None
        assert found.last < frames - 40
        assert reader.verify() is None


def test_a_log_that_was_begun_anew(tmp_path: Path) -> None:
    """Behind its end are the frames of the round before, whose salts are others."""
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(path)
    ledger._db.execute("PRAGMA wal_autocheckpoint = 0")
    ledger._db.execute("CREATE TABLE filler (n, t)")
    for number in range(50):
        ledger._db.execute("INSERT INTO filler VALUES (?, ?)", (number, "x" * 2000))
    ledger._db.execute("PRAGMA wal_checkpoint(RESTART)")
    ledger._db.execute("INSERT INTO filler VALUES (99, 'last')")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        shutil.copy(tmp_path / name, copy)
    ledger.close()
    with LedgerReader(copy / "ledger.db") as reader:
        assert reader._db.execute("SELECT t FROM filler WHERE n = 99").fetchone() == ("last",)
        found = wal.mark(copy / "ledger.db")
    assert found is not None
    assert 0 < found.last < 10
    assert (copy / "ledger.db-wal").stat().st_size > 50 * FRAME


def test_a_cut_database_beside_a_sound_log(folder: Path) -> None:
    Ledger.open(folder / "ledger.db").close()
    killed(folder / "ledger.db", 60, seed=2)
    (folder / "ledger.db-shm").unlink()
    content = (folder / "ledger.db").read_bytes()
    assert len(content) >= 10 * 4096
    (folder / "ledger.db").write_bytes(content[: 4096 * 2])
    assert "is missing: the file ends at 2 of" in refused(folder)


def test_a_reader_that_closes_last_leaves_the_log_alone(folder: Path) -> None:
    before = (folder / "ledger.db").read_bytes(), log(folder)
    program = """
import sys
from pathlib import Path
from scraper_supervisor.store.sqlite.reader import LedgerReader
with LedgerReader(Path(sys.argv[1])) as reader:
    assert reader.verify() is None and reader.groups()
"""
    subprocess.run([sys.executable, "-c", program, str(folder / "ledger.db")], check=True)
    assert ((folder / "ledger.db").read_bytes(), log(folder)) == before
    db = sqlite3.connect(f"{(folder / 'ledger.db').as_uri()}?mode=ro", uri=True)
    with pytest.raises(sqlite3.OperationalError, match=r"readonly|disk I/O error"):
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    assert ((folder / "ledger.db").read_bytes(), log(folder)) == before
