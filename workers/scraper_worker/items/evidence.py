"""Files that show what went wrong: written into the folder that the supervisor named, and named by the failure."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import re
import threading
from typing import TYPE_CHECKING, Final

from scraper_worker.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path

log = logging.getLogger("scraper_worker")

NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", re.ASCII)
LONGEST_NAME: Final = 100
WRITE_TIMEOUT: Final = 10.0  # seconds that an item's outcome waits for its evidence


class EvidenceFolder:
    """A worker's folder for evidence; None where none is kept."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self._told = False

    def drop(self, name: str) -> None:
        """There is no folder: say so, once."""
        if not self._told:
            self._told = True
            log.warning("no evidence is kept here: %s and what else is attached is dropped", name)


class Attachments:
    """What one attempt attaches.

    Args:
        folder: where to.
        claim: tells the files of items apart that bear the same name.
    """

    def __init__(self, folder: EvidenceFolder, claim: int) -> None:
        self._folder = folder
        self._claim = claim
        self._files: dict[str, Path] = {}  # by the name that the handler gave
        self._lock = (
            threading.Lock()
        )  # around what threads write: a name given twice has one file, of the later content
        self._numbers = itertools.count()
        self._newest: dict[str, int] = {}  # by the name: which call's content its file has
        self._writing: set[asyncio.Future[None]] = set()

    # ---- for handlers

    def add(self, name: str, content: bytes | bytearray | str) -> None:
        """Write a file now. In any thread but the loop's.

        Raises:
            UsageError: the name can be no file's, or the content is neither bytes nor text.
        """
        self._write(next(self._numbers), _checked(name), _bytes(content))

    def add_soon(self, name: str, content: bytes | bytearray | str) -> Awaitable[None]:
        """Write a file in a thread.

        Raises:
            UsageError: the name can be no file's, or the content is neither bytes nor text.
        """
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        writing = loop.run_in_executor(None, self._write, number, _checked(name), _bytes(content))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        return asyncio.shield(writing)

    def _write(self, number: int, name: str, content: bytes) -> None:
        with self._lock:
            if self._folder.path is None:
                self._folder.drop(name)
                return
            if self._newest.get(name, -1) > number:
                return
            self._newest[name] = number
            try:
                if name not in self._files:
                    self._files[name] = self._fresh(self._folder.path, name)
                self._files[name].write_bytes(content)
            except OSError as error:  # the item is not to blame, and its outcome is what counts
                log.warning("%s could not be kept as evidence: %s", name, error)

    def _fresh(self, folder: Path, name: str) -> Path:
        """A file of that name, or where another item has one, of a name with the claim's number in it."""
        for candidate in (name, _numbered(name, self._claim)):
            with contextlib.suppress(FileExistsError):
                os.close(os.open(folder / candidate, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
                return folder / candidate
        return folder / _numbered(name, self._claim)  # left by an earlier life of this very claim

    # ---- for the outcome

    async def settle(self) -> None:
        """Wait for what is being written."""
        if self._writing:
            await asyncio.wait(set(self._writing), timeout=WRITE_TIMEOUT)

    @property
    def names(self) -> tuple[str, ...]:
        """The files that are there, for the failure to name."""
        return tuple(path.name for path in self._files.values())

    async def discard(self) -> None:
        """Nothing went wrong: the files are not needed."""
        if self._files:
            await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        for path in self._files.values():
            with contextlib.suppress(OSError):
                path.unlink()
        self._files.clear()


def _checked(name: str) -> str:
    if not NAME.fullmatch(str(name)):
        raise UsageError(f"a file of evidence is named by 1 to 100 of [A-Za-z0-9._-], first no dot, not {name!r:.120}")
    return name


def _bytes(content: bytes | bytearray | str) -> bytes:
    if isinstance(content, str):
        return content.encode(errors="replace")
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    raise UsageError(f"evidence is bytes or text, not {type(content).__name__}")


def _numbered(name: str, claim: int) -> str:
    stem, dot, suffix = name.rpartition(".")
    end = f"-{claim}{dot}{suffix}" if stem else f"-{claim}"
    return (stem or name)[: LONGEST_NAME - len(end)] + end
