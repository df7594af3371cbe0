"""A run as portable JSON Lines, as `items export` writes it and `items import` reads it.

The first line tells what it is, then come the workers' states, what each worker did, the items in the order in which
they were added, and a last line with the SHA-256 of every byte before it, so that `head -n -1 FILE | sha256sum`
verifies a file with no program of ours. Each line is UTF-8 and ends in a newline. Fields that a reader does not know
are ignored; another kind of line needs another format.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from scraper_supervisor.core.formats.timestamps import seconds
from scraper_supervisor.core.ops.run_ops import RunState, WorkerTotals
from scraper_worker.jsonrpc import BadParams, check_key

FORMAT: Final = 1
KIND: Final = "scraper-supervisor-run"

_LARGEST: Final = 2**63 - 1  # what the ledger's integers hold
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=_LARGEST)]
_Number: TypeAlias = Annotated[int, Meta(ge=1, le=_LARGEST)]


class NotPortable(ValueError):
    """Bytes that are not a whole export; the message says what was expected, and of a file in which line."""


class RunHeader(Struct, frozen=True, omit_defaults=False):
    """The first line. `run` is the number that the run had; it gets another where it is imported."""

    format: int
    kind: str
    group: str
    run: int
    state: RunState
    started_at: str
    finished_at: str | None
    exported_at: str


class WorkerState(Struct, frozen=True):
    """The newest sound state that a worker saved."""

    name: str
    run: int
    generation: int
    schema: str
    saved_at: str
    state: Raw


class Result(Struct, frozen=True):
    """What a done item gave; `sha256` is that of the result's bytes as they stand in the line."""

    seq: _Number
    result: Raw
    finished_at: str
    sha256: str


class PortableItem(Struct, frozen=True, omit_defaults=True):
    """An item. What was in flight is pending; `order` is its place among items of one priority (see item_ops.Entry)."""

    key: str
    target: str | None
    data: Raw
    priority: Annotated[int, Meta(ge=-_LARGEST, le=_LARGEST)]
    order: Annotated[float, Meta(ge=-(2**53), le=2**53)]
    state: Literal["pending", "waiting", "parked", "done", "failed"]
    attempts: _Count
    infrastructure: _Count = 0
    blocked: _Count = 0
    alone: bool = False
    not_before: str | None = None
    worker: str | None = None
    last_failure: Raw | UnsetType = UNSET
    result: Result | None = None


class End(Struct, frozen=True):
    """The last line: how many lines come before it, how many items are among them, and the SHA-256 of their bytes."""

    lines: int
    items: int
    sha256: str


Record: TypeAlias = RunHeader | WorkerState | WorkerTotals | PortableItem | End


class _Line(Struct, frozen=True, omit_defaults=True):
    """Any line; `format` and `kind` are the header's, which is read again as such."""

    format: Any = None
    kind: Any = None
    worker: WorkerState | None = None
    totals: WorkerTotals | None = None
    item: PortableItem | None = None
    end: End | None = None


_decode_header = msgspec.json.Decoder(RunHeader).decode
_decode_line = msgspec.json.Decoder(_Line).decode
_encode = msgspec.json.Encoder().encode


# ---- writing ---------------------------------------------------------------------------------------------------------


class Writer:
    """Makes the lines of an export, in their order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._lines = self._items = 0

    def line(self, record: RunHeader | WorkerState | WorkerTotals | PortableItem) -> bytes:
        """The next line, with its newline."""
        if isinstance(record, PortableItem):
            self._items += 1
            line = _encode(_Line(item=record))
        elif isinstance(record, WorkerState):
            line = _encode(_Line(worker=record))
        elif isinstance(record, WorkerTotals):
            line = _encode(_Line(totals=record))
        else:
            line = _encode(record)
        line += b"\n"
        self._lines += 1
        self._digest.update(line)
        return line

    def end(self) -> bytes:
        """The last line."""
        return _encode(_Line(end=End(self._lines, self._items, self._digest.hexdigest()))) + b"\n"


# ---- reading ---------------------------------------------------------------------------------------------------------


def parse(line: bytes) -> Record:
    """One line, with or without its newline.

    Raises:
        NotPortable: It is none of an export that this version reads.
    """
    header: RunHeader | None = None
    try:
        line.decode()  # msgspec checks the syntax of what stays undecoded, but not that it is UTF-8
        found = _decode_line(line)
        if found.format is not None or found.kind is not None:
            _check_kind(found.format, found.kind)
            header = _decode_header(line)
    except UnicodeDecodeError as error:
        raise NotPortable(f"byte {error.start + 1} is not UTF-8") from None
    except msgspec.DecodeError as error:
        raise NotPortable(f"expected a line of an export: {error}".replace("`$.", "`")) from None
    record = found.item or found.worker or found.totals or found.end or header
    if record is None:
        raise NotPortable("expected a header, a worker's state, a worker's totals, an item or the end")
    match record:
        case PortableItem():
            _check_item(record)
        case WorkerState():
            _check_worker(record.name, "worker.name")
            _check_state(record)
        case WorkerTotals():
            _check_worker(record.worker, "totals.worker")
            if min(record.done, record.failed) < 0 or max(record.done, record.failed) > _LARGEST:
                raise NotPortable("totals: expected counts, none of them negative")
        case RunHeader():
            _check_time(record.started_at, "started_at")
            if record.finished_at is not None:
                _check_time(record.finished_at, "finished_at")
        case _:
            pass
    return record


def _check_kind(number: object, kind: object) -> None:
    if kind != KIND:
        raise NotPortable(f"kind: expected {KIND!r}, got {str(kind)[:60]!r}")
    if number != FORMAT:
        hint = "; use the version that wrote it, or a newer one" if isinstance(number, int) and number > FORMAT else ""
        raise NotPortable(f"format: this version reads format {FORMAT}, the file has {str(number)[:60]}{hint}")


def _check_item(item: PortableItem) -> None:
    try:
        check_key(item.key, "item.key")
    except BadParams as error:
        raise NotPortable(f"{error.path}: {error}: {item.key[:60]!r}") from None
    if (item.state == "waiting") != (item.not_before is not None):
        raise NotPortable(f"item.not_before: expected one for state waiting and for no other, this one is {item.state}")
    if (item.state == "done") != (item.result is not None):
        raise NotPortable(f"item.result: expected one for state done and for no other, this one is {item.state}")
    if item.not_before is not None:
        _check_time(item.not_before, "item.not_before")
    if item.worker is not None:
        _check_worker(item.worker, "item.worker")
    elif item.state == "done":
        raise NotPortable("item.worker: expected one for state done")
    result = item.result
    if result is not None:
        _check_time(result.finished_at, "item.result.finished_at")
        if result.sha256 != (found := hashlib.sha256(result.result).hexdigest()):
            raise NotPortable(f"item.result.sha256: expected {result.sha256[:64]!r}, the result has {found!r}")


def _check_state(state: WorkerState) -> None:
    name, _, version = state.schema.rpartition("/")
    if not name or not (version.isascii() and version.isdecimal()):
        raise NotPortable(f'worker.schema: expected "NAME/INTEGER", got {state.schema[:60]!r}')
    if not bytes(state.state).lstrip().startswith(b"{"):
        raise NotPortable("worker.state: expected an object")


def _check_worker(name: str, path: str) -> None:
    group, _, index = name.rpartition("-")
    if not (group and index.isascii() and index.isdecimal() and len(index) < 10):
        raise NotPortable(f"{path}: expected a worker's name, GROUP-INDEX, got {name[:60]!r}")


def _check_time(text: str, path: str) -> None:
    try:
        seconds(text)
    except (ValueError, OverflowError):
        raise NotPortable(f"{path}: expected a time of RFC 3339, got {text[:60]!r}") from None


def renamed(worker: str, group: str) -> str:
    """The worker of the same index in another group."""
    return f"{group}-{int(worker.rpartition('-')[2])}"


class Checker:
    """Reads an export from its first line to its last, with bounded memory, and tells whether it is whole.

    Keys and seqs that come twice are found where the items are put in.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._header: RunHeader | None = None
        self._lines = self.items = self.done = 0
        self._seqs = self._largest = 0  # sum and maximum: of n different ones from 1 on, the maximum is n
        self.states = 0
        self._ended = False

    def take(self, line: bytes) -> Record:
        """The next line, with its newline.

        Raises:
            NotPortable: With the line's number.
        """
        number = self._lines + 1
        try:
            record = self._take(line)
        except NotPortable as error:
            raise NotPortable(f"line {number}: {error}") from None
        self._digest.update(line)
        self._lines = number
        return record

    def _take(self, line: bytes) -> Record:
        if self._ended:
            raise NotPortable("nothing may follow the end; are these two files in one?")
        record = parse(line)
        if (self._header is None) != isinstance(record, RunHeader):
            raise NotPortable("expected the header here" if self._header is None else "a second header")
        match record:
            case RunHeader():
                self._header = record
            case PortableItem(result=result):
                self.items += 1
                if result is not None:
                    self.done += 1
                    self._seqs += result.seq
                    self._largest = max(self._largest, result.seq)
            case WorkerState():
                self.states += 1
            case End():
                self._check_end(record)
                self._ended = True
            case _:
                pass
        if not line.endswith(b"\n"):
            raise NotPortable("it is cut short: expected a newline at its end")
        return record

    def _check_end(self, end: End) -> None:
        if end.lines != self._lines:
            raise NotPortable(f"end.lines: expected {end.lines} lines before this one, found {self._lines}")
        if end.items != self.items:
            raise NotPortable(f"end.items: expected {end.items} items, found {self.items}")
        if end.sha256 != (found := self._digest.hexdigest()):
            raise NotPortable(f"end.sha256: expected {end.sha256[:64]!r}, the lines before it have {found!r}")
        if self._largest != self.done or self._seqs != self.done * (self.done + 1) // 2:
            raise NotPortable(f"expected the seqs of the {self.done} done items to be 1 to {self.done}, each once")

    def finish(self) -> RunHeader:
        """There are no more lines.

        Raises:
            NotPortable: The end is missing.
        """
        if self._header is None:
            raise NotPortable("it is empty: expected an export, as 'items export GROUP' writes it")
        if not self._ended:
            raise NotPortable(f'it is cut short: expected a line {{"end":…}} after line {self._lines}')
        return self._header


class Joiner:
    """Makes whole lines of pieces of text that were cut anywhere, as a request carries them."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    @property
    def cut(self) -> bool:
        """True if the end of a line is still to come."""
        return bool(self._parts)

    def take(self, text: str) -> bytes:
        """The lines that end in this piece; what follows the last of them is kept for the next."""
        end = text.rfind("\n") + 1
        if not end:
            if text:
                self._parts.append(text)
            return b""
        lines = "".join([*self._parts, text[:end]])
        self._parts = [text[end:]] if end < len(text) else []
        return lines.encode()
