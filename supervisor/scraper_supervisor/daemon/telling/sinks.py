"""Every event that is published is encoded and redacted in one place, in a thread, and handed to each sink."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
from msgspec import Struct

from scraper_supervisor.core.formats.event_line import encode, event_line
from scraper_supervisor.core.formats.event_names import EventName, Severity
from scraper_supervisor.core.formats.redaction import Redactor, secrets_of
from scraper_supervisor.daemon.telling.batch_thread import BatchThread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scraper_supervisor.core.config.settings import Settings
    from scraper_supervisor.core.events import Publish

EVENT_QUEUE: Final = 50_000  # events
_log = structlog.get_logger()


class ToldEvent(Struct, frozen=True):
    """A redacted event; `line` is its line in the event log: one JSON object and a newline."""

    event: EventName
    severity: Severity
    worker: str | None
    group: str | None
    line: bytes


class Sink:
    """Takes what is told, and passes it on. It must not block: a medium that may be slow has a thread of its own."""

    def take(self, events: Sequence[ToldEvent]) -> None:
        """Take events, in the order in which they were published. Called in the telling thread alone."""
        raise NotImplementedError

    def configure(self, settings: Settings, redactor: Redactor) -> None:
        """Go by these settings from now on; events come redacted, `redactor` is for what else the sink writes."""

    def settle(self, seconds: float) -> bool:  # noqa: ARG002 - what has nothing to wait for ignores it
        """Wait until what was taken is passed on, but no longer than so many seconds; whether it is."""
        return True

    def close(self) -> None:
        """Pass on what waits, within seconds; nothing is taken any more."""


class Telling:
    """The way out for events: `publish` costs the loop next to nothing.

    Args:
        sinks: who is told; closed with this.
        settings: whose secrets are hidden; `configure` changes them.
    """

    def __init__(self, sinks: Sequence[Sink], settings: Settings) -> None:
        self._sinks = sinks
        self._secrets: frozenset[str] = frozenset()
        self._redactor = Redactor()
        self.configure(settings)
        self._thread = BatchThread("telling", EVENT_QUEUE, self._tell)

    def publish(self, event: Publish) -> None:
        """Stamp an event with the time and queue it. Nothing in its data may be changed from now on."""
        self._thread.put((time.time(), event), prompt=event.severity != "debug")

    def configure(self, settings: Settings) -> None:
        """Hide these settings' secrets from now on, and still those of before: their workers run until restarted."""
        before, self._secrets = self._secrets, secrets_of(settings)
        self._redactor = Redactor(self._secrets | before)
        for sink in self._sinks:
            sink.configure(settings, self._redactor)

    def shown(self, document: Any) -> Any:
        """A document for who asks how everything stands, with everything hidden in the texts that it holds."""
        data, redactor = encode(document), self._redactor
        return redactor.texts(msgspec.json.decode(data)) if redactor.suspects(data) else document

    def handed_over(self, seconds: float) -> bool:
        """Wait until the sinks have every event so far, but no longer than so many seconds; whether they have."""
        return self._thread.drained(seconds)

    def settle(self, seconds: float) -> bool:
        """Wait until the sinks have passed on every event so far, but no longer; whether all have."""
        end = time.monotonic() + seconds
        if not self.handed_over(seconds):
            return False
        return all(sink.settle(max(0.0, end - time.monotonic())) for sink in self._sinks)

    def close(self) -> None:
        """Tell what waits, within seconds."""
        unsaid = self._thread.close() + self._thread.take_dropped()
        if unsaid:
            _log.error("events were dropped: they came faster than they could be told", events=unsaid)
        for sink in self._sinks:
            sink.close()

    def _tell(self, batch: list[tuple[float, Publish]]) -> bool:
        redactor = self._redactor
        told_data = [encode(event.data) for _, event in batch]  # by itself: what it cannot hold must not cost the rest
        if redactor.suspects(b"\n".join(told_data)):
            told_data = [redactor.json(data) if redactor.suspects(data) else data for data in told_data]
        told = [
            ToldEvent(event.event, event.severity, event.worker, event.group, _line(at, event, data))
            for (at, event), data in zip(batch, told_data, strict=True)
        ]
        for sink in self._sinks:
            try:
                sink.take(told)
            except Exception:  # noqa: BLE001 - a bug in one sink must not keep the others from being told
                _log.exception("events were not passed on", sink=type(sink).__name__)
        return True


def _line(at: float, event: Publish, data: bytes) -> bytes:
    return event_line(at, event.data, data, event.severity, event.correlation_id, event.worker, event.group)
