"""The rights of a state folder, and the note of where the sockets are."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from scraper_supervisor.store.folders import note_runtime_dir, noted_runtime_dir, tighten

if TYPE_CHECKING:
    from pathlib import Path


def mode(path: Path) -> int:
    return path.lstat().st_mode & 0o777


def test_what_is_ours_is_closed_to_others_and_nothing_else(tmp_path: Path) -> None:
    state = tmp_path / "state"
    kept = state / "checkpoints" / "g-0"
    kept.mkdir(parents=True)
    (tmp_path / "foreign").write_text("")
    ours = [
        state / "ledger.db",
        state / "ledger.db-wal",
        state / "events.jsonl.1",
        kept / "checkpoint-000000000001.json",
    ]
    theirs = [state / "my_scraper.py", tmp_path / "foreign"]
    for path in (*ours, *theirs):
        path.write_text("")
        path.chmod(0o644)
    for folder in (state, state / "checkpoints", kept):
        folder.chmod(0o755)
    (kept / "link").symlink_to(tmp_path / "foreign")
    assert tighten(state) == []
    assert [mode(folder) for folder in (state, state / "checkpoints", kept)] == [0o700] * 3
    assert [mode(path) for path in ours] == [0o600] * 4
    assert [mode(path) for path in theirs] == [0o644] * 2


def test_the_runtime_folder_is_noted_for_who_asks_later(tmp_path: Path) -> None:
    assert noted_runtime_dir(tmp_path) is None
    note_runtime_dir(tmp_path, "/run/ünder\nwegs")
    assert noted_runtime_dir(tmp_path) == "/run/ünder\nwegs"
    note_runtime_dir(tmp_path, "/run/other")
    assert noted_runtime_dir(tmp_path) == "/run/other"
    assert mode(tmp_path / "runtime_dir") == 0o600


@pytest.mark.parametrize("content", [b"", b"relative/path\n", b"/a\0b\n", b"/" + b"x" * 5000])
def test_what_is_no_path_is_no_note(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "runtime_dir").write_bytes(content)
    assert noted_runtime_dir(tmp_path) is None


def test_sockets_are_left_to_those_who_open_them(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(folder / "s"))
        (folder / "s").chmod(0o660)
        tighten(tmp_path)
    assert mode(folder / "s") == 0o660
