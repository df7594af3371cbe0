from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import pty
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog

import scraper_supervisor
from scraper_supervisor.daemon.telling import log as log_module
from scraper_supervisor.daemon.telling.log import Log, configure_logging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def plain_structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


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
    assert not [handler for handler in logging.getLogger().handlers if isinstance(handler, log_module._Bridge)]


def test_our_own_modules_speak_to_structlog_alone() -> None:
    """What goes by way of logging is taken for a library's, of which nothing below a warning is written."""
    package = Path(scraper_supervisor.__file__).parent
    asking = [path.name for path in package.rglob("*.py") if "logging.getLogger(" in path.read_text()]
    assert asking == ["log.py"]


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


def test_a_stuck_stderr_costs_lines_but_no_time(on_this_machine: Callable[[float], float]) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(writer, "w") as stream:
        log = Log(stream)
        log._thread._capacity = 100
        begin = time.monotonic()
        for number in range(2000):
            log.put(f"{number:100}")
        assert log._thread.close(0.01) > 0  # gives up: nobody reads
        assert time.monotonic() - begin < on_this_machine(5)
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
