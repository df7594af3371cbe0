"""What people write in a configuration, to values and back: durations, sizes, addresses and env files.

Nothing is lost on the way: `parse_duration(format_duration(x)) == x`, and the same for sizes.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Final

_DURATION_UNITS: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}  # seconds, the largest first
_SIZE_UNITS: Final = {  # bytes; of two that fit equally well the first is written
    "TiB": 1024**4,
    "TB": 1000**4,
    "GiB": 1024**3,
    "GB": 1000**3,
    "MiB": 1024**2,
    "MB": 1000**2,
    "KiB": 1024,
    "kB": 1000,
    "B": 1,
}
_SIZE_FACTORS: Final = {unit.lower(): factor for unit, factor in _SIZE_UNITS.items()}

_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?\s*(?:ms|s|m|h|d)\s*)+", re.ASCII)
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)", re.ASCII)
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)", re.ASCII)
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/]+):([0-9]{1,5})", re.ASCII)

_RANGE = re.compile(r"([0-9]{1,9})\s*-\s*([0-9]{1,9})", re.ASCII)
_DATABASE = re.compile(r"postgres(?:ql)?://\S*|service\s*=\s*\S+")
_PASSWORD = re.compile(r"://[^/?#\s]*:[^/?#]*@|\bpassword\s*=", re.IGNORECASE)

_ASSIGNMENT = re.compile(r"(?:export\s+)?([^=\s]+)\s*=\s*(.*)", re.DOTALL)
_QUOTED = re.compile(r"""(?:'([^']*)'|"((?:[^"\\]|\\.)*)")\s*(?:#.*)?""", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}

_LONGEST_SHOWN: Final = 60  # characters of a wrong value that a message repeats


def parse_duration(value: object) -> float:
    """A duration in seconds, from a number of seconds or a string such as "500ms", "30s" or "1h30m".

    Raises:
        ValueError: saying what was expected; negative, infinite and unit-less strings are refused.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value) and value >= 0:
            return float(value)
    elif isinstance(value, str) and _DURATION.fullmatch(value.strip()):
        total = sum(
            Decimal(number) * (Decimal("0.001") if unit == "ms" else _DURATION_UNITS[unit])
            for number, unit in _DURATION_PART.findall(value)
        )
        return float(total)
    expected = 'expected a duration: seconds, or a string such as "500ms", "30s", "5m", "2h" or "1d"'
    raise ValueError(f"{expected}, got {show(value)}")


def format_duration(seconds: float) -> str:
    """Seconds as the shortest string that `parse_duration` reads back to exactly the same number."""
    if seconds == int(seconds):
        whole = int(seconds)
        unit, factor = next(((u, f) for u, f in _DURATION_UNITS.items() if whole and whole % f == 0), ("s", 1))
        return f"{whole // factor}{unit}"
    milliseconds = Decimal(repr(seconds)) * 1000
    if milliseconds == milliseconds.to_integral_value():
        return f"{int(milliseconds)}ms"
    return f"{Decimal(repr(seconds)):f}s"


def parse_size(value: object) -> int:
    """A size in bytes, from a number of bytes or a string such as "512MiB" (1024) or "500MB" (1000).

    Raises:
        ValueError: saying what was expected; negative sizes and parts of a byte are refused.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value) and value >= 0 and value == int(value):
            return int(value)
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        factor = _SIZE_FACTORS.get(match[2].lower())
        if factor is not None:
            exact = Decimal(match[1]) * factor
            if exact == exact.to_integral_value():
                return int(exact)
    expected = 'expected a size: bytes, or a string such as "512MiB", "2GiB" or "500MB"'
    raise ValueError(f"{expected}, got {show(value)}")


def format_size(size: int) -> str:
    """Bytes as the shortest string that `parse_size` reads back to exactly the same number."""
    if size == 0:
        return "0B"
    unit, factor = min(
        ((u, f) for u, f in _SIZE_UNITS.items() if size % f == 0),
        key=lambda pair: size // pair[1],
    )
    return f"{size // factor}{unit}"


def parse_address(value: object) -> tuple[str, int]:
    """Host and port of a string such as "127.0.0.1:9177" or "[::1]:9177"; the host comes without its brackets.

    Raises:
        ValueError: saying what was expected.
    """
    if isinstance(value, str) and (match := _ADDRESS.fullmatch(value)) and 1 <= int(match[2]) <= 65_535:
        return match[1].strip("[]"), int(match[2])
    raise ValueError(f'expected HOST:PORT such as "127.0.0.1:9177", got {show(value)}')


def parse_count(value: object, most: int) -> tuple[int, int | None]:
    """A number of workers: (it, None) of a whole number such as 3, the least and the most of a range such as "2-8".

    A range whose ends are equal is a number.

    Raises:
        ValueError: saying what was expected, at least 1 and at most `most` among it.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        least = greatest = value
    elif isinstance(value, str) and (match := _RANGE.fullmatch(value)):
        least, greatest = int(match[1]), int(match[2])
    else:
        raise ValueError(f'expected a whole number, or a range such as "2-8", got {show(value)}')
    if least < 1:
        raise ValueError(f"expected at least 1, got {least}")
    if greatest > most:
        raise ValueError(f"expected at most {most}, got {greatest}")
    if greatest < least:
        raise ValueError(f"expected a range that rises, got {show(value)}")
    return least, greatest if greatest > least else None


def parse_database(value: object) -> str:
    """A PostgreSQL database: a URL of libpq's, or "service=NAME". A password must not stand in it.

    Raises:
        ValueError: saying what was expected. It never shows the value, which may hold a password.
    """
    if isinstance(value, str):
        if _PASSWORD.search(value):
            raise ValueError("expected no password here: keep it in the file that the variable PGPASSFILE names")
        if _DATABASE.fullmatch(value):
            return value
    shown = "another string" if isinstance(value, str) else show(value)
    raise ValueError(f'expected "postgresql://USER@HOST/DATABASE" or "service=NAME", got {shown}')


def parse_environment(text: str) -> dict[str, str]:
    r"""The variables of an env_file: KEY=VALUE lines, empty ones and those that begin with # left out.

    `export ` before a key is allowed. A value may stand in single quotes, taken as it is, or in double quotes, where
    \n, \t, \r, \" and \\ are escapes; without quotes it ends with the line, a # included.

    Raises:
        ValueError: naming the line; never its value, which may be a secret.
    """
    values = {}
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(stripped)
        if match is None or "\0" in stripped:
            raise ValueError(f"line {number}: expected KEY=VALUE")
        name, value = match[1], match[2]
        if value[:1] in {"'", '"'}:
            quoted = _QUOTED.fullmatch(value)
            if quoted is None:
                raise ValueError(f"line {number}: expected the value of {name} to end with the quote it begins with")
            value = (
                quoted[1] if quoted[1] is not None else re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), quoted[2])
            )
        values[name] = value
    return values


def show(value: object) -> str:
    """A value as a message repeats it: as TOML would write it, cut to a readable length."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case str():
            text = value if len(value) <= _LONGEST_SHOWN else value[:_LONGEST_SHOWN] + "…"
            return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
        case list() | tuple():
            return "a list"
        case dict():
            return "a table"
        case None:
            return "nothing"
        case _:
            return f"a {type(value).__name__}"
