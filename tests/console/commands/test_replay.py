"""`abort replay`, without a daemon."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from scraper_supervisor.core.formats.timestamps import timestamp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Call = Callable[..., Result]


@pytest.fixture
def recording(project: Path) -> Path:
    """A target that fails for two minutes, an attempt a second, and a line that a crash tore."""
    failure = {"kind": "transient", "category": "network", "signature": "x", "message": "x"}
    lines = []
    for n in range(120):
        data = {"key": str(n), "attempt": 1, "outcome": "retry", "target": "a.test", "seconds": 0.5, "failure": failure}
        event = {"time": timestamp(1_790_000_000.0 + n), "event": "item_finished", "group": "matches", "data": data}
        lines.append(json.dumps(event))
    path = project / "recorded.jsonl"
    path.write_text("\n".join([*lines[:60], '{"event": "item_fini', *lines[60:]]) + "\n", encoding="utf-8")
    return path


def test_it_tells_when_the_policy_would_have_held_and_aborted(call: Call, recording: Path) -> None:
    document = json.loads(call("abort", "replay", str(recording), "--json").stdout)
    assert document.keys() == {"items", "from", "to", "aborted", "decisions"}
    assert document["aborted"] is True
    assert document["from"] == timestamp(1_790_000_000.0)
    held, aborted = document["decisions"]
    assert (held["action"], held["scope"], held["key"]) == ("held", "target", "a.test")
    assert (held["time"], held["items"], held["failures"]) == (timestamp(1_790_000_013.0), 14, 14)
    assert (aborted["action"], aborted["group"]) == ("aborted", "matches")
    shown = call("abort", "replay", str(recording))
    assert shown.exit_code == 0
    assert "a.test in group matches: 14 of the last 14 items failed (100%)" in shown.stdout
    assert shown.stdout.endswith("1 holds, 1 aborts\n")


def test_it_goes_by_the_configuration(project: Path, call: Call, recording: Path) -> None:
    with (project / "supervisor.toml").open("a", encoding="utf-8") as file:
        file.write("[abort]\nconfirm_after = '10m'\n")
    document = json.loads(call("abort", "replay", str(recording), "--json").stdout)
    assert [one["action"] for one in document["decisions"]] == ["held"]
    assert document["aborted"] is False


def test_a_file_without_votes_is_told(project: Path, call: Call) -> None:
    (project / "empty.jsonl").write_bytes(b"nothing of ours\n")
    result = call("abort", "replay", "empty.jsonl")
    assert (result.exit_code, result.stdout) == (0, "no votes: there is no attempt in it that would count\n")
    assert json.loads(call("abort", "replay", "empty.jsonl", "--json").stdout)["decisions"] == []


def test_a_file_that_is_not_there_is_wrong_usage(call: Call) -> None:
    result = call("abort", "replay", "nowhere.jsonl")
    assert result.exit_code == 2
    assert "nowhere.jsonl" in result.stderr
