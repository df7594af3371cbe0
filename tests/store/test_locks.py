from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from scraper_supervisor.store.errors import Locked
from scraper_supervisor.store.locks import FolderLock

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import sys
from pathlib import Path
from scraper_supervisor.store.locks import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_naming_the_first(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Locked, match=f"process {holder.pid} is using it") as refused:
            FolderLock(tmp_path)
        assert refused.value.pid == holder.pid
        holder.kill()
    with FolderLock(tmp_path):  # a killed process holds nothing
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_command_says_which_it_is(tmp_path: Path) -> None:
    with FolderLock(tmp_path, command="items import"):
        with pytest.raises(Locked, match=rf"process {os.getpid()} \(items import\) is using it") as refused:
            FolderLock(tmp_path)
        assert refused.value.command == "items import"
    with FolderLock(tmp_path), pytest.raises(Locked) as refused:
        FolderLock(tmp_path)
    assert refused.value.command is None


def test_the_lock_is_free_again_and_its_file_private(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(Locked):
        FolderLock(tmp_path)
    lock.close()
    lock.close()
    with FolderLock(tmp_path):
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_holder_that_has_not_said_who_it_is(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        os.truncate(tmp_path / "lock", 0)
        with pytest.raises(Locked, match="another process is using it"):
            FolderLock(tmp_path)


def test_a_lock_is_taken_over_by_its_descriptor(tmp_path: Path) -> None:
    first = FolderLock(tmp_path)
    fd = first.keep_over_exec()
    assert os.get_inheritable(fd)
    with FolderLock(tmp_path, fd):
        assert not os.get_inheritable(fd)
        with pytest.raises(Locked):
            FolderLock(tmp_path)
