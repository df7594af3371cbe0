"""The state and the runtime folder: for their owner alone, and where a daemon's sockets are told to the commands."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from scraper_supervisor.core.config.paths import RUNTIME_NOTE
from scraper_supervisor.store.files import Files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OTHERS: Final = 0o077
_LONGEST_NOTE: Final = 4096  # bytes; a path is no longer
# What this program makes in a state folder. Nothing else in it is touched: it may be a project's own folder.
_OURS: Final = (
    "ledger.db*", "events.jsonl*", "lock", RUNTIME_NOTE, "backups", "checkpoints", "corrupt", "evidence", "logs",
    "reports", "workers",
)  # fmt: skip


def tighten(state_dir: Path) -> list[str]:
    """Take the rights of others from a state folder and from what is ours in it.

    Returns:
        The paths that this user cannot change, each with the reason; for people.
    """
    refused = []
    for path in _loose(state_dir):
        try:
            os.chmod(path, os.stat(path).st_mode & 0o7777 & ~_OTHERS)
        except FileNotFoundError:
            continue  # removed meanwhile
        except OSError as error:
            refused.append(f"{path}: others may look into it, and that can't be changed: {error.strerror}")
    return refused


def _loose(state_dir: Path) -> Iterator[str]:
    """Folders and files that others have rights in; links and sockets are left alone."""
    if os.stat(state_dir).st_mode & _OTHERS:
        yield str(state_dir)
    folders: list[str] = []
    for pattern in _OURS:
        for path in state_dir.glob(pattern):
            if path.is_symlink():
                continue
            if path.is_dir():
                folders.append(str(path))
            elif path.is_file() and path.stat().st_mode & _OTHERS:
                yield str(path)
    while folders:
        folder = folders.pop()
        if os.stat(folder).st_mode & _OTHERS:
            yield folder
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mode & _OTHERS:
                    yield entry.path


def note_runtime_dir(state_dir: Path, runtime_dir: str) -> None:
    """Tell the commands, whose environment may be another one, where the sockets are.

    Raises:
        OSError: The disk does not take it.
    """
    if noted_runtime_dir(state_dir) != runtime_dir:
        Files().write(state_dir / RUNTIME_NOTE, [os.fsencode(runtime_dir) + b"\n"])


def noted_runtime_dir(state_dir: Path) -> str | None:
    """Where the daemon of a state folder has its sockets; None if none has told, or not to this user."""
    try:
        with open(state_dir / RUNTIME_NOTE, "rb") as file:
            noted = os.fsdecode(file.read(_LONGEST_NOTE + 1)).removesuffix("\n")
    except OSError:
        return None
    return noted if noted.startswith("/") and len(noted) <= _LONGEST_NOTE and "\0" not in noted else None
