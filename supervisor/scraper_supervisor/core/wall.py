"""Wall-clock time as files, documents and logs write it. The time itself is the caller's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal


def timestamp(seconds: float, timespec: Literal["milliseconds", "microseconds"] = "milliseconds") -> str:
    """Seconds since 1970 as RFC 3339 UTC, such as 2026-05-01T12:00:00.000Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
