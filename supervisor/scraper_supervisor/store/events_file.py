"""Reading the event log: `events.jsonl` and the files that rotation left beside it, oldest first."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EVENTS_FILE: Final = "events.jsonl"
KEPT: Final = 5  # rotated files, events.jsonl.1 the newest


class EventRecord(Struct, frozen=True):
    """One line of the event log; `time` is RFC 3339 UTC."""

    time: str
    event: str
    severity: str = "info"
    component: str = ""
    correlation_id: str = ""
    worker: str | None = None
    group: str | None = None
    data: Any = None


def rotated(path: Path, number: int) -> Path:
    """The name of the `number`th rotated file; 0 is the one that is written."""
    return path.with_name(f"{path.name}.{number}") if number else path


def read_events(path: Path, with_rotated: bool = True) -> Iterator[EventRecord]:
    """The events of a log, oldest first; what is no event (a torn line after a crash, another's line) is left out.

    It may be read while it is written: a rotation meanwhile neither hides nor doubles an event that was there at the
    beginning.

    Args:
        path: the newest file, `events.jsonl`.
        with_rotated: read the older files beside it too.

    Raises:
        OSError: `path` cannot be read.
    """
    decoder = msgspec.json.Decoder(EventRecord)
    with ExitStack() as stack:
        for file in reversed(_open(path, with_rotated, stack)):
            for line in file:
                try:
                    yield decoder.decode(line)
                except msgspec.DecodeError:
                    continue


def _open(path: Path, with_rotated: bool, stack: ExitStack) -> list[BinaryIO]:
    """The files, newest first: rotation moves a file from where we have been to where we are still to look."""
    files: list[BinaryIO] = []
    met: set[tuple[int, int]] = set()
    for number in range(KEPT + 1 if with_rotated else 1):
        try:
            file = stack.enter_context(rotated(path, number).open("rb"))
        except FileNotFoundError:
            if number == 0 and not (with_rotated and rotated(path, 1).exists()):
                raise
            continue
        status = _identity(file)
        if status not in met:
            met.add(status)
            files.append(file)
    return files


def _identity(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino
