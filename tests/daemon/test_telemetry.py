from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import pty
import resource
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog

import scraper_supervisor
from scraper_supervisor.core.names import EVENTS, SEVERITIES
from scraper_supervisor.daemon import telemetry
from scraper_supervisor.daemon.telemetry import BatchThread, EventLog, Log, configure_logging
from scraper_supervisor.store.event_log import EVENTS_FILE, read_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def plain_structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def told() -> Iterator[list[Any]]:
    """What the log is told."""
    with structlog.testing.capture_logs() as lines:
        yield lines


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


# ---- the log --------------------------------------------------------------------------------------------------------


def test_elsewhere_than_on_a_terminal_the_log_is_json_lines() -> None:
    stream = io.StringIO()
    log = configure_logging("info", "auto", stream)
    logger = structlog.get_logger()
    logger.debug("not this")
    with structlog.contextvars.bound_contextvars(correlation_id="c-1"):
        logger.warning("worker died", worker="w-0", strange={1, 2}.__class__, text="\ud800")
    try:
        raise ValueError("bad")
    except ValueError:
        logger.exception("oops")
    logging.getLogger("asyncio").error("never %s", "retrieved")
    logging.getLogger("asyncio").info("not this")
    assert log.close() == 0
    first, second, third = lines(stream)
    assert list(second)[:3] == ["time", "level", "event"]
    assert second["event"] == "oops"
    assert "ValueError: bad" in second["exception"]
    assert third["event"] == "never retrieved"
    assert third["logger"] == "asyncio"
    assert "worker died" in str(first)


def test_level_and_form_are_changed_while_it_is_written_to() -> None:
    stream = io.StringIO()
    log = configure_logging("error", "json", stream)
    ours, theirs = structlog.get_logger(), logging.getLogger("asyncio")
    ours.info("not this")
    log.configure("info", "console")
    ours.info("for people")
    theirs.info("nor this")
    theirs.warning("but this")
    log.configure("critical", "json")
    ours.error("nor that")
    theirs.error("nor that")
    ours.critical("the last")
    assert log.close() == 0
    people, theirs_too, last = stream.getvalue().splitlines()
    assert "for people" in people
    assert "but this" in theirs_too
    assert (json.loads(last)["event"], json.loads(last)["level"]) == ("the last", "critical")
    assert not [handler for handler in logging.getLogger().handlers if isinstance(handler, telemetry._Bridge)]


def test_our_own_modules_speak_to_structlog_alone() -> None:
    """What goes by way of logging is taken for a library's, of which nothing below a warning is written."""
    package = Path(scraper_supervisor.__file__).parent
    asking = [path.name for path in package.rglob("*.py") if "logging.getLogger(" in path.read_text()]
    assert asking == ["telemetry.py"]


def test_a_correlation_id_and_the_time_are_in_every_line() -> None:
    stream = io.StringIO()
    log = configure_logging("debug", "json", stream)
    with structlog.contextvars.bound_contextvars(correlation_id="c-1"):
        structlog.get_logger().debug("x", worker="w-0")
    log.close()
    (line,) = lines(stream)
    assert line.pop("time")[10] == "T"
    assert line == {"level": "debug", "event": "x", "correlation_id": "c-1", "worker": "w-0"}


def test_on_a_terminal_the_log_is_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        for setting, coloured in ((None, True), ("1", False)):
            if setting:
                monkeypatch.setenv("NO_COLOR", setting)
            log = configure_logging("info", "auto", terminal)
            structlog.get_logger().info("worker started", worker="w-0")
            log.close()
            shown = os.read(ours, 4096)
            assert b"worker started" in shown
            assert (b"\x1b[" in shown) == coloured
    os.close(ours)


def test_a_stuck_stderr_costs_lines_but_no_time() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(writer, "w") as stream:
        log = Log(stream)
        log._thread._capacity = 100
        begin = time.monotonic()
        for number in range(2000):
            log.put(f"{number:100}")
        assert log._thread.close(0.01) > 0  # gives up: nobody reads
        assert time.monotonic() - begin < 5
        heard: list[bytes] = []
        listener = threading.Thread(target=lambda: heard.extend(iter(lambda: os.read(reader, 65536), b"")))
        listener.start()
        log._thread._thread.join()
    listener.join()
    os.close(reader)
    shown = b"".join(heard).splitlines()
    assert shown[0].strip() == b"0"
    assert any(b"log lines were dropped" in line for line in shown)


def test_a_closed_stderr_is_borne() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        log = Log(stream)
        log.put("x")
        assert log.close() == 0


def test_a_line_kept_by_the_writer_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "RETRY_EVERY", 0.001)
    tries: list[list[bytes]] = []

    def write(batch: list[bytes]) -> bool:
        tries.append(batch)
        return len(tries) > 3

    thread = BatchThread("test", 10, write)
    assert thread.put(b"x")
    until(lambda: not thread._lines)
    assert thread.close() == 0
    assert not thread.put(b"y")
    assert tries == [[b"x"]] * 4


# ---- the event log --------------------------------------------------------------------------------------------------


def test_events_are_lines_with_the_fields_of_the_contract(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.write("worker_exited", "warning", "worker", "c-1", {"code": 1}, worker="w-0", group="w")
    log.write("supervisor_started", "info", "supervisor", "c-2", None)
    log.write("supervisor_stopped", "info", "supervisor", "c-2", {"bad": "\ud800", "odd": object()})
    assert log.close() == 0
    path = tmp_path / EVENTS_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    first, second, third = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert list(first) == ["time", "event", "severity", "component", "correlation_id", "worker", "group", "data"]
    assert first["data"] == {"code": 1}
    assert list(second) == ["time", "event", "severity", "component", "correlation_id", "data"]
    assert list(third["data"]) == ["unwritable"]
    records = list(read_events(path))
    assert [record.event for record in records] == ["worker_exited", "supervisor_started", "supervisor_stopped"]
    assert records[0].worker == "w-0"
    assert records[1].worker is None


def test_a_full_disk_loses_nothing_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[Any]
) -> None:
    """A file-size limit makes a write stop in the middle of a line, as a full disk does."""
    monkeypatch.setattr(telemetry, "RETRY_EVERY", 0.001)
    log = EventLog(tmp_path)
    path = tmp_path / EVENTS_FILE
    log.write("item_finished", "info", "queue", "c", 0)
    until(path.exists)
    until(lambda: not log._thread._lines)
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = path.stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, old_limit[1]))
        for number in range(1, 4):
            log.write("item_finished", "info", "queue", "c", number)
        until(lambda: told)
        assert path.stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    until(lambda: len(told) == 2)
    assert log.close() == 0
    assert (told[0]["event"], told[0]["reason"]) == ("events are not written", "File too large")
    assert told[1]["event"] == "events are written again"
    assert [record.data for record in read_events(path)] == [0, 1, 2, 3]


def test_what_cannot_be_written_at_the_end_is_counted(tmp_path: Path, told: list[Any]) -> None:
    folder = tmp_path / "none"
    log = EventLog(folder)
    log._thread._capacity = 2
    for _ in range(5):
        log.write("item_finished", "info", "queue", "c", None)
    until(lambda: told)
    assert log.close() == 5
    assert len(told) == 1


def test_a_file_that_is_taken_away_is_begun_anew_and_that_is_logged(tmp_path: Path, told: list[Any]) -> None:
    log = EventLog(tmp_path)
    for name in ("worker_started", "worker_ready"):
        log.write(name, "info", "worker", "c", None)
        assert log.settle(10.0)
        (tmp_path / EVENTS_FILE).rename(tmp_path / name)
    log.write("worker_exited", "info", "worker", "c", None)
    log.close()
    files = ("worker_started", "worker_ready", EVENTS_FILE)
    assert [[one.event for one in read_events(tmp_path / name)] for name in files] == [
        ["worker_started"],
        ["worker_ready"],
        ["worker_exited"],
    ]
    assert [line["event"] for line in told] == ["the event log was changed from outside"] * 2
    assert "removed or renamed" in told[0]["found"]


def test_the_names_are_the_contracts() -> None:
    assert len(EVENTS) == 33
    assert {"item_finished", "abort_executed", "worker_adopted"} <= EVENTS
    assert SEVERITIES[0] == "debug"


def test_what_was_written_before_can_be_waited_for(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for number in range(1000):
        log.write("item_finished", "debug", "queue", "c", number)
    assert log.settle(10.0)
    assert len((tmp_path / "events.jsonl").read_bytes().splitlines()) == 1000
    log.close()


def test_a_disk_that_refuses_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    log = EventLog(tmp_path)
    log.write("supervisor_started", "info", "supervisor", "c", None)
    assert not log.settle(0.02)
    log.close()
