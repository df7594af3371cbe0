"""docs/protocol.md tells every message with all its fields, and every code: a worker can be written from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from msgspec.structs import fields

from scraper_worker import protocol

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
SECTIONS: dict[str, str] = dict(re.findall(r"^###? ([^\n]+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
MESSAGES = protocol.WORKER_METHODS | protocol.SUPERVISOR_METHODS
NOTIFICATIONS = {"heartbeat", "item.progress", "browser.started", "browser.stopped", "drain", "item.cancel"}
ANSWERS = {
    "hello": protocol.Welcome,
    "items.offer": protocol.Offered,
    "item.next": protocol.Granted,
    "item.done": protocol.DoneAnswer,
    "item.failed": protocol.FailedAnswer,
    "checkpoint.save": protocol.Saved,
    "checkpoint.load": protocol.CheckpointState,
}


def told(section: str) -> dict[str, bool]:
    """The fields in a section's first column, and which of them may be left out."""
    rows = re.findall(r"^\| (`.*?) \|", SECTIONS[section], re.MULTILINE)
    return {name: bool(mark) for row in rows for name, mark in re.findall(r"`(\w+)`(\??)", row)}


def of(kind: Any) -> dict[str, bool]:
    return {field.name: not field.required for field in fields(kind)}


@pytest.mark.parametrize("method", MESSAGES)
def test_every_message_is_told_with_all_its_fields(method: str) -> None:
    section = f"`{method}` ({'notification' if method in NOTIFICATIONS else 'request'})"
    assert told(section) == of(MESSAGES[method])


@pytest.mark.parametrize("method", ANSWERS)
def test_every_answer_is_told_with_all_its_fields(method: str) -> None:
    (names,) = re.findall(r"^Answer: `\{(.*?)\}`", SECTIONS[f"`{method}` (request)"], re.MULTILINE | re.DOTALL)[:1]
    kind = ANSWERS[method]
    absent = {field.name for field in fields(kind) if kind.__struct_config__.omit_defaults and not field.required}
    assert names.replace("\n", " ").split(", ") == [
        f"{field.name}?" if field.name in absent else field.name for field in fields(kind)
    ]


def test_failures_are_told_with_all_fields_and_values() -> None:
    rows = SECTIONS["Failures"].split("| kind |")[0]
    assert {name: bool(mark) for name, mark in re.findall(r"^\| `(\w+)`(\??)", rows, re.MULTILINE)} == of(
        protocol.Failure
    )
    for values in (protocol.Kind, protocol.Category):
        assert all(f'`"{value}"`' in rows for value in get_args(values))


def test_every_code_and_limit_is_told() -> None:
    codes = {value for name, value in vars(protocol).items() if isinstance(value, int) and value < -32000}
    assert {int(code) for code in re.findall(r"^\| (-\d+) \|", SECTIONS["Errors"], re.MULTILINE)} == codes
    for limit in (protocol.MAX_OPEN_CALLS, protocol.MAX_DEPTH, "64 KiB", "16 MiB", f"{protocol.MAX_KEY:,}"):
        assert f"| {limit}" in SECTIONS["Transport"] or f" {limit} bytes" in SECTIONS["Transport"], limit
    for name in (protocol.ENV_SOCKET, protocol.ENV_NAME, protocol.ENV_TOKEN):
        assert f"`{name}`" in SECTIONS["Transport"]
