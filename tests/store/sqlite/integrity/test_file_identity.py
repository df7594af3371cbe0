"""A ledger whose files are taken away while it is open, or which cannot be opened for want of room."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from msgspec import Raw

from scraper_supervisor.core.ops.item_ops import Added, AddItems, NewItem
from scraper_supervisor.core.ops.run_ops import OpenRun, RunImage
from scraper_supervisor.core.ops.state_ops import ProbeFolder
from scraper_supervisor.store.errors import LedgerUnusable, LedgerUnwritable, StoreError, StoreFault
from scraper_supervisor.store.files import Files
from scraper_supervisor.store.locks import FolderLock
from scraper_supervisor.store.sqlite import ledger as ledger_module
from scraper_supervisor.store.sqlite import schema
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_supervisor.store.sqlite.reader import LedgerReader
from scraper_supervisor.store.states.checkpoints import CheckpointFiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scraper_supervisor.core.ops.all_ops import Answer

FILES = ("", "-wal", "-shm")


def ask(ledger: Ledger, key: str) -> Answer | StoreFault:
    item = NewItem(key, None, Raw(b"null"), 0)
    return ledger.perform([AddItems(1, "g", 1, (item,))])[0]


def never() -> bool:
    """Nothing is asked."""
    return False


def keys(path: Path) -> list[str]:
    with LedgerReader(path) as reader:
        return sorted(row.key for row in reader.items("g"))


@contextlib.contextmanager
def read_elsewhere(path: Path) -> Iterator[None]:
    """Another process has a view of the ledger open, as it is now."""
    program = """
import sqlite3, sys
db = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, isolation_level=None)
db.execute("BEGIN")
print(db.execute("SELECT count(*) FROM items").fetchone(), flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"(")
        yield
        process.stdin.close()
        assert process.wait() == 0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    """One that holds `a`."""
    ledger = Ledger.open(path)
    assert isinstance(ledger.perform([OpenRun(0, "g", "continue", 5)])[0], RunImage)
    assert isinstance(ask(ledger, "a"), Added)
    return ledger


@pytest.mark.parametrize("gone", [FILES[:1], FILES[1:2], FILES[2:], FILES], ids=["ledger", "log", "memory", "all"])
def test_what_was_removed_is_told_and_comes_back_with_all_that_was_committed(
    ledger: Ledger, path: Path, gone: tuple[str, ...]
) -> None:
    for ending in gone:
        os.unlink(f"{path}{ending}")
    fault = ask(ledger, "b")
    assert isinstance(fault, StoreFault)
    assert f"ledger.db{gone[0]} was removed while it was open" in fault.message
    assert keys(path) == ["a"], "it is back at once, and what was refused is not in it"
    assert isinstance(ask(ledger, "b"), Added)
    assert keys(path) == ["a", "b"]
    assert (path.stat().st_mode & 0o777, list(path.parent.glob("*.rescued"))) == (0o600, [])
    ledger.close()


@pytest.mark.parametrize("gone", [FILES[1:2], FILES[1:]], ids=["log", "log and memory"])
def test_nothing_is_given_up_while_another_process_reads(ledger: Ledger, path: Path, gone: tuple[str, ...]) -> None:
    """What was committed since its view began can't be folded into the ledger before the view ends."""
    ledger._db.execute("PRAGMA busy_timeout = 10")
    with read_elsewhere(path):
        assert isinstance(ask(ledger, "b"), Added)
        for ending in gone:
            os.unlink(f"{path}{ending}")
        for _ in range(2):
            fault = ask(ledger, "c")
            assert isinstance(fault, StoreFault)
            assert (fault.errno, "once no other process reads it" in fault.message) == (errno.EBUSY, True)
        ledger.idle(never)
        fault = ledger.idle(never)
        assert fault is not None
        assert fault.errno == errno.EBUSY
    assert isinstance(ask(ledger, "c"), Added)
    assert keys(path) == ["a", "b", "c"]
    ledger.close()
    assert keys(path) == ["a", "b", "c"]


def test_what_another_process_keeps_from_its_place_is_copied_when_it_is_closed(ledger: Ledger, path: Path) -> None:
    ledger._db.execute("PRAGMA busy_timeout = 10")
    copy = path.with_name("ledger.db.rescued")
    with read_elsewhere(path):
        assert isinstance(ask(ledger, "b"), Added)
        os.unlink(f"{path}-wal")
        with pytest.raises(StoreError, match=f"what was committed is in {copy}"):
            ledger.close()
    for ending in FILES:
        path.with_name(path.name + ending).unlink(missing_ok=True)
    copy.rename(path)
    assert keys(path) == ["a", "b"]


def test_a_ledger_is_not_opened_where_a_reader_keeps_its_log(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a daemon that was killed leaves it, with a reader that goes on."""
    monkeypatch.setattr(schema, "_BUSY", 0.01)
    copy = path.parent / "killed" / path.name
    copy.parent.mkdir()
    for ending in FILES:
        copy.with_name(copy.name + ending).write_bytes(path.with_name(path.name + ending).read_bytes())
    with read_elsewhere(copy):
        with pytest.raises(LedgerUnwritable, match="another process is reading it"):
            Ledger.open(copy)
        waiting = Ledger.open(copy, patient=True)
        fault = ask(waiting, "b")
        assert isinstance(fault, StoreFault)
        assert fault.errno == errno.EBUSY
    assert isinstance(ask(waiting, "b"), Added)
    assert keys(copy) == ["a", "b"]
    waiting.close()
    ledger.close()


def test_an_idle_look_brings_it_back_too(ledger: Ledger, path: Path) -> None:
    assert ledger.idle(never) is None
    path.unlink()
    fault = ledger.idle(never)
    assert fault is not None
    assert "was removed" in fault.message
    assert keys(path) == ["a"]
    assert ledger.idle(never) is None
    ledger.close()


def test_what_is_removed_last_comes_back_when_it_is_closed(ledger: Ledger, path: Path) -> None:
    for ending in FILES:
        os.unlink(f"{path}{ending}")
    ledger.close()
    assert keys(path) == ["a"]


def test_another_file_in_its_place_is_left_there_and_a_copy_is_made(ledger: Ledger, path: Path) -> None:
    path.with_name("other").write_bytes(b"other")
    path.with_name("other").rename(path)
    for _ in range(2):
        fault = ask(ledger, "b")
        assert isinstance(fault, StoreFault)
        assert "was replaced by another file" in fault.message
        assert str(path.with_name("ledger.db.rescued")) in fault.message
    assert path.read_bytes() == b"other"
    with pytest.raises(StoreError, match="was replaced"):
        ledger.close()
    path.with_name("ledger.db.rescued").rename(path)
    for ending in FILES[1:]:
        path.with_name(path.name + ending).unlink(missing_ok=True)
    assert keys(path) == ["a"]


def test_what_the_old_ledger_left_need_not_go(ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk refuses when the ledger is back already, and closed."""
    assert isinstance(ask(ledger, "b"), Added)
    real, refused = os.unlink, []

    def unlink(file: str | Path) -> None:
        if os.fspath(file).endswith(("-wal", "-shm")):
            refused.append(file)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), file)
        real(file)

    os.unlink(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        fault = ask(ledger, "c")
    assert isinstance(fault, StoreFault)
    assert "ledger.db was removed while it was open" in fault.message
    assert len(refused) == 2
    assert isinstance(ask(ledger, "c"), Added)
    assert keys(path) == ["a", "b", "c"]
    ledger.close()
    assert keys(path) == ["a", "b", "c"]


def test_a_name_that_does_not_reach_the_disk_is_given_again(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        for _ in range(2):
            fault = ask(ledger, "b")
            assert isinstance(fault, StoreFault)
            assert (fault.errno, path.exists()) == (errno.EIO, False)
    assert isinstance(ask(ledger, "b"), Added)
    assert keys(path) == ["a", "b"]
    assert list(path.parent.glob("*.rescued")) == []
    ledger.close()


def test_a_folder_that_is_gone_is_a_fault_until_it_is_back(ledger: Ledger, path: Path) -> None:
    aside = path.parent.with_name("aside")
    path.parent.rename(aside)
    for _ in range(2):
        assert isinstance(ask(ledger, "b"), StoreFault)
    path.parent.mkdir()
    assert isinstance(ask(ledger, "b"), Added)
    assert keys(path) == ["a", "b"]
    ledger.close()


def test_the_log_is_folded_into_the_ledger_before_it_is_used(ledger: Ledger, path: Path) -> None:
    """As a process that was killed leaves it: what is in the log may be in the memory of the kernel alone."""
    copy = path.with_name("copy.db")
    for ending in FILES[:2]:
        copy.with_name(copy.name + ending).write_bytes(path.with_name(path.name + ending).read_bytes())
    log = copy.with_name("copy.db-wal")
    assert log.stat().st_size > 0
    again = Ledger.open(copy)
    assert log.stat().st_size == 0
    assert isinstance(ask(again, "b"), Added)
    assert keys(copy) == ["a", "b"]
    again.close()
    ledger.close()


def test_a_ledger_for_which_there_is_no_room_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *, create: bool = True) -> None:
        raise LedgerUnusable(path, "database or disk is full", errno.ENOSPC)

    real = ledger_module.open_ledger
    monkeypatch.setattr(ledger_module, "open_ledger", full)
    with pytest.raises(LedgerUnusable):
        Ledger.open(path)
    ledger = Ledger.open(path, patient=True)
    fault = ledger.perform([OpenRun(0, "g", "continue", 5)])[0]
    assert isinstance(fault, StoreFault)
    assert fault.errno == errno.ENOSPC
    monkeypatch.setattr(ledger_module, "open_ledger", real)
    assert isinstance(ledger.perform([OpenRun(0, "g", "continue", 5)])[0], RunImage)
    ledger.close()
    assert keys(path) == []


def test_a_lock_holds_on_a_full_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with FolderLock(tmp_path), pytest.raises(StoreError, match="is using it"):
        FolderLock(tmp_path)


def test_a_folder_is_probed_with_a_file_of_which_nothing_stays(tmp_path: Path) -> None:
    sizes: list[int] = []

    class Watched(Files):
        def sync(self, fd: int) -> None:
            sizes.append(os.fstat(fd).st_size)
            super().sync(fd)

    files = CheckpointFiles(tmp_path, Watched())
    assert files.perform(ProbeFolder(1, "g-0", 100_000)) is None
    assert 100_000 in sizes
    folder = tmp_path / "checkpoints" / "g-0"
    assert list(folder.iterdir()) == []
    folder.rmdir()
    folder.write_bytes(b"")
    with pytest.raises(FileExistsError):
        files.perform(ProbeFolder(2, "g-0", 100_000))
