"""Single values of a configuration file, read by the kind of their key. A ValueError says what was expected."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

from scraper_supervisor.core.config.keys import Address, Choice, Duration, Flag, Key, Real, Size, Whole, Words
from scraper_supervisor.core.config.units import (
    format_duration,
    format_size,
    parse_address,
    parse_duration,
    parse_size,
    show,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


def read_scalar(key: Key, raw: object) -> Any:
    """A value of one of the kinds that hold no list and no table."""
    match key:
        case Duration(words=words):
            return raw if raw in words else _within(parse_duration(raw), key, format_duration)
        case Size():
            return _within(parse_size(raw), key, format_size)
        case Whole():
            if isinstance(raw, int) and not isinstance(raw, bool):
                return _within(raw, key, str)
            raise ValueError(f"expected a whole number, got {show(raw)}")
        case Real():
            if isinstance(raw, int | float) and not isinstance(raw, bool):
                return _within(float(raw), key, _plain)
            raise ValueError(f"expected a number, got {show(raw)}")
        case Flag():
            if isinstance(raw, bool):
                return raw
            raise ValueError(f"expected true or false, got {show(raw)}")
        case Choice():
            return _one_of(raw, key.among)
        case Address():
            parse_address(raw)
            return raw
        case Words():
            if isinstance(raw, str) and re.fullmatch(key.pattern, raw):
                return raw
            raise ValueError(f"expected {key.expected}, got {show(raw)}")
    raise TypeError(f"no reader for {type(key).__name__}")


N = TypeVar("N", int, float)


def _within(number: N, key: Duration | Size | Whole | Real, form: Callable[[N], str]) -> N:
    if key.least <= number <= key.most:
        return number
    bound = (
        f"at least {form(type(number)(key.least))}" if number < key.least else f"at most {form(type(number)(key.most))}"
    )
    raise ValueError(f"expected {bound}, got {form(number)}")


def _plain(number: float) -> str:
    return f"{number:g}"


def read_string(raw: object) -> str:
    """A string without zero bytes."""
    if isinstance(raw, str) and "\0" not in raw:
        return raw
    raise ValueError(f"expected a string, got {'one with a zero byte' if isinstance(raw, str) else show(raw)}")


def _one_of(raw: object, among: tuple[str, ...]) -> str:
    if isinstance(raw, str) and raw in among:
        return raw
    close = difflib.get_close_matches(raw, among, 1) if isinstance(raw, str) else []
    hint = f'; did you mean "{close[0]}"?' if close else ""
    raise ValueError(f"expected one of {words_of(among)}, got {show(raw)}{hint}")


def read_pattern(raw: object) -> str:
    """A regular expression, as its text."""
    text = read_string(raw)
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"expected a regular expression, got {show(raw)}: {error}") from None
    return text


def read_url(raw: object) -> str:
    """A URL; the message of a wrong one does not repeat it."""
    if isinstance(raw, str) and _URL.fullmatch(raw):
        return raw
    shown = "a string that is none" if isinstance(raw, str) else show(raw)  # it may hold a password
    raise ValueError(f'expected a URL such as "mailto://USER@example.com", got {shown}')


def read_code(raw: object) -> int:
    """An HTTP status code."""
    if isinstance(raw, int) and not isinstance(raw, bool) and 100 <= raw <= 599:
        return raw
    raise ValueError(f"expected an HTTP status code from 100 to 599, got {show(raw)}")


def words_of(words: Iterable[str]) -> str:
    """Words in quotes, with commas between them."""
    return ", ".join(f'"{word}"' for word in words)
