"""How things look, at any width, with colours and without."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from scraper_supervisor.console import views
from scraper_supervisor.store.event_log import EventRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result
    from rich.console import RenderableType
    from tests.console.conftest import FakeDaemon


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
    expected = "12:00:00  worker_backoff  matches-0  over limit, delay 1.23, decision: many, n 3"
    assert views.event_line(event).plain == expected
