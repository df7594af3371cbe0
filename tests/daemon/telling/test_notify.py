from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import structlog
import uvloop

from scraper_supervisor.core.config.parser import parse
from scraper_supervisor.core.events import Publish
from scraper_supervisor.core.formats.event_payloads import (
    AbortEvaluated,
    AbortExecuted,
    HoldEnded,
    ItemFinished,
    StorageDegraded,
    StorageRecovered,
)
from scraper_supervisor.core.formats.worker_payloads import WorkerFailed, WorkerReady, WorkerStarted
from scraper_supervisor.daemon.processes.processes import Processes
from scraper_supervisor.daemon.telling.notify import Notify
from scraper_supervisor.daemon.telling.sinks import Telling
from scraper_supervisor.daemon.upkeep.tasks import Tasks

if TYPE_CHECKING:
    from pathlib import Path

    from scraper_supervisor.core.config.settings import Settings
    from scraper_supervisor.core.formats.event_payloads import EventPayload

KEEP = "cat >> notices; echo >> notices"


def settings(command: list[str] | None) -> Settings:
    workers = {"sdk": {"entrypoint": "a:b"}, "plain": {"command": ["x"], "env": {"TOKEN": "open sesame"}}}
    document: Any = {"workers": workers, "notify": {} if command is None else {"command": command}}
    return parse(document, "/", lambda _: "")


def told(folder: Path, events: list[Publish], command: list[str] | None = None) -> list[dict[str, Any]]:
    """What the command is told of these events."""
    command = command or ["sh", "-c", f"cd {folder}; {KEEP}"]

    async def run() -> None:
        loop = asyncio.get_running_loop()
        processes = Processes(loop, folder / "run", folder / "state", lambda *_: None, lambda *_: None)
        try:
            tasks = Tasks()
            telling = Telling((Notify(loop, tasks, processes, os.environ),), settings(command))
            for event in events:
                telling.publish(event)
            await asyncio.to_thread(telling.handed_over, 10.0)
            await tasks.close(10.0)
            telling.close()
        finally:
            processes.stop_all()

    uvloop.run(run())
    notices = folder / "notices"
    return [json.loads(line) for line in notices.read_text().splitlines()] if notices.exists() else []


def of(data: EventPayload, worker: str | None = None, group: str | None = None) -> Publish:
    return Publish(data, "error", "c-1", worker, group)


def names(notices: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    return [(notice["event"], notice.get("worker")) for notice in notices]


def test_the_whole_event_is_on_its_stdin_redacted(tmp_path: Path) -> None:
    (notice,) = told(tmp_path, [of(WorkerFailed("says open sesame"), "plain-0", "plain")])
    assert notice.pop("time")[10] == "T"
    assert notice == {
        "event": "worker_failed",
        "severity": "error",
        "component": "workers",
        "correlation_id": "c-1",
        "worker": "plain-0",
        "group": "plain",
        "data": {"reason": "says ***"},
    }


def test_each_trouble_and_its_end_are_told_in_order_and_nothing_else(tmp_path: Path) -> None:
    figures = (20, 20, 1.0, 0.5, "all failed", None)
    events = [
        of(WorkerReady(1), "sdk-0", "sdk"),
        of(WorkerFailed("why"), "sdk-0", "sdk"),
        of(WorkerFailed("why"), "plain-0", "plain"),
        of(WorkerStarted(7, 1), "sdk-0", "sdk"),  # not up yet
        of(WorkerStarted(8, 1), "plain-0", "plain"),  # it has no hello to say
        of(WorkerReady(1), "sdk-1", "sdk"),
        of(WorkerReady(1), "sdk-0", "sdk"),
        of(WorkerReady(1), "sdk-0", "sdk"),
        of(HoldEnded("target", "h", "sdk", *figures)),  # it was never aborted
        of(AbortExecuted("target", "h", "sdk", *figures, ("sdk",))),
        of(HoldEnded("target", "i", "sdk", *figures)),
        of(HoldEnded("target", "h", "sdk", *figures)),
        of(AbortEvaluated("group", "sdk", "sdk", *figures, "suspected")),
        of(AbortExecuted("group", "sdk", "sdk", *figures, ("sdk",))),
        of(AbortEvaluated("group", "plain", "plain", *figures, "cleared")),  # it was never aborted
        of(AbortEvaluated("group", "sdk", "sdk", *figures, "cleared")),
        of(StorageRecovered(1.0)),
        of(StorageDegraded("full")),
        of(StorageRecovered(1.0)),
        of(ItemFinished("x", 1, "done", None, None, None), "sdk-0", "sdk"),
    ]
    assert names(told(tmp_path, events)) == [
        ("worker_failed", "sdk-0"),
        ("worker_failed", "plain-0"),
        ("worker_started", "plain-0"),
        ("worker_ready", "sdk-0"),
        ("abort_executed", None),
        ("hold_ended", None),
        ("abort_executed", None),
        ("abort_evaluated", None),
        ("storage_degraded", None),
        ("storage_recovered", None),
    ]


def test_a_command_that_fails_or_is_not_there_is_logged(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as lines:
        told(tmp_path, [of(StorageDegraded("full"))], ["false"])
        told(tmp_path, [of(StorageDegraded("full"))], ["/no/such/program"])
    assert [line["event"] for line in lines] == ["the notify command failed", "the notify command can't be started"]
