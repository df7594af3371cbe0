from __future__ import annotations

import io
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from scraper_supervisor.core.config.parser import parse
from scraper_supervisor.core.events import Publish
from scraper_supervisor.core.formats.event_payloads import EventPayload, ItemFinished, RetryAttempted
from scraper_supervisor.core.formats.worker_payloads import WorkerCompleted, WorkerFailed
from scraper_supervisor.daemon.telling.event_file import EventFile
from scraper_supervisor.daemon.telling.log import LogSink, configure_logging
from scraper_supervisor.daemon.telling.sinks import Sink, Telling, ToldEvent
from scraper_worker.protocol import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from scraper_supervisor.core.config.settings import Settings


@pytest.fixture(autouse=True)
def plain_structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def settings(**env: str) -> Settings:
    document: Any = {"workers": {"g": {"command": ["x"], "env": env}}, "supervisor": {"log_level": "info"}}
    return parse(document, "/", lambda _: "")


class Kept(Sink):
    def __init__(self) -> None:
        self.events: list[ToldEvent] = []

    def take(self, events: Sequence[ToldEvent]) -> None:
        self.events += events

    def data(self) -> list[Any]:
        return [json.loads(event.line)["data"] for event in self.events]


def publish(telling: Telling, data: EventPayload) -> None:
    telling.publish(Publish(data, "info", "c-1", "g-0", "g"))


def test_every_sink_gets_every_event_redacted(tmp_path: Path) -> None:
    stream = io.StringIO()
    log, kept = configure_logging("debug", "json", stream), Kept()
    telling = Telling((kept, LogSink(log), EventFile(tmp_path)), settings(TOKEN="open sesame"))
    failure = Failure("transient", "network", "timeout", "the open sesame!")
    publish(telling, ItemFinished("https://u:pw@h", 1, "retry", None, None, failure))
    structlog.get_logger().info("open sesame", worker="g-0")
    assert telling.settle(10.0)
    telling.close()
    log.close()
    written = json.loads((tmp_path / "events.jsonl").read_text())
    data = written["data"]
    assert data["key"].startswith("https://u:***@h#")
    assert data["failure"]["message"] == "the ***!"
    assert kept.data() == [data]
    logged = {line["event"]: line for line in map(json.loads, stream.getvalue().splitlines())}
    assert logged["***"]["worker"] == "g-0"
    line = logged["item_finished"]
    head = ["time", "level", "event", "component", "correlation_id", "worker", "key", "attempt", "outcome", "failure"]
    assert list(line) == head
    assert line["time"] == written["time"]
    assert (line["key"], line["failure"]) == (data["key"], data["failure"])


def test_what_is_shown_hides_texts_and_keeps_names() -> None:
    telling = Telling((), settings(TOKEN="open sesame", MODE="checkpoint"))
    status = {"name": "checkpoint-0", "checkpoint": None, "last_failure": {"message": "open sesame"}, "reason": None}
    assert telling.shown(status) == status | {"last_failure": {"message": "***"}}
    telling.close()


def test_new_settings_hide_their_secrets_and_still_those_of_running_workers() -> None:
    kept = Kept()
    telling = Telling((kept,), settings(TOKEN="first secret"))
    text = "first secret, second secret, third secret"
    for token in ("second secret", "third secret"):
        telling.configure(settings(TOKEN=token))
        publish(telling, WorkerFailed(text))
        assert telling.handed_over(10.0)
    telling.close()
    assert [data["reason"] for data in kept.data()] == ["***, ***, third secret", "first secret, ***, ***"]


def test_a_level_that_is_not_written_is_not_made_text() -> None:
    stream = io.StringIO()
    log = configure_logging("debug", "json", stream)
    telling = Telling((LogSink(log),), settings())
    telling.publish(Publish(ItemFinished("x", 1, "done", None, None, None), "debug", "c-1"))
    telling.publish(Publish(RetryAttempted("x", 1.0, "y"), "info", "c-1", None, "g"))
    telling.close()
    log.close()
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["event"], line["level"], line["group"]) == ("retry_attempted", "info", "g")


def test_a_sink_that_fails_takes_nothing_from_the_others() -> None:
    class Broken(Sink):
        def take(self, events: Sequence[ToldEvent]) -> None:
            raise ValueError(f"a bug with {len(events)}")

    kept = Kept()
    with structlog.testing.capture_logs() as told:
        telling = Telling((Broken(), kept), settings())
        publish(telling, WorkerCompleted())
        telling.close()
    assert [event.event for event in kept.events] == ["worker_completed"]
    assert (told[0]["event"], told[0]["sink"]) == ("events were not passed on", "Broken")


def test_events_that_come_too_fast_are_counted() -> None:
    going = threading.Event()

    class Slow(Sink):
        def take(self, events: Sequence[ToldEvent]) -> None:
            assert going.wait(60)
            assert events

    with structlog.testing.capture_logs() as told:
        telling = Telling((Slow(),), settings())
        telling._thread._capacity = 3
        for _ in range(8):
            publish(telling, WorkerCompleted())
        going.set()
        telling.close()
    assert told[0]["events"] == 5
