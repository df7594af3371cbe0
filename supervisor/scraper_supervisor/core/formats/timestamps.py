"""Wall-clock time as files, documents and logs write it. The time itself is the caller's."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal


def timestamp(seconds: float, timespec: Literal["milliseconds", "microseconds"] = "milliseconds") -> str:
    """Seconds since 1970 as RFC 3339 UTC, such as 2026-05-01T12:00:00.000Z; what is finer is cut off."""
    micros = int(seconds * 1_000_000 + 0.5)
    whole, rest = divmod(micros, 1_000_000)
    if timespec == "microseconds":
        return f"{_second(whole)}.{rest:06d}Z"
    return f"{_second(whole)}.{rest // 1000:03d}Z"


@lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").removesuffix("+00:00")


def seconds(text: str) -> float:
    """Seconds since 1970 of an RFC 3339 time.

    Raises:
        ValueError: it is none, or names no offset from UTC.
    """
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"expected a time with its offset from UTC, such as {timestamp(0)}, got {text!r}")
    return time.timestamp()
