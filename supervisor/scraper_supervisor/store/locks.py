"""One process to a folder: a lock on the file `lock` in it, which holds the owner's pid, and a command's name."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING, Final, Self

from scraper_supervisor.store.errors import Locked

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_NAME: Final = "lock"
_SIZE: Final = 256  # bytes, more than it ever holds


class FolderLock:
    """Holds a folder until it is closed or the process ends; a context manager.

    The file stays when the lock goes: removing it would let two processes hold two files of one name.

    Args:
        folder: An existing folder.
        fd: What `keep_over_exec` told, in a process that has executed itself anew and holds the folder already.
        command: The name of the command that this process is, for whoever finds the folder locked; None: it is the
            supervisor.

    Raises:
        Locked: Another process (or another FolderLock of this one) holds the folder.
        OSError: The file cannot be opened or written.
    """

    def __init__(self, folder: Path, fd: int | None = None, command: str | None = None) -> None:
        self.folder = folder
        self._command = command
        self._fd = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) if fd is None else fd
        try:
            os.set_inheritable(self._fd, False)
            self._take()
        except BaseException:
            self.close()
            raise

    def keep_over_exec(self) -> int:
        """Make the lock survive an exec of this process, and tell the descriptor to give to the new one."""
        os.set_inheritable(self._fd, True)
        return self._fd

    def in_place(self) -> bool:
        """True if the file that is locked is still the folder's: else a second process could lock it too."""
        try:
            found = os.stat(self.folder / _NAME)
        except OSError:
            return False
        ours = os.fstat(self._fd)
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)

    def take_again(self) -> None:
        """Lock the folder anew after it, or its file, was removed.

        Raises:
            Locked: another process has it by now.
            OSError: the file cannot be opened or written.
        """
        fresh = FolderLock(self.folder, command=self._command)
        self.close()
        self._fd, fresh._fd = fresh._fd, -1

    def close(self) -> None:
        """Let the folder go; harmless when already done."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _take(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(self.folder, *_told(os.pread(self._fd, _SIZE, 0))) from None
        lines = (str(os.getpid()), self._command) if self._command is not None else (str(os.getpid()),)
        content = "".join(f"{line}\n" for line in lines).encode()
        try:
            os.pwrite(self._fd, content, 0)  # over the last one's, which takes no room
            os.ftruncate(self._fd, len(content))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # On a full disk the folder is held all the same; whoever is refused is not told by whom.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _told(content: bytes) -> tuple[int | None, str | None]:
    """(pid, command) as the holder wrote it; None for what it has not written."""
    pid, command, *_ = [*content.decode(errors="replace").split("\n"), ""]
    return int(pid) if pid.isascii() and pid.isdecimal() else None, command or None
