"""What is told to the outside: the log on stderr and the event log, each written by a thread of its own.

A terminal that is stopped, a pipe that nobody reads and a disk that is full cost lines, which are counted, but never
hold the loop up.
"""

from __future__ import annotations

import itertools
import logging
import os
import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, TextIO, TypeVar

import msgspec
import structlog
from msgspec import UNSET, Raw, Struct, UnsetType

from scraper_supervisor.core.names import Severity
from scraper_supervisor.core.wall import timestamp
from scraper_supervisor.store.event_log import EVENTS_FILE, ROTATE_AT, EventLogWriter

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from pathlib import Path

    from scraper_supervisor.core.settings import LogFormat, LogLevel

LOG_QUEUE: Final = 10_000  # lines
EVENT_QUEUE: Final = 50_000  # events
RETRY_EVERY: Final = 1.0  # seconds, while the disk refuses events
CLOSE_WITHIN: Final = 2.0  # seconds
GATHER: Final = 0.005  # seconds between two writes, for lines to gather
_BATCH: Final = 256  # lines written at once: to put them together must not keep the interpreter from the loop

T = TypeVar("T")
_log = structlog.get_logger()


def utc_now() -> str:
    """The time as RFC 3339 UTC with microseconds."""
    return timestamp(time.time(), "microseconds")


class BatchThread(Generic[T]):
    """A bounded queue of lines, or of what becomes lines, and the thread that writes them.

    Args:
        name: the thread's.
        capacity: lines that may wait; further ones are dropped and counted.
        write: writes some lines; False keeps them, to be tried again after a while. Called in the thread alone.
    """

    def __init__(self, name: str, capacity: int, write: Callable[[list[T]], bool]) -> None:
        self._capacity = capacity
        self._write = write
        self._lines: deque[T] = deque()
        self._changed = threading.Condition()
        self._asleep = False
        self._prompt = False
        self._closing = False
        self._dropped = 0
        self._accepted = self._written = 0  # lines, since the beginning
        # Not joined at exit: one that hangs in a write to a stopped terminal must not hang the daemon.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, line: T, *, prompt: bool = True) -> bool:
        """Queue a line; False when it was dropped.

        Args:
            line: what to write.
            prompt: write it now; else within GATHER, which costs less where lines are many.
        """
        if self._closing or len(self._lines) >= self._capacity:
            with self._changed:
                self._dropped += 1
            return False
        self._lines.append(line)
        self._accepted += 1
        if self._asleep or prompt:
            with self._changed:
                self._prompt = prompt
                self._changed.notify_all()
        return True

    def drained(self, seconds: float) -> bool:
        """Wait until what was queued before is written, but no longer than so many seconds; whether it is."""
        upto = self._accepted
        with self._changed:
            self._prompt = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._written >= upto, seconds)

    def take_dropped(self) -> int:
        """How many lines were dropped since this was last asked."""
        with self._changed:
            count, self._dropped = self._dropped, 0
            return count

    def close(self, seconds: float = CLOSE_WITHIN) -> int:
        """Write what waits, but for no longer than `seconds`; how many lines remain unwritten."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        return len(self._lines)

    def _run(self) -> None:
        while self._wait():
            batch = list(itertools.islice(self._lines, _BATCH))
            if self._write(batch):
                for _ in batch:
                    self._lines.popleft()
                with self._changed:
                    self._written += len(batch)
                    self._changed.notify_all()
            elif self._closing:
                return
            else:
                self._pause(RETRY_EVERY)
            if len(self._lines) < _BATCH:
                self._pause(GATHER, lambda: self._prompt)

    def _wait(self) -> bool:
        """Wait for a line; False when none will come."""
        with self._changed:
            self._asleep = True  # before the look: a line that comes after it finds us asleep
            while not self._lines and not self._closing:
                self._changed.wait()
            self._asleep = self._prompt = False
        return bool(self._lines)

    def _pause(self, seconds: float, over: Callable[[], bool] = bool) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or over(), seconds)


# ---- the log ---------------------------------------------------------------------------------------------------------


class Log:
    """The log's writer and its place in structlog and logging; made by `configure_logging`.

    Our own modules speak to structlog. What libraries tell logging is passed on from level warning on.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
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
        number = logging.getLevelNamesMapping()[level.upper()]
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
    event["time"] = utc_now()
    return event


def _render_json(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    ordered = {name: event[name] for name in ("time", "level", "event") if name in event}
    return _encode(ordered | dict(event)).decode()


_encoder: Final = msgspec.json.Encoder(enc_hook=repr)


def _encode(value: Any) -> bytes:
    """JSON of anything; what JSON cannot hold is written as text."""
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, RecursionError):
        return msgspec.json.encode({"unwritable": ascii(value)})


# ---- the event log ---------------------------------------------------------------------------------------------------


class _Pending(Struct, frozen=True):
    """An event that waits to be written, as it was published; `time` is wall-clock seconds."""

    time: float
    event: str
    severity: Severity
    component: str
    correlation_id: str
    data: Any
    worker: str | None
    group: str | None

    def line(self) -> bytes:
        """Its line in the log."""
        data = Raw(_encode(self.data))  # by itself: what JSON cannot hold must not cost the rest
        time = timestamp(self.time, "microseconds")
        head = (time, self.event, self.severity, self.component, self.correlation_id, self.worker, self.group)
        return _encode(_Record(*head, data)) + b"\n"


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


class EventLog:
    """Appends events to `events.jsonl` and rotates it by size. A disk that refuses never raises here.

    While it refuses, events wait in memory (the newest are dropped over EVENT_QUEUE) and are tried again each second.
    The log tells when that begins and ends, and what was done to the file from outside.

    Args:
        state_dir: the file's folder.
        rotate_at: bytes over which a new file is begun.
    """

    def __init__(self, state_dir: Path, rotate_at: int = ROTATE_AT) -> None:
        self._writer = EventLogWriter(state_dir / EVENTS_FILE, rotate_at)
        self._failing = False
        self.lost = 0
        self._thread = BatchThread("events", EVENT_QUEUE, self._write)

    def write(
        self,
        event: str,
        severity: Severity,
        component: str,
        correlation_id: str,
        data: Any,
        worker: str | None = None,
        group: str | None = None,
    ) -> None:
        """Stamp an event with the time and queue it; it becomes text in the thread, while the loop may do other things.

        Nothing in `data` may be changed from now on.
        """
        pending = _Pending(time.time(), event, severity, component, correlation_id, data, worker, group)
        if not self._thread.put(pending, prompt=severity != "debug"):
            self.lost += 1

    def settle(self, seconds: float) -> bool:
        """Wait until every event so far is in the file, but no longer than so many seconds; whether it is."""
        return self._thread.drained(seconds)

    def close(self) -> int:
        """Write what waits, within seconds; how many events were lost in all."""
        self.lost += self._thread.close()
        return self.lost

    # ---- in the thread ---------------------------------------------------------------------------------------------

    def _write(self, batch: list[_Pending]) -> bool:
        try:
            found = self._writer.append(b"".join([event.line() for event in batch]))
        except OSError as error:
            if not self._failing:
                self._failing = True
                _log.error("events are not written", path=str(self._writer.path), reason=error.strerror or str(error))
            return False
        if self._failing:
            self._failing = False
            _log.info("events are written again")
        if found is not None:
            _log.warning("the event log was changed from outside", found=found)
        return True
