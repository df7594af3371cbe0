"""A line of the event log, as the daemon and the commands without one write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from scraper_supervisor.core.formats.timestamps import timestamp

if TYPE_CHECKING:
    from scraper_supervisor.core.formats.event_payloads import EventPayload


class _Record(Struct, omit_defaults=True):
    """One line of the event log."""

    time: str
    event: str
    severity: str
    component: str
    correlation_id: str
    worker: str | None = None
    group: str | None = None
    data: Raw | UnsetType = UNSET  # always given; a default lets the others have theirs


def event_line(
    at: float,
    payload: EventPayload,
    data: bytes,
    severity: str,
    correlation_id: str,
    worker: str | None = None,
    group: str | None = None,
) -> bytes:
    """An event's line in the event log.

    Args:
        at: wall-clock seconds.
        payload: which event it is.
        data: what it tells, as JSON with everything hidden that is not to be shown.
        severity: its severity.
        correlation_id: of its incident.
        worker: whose it is.
        group: whose it is.
    """
    head = (payload.EVENT, severity, payload.COMPONENT, correlation_id, worker, group)
    return encode(_Record(timestamp(at, "microseconds"), *head, Raw(data))) + b"\n"


_encoder: Final = msgspec.json.Encoder(enc_hook=repr)


def encode(value: Any) -> bytes:
    """JSON of anything; what JSON cannot hold is written as text."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return _encoder.encode(_readable(msgspec.to_builtins(value, enc_hook=repr)))
    except (TypeError, ValueError, RecursionError):
        return msgspec.json.encode({"unwritable": ascii(value)})


def _readable(value: Any) -> Any:
    """The same with each byte that was no UTF-8 (of a file's name, say) as an escape."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_readable(name): _readable(one) for name, one in value.items()}
    return [_readable(one) for one in value] if isinstance(value, list | tuple) else value
