"""What workers print, as records of the log: with the level that a line shows, and a traceback as one."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

if TYPE_CHECKING:
    import asyncio

HOLD: Final = 0.1  # seconds that a line may wait for the traceback below it; a record is printed by one write
MAX_RECORD: Final = 64 * 1024  # characters; a longer traceback goes on in a record of its own

_LEVELS: Final = {
    "TRACE": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "NOTICE": logging.INFO,
    "SUCCESS": logging.INFO,
    "WARN": logging.WARNING,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
    "CRITICAL": logging.CRITICAL,
    "FATAL": logging.CRITICAL,
}
_SHOWN: Final = 200  # characters at a line's beginning in which a level is looked for
_WORD: Final = "|".join(_LEVELS)
# Only a class of characters is repeated possessively: of more, Python 3.11.2, which is Debian's, misses matches.
_DIGITS: Final = r"[\d:.,/+ -]*+"
_TIME: Final = rf"[\[(]?\d{_DIGITS}(?:T(?=\d){_DIGITS})?(?:Z(?=[\s.,\])-]){_DIGITS})?[\])]?[ |:-]*+"
_NAME: Final = r"[\[(]?[A-Za-z_][\w.$/-]*+[\])]?"
_END: Final = r"\s*(?:[\])>|:,]|\s|$)"
# A level at a line's head, as `logging`, loguru, structlog, logfmt and JSON loggers show it: first, or behind a time, a
# name or both. In the midst of a sentence it is a word like others.
_AT_THE_HEAD: Final = tuple(
    re.compile(form)
    for form in (
        rf"(?:{_TIME})?[\[(<]?\s*({_WORD}){_END}",
        rf"(?:{_TIME})?{_NAME}\s*(?: - |[:|])\s*[\[(<]?({_WORD}){_END}",
        rf"{_TIME}{_NAME}\s+[\[(<]?({_WORD}){_END}",
        rf"(?:{_TIME})?\[\s*((?i:{_WORD}))\s*\]",
    )
)
_LOGFMT: Final = re.compile(rf"(?:^|\s)level=\"?((?i:{_WORD}))\b")
_JSON: Final = re.compile(rf"\"(?:level|levelname|severity)\"\s*:\s*\"((?i:{_WORD}))\"")

_TRACEBACK: Final = re.compile(r"\s*(?:\+ Exception Group )?Traceback \(most recent call last\):")
_AFTER_TRACEBACK: Final = re.compile(
    r"$|\s|Traceback \(most recent call last\):|During handling of the above|The above exception was"
    r"|Call [lL]og:|Browser logs:|=+ logs =+|={10,}|[╔║╚]"  # the last ones are Playwright's
)


def level_of(line: str) -> int | None:
    """The level that a printed line shows at its head, as `logging` numbers them; None if it shows none."""
    head = line[:_SHOWN]
    found = next(filter(None, (form.match(head) for form in _AT_THE_HEAD)), None)
    if found is None:
        found = (_JSON if head.startswith("{") else _LOGFMT).search(head)
    return _LEVELS[found[1].upper()] if found is not None else None


class Record(NamedTuple):
    """One record of the log: its text, of more lines than one only where there is a traceback."""

    level: int
    text: str


class Joiner:
    """Lines of one stream in, records out; the last line is held, since a traceback may follow it."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._level: int | None = None
        self._length = 0
        self._inside: bool | None = None  # True in a traceback's frames, False behind its exception's line

    def feed(self, line: str) -> Record | None:
        """Take a line; the record that it ends, if it ends one."""
        ended = None
        begins = bool(_TRACEBACK.match(line))
        shown = None if begins or self._inside else level_of(line)
        if self._lines and not self._goes_on(line, begins, shown):
            ended = self.flush()
        elif self._length > MAX_RECORD:
            level, inside = self._level, self._inside
            ended = self.flush()
            self._level, self._inside = level, inside
        if not self._lines:
            self._level = self._level if shown is None else shown
        if begins:
            self._inside = True
        elif self._inside and line.strip() and not line[0].isspace():
            self._inside = False
        self._lines.append(line)
        self._length += len(line) + 1
        return ended

    def _goes_on(self, line: str, begins: bool, shown: int | None) -> bool:
        if begins or self._inside:
            return True
        return self._inside is False and shown is None and bool(_AFTER_TRACEBACK.match(line))

    def flush(self) -> Record | None:
        """The record that is held, as nothing follows it."""
        if not self._lines:
            return None
        level = self._level
        if level is None:
            level = logging.INFO if self._inside is None else logging.ERROR
        record = Record(level, "\n".join(self._lines).rstrip() if len(self._lines) > 1 else self._lines[0])
        self._lines, self._level, self._length, self._inside = [], None, 0, None
        return record


class _Stream:
    """One stream of one worker."""

    def __init__(self) -> None:
        self.joiner = Joiner()
        self.timer: asyncio.TimerHandle | None = None
        self.came = 0.0
        """When the last line came, by the loop's clock."""


class Printed:
    """Writes what workers print into the log."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._streams: dict[tuple[str, str], _Stream] = {}

    def line(self, worker: str, stream: str, text: str) -> None:
        """Take a line of a worker's "out" or "err"; it is in the log within 0.1 s.

        Called on the loop.
        """
        state = self._streams.get((worker, stream))
        if state is None:
            state = self._streams[worker, stream] = _Stream()
        _write(worker, stream, state.joiner.feed(text))
        state.came = self._loop.time()
        if state.timer is None:  # it is not moved with each line, but looks how old the last one is
            state.timer = self._loop.call_at(state.came + HOLD, self._look, worker, stream, state)

    def end(self, worker: str) -> None:
        """Nothing more comes of this worker."""
        for stream in ("out", "err"):
            state = self._streams.pop((worker, stream), None)
            if state is not None:
                if state.timer is not None:
                    state.timer.cancel()
                _write(worker, stream, state.joiner.flush())

    def _look(self, worker: str, stream: str, state: _Stream) -> None:
        due = state.came + HOLD
        if self._loop.time() < due:
            state.timer = self._loop.call_at(due, self._look, worker, stream, state)
            return
        state.timer = None
        _write(worker, stream, state.joiner.flush())


def _write(worker: str, stream: str, record: Record | None) -> None:
    if record is not None:
        structlog.get_logger().log(record.level, record.text, worker=worker, stream=stream)
