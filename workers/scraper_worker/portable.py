"""What users' code hands over, as text and JSON that every reader takes.

JSON has no place for some of what Python holds. Each such thing is replaced or refused by one rule, here: a value that
can be kept is kept, since a result is dear, and what can't be is refused with a name that tells what to mend.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw

MAX_DEPTH: Final = 500  # containers within each other; a line may nest 512 deep, and the message around takes a few

_encoder: Final = msgspec.json.Encoder()
_KEY_WORDS: Final[dict[object, str]] = {None: "null", True: "true", False: "false"}  # as Python's own json has them


class NotPortable(ValueError):
    """A value that JSON can't carry; `signature` names why in a word."""

    def __init__(self, signature: str, message: str) -> None:
        super().__init__(message)
        self.signature = signature


def encodable(text: str) -> str:
    """The text as UTF-8 can carry it: two halves of a character are joined, half a character becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def to_json(value: Any, name: str = "result") -> Raw:
    """The value as JSON.

    NaN and infinities become null; bytes become base64; sets and tuples become arrays; dates, decimals, UUIDs, enums
    and dataclasses become what msgspec makes of them; half a character becomes U+FFFD; the keys None, True and False
    become "null", "true" and "false".

    Args:
        value: what is to be kept.
        name: what it is called in a signature: "result" or "data".

    Raises:
        NotPortable: it holds something else, contains itself, or is nested deeper than 500 levels.
    """
    try:
        encoded = _encoder.encode(value)
    except Exception:  # noqa: BLE001 - whatever it was, the slow way finds out what can be kept, or names the problem
        encoded = _encode_plain(value, name)
    try:
        msgspec.json.decode(encoded, type=Raw)  # the value may hold JSON of the user's own, which is taken as it is
        if encoded.count(b"[") + encoded.count(b"{") > MAX_DEPTH:  # else it can't be too deep
            _check_depth(encoded, name)
    except RecursionError:
        raise _too_deep(name) from None
    except msgspec.DecodeError as error:
        raise NotPortable(f"{name}-not-json", f"the {name} is not JSON: {error}") from None
    return Raw(encoded)


def _encode_plain(value: Any, name: str) -> bytes:
    try:
        return _encoder.encode(_plain(value, name, []))
    except NotPortable:
        raise
    except RecursionError:
        raise _too_deep(name) from None
    except Exception as error:  # noqa: BLE001 - a value's own methods may raise anything
        raise NotPortable(f"{name}-not-json", f"the {name} is not JSON: {_words(error)}") from None


def _plain(value: Any, name: str, around: list[int]) -> Any:
    """The value out of nothing but what JSON knows. `around` holds the ids of the containers that it lies in."""
    if isinstance(value, str):
        return encodable(str.__str__(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    mapping = isinstance(value, Mapping)
    if not mapping and not isinstance(value, list | tuple | set | frozenset):
        return _of_other(value, name, around)
    if id(value) in around:
        raise NotPortable(f"{name}-cycle", f"the {name} contains itself")
    if len(around) >= MAX_DEPTH:
        raise _too_deep(name)
    around.append(id(value))
    if mapping:
        plain: Any = {_key(key, name): _plain(one, name, around) for key, one in value.items()}
    else:
        plain = [_plain(one, name, around) for one in value]
    around.pop()
    return plain


def _key(key: object, name: str) -> object:
    if isinstance(key, str):
        return encodable(str.__str__(key))
    if key is None or isinstance(key, bool):
        return _KEY_WORDS[key]
    if isinstance(key, int | float):
        return key
    raise NotPortable(f"{name}-not-json", f"the {name} is not JSON: a key of type {type(key).__name__}")


def _of_other(value: Any, name: str, around: list[int]) -> Any:
    kind = type(value).__name__
    if kind == "coroutine":
        value.close()
        raise NotPortable(f"{name}-not-awaited", f"the {name} holds a coroutine: an `await` is missing")
    try:
        made = msgspec.to_builtins(value)
    except TypeError:
        raise NotPortable(f"{name}-not-json", f"the {name} is not JSON: it holds an object of type {kind}") from None
    if type(made) is type(value):
        return made
    return _plain(made, name, around)


def _check_depth(encoded: bytes, name: str) -> None:
    level = [msgspec.json.decode(encoded)]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise _too_deep(name)


def _too_deep(name: str) -> NotPortable:
    return NotPortable(f"{name}-too-deep", f"the {name} is nested deeper than {MAX_DEPTH} levels")


def _words(error: Exception) -> str:
    try:
        return encodable(str(error)) or type(error).__name__
    except Exception:  # noqa: BLE001 - an exception's own text may raise as well
        return type(error).__name__
