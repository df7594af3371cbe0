"""What an HTTP answer says about an item: its status, and for how long it asks us to wait. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scraper_worker.protocol import Kind

MAX_RETRY_AFTER: Final = 31_536_000.0  # seconds; a year is "never", and unlike infinity it survives JSON
TRANSIENT_STATUS: Final = frozenset({408, 425, 500, 502, 503, 504, 522, 524})
BLOCKED_STATUS: Final = frozenset({401, 403, 429})


def kind_of_status(status: int, retry_after: float | None = None) -> Kind:
    """What an HTTP error status says about the item.

    Args:
        status: an HTTP status of 400 or more.
        retry_after: seconds, if the answer carried a Retry-After.
    """
    if status in BLOCKED_STATUS or (status == 503 and retry_after is not None):
        return "blocked"
    if status in TRANSIENT_STATUS or status >= 500:
        return "transient"
    return "permanent"


_MONTH_NAMES: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS: Final = {name: number for number, name in enumerate(_MONTH_NAMES, start=1)}
_CLOCK = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_HTTP_DATES: Final = (  # RFC 9110, 5.6.7: the one format to send and two to understand
    re.compile(rf"\w{{3}}, (?P<day>\d\d) (?P<month>\w{{3}}) (?P<year>\d{{4}}) {_CLOCK} GMT"),
    re.compile(rf"\w{{6,9}}, (?P<day>\d\d)-(?P<month>\w{{3}})-(?P<year>\d\d) {_CLOCK} GMT"),
    re.compile(rf"\w{{3}} (?P<month>\w{{3}}) (?P<day>[ \d]\d) {_CLOCK} (?P<year>\d{{4}})"),
)


def parse_retry_after(value: str | None, now_wall: float | None) -> float | None:
    """Seconds that a Retry-After header asks for, or None if it is absent or not understood.

    Args:
        value: the header: a number of seconds or an HTTP date.
        now_wall: seconds since the epoch, from which a date is counted. A date gone by gives 0; None understands none.
    """
    text = (value or "").strip()
    if re.fullmatch(r"[0-9]+", text):
        return min(float(text), MAX_RETRY_AFTER)
    moment = parse_http_date(text)
    return None if moment is None or now_wall is None else min(max(0.0, moment - now_wall), MAX_RETRY_AFTER)


def retry_after_of(headers: Mapping[str, str], now_wall: float | None = None) -> float | None:
    """Seconds that an answer asks for, or None; a date is counted from the answer's own, whatever our clock says.

    Args:
        headers: the answer's, by names in lower case or in any.
        now_wall: seconds since the epoch, for an answer that bears no date.
    """
    told = parse_http_date(headers.get("date") or "")
    now = told if told is not None else now_wall
    value = headers.get("retry-after") or ""
    return parse_retry_after(value, now) if now is not None or value.strip().isdigit() else None


def parse_http_date(text: str) -> float | None:
    """Seconds since the epoch of an HTTP date in any of its three forms, or None."""
    for shape in _HTTP_DATES:
        if found := shape.fullmatch(text.strip()):
            return _moment(found)
    return None


def _moment(found: re.Match[str]) -> float | None:
    year = int(found["year"])
    if year < 100:  # RFC 850 dates: the century that brings them nearest
        year += 2000 if year < 70 else 1900
    try:
        month = _MONTHS[found["month"].lower()]
        clock = (int(found["hour"]), int(found["minute"]), min(int(found["second"]), 59))  # 60: a leap second
        return datetime(year, month, int(found["day"]), *clock, tzinfo=UTC).timestamp()
    except (KeyError, ValueError):
        return None
