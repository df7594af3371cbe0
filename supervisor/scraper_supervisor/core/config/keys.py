"""The kinds of keys that a configuration file may hold, each saying what a value may be.

`settings.py` says which keys there are.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

TEN_YEARS: Final = 3650 * 86_400.0  # seconds; longer is a slip of the pen, and more than a timer can hold


class Key(Struct, frozen=True):
    """One key of the file; subclasses say what its value may be. `example` is for keys that are unset by default."""

    help: str
    off: bool = False
    example: str | None = None


class Duration(Key, frozen=True, kw_only=True):
    """Seconds, or one of `words`."""

    least: float = 0.0
    most: float = TEN_YEARS
    words: tuple[str, ...] = ()


class Size(Key, frozen=True, kw_only=True):
    """Bytes."""

    least: int = 0
    most: int = 2**62


class Whole(Key, frozen=True, kw_only=True):
    """A whole number."""

    least: int = 0
    most: int = 1_000_000_000


class WorkerCount(Key, frozen=True, kw_only=True):
    """A whole number from 1 on, or two as in "2-8": the least goes into the key's field, the most into `upper`."""

    most: int = 10_000
    upper: str


class Real(Key, frozen=True, kw_only=True):
    """A number."""

    least: float = 0.0
    most: float = 1.0


class Flag(Key, frozen=True):
    """True or false."""


class Choice(Key, frozen=True, kw_only=True):
    """One of a few words."""

    among: tuple[str, ...]


class Words(Key, frozen=True, kw_only=True):
    """A string that matches `pattern` as a whole; `expected` says so in words."""

    pattern: str = r"(?s).+"
    expected: str = "a string that is not empty"


class FilePath(Key, frozen=True, kw_only=True):
    """A path, relative to the file; with `program` a name without a slash is looked up in PATH and left alone."""

    program: bool = False


class Address(Key, frozen=True):
    """HOST:PORT."""


class Database(Key, frozen=True):
    """A PostgreSQL database, as libpq takes it: a URL, or "service=NAME"."""


class Urls(Key, frozen=True):
    """A list of URLs, which may hold secrets: no message repeats them."""


class CommandLine(Key, frozen=True):
    """A program and its arguments."""


class Patterns(Key, frozen=True):
    """A list of regular expressions."""


class Codes(Key, frozen=True):
    """A list of HTTP status codes."""


class Variables(Key, frozen=True):
    """A table of environment variables."""
