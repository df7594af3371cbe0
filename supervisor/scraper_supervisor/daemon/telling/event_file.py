"""The sink that appends events to `events.jsonl`. A disk that refuses costs memory, then events, and never raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from scraper_supervisor.daemon.telling.batch_thread import BatchThread
from scraper_supervisor.daemon.telling.sinks import EVENT_QUEUE, Sink
from scraper_supervisor.store.event_log import EVENTS_FILE, ROTATE_AT, EventLogWriter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scraper_supervisor.daemon.telling.sinks import ToldEvent

_log = structlog.get_logger()


class EventFile(Sink):
    """Writes events in a thread of its own.

    While the disk refuses, events wait in memory (the newest are dropped over EVENT_QUEUE) and are tried again each
    second. The log tells when that begins and ends, and what was done to the file from outside.

    Args:
        state_dir: the file's folder.
        rotate_at: bytes over which a new file is begun.
    """

    def __init__(self, state_dir: Path, rotate_at: int = ROTATE_AT) -> None:
        self._writer = EventLogWriter(state_dir / EVENTS_FILE, rotate_at)
        self._failing = False
        self._thread = BatchThread("events", EVENT_QUEUE, self._write, gather=0.0)

    def take(self, events: Sequence[ToldEvent]) -> None:
        """Queue events for the file."""
        self._thread.put_all([event.line for event in events])

    def settle(self, seconds: float) -> bool:
        """Wait until every event so far is in the file, but no longer than so many seconds; whether it is."""
        return self._thread.drained(seconds)

    def close(self) -> None:
        """Write what waits, within seconds; the log tells how many events were lost in all."""
        lost = self._thread.close() + self._thread.take_dropped()
        if lost:
            _log.error("events were not written", path=str(self._writer.path), events=lost)

    def _write(self, lines: list[bytes]) -> bool:
        try:
            found = self._writer.append(b"".join(lines))
        except OSError as error:
            if not self._failing:
                self._failing = True
                _log.error("events are not written", path=str(self._writer.path), reason=error.strerror or str(error))
            return False
        if self._failing:
            self._failing = False
            _log.info("events are written again", path=str(self._writer.path))
        if found is not None:
            _log.warning("the event log was changed from outside", found=found)
        return True
