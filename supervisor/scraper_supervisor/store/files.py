"""The only place that opens, writes, syncs, renames and removes checkpoint files."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

TEMPORARY: Final = ".tmp"  # the ending of a file that is not finished yet
PROBE_NAME: Final = f".checkpoint-probe{TEMPORARY}"

_FILE_MODE: Final = 0o600  # states hold cookies
_FOLDER_MODE: Final = 0o700
_KINDS: Final = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


class NotAFile(Exception):
    """Something else has the name of a file; `kind` says what."""

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__(f"{path}: it is {kind}, expected a file")
        self.kind = kind


class Files:
    """A thin layer over the file system: what it does for its callers is made of the few steps at its end.

    A test may put itself in front of any method; in front of the steps it sees, and can refuse or stop before, every
    change to the disk and every sync. Every method raises OSError as the system does. A sync that failed is never
    repeated on the same file: the kernel may have dropped the data and would report success. The file is removed
    instead, and the caller writes it anew.
    """

    def names(self, folder: Path) -> list[str]:
        """The names of everything in a folder; none if there is no such folder."""
        try:
            return os.listdir(folder)
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
        """A file's bytes.

        Raises:
            NotAFile: It is a folder, a link or the like, which is neither followed nor waited for.
        """
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode):
            raise NotAFile(path, _KINDS.get(stat.S_IFMT(mode), "a device"))
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            with open(fd, "rb", buffering=0) as file:
                return file.readall()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error

    def make_folder(self, folder: Path) -> None:
        """Make a folder and those above it, each of them durable; harmless if it exists."""
        if folder.is_dir():
            return
        self.make_folder(folder.parent)
        try:
            self.mkdir(folder)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(folder).st_mode):
                raise
        self.sync_folder(folder.parent)

    def write(self, path: Path, parts: Iterable[bytes | bytearray | memoryview]) -> int:
        """Write a file so that it is there wholly or not at all, and durably when this returns.

        Returns:
            Its bytes.
        """
        temporary = path.with_name(f".{path.name}{TEMPORARY}")
        written = 0
        fd = self.create(temporary)
        try:
            try:
                for part in parts:
                    rest = memoryview(part)
                    while rest:
                        count = self.append(fd, rest)
                        rest, written = rest[count:], written + count
                self.sync(fd)
            finally:
                os.close(fd)
            self.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # what is left of it is removed at the next start
                self.unlink(temporary)
            raise
        self.sync_folder(path.parent)
        return written

    def move(self, path: Path, target: Path) -> None:
        """Rename a file, or what has the name of one, durably and into a folder that exists."""
        self.rename(path, target)
        self.sync_folder(target.parent)
        self.sync_folder(path.parent)

    def remove(self, path: Path) -> None:
        """Remove a file; that it stays gone after a power loss is not promised."""
        self.unlink(path)

    def probe(self, folder: Path, room: int) -> None:
        """Learn whether a folder takes a file of so many bytes, durably; nothing of it stays."""
        path = folder / PROBE_NAME
        fd = self.create(path)
        try:
            if room:
                self.reserve(fd, room)
            self.append(fd, memoryview(b"probe\n"))
            self.sync(fd)
            self.sync_folder(folder)
        finally:
            os.close(fd)
            self.unlink(path)

    def sync_folder(self, folder: Path) -> None:
        """Make the names in a folder durable."""
        fd = self.open_folder(folder)
        try:
            self.sync(fd)
        finally:
            os.close(fd)

    # ---- the steps: each is one call of the system -------------------------------------------------------------------

    def create(self, path: Path) -> int:
        """Open a file for writing, new or emptied; the descriptor is the caller's to close."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE)

    def open_folder(self, folder: Path) -> int:
        """Open a folder to sync it; the descriptor is the caller's to close."""
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def append(self, fd: int, data: memoryview) -> int:
        """Write at the end of a file, perhaps not all of it; how many bytes it was."""
        return os.write(fd, data)

    def reserve(self, fd: int, size: int) -> None:
        """Take room for that many bytes of a file."""
        os.posix_fallocate(fd, 0, size)

    def sync(self, fd: int) -> None:
        """Bring a file or folder to the disk."""
        os.fsync(fd)

    def rename(self, path: Path, target: Path) -> None:
        """Give a file another name, in place of what had it."""
        os.rename(path, target)

    def unlink(self, path: Path) -> None:
        """Take a file's name away."""
        os.unlink(path)

    def mkdir(self, folder: Path) -> None:
        """Make one folder."""
        os.mkdir(folder, _FOLDER_MODE)
