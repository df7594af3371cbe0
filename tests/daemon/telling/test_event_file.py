from __future__ import annotations

import json
import resource
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from scraper_supervisor.core.config.settings import Settings
from scraper_supervisor.core.events import Publish
from scraper_supervisor.core.formats.event_payloads import (
    EventPayload,
    RetrySucceeded,
    SupervisorStarted,
    SupervisorStopped,
)
from scraper_supervisor.core.formats.worker_payloads import WorkerCompleted, WorkerExited, WorkerReady, WorkerStarted
from scraper_supervisor.daemon.telling import batch_thread
from scraper_supervisor.daemon.telling.event_file import EventFile
from scraper_supervisor.daemon.telling.sinks import Telling
from scraper_supervisor.store.event_log import EVENTS_FILE, read_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scraper_supervisor.core.formats.event_names import Severity


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def told() -> Iterator[list[Any]]:
    """What the log is told."""
    with structlog.testing.capture_logs() as lines:
        yield lines


def told_of(data: EventPayload, severity: Severity = "info") -> Publish:
    return Publish(data, severity, "c")


def event_log(folder: Path) -> Telling:
    return Telling((EventFile(folder),), Settings())


def test_events_are_lines_with_the_fields_of_the_contract(tmp_path: Path) -> None:
    log = event_log(tmp_path)
    log.publish(Publish(WorkerExited(3, 1, None, False, None, None), "warning", "c-1", worker="w-0", group="w"))
    log.publish(Publish(SupervisorStarted(7, "1", None, ()), "info", "c-2"))
    log.publish(Publish(SupervisorStopped(0, "\ud800"), "info", "c-2"))
    log.close()
    path = tmp_path / EVENTS_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    first, second, third = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert list(first) == ["time", "event", "severity", "component", "correlation_id", "worker", "group", "data"]
    assert first["data"] == {
        "incarnation": 3, "code": 1, "signal": None, "ordered": False, "reason": None, "charged": None,
        "lines": None, "oom": None, "died": False,
    }  # fmt: skip
    assert list(second) == ["time", "event", "severity", "component", "correlation_id", "data"]
    assert third["data"] == {"code": 0, "reason": "\\ud800"}
    records = list(read_events(path))
    assert [record.event for record in records] == ["worker_exited", "supervisor_started", "supervisor_stopped"]
    assert records[0].worker == "w-0"
    assert records[1].worker is None


def test_a_full_disk_loses_nothing_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[Any]
) -> None:
    """A file-size limit makes a write stop in the middle of a line, as a full disk does."""
    monkeypatch.setattr(batch_thread, "RETRY_EVERY", 0.001)
    log = event_log(tmp_path)
    path = tmp_path / EVENTS_FILE
    log.publish(told_of(RetrySucceeded("x", 0)))
    assert log.settle(10.0)
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = path.stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, old_limit[1]))
        for number in range(1, 4):
            log.publish(told_of(RetrySucceeded("x", number)))
        until(lambda: told)
        assert path.stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    until(lambda: len(told) == 2)
    log.close()
    assert (told[0]["event"], told[0]["reason"]) == ("events are not written", "File too large")
    assert told[1]["event"] == "events are written again"
    assert [record.data["attempt"] for record in read_events(path)] == [0, 1, 2, 3]


def test_what_cannot_be_written_at_the_end_is_counted(tmp_path: Path, told: list[Any]) -> None:
    file = EventFile(tmp_path / "none")
    file._thread._capacity = 2
    log = Telling((file,), Settings())
    for _ in range(5):
        log.publish(told_of(WorkerCompleted()))
    until(lambda: told)
    log.close()
    assert [line["event"] for line in told] == ["events are not written", "events were not written"]
    assert told[1]["events"] == 5


def test_a_file_that_is_taken_away_is_begun_anew_and_that_is_logged(tmp_path: Path, told: list[Any]) -> None:
    log = event_log(tmp_path)
    for data in (WorkerStarted(7, 1), WorkerReady(1)):
        log.publish(told_of(data))
        assert log.settle(10.0)
        (tmp_path / EVENTS_FILE).rename(tmp_path / data.EVENT)
    log.publish(told_of(WorkerCompleted()))
    log.close()
    files = ("worker_started", "worker_ready", EVENTS_FILE)
    assert [[one.event for one in read_events(tmp_path / name)] for name in files] == [
        ["worker_started"],
        ["worker_ready"],
        ["worker_completed"],
    ]
    assert [line["event"] for line in told] == ["the event log was changed from outside"] * 2
    assert "removed or renamed" in told[0]["found"]


def test_what_was_written_before_can_be_waited_for(tmp_path: Path) -> None:
    log = event_log(tmp_path)
    for number in range(1000):
        log.publish(told_of(RetrySucceeded("x", number), "debug"))
    assert log.settle(10.0)
    assert len((tmp_path / "events.jsonl").read_bytes().splitlines()) == 1000
    log.close()


def test_a_disk_that_refuses_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    log = event_log(tmp_path)
    log.publish(told_of(WorkerCompleted()))
    assert not log.settle(0.02)
    log.close()
