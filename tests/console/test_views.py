"""How things look, at any width, with colours and without."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from scraper_supervisor.console import views
from scraper_supervisor.console.legend import LEGEND
from scraper_supervisor.store.event_log import EventRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result
    from rich.console import RenderableType
    from tests.console.conftest import FakeDaemon

ROOT = Path(__file__).parents[2]


def drawn(thing: RenderableType, width: int = 100, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(thing)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 60, 76, 80, 100, 200])
def test_status_fits_any_width(document: dict[str, Any], width: int) -> None:
    text = drawn(views.overview(document, width), width)
    assert all(len(line) <= width for line in text.splitlines())
    for shown in ("matches-0", "running", "failed", "60 MiB", "300 MiB"):
        assert shown in text


def test_status_narrow_is_a_table_still(document: dict[str, Any]) -> None:
    lines = [line.rstrip() for line in drawn(views.overview(document, 60), 60).splitlines()]
    (heading,) = [line for line in lines if line.startswith("WORKER")]
    (row,) = [line for line in lines if line.startswith("matches-0")]
    assert heading.split() == ["WORKER", "STATE", "MEMORY", "BROWSERS", "DONE", "FAILED"]
    assert row.split() == ["matches-0", "running", "60", "MiB", "300", "MiB", "50", "1"]


def test_status_wide_shows_all(document: dict[str, Any]) -> None:
    text = drawn(views.overview(document, 120), 120)
    for shown in ("6m 47s", "4711", "40", "13%" if "13%" in text else "12%", "99.99%", "340 ms", "1.5 s", "50.0 GiB"):
        assert shown in text


def test_what_is_unknown_is_no_zero(document: dict[str, Any]) -> None:
    (row,) = [line for line in drawn(views.workers(document["workers"], 60), 60).splitlines() if "matches-1" in line]
    assert row.split()[2:4] == ["-", "-"]


def test_troubles_are_told_and_disarmed(document: dict[str, Any]) -> None:
    text = drawn(views.overview(document, 100), force_terminal=False)
    assert "matches-1: failed: died\\x1b[31m 6 times" in text
    assert "target example.com: held: 15 of 20 failed" in text
    assert "\x1b" not in text


def test_no_color_and_color(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    color = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert color.search(drawn(views.overview(document, 100), force_terminal=True))
    assert not color.search(drawn(views.overview(document, 100), force_terminal=True, no_color=True))


def test_one_worker(document: dict[str, Any]) -> None:
    text = drawn(views.worker_view(document["workers"][0]), 60)
    for shown in ("incarnation 2", "pid 4711", "generation 7", "50 done, 1 failed, 2 in flight", "b1"):
        assert shown in text
    assert "worker-failed" in drawn(views.worker_view(document["workers"][1]))


def test_status_command(call: Callable[..., Result], daemon: FakeDaemon, document: dict[str, Any]) -> None:
    daemon.answers["status"] = document
    result = call("status", env={"COLUMNS": "60", "NO_COLOR": "1"})
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 60
    assert json.loads(call("status", "--json").stdout) == document
    assert json.loads(call("status", "matches-1", "--json").stdout) == document["workers"][1]
    assert "matches-0 (group matches" in call("status", "matches-0").stdout
    unknown = call("status", "nobody")
    assert (unknown.exit_code, unknown.stdout) == (1, "")
    assert "known are: matches-0, matches-1" in unknown.stderr


def test_top_needs_a_terminal(call: Callable[..., Result], daemon: FakeDaemon) -> None:
    result = call("top")
    assert (result.exit_code, daemon.requests) == (2, [])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0, "0 ms"), (0.0042, "4 ms"), (4.24, "4.2 s"), (9.99, "10 s"), (59.4, "59 s"), (59.6, "1m 00s"),
        (723, "12m 03s"), (3600, "1h 00m"), (90_061, "1d 1h"),
    ],
)  # fmt: skip
def test_seconds(value: float | None, text: str) -> None:
    assert views.seconds(value) == text


def test_sizes_and_shares() -> None:
    assert [views.size(n) for n in (None, 0, 999, 1000, 512 * 2**20, 2**30)] == [
        "-", "0 B", "999 B", "1 KiB", "512 MiB", "1.0 GiB",
    ]  # fmt: skip
    assert [views.share(n) for n in (None, 0.0, 0.5, 0.99999, 1.0)] == ["-", "0%", "50%", "99.99%", "100%"]


def test_an_event_is_one_line() -> None:
    data = {"reason": "over\nlimit", "delay": 1.23456, "decision": {"reason": "many"}, "none": None, "n": 3}
    event = EventRecord("2026-05-01T12:00:00.000000Z", "worker_backoff", "warning", worker="matches-0", data=data)
    expected = "2026-05-01T12:00:00Z  worker_backoff  matches-0  over limit, delay 1.23, decision: many, n 3"
    assert views.event_line(event).plain == expected


def test_events_over_midnight_bear_date_and_zone(project: Path, call: Callable[..., Result]) -> None:
    (project / "state").mkdir(exist_ok=True)
    lines = [
        f'{{"time":"2026-05-{day}T{time}Z","event":"worker_ready","severity":"{severity}","correlation_id":"{incident}",'
        f'"worker":"matches-{worker}","data":null}}\n'
        for day, time, severity, incident, worker in (
            ("01", "23:59:59.500000", "info", "a-1", 0),
            ("02", "00:00:00.250000", "warning", "a-1", 1),
            ("02", "00:00:01.000000", "error", "a-2", 1),
        )
    ]
    (project / "state" / "events.jsonl").write_text("".join(lines), encoding="utf-8")
    shown = [line.split()[0] for line in call("events").stdout.splitlines()]
    assert shown == ["2026-05-01T23:59:59Z", "2026-05-02T00:00:00Z", "2026-05-02T00:00:01Z"]
    assert len(call("events", "--since", shown[1]).stdout.splitlines()) == 2
    for filters, count in (
        (("--worker", "matches-1"), 2),
        (("--severity", "warning"), 2),
        (("--severity", "error"), 1),
        (("--incident", "a-1"), 2),
        (("--incident", "a-1", "--worker", "matches-1"), 1),
        (("--worker", "nobody"), 0),
    ):
        assert len(call("events", *filters).stdout.splitlines()) == count, filters
    assert call("events", "--severity", "loud").exit_code == 2


def test_every_heading_is_explained(document: dict[str, Any], call: Callable[..., Result]) -> None:
    explained = [one for figure, _ in LEGEND for one in figure.split(", ")]
    text = drawn(views.overview(document, 200), 200)
    headings = [line for line in text.splitlines() if line.startswith(("GROUP", "WORKER"))]
    shown = [heading for line in headings for heading in re.split(r"\s{2,}", line.strip())]
    assert set(shown) - {"GROUP", "WORKER"} <= set(explained)
    for figure in ("availability", "recoveries", "checkpoint p99", "items lost"):
        assert figure in explained
    help_text = " ".join(call("status", "--help").output.split())
    page = " ".join((ROOT / "docs" / "operations.md").read_text(encoding="utf-8").split())
    for figure, meaning in LEGEND:
        assert meaning in help_text, figure
        assert meaning in page, figure
