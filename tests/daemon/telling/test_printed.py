"""Printed lines as records: levels read, tracebacks joined, nothing held for ever."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import traceback

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from scraper_supervisor.daemon.telling import printed as printed_module
from scraper_supervisor.daemon.telling.log import configure_logging
from scraper_supervisor.daemon.telling.printed import MAX_RECORD, Joiner, Printed, Record, level_of


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("WARNING:root:slow", logging.WARNING),
        ("INFO:my.scraper:page 1", logging.INFO),
        ("2026-11-28 10:00:00,123 - my.app - ERROR - boom", logging.ERROR),
        ("2026-11-28 10:00:00 my.app DEBUG x", logging.DEBUG),
        ("[DEBUG] x", logging.DEBUG),
        ("10:00:00 TRACE x", logging.DEBUG),
        ("2026-11-28 05:30:58.123 | SUCCESS  | mod:fn:3 - ok", logging.INFO),
        ("2026-11-28T05:30:58.123Z [warning  ] event k=1", logging.WARNING),
        ("ts=1 level=warn msg=hello", logging.WARNING),
        ('{"time": "x", "level": "fatal", "msg": 1}', logging.CRITICAL),
        ("scraper_worker: WARNING: taken back", logging.WARNING),
        ("CRITICAL", logging.CRITICAL),
        ("there was an ERROR here", None),
        ("An ERROR occurred", None),
        ("ERRORS: 3", None),
        ("DEBUG=1", None),
        ("page 5 - done", None),
        ("", None),
    ],
)
def test_a_level_is_read_at_a_line_s_head(line: str, level: int | None) -> None:
    assert level_of(line) == level


def records(text: str) -> list[Record]:
    joiner = Joiner()
    found = [joiner.feed(line) for line in text.splitlines()]
    return [record for record in (*found, joiner.flush()) if record is not None]


def raised() -> str:
    def deep() -> None:
        try:
            raise KeyError("inner")
        except KeyError:
            raise ExceptionGroup("both", [ValueError("one"), TypeError("two")]) from None

    try:
        try:
            deep()
        except ExceptionGroup as group:
            raise RuntimeError("outer") from group
    except RuntimeError:
        return traceback.format_exc()


def test_a_traceback_is_one_record_with_the_line_above_it() -> None:
    trace = raised().rstrip()
    assert records(f"INFO:a:before\nERROR:a:failed\n{trace}\nINFO:a:after\nplain") == [
        Record(logging.INFO, "INFO:a:before"),
        Record(logging.ERROR, f"ERROR:a:failed\n{trace}"),
        Record(logging.INFO, "INFO:a:after"),
        Record(logging.INFO, "plain"),
    ]


def test_a_traceback_that_shows_no_level_is_an_error() -> None:
    trace = raised().rstrip()
    assert records(f"{trace}\nplain") == [Record(logging.ERROR, trace), Record(logging.INFO, "plain")]


def test_the_call_log_of_playwright_belongs_to_its_traceback() -> None:
    trace = (
        'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    await page.goto(url)\n'
        'playwright._impl._errors.TimeoutError: Page.goto: Timeout 10ms exceeded.\nCall log:\n  - navigating to "x"'
    )
    assert records(f"WARNING:a:failed\n{trace}\nINFO:a:after")[0] == Record(
        logging.WARNING, f"WARNING:a:failed\n{trace}"
    )


def test_indented_lines_without_a_traceback_stay_lines() -> None:
    assert [record.text for record in records("rows:\n  1\n  2")] == ["rows:", "  1", "  2"]


def test_an_endless_traceback_is_cut_and_keeps_its_level() -> None:
    frames = "  frame\n" * (MAX_RECORD // 4)
    found = records(f"WARNING:a:failed\nTraceback (most recent call last):\n{frames}")
    assert len(found) > 2
    assert {record.level for record in found} == {logging.WARNING}
    assert all(len(record.text) <= MAX_RECORD + 100 for record in found)


@given(st.lists(st.sampled_from(["INFO:a:b", "Traceback (most recent call last):", "  frame", "E: x", "", "plain"])))
def test_no_line_is_lost_and_none_changes_its_place(lines: list[str]) -> None:
    joined = [line for record in records("\n".join(lines)) for line in record.text.split("\n")]
    assert [line for line in joined if line] == [line for line in lines if line]


async def test_what_is_held_is_written_soon_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printed_module, "HOLD", 0.01)
    stream = io.StringIO()
    log = configure_logging("info", "json", stream)
    try:
        printed = Printed(asyncio.get_running_loop())
        printed.line("g-0", "out", "one")
        printed.line("g-0", "err", "DEBUG:a:not written at level info")
        async with asyncio.timeout(30):
            while "one" not in stream.getvalue():
                await asyncio.sleep(0.005)
        printed.line("g-0", "err", "ERROR:a:two")
        printed.end("g-0")
    finally:
        log.close()
        structlog.reset_defaults()
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line["level"], line["stream"]) for line in told] == [
        ("one", "info", "out"),
        ("ERROR:a:two", "error", "err"),
    ]
