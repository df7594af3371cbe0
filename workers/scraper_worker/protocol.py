"""The worker protocol, version 1: messages, limits and JSON-RPC framing, without any I/O.

Both ends use it: bytes in, messages and bytes out. One UTF-8 JSON object a line (JSON-RPC 2.0).
"""

from __future__ import annotations

import contextlib
import re
from itertools import accumulate
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias, get_args, get_origin, get_type_hints

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

PROTOCOL: Final = 1
MAX_LINE: Final = 16 * 1024 * 1024  # bytes; larger where max_state asks for it
MAX_LINE_BEFORE_HELLO: Final = 64 * 1024  # bytes
MAX_OPEN_CALLS: Final = 256
MAX_KEY: Final = 4096  # bytes of UTF-8
MAX_DEPTH: Final = 512  # arrays and objects of a line inside one another, the message itself included
SUPERVISOR_LOST_AFTER: Final = 300.0  # seconds without a supervisor, after which a worker ends itself

ENV_SOCKET: Final = "SCRAPER_WORKER_SOCKET"
ENV_NAME: Final = "SCRAPER_WORKER_NAME"
ENV_TOKEN: Final = "SCRAPER_WORKER_TOKEN"

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
STORAGE_UNAVAILABLE: Final = -32001
NOT_INTRODUCED: Final = -32002
REFUSED: Final = -32003
TOO_LARGE: Final = -32004
BAD_PARAMS: Final = -32005
NO_CHECKPOINT: Final = -32006
NOT_CLAIMED: Final = -32007
TOO_MANY_CALLS: Final = -32008

Priority: TypeAlias = Annotated[int, Meta(ge=-(2**53) + 1, le=2**53 - 1)]  # what every JSON peer can hold exactly
Kind: TypeAlias = Literal["transient", "permanent", "blocked", "infrastructure"]
Category: TypeAlias = Literal["network", "browser", "system", "application", "external"]
CallId: TypeAlias = int | float | str | None


class Failure(Struct, frozen=True, omit_defaults=True):
    """How an item, or something beside it, failed. Times are seconds from receipt."""

    kind: Kind
    category: Category
    signature: str
    message: str
    status: int | None = None
    retry_after: float | None = None
    traceback: str | None = None


class Claim(Struct, frozen=True):
    """An item in a worker's hands, as the worker names it when it comes back."""

    key: str
    claim: int


class Offer(Struct, frozen=True, omit_defaults=True):
    """One item as a worker offers it."""

    key: str
    target: str | None = None
    data: Raw = Raw(b"null")
    priority: Priority = 0


class BadEntry(NamedTuple):
    """An entry among offers that can be no item. On the wire it is an array, so that no supervisor takes it for one.

    The SDK sends one for what it can't put into JSON, and reading an offer makes one of each entry that is neither a
    key nor an object of the right shape: it is left out, and the others count.
    """

    reason: str
    entry: str = ""


WireEntry: TypeAlias = str | Offer | BadEntry


class Refused(Struct, frozen=True):
    """One of the entries that were left out: its place in the call, and why."""

    index: int
    reason: str


MAX_REFUSED: Final = 10  # of these in an answer

# ---- worker → supervisor --------------------------------------------------------------------------------------------


class Hello(Struct, frozen=True, omit_defaults=True):
    """The first request of a connection."""

    protocol: int
    worker: str
    token: str
    client: str = ""
    in_flight: list[Claim] = []


class Heartbeat(Struct, frozen=True, omit_defaults=True):
    """A sign of life: event-loop lag and pages opened per browser since its start."""

    lag_ms: float = 0.0
    pages: dict[str, int] = {}


class ItemsOffer(Struct, frozen=True, omit_defaults=True):
    """Items for the run; `more` says that another offer will follow."""

    items: list[WireEntry]
    more: bool = False


class ItemNext(Struct, frozen=True, omit_defaults=True):
    """Ask for an item; the answer waits until there is one, for `wait` seconds if given."""

    wait: float | None = None


class ItemDone(Struct, frozen=True, omit_defaults=True):
    """An item succeeded."""

    key: str
    claim: int | None = None
    seconds: float | None = None
    target: str | None = None
    result: Raw = Raw(b"null")
    offers: list[WireEntry] = []


class ItemFailed(Struct, frozen=True, omit_defaults=True):
    """An attempt at an item failed."""

    key: str
    failure: Failure
    claim: int | None = None
    seconds: float | None = None
    target: str | None = None


class ItemRelease(Struct, frozen=True, omit_defaults=True):
    """An item is given back at no cost."""

    key: str
    claim: int | None = None
    reason: str = ""


class ItemProgress(Struct, frozen=True, omit_defaults=True):
    """A sign of life of one item, and how far it is, in whatever unit; people are shown it."""

    key: str
    claim: int | None = None
    message: str | None = None
    done: int | float | None = None
    total: int | float | None = None


class FailureReport(Struct, frozen=True, omit_defaults=True):
    """A failure outside any item."""

    failure: Failure
    target: str | None = None


class CheckpointSave(Struct, frozen=True):
    """The worker's state, to be written durably. `state` is a JSON object and stays undecoded."""

    schema: str
    state: Raw


class CheckpointLoad(Struct, frozen=True, omit_defaults=True):
    """Ask for a state: the newest, or the one of `generation`."""

    generation: int | None = None


class BrowserStarted(Struct, frozen=True, omit_defaults=True):
    """A browser is up."""

    browser: str
    pid: int
    driver_pid: int | None = None
    engine: str = ""
    version: str = ""


class BrowserStopped(Struct, frozen=True):
    """A browser is gone."""

    browser: str
    reason: Literal["close", "recycle", "crash"]


class Goodbye(Struct, frozen=True):
    """The last request: the worker is about to exit."""

    reason: Literal["complete", "drained"]


FromWorker: TypeAlias = (
    Hello
    | Heartbeat
    | ItemsOffer
    | ItemNext
    | ItemDone
    | ItemFailed
    | ItemRelease
    | ItemProgress
    | FailureReport
    | CheckpointSave
    | CheckpointLoad
    | BrowserStarted
    | BrowserStopped
    | Goodbye
)

WORKER_METHODS: Final[dict[str, type[FromWorker]]] = {
    "hello": Hello,
    "heartbeat": Heartbeat,
    "items.offer": ItemsOffer,
    "item.next": ItemNext,
    "item.done": ItemDone,
    "item.failed": ItemFailed,
    "item.release": ItemRelease,
    "item.progress": ItemProgress,
    "failure.report": FailureReport,
    "checkpoint.save": CheckpointSave,
    "checkpoint.load": CheckpointLoad,
    "browser.started": BrowserStarted,
    "browser.stopped": BrowserStopped,
    "goodbye": Goodbye,
}

# ---- results --------------------------------------------------------------------------------------------------------


class CheckpointState(Struct, frozen=True):
    """A state as `hello` and `checkpoint.load` answer it."""

    generation: int
    schema: str
    saved_at: str
    state: Raw


class ItemCounts(Struct, frozen=True):
    """How far the group's run is."""

    pending: int = 0
    done: int = 0
    failed: int = 0


class Held(Struct, frozen=True):
    """An item that is in the worker's hands according to the supervisor."""

    key: str
    claim: int
    attempt: int


class Evidence(Struct, frozen=True):
    """Where a worker puts the files that a failure may name, and whether it shall trace an item's last attempt."""

    dir: str
    trace: bool


class Welcome(Struct, frozen=True):
    """The answer to `hello`.

    `offered` says that a worker of this run has offered its source to the end. Without `evidence`, none is kept.
    """

    protocol: int
    worker: str
    group: str
    index: int
    count: int
    incarnation: int
    run: int
    heartbeat_interval: float
    checkpoint: CheckpointState | None
    items: ItemCounts
    in_flight: list[Held]
    offered: bool = False
    evidence: Evidence | None = None


class Offered(Struct, frozen=True, omit_defaults=True):
    """The answer to `items.offer`; `refused` names the first ten entries that were left out."""

    added: int
    known: int
    refused: list[Refused] = []


class Granted(Struct, frozen=True):
    """The answer to `item.next` when there is an item. `last` says that a charged failure now would be final."""

    key: str
    claim: int
    target: str | None
    data: Raw
    attempt: int
    last: bool = False


class End(Struct, frozen=True):
    """The answer to `item.next` when there is none."""

    end: Literal["complete", "draining", "empty"]


class DoneAnswer(Struct, frozen=True, omit_defaults=True):
    """The answer to `item.done`; `refused` names the first ten of its offers that were left out."""

    seq: int
    duplicate: bool
    refused: list[Refused] = []


class FailedAnswer(Struct, frozen=True):
    """The answer to `item.failed`; `delay` is seconds, None while parked or held."""

    action: Literal["retry", "final"]
    attempt: int
    delay: float | None
    reason: str


class Saved(Struct, frozen=True):
    """The answer to `checkpoint.save`."""

    generation: int
    sha256: str


class Nothing(Struct, frozen=True):
    """An empty answer."""


# ---- supervisor → worker --------------------------------------------------------------------------------------------


class BrowserRecycle(Struct, frozen=True):
    """Request: replace this browser; answered when the new one is up. `deadline` is seconds from receipt."""

    browser: str
    reason: str
    deadline: float


class Drain(Struct, frozen=True):
    """Notification: finish what is in hand and say goodbye."""

    reason: str
    deadline: float


class ItemCancel(Struct, frozen=True):
    """Notification: end that item and answer `item.failed`."""

    key: str
    claim: int
    reason: str
    deadline: float


ToWorker: TypeAlias = BrowserRecycle | Drain | ItemCancel

SUPERVISOR_METHODS: Final[dict[str, type[ToWorker]]] = {
    "browser.recycle": BrowserRecycle,
    "drain": Drain,
    "item.cancel": ItemCancel,
}

# ---- JSON-RPC -------------------------------------------------------------------------------------------------------


class RpcError(Struct, frozen=True, omit_defaults=True):
    """A JSON-RPC error object."""

    code: int
    message: str
    data: Any = None


class Request(Struct, frozen=True):
    """A request (`id` given) or a notification (`id` UNSET). The params of a large one may be decoded already."""

    method: str
    params: Raw | CheckpointSave
    id: CallId | UnsetType


class Response(Struct, frozen=True):
    """An answer to one of our own requests."""

    id: CallId
    result: Raw | None
    error: RpcError | None


class Malformed(Struct, frozen=True):
    """A line that is no message; `error` is to be answered with id null."""

    error: RpcError


class _Envelope(Struct, frozen=True):
    jsonrpc: Literal["2.0"]
    method: str | UnsetType = UNSET
    id: CallId | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: RpcError | UnsetType = UNSET


class _LargeSave(Struct, frozen=True):
    """The one message that may be large, decoded in one pass where the envelope first would take two."""

    jsonrpc: Literal["2.0"]
    method: Literal["checkpoint.save"]
    params: CheckpointSave
    id: CallId | UnsetType = UNSET


LARGE: Final = 256 * 1024  # bytes

_decoder = msgspec.json.Decoder(_Envelope)
_large_decoder = msgspec.json.Decoder(_LargeSave)
_param_decoders: Final[dict[type[Any], msgspec.json.Decoder[Any]]] = {}
_encoder = msgspec.json.Encoder()
_EMPTY = Raw(b"{}")


def decode_line(line: bytes | bytearray) -> Request | Response | Malformed:
    """One line, without or with its newline, to a message. Never raises."""
    if len(line) > 2 * MAX_DEPTH and nested_too_deep(line):  # a shorter one that is JSON can't be
        return Malformed(RpcError(PARSE_ERROR, f"nested deeper than {MAX_DEPTH}"))
    try:
        if not line.isascii():
            line.decode()  # msgspec checks the syntax of what it skips, but not that it is UTF-8
        if len(line) > LARGE:
            with contextlib.suppress(msgspec.ValidationError):  # another message: as any other
                save = _large_decoder.decode(line)
                return Request(save.method, save.params, save.id)
        envelope = _decoder.decode(line)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        return Malformed(_explain(line, error))
    if isinstance(envelope.method, str):
        params = envelope.params if isinstance(envelope.params, Raw) else _EMPTY
        return Request(envelope.method, params, envelope.id)
    answered = isinstance(envelope.result, Raw) != isinstance(envelope.error, RpcError)
    if envelope.id is UNSET or not answered:
        return Malformed(RpcError(INVALID_REQUEST, "neither a request (method) nor an answer (id and result or error)"))
    result = envelope.result if isinstance(envelope.result, Raw) else None
    fault = envelope.error if isinstance(envelope.error, RpcError) else None
    return Response(envelope.id, result, fault)


def _explain(line: bytes | bytearray, error: Exception) -> RpcError:
    if isinstance(error, msgspec.ValidationError):
        try:
            value = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError) as syntax:
            return RpcError(PARSE_ERROR, f"not JSON: {syntax}")
        if isinstance(value, list):
            return RpcError(INVALID_REQUEST, "batches are not supported: send one request a line")
        return RpcError(INVALID_REQUEST, f"not a JSON-RPC 2.0 request: {error}")
    return RpcError(PARSE_ERROR, f"not UTF-8 JSON: {error}")


_OPENING: Final = ord("[")
_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_ALL_ELSE: Final = bytes(set(range(256)) - set(b'[]{}"'))
_STRING: Final = re.compile(rb'"[^"]*+"')
_PORTION: Final = 128  # brackets


def nested_too_deep(line: bytes | bytearray) -> bool:
    """True if a line, where it is JSON at all, holds arrays and objects more than MAX_DEPTH inside one another.

    Decoders recurse, and what one of them takes another may not, so a bound of our own keeps out what nobody could
    read back. It is found without a step of the interpreter for each byte: of megabytes, that would hold up everybody.
    """
    if line.count(b"[") + line.count(b"{") <= MAX_DEPTH:
        return False
    if b"\\" in line:
        line = line.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = line.translate(_BRACKETS, _ALL_ELSE).replace(b'""', b"")
    if b'"' in brackets:  # strings that hold brackets
        brackets = _STRING.sub(b"", brackets)
    depth = 0
    for start in range(0, len(brackets), _PORTION):
        portion = brackets[start : start + _PORTION]
        opening = portion.count(b"[")
        if depth + opening > MAX_DEPTH:  # perhaps
            steps = (1 if bracket == _OPENING else -1 for bracket in portion)
            if depth + max(accumulate(steps)) > MAX_DEPTH:
                return True
        depth += 2 * opening - len(portion)
    return False


class BadParams(ValueError):
    """A request's params do not fit its method; `path` names where, as in `items[3].key`."""

    def __init__(self, path: str, message: str, **data: object) -> None:
        super().__init__(message)
        self.path = path
        self.data = {"path": path, **data}


_AT = re.compile(r" - at `\$\.?(.*)`$")
_MISSING = re.compile(r"missing required field `([^`]+)`")


def decode_params(kind: type[Any], params: Raw | CheckpointSave) -> Any:
    """A request's params as `kind`.

    Raises:
        BadParams: with the path of the first value that does not fit.
    """
    if isinstance(params, CheckpointSave):
        return params
    decoder = _param_decoders.get(kind)
    if decoder is None:
        decoder = _param_decoders[kind] = msgspec.json.Decoder(kind)
    try:
        return decoder.decode(params)
    except msgspec.DecodeError as error:
        name = _ENTRIES.get(kind)
        if name is not None and f"$.{name}[" in str(error):
            return _decode_entries(kind, params, name)
        text = str(error)
        at = _AT.search(text)
        missing = _MISSING.search(text)
        path = ".".join(part for part in (at and at.group(1), missing and missing.group(1)) if part)
        message = _AT.sub("", text)
        choices = _choices(kind, path)
        if not choices:
            raise BadParams(path, message) from None
        raise BadParams(path, f"{message}: expected one of {', '.join(choices)}", expected=choices) from None
    except RecursionError:
        raise BadParams("", f"nested deeper than {MAX_DEPTH}") from None


def _choices(kind: type[Any], path: str) -> tuple[str, ...]:
    """The right values of a field that takes only some, as in `failure.kind`; none if it takes any."""
    for name in path.split("."):
        kind = get_type_hints(kind).get(name, object)
    return get_args(kind) if get_origin(kind) is Literal else ()


_ENTRIES: Final[dict[type[Any], str]] = {ItemsOffer: "items", ItemDone: "offers"}
_item_decoder: Final = msgspec.json.Decoder(str | Offer)
_bad_entry_decoder: Final = msgspec.json.Decoder(BadEntry)
_SHOWN: Final = 200  # characters of a bad entry


def _decode_entries(kind: type[Any], params: Raw, name: str) -> Any:
    """Params with an entry that is none: it alone is bad.

    Raises:
        BadParams: something else does not fit, either.
    """
    fields = msgspec.json.decode(params, type=dict[str, Raw])
    entries = msgspec.json.decode(fields.pop(name), type=list[Raw])
    without = decode_params(kind, Raw(msgspec.json.encode({**fields, name: []})))
    return msgspec.structs.replace(without, **{name: [_decode_entry(entry) for entry in entries]})


def _decode_entry(entry: Raw) -> WireEntry:
    with contextlib.suppress(msgspec.DecodeError):
        return _bad_entry_decoder.decode(entry)
    try:
        item: str | Offer = _item_decoder.decode(entry)
    except msgspec.DecodeError as error:
        return BadEntry(_AT.sub("", str(error)), bytes(entry)[: 4 * _SHOWN].decode(errors="replace")[:_SHOWN])
    return item


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_key(key: str, path: str) -> None:
    """Refuse a key that is empty, longer than 4,096 bytes, not UTF-8 or holds control characters.

    Raises:
        BadParams: naming `path`.
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise BadParams(path, "a key must be valid UTF-8") from None
    if not 1 <= size <= MAX_KEY:
        raise BadParams(path, f"a key is 1 to {MAX_KEY} bytes of UTF-8, this one has {size}")
    if _CONTROL.search(key):
        raise BadParams(path, "a key must not contain control characters")


def encode_request(method: str, params: Any, call: CallId) -> bytes:
    """A request's line."""
    return _encoder.encode({"jsonrpc": "2.0", "id": call, "method": method, "params": params}) + b"\n"


def encode_notification(method: str, params: Any) -> bytes:
    """A notification's line."""
    return _encoder.encode({"jsonrpc": "2.0", "method": method, "params": params}) + b"\n"


def encode_result(call: CallId, result: Any) -> bytes:
    """An answer's line."""
    return _encoder.encode({"jsonrpc": "2.0", "id": call, "result": result}) + b"\n"


def encode_error(call: CallId, error: RpcError) -> bytes:
    """An error answer's line."""
    return _encoder.encode({"jsonrpc": "2.0", "id": call, "error": error}) + b"\n"


class LineTooLong(ValueError):
    """The peer sent a line over the limit; the connection must be closed."""


class Framer:
    """Splits a byte stream into lines, each at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._rest = bytearray()  # of the unfinished line; a large one becomes the line itself, without a copy

    def feed(self, data: bytes) -> list[bytes | bytearray]:
        """The lines that `data` completes, without newlines, empty ones left out.

        Raises:
            LineTooLong: as soon as the unfinished line or a finished one is over the limit.
        """
        if not self._rest and data.find(b"\n") == len(data) - 1 <= self.limit:  # the common case: one whole line
            return [data[:-1]] if len(data) > 1 else []
        lines: list[bytes | bytearray] = []
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            if len(self._rest) + end - start > self.limit:
                raise LineTooLong
            line: bytes | bytearray = data[start:end]
            if self._rest:
                self._rest += line
                line = self._rest if len(self._rest) > LARGE else bytes(self._rest)
                self._rest = bytearray()
            if line:
                lines.append(line)
            start = end + 1
        if start < len(data):
            if len(self._rest) + len(data) - start > self.limit:
                raise LineTooLong
            self._rest += data[start:] if start else data
        return lines
