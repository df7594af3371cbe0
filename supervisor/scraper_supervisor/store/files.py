"""The only place that opens, writes, syncs, renames and removes checkpoint files."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TEMPORARY: Final = ".tmp"  # the ending of a file that is not finished yet
PROBE_NAME: Final = f".checkpoint-probe{TEMPORARY}"

_FILE_MODE: Final = 0o600  # states hold cookies
_FOLDER_MODE: Final = 0o700


class Files:
    """A thin layer over the file system; a test may put itself in front of any method.

    Every method raises OSError as the system does. A sync that failed is never repeated on the same file: the kernel
    may have dropped the data and would report success. The file is removed instead, and the caller writes it anew.
    """

    def names(self, folder: Path) -> list[str]:
        """The names of the regular files in a folder; none if there is no such folder."""
        try:
            with os.scandir(folder) as entries:
                return [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        except FileNotFoundError:
            return []

    def folders(self, folder: Path) -> list[str]:
        """The names of the folders in a folder; none if there is no such folder."""
        try:
            with os.scandir(folder) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []

    def read(self, path: Path) -> bytes:
        """A file's bytes."""
        return path.read_bytes()

    def make_folder(self, folder: Path) -> None:
        """Make a folder and those above it, each of them durable; harmless if it exists."""
        if folder.is_dir():
            return
        self.make_folder(folder.parent)
        try:
            os.mkdir(folder, _FOLDER_MODE)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(folder).st_mode):
                raise
        self.sync_folder(folder.parent)

    def write(self, path: Path, parts: Sequence[bytes]) -> None:
        """Write a file so that it is there wholly or not at all, and durably when this returns."""
        temporary = path.with_name(f".{path.name}{TEMPORARY}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE)
        try:
            try:
                for part in parts:
                    self._write_all(fd, part)
                self.sync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        self.sync_folder(path.parent)

    def move(self, path: Path, target: Path) -> None:
        """Rename a file durably, into a folder that exists."""
        os.rename(path, target)
        self.sync_folder(target.parent)
        self.sync_folder(path.parent)

    def remove(self, path: Path) -> None:
        """Remove a file; that it stays gone after a power loss is not promised."""
        os.unlink(path)

    def probe(self, folder: Path, room: int) -> None:
        """Learn whether a folder takes a file of so many bytes, durably; nothing of it stays."""
        path = folder / PROBE_NAME
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE)
        try:
            if room:
                os.posix_fallocate(fd, 0, room)
            self._write_all(fd, b"probe\n")
            self.sync(fd)
            self.sync_folder(folder)
        finally:
            os.close(fd)
            os.unlink(path)

    def sync(self, fd: int) -> None:
        """Bring a file or folder to the disk."""
        os.fsync(fd)

    def sync_folder(self, folder: Path) -> None:
        """Make the names in a folder durable."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sync(fd)
        finally:
            os.close(fd)

    def _write_all(self, fd: int, part: bytes) -> None:
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(fd, rest) :]
