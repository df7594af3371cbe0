"""The log on stderr: structlog and logging led to one writer thread, and the sink that tells it of events."""

from __future__ import annotations

import logging
import os
import select
import time
from typing import TYPE_CHECKING, Any, Final, TextIO

import msgspec
import structlog

from scraper_supervisor.core.formats.event_line import encode
from scraper_supervisor.core.formats.redaction import Redactor
from scraper_supervisor.core.formats.timestamps import timestamp
from scraper_supervisor.daemon.telling.batch_thread import BatchThread
from scraper_supervisor.daemon.telling.sinks import Sink

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

    from scraper_supervisor.core.config.settings import LogFormat, LogLevel, Settings
    from scraper_supervisor.daemon.telling.sinks import ToldEvent

LOG_QUEUE: Final = 10_000  # lines
_LEVEL_OF: Final = {name.lower(): level for name, level in logging.getLevelNamesMapping().items()}


def utc_now() -> str:
    """The time as RFC 3339 UTC with microseconds."""
    return timestamp(time.time(), "microseconds")


class Log:
    """The log's writer and its place in structlog and logging; made by `configure_logging`.

    Our own modules speak to structlog. What libraries tell logging is passed on from level warning on.

    Attributes:
        redactor: hides what nobody is shown, in every line; it may be replaced at any time.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.redactor = Redactor()
        self._thread = BatchThread("log", LOG_QUEUE, self._write)
        self._bridge = _Bridge()
        self._root_level = logging.getLogger().level

    def put(self, line: str) -> None:
        """Write one line, some time."""
        self._thread.put(line.encode(errors="backslashreplace") + b"\n")

    # what structlog calls on the innermost logger
    debug = info = warning = error = critical = exception = msg = log = put

    def _write(self, batch: list[bytes]) -> bool:
        dropped = self._thread.take_dropped()
        if dropped:
            batch = [*batch, f'{{"event":"{dropped} log lines were dropped","level":"warning"}}\n'.encode()]
        data = b"".join(batch)
        redactor = self.redactor
        if redactor.suspects(data):
            data = b"".join(redactor.log_line(line) if redactor.suspects(line) else line for line in batch)
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError):  # a stream in memory
            self._stream.write(data.decode())
            return True
        while data:
            try:
                # Past the stream's own buffer, whose lock a stuck thread would hold at the interpreter's end.
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:
                select.select([], [descriptor], [])
            except OSError:  # stderr is closed: there is nobody to tell
                break
        return True

    def configure(self, level: LogLevel, log_format: LogFormat) -> None:
        """Write lines of this level and above, in this form, from the next one on.

        A logger that was bound before keeps what was in force then; `structlog.get_logger()` itself follows.

        Args:
            level: the least that is written.
            log_format: "auto" is "console" on a terminal, else "json": one object a line.
        """
        number = _LEVEL_OF[level]
        terminal = self._stream.isatty()
        renderers: list[Any]
        if log_format == "console" or (log_format == "auto" and terminal):
            colors = terminal and not os.environ.get("NO_COLOR")
            plain = structlog.dev.plain_traceback
            renderers = [structlog.dev.ConsoleRenderer(colors=colors, timestamp_key="time", exception_formatter=plain)]
        else:
            renderers = [structlog.processors.format_exc_info, _render_json]
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                _stamp,
                *renderers,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(number),
            logger_factory=lambda *_: self,
            cache_logger_on_first_use=False,
        )
        root = logging.getLogger()
        root.addHandler(self._bridge)  # once, however often it is added
        root.setLevel(max(number, logging.WARNING))

    def close(self) -> int:
        """Write what waits, let go of logging; how many lines remain unwritten."""
        logging.getLogger().removeHandler(self._bridge)
        logging.getLogger().setLevel(self._root_level)
        return self._thread.close()


class _Bridge(logging.Handler):
    """Passes what libraries log on to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        exc_info = {"exc_info": record.exc_info} if record.exc_info else {}
        try:
            structlog.get_logger().log(record.levelno, record.getMessage(), logger=record.name, **exc_info)
        except Exception:  # noqa: BLE001 - a library's bad log call must not harm it; logging has a place for that
            self.handleError(record)


class LogSink(Sink):
    """Tells the log of events, as lines whose text is the event's name."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._logger = structlog.get_logger().bind()

    def configure(self, settings: Settings, redactor: Redactor) -> None:
        """Go by these settings from the next line on."""
        self._log.redactor = redactor
        self._log.configure(settings.supervisor.log_level, settings.supervisor.log_format)
        self._logger = structlog.get_logger().bind()  # bound once: that costs as much as a line

    def take(self, events: Sequence[ToldEvent]) -> None:
        """Write a line for each event of a level that is written."""
        logger = self._logger
        for event in events:
            if logger.is_enabled_for(_LEVEL_OF[event.severity]):
                getattr(logger, event.severity)(event.event, **_fields(event))


def _fields(event: ToldEvent) -> dict[str, Any]:
    """What a log line has beside its text and level: where the event is from, then what it tells, unknown left out."""
    document = msgspec.json.decode(event.line)
    names = ("time", "component", "correlation_id", "worker" if event.worker is not None else "group")
    fields = {name: document[name] for name in names if name in document}
    data = document["data"]
    told = data if isinstance(data, dict) else {"data": data}
    return fields | {
        name: value for name, value in told.items() if value is not None and name not in ("event", "level", "time")
    }


def configure_logging(level: LogLevel, log_format: LogFormat, stream: TextIO) -> Log:
    """Set up structlog for the process: `structlog.get_logger().info("text", key=value)`.

    Values bound by `structlog.contextvars` (a correlation_id) are in every line. Close what is returned at the end.

    Args:
        level: the least that is written.
        log_format: "auto" is "console" on a terminal, else "json": one object a line.
        stream: where to; its descriptor is written to directly where it has one.
    """
    log = Log(stream)
    log.configure(level, log_format)
    return log


def _stamp(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event.setdefault("time", utc_now())  # an event has its own
    return event


def _render_json(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    ordered = {name: event[name] for name in ("time", "level", "event") if name in event}
    return encode(ordered | dict(event)).decode()
