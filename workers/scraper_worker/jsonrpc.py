"""JSON-RPC 2.0 as both ends speak it, without I/O: lines framed, decoded, checked, encoded."""

from __future__ import annotations

import contextlib
import re
from itertools import accumulate
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from scraper_worker.protocol import (
    INVALID_REQUEST,
    MAX_DEPTH,
    MAX_KEY,
    PARSE_ERROR,
    BadEntry,
    CallId,
    CheckpointSave,
    ItemDone,
    ItemsOffer,
    Offer,
    WireEntry,
    is_slot,
)


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


def check_slot(slot: str | None) -> None:
    """Refuse a name that no slot can have; None is the main state.

    Raises:
        BadParams: naming `slot`.
    """
    if slot is not None and not is_slot(slot):
        raise BadParams("slot", f'expected [a-z][a-z0-9-]{{0,15}}, and not "corrupt", got {slot!r}')


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
