"""`items export` and `items import`, without a daemon and beside one."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import Raw
from tests.console.conftest import make_ledger

from scraper_supervisor.console.commands import transfer as transfer_commands
from scraper_supervisor.core.formats.run_export import PortableItem, RunHeader, Writer
from scraper_supervisor.core.ops.item_ops import Conclude, Front, LeaseFresh
from scraper_supervisor.core.ops.run_ops import OpenRun
from scraper_supervisor.core.ops.state_ops import SaveState
from scraper_supervisor.store.files import Files
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_supervisor.store.states.checkpoints import CheckpointFiles
from scraper_worker.jsonrpc import RpcError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result
    from tests.console.conftest import FakeDaemon

    Call = Callable[..., Result]

CONFIG = (
    '[supervisor]\nstate_dir = "{}"\n[checkpoint]\ncompression = "gzip"\n[workers.{}]\nentrypoint = "scraper:scrape"\n'
)


@pytest.fixture
def run(project: Path, ledger: Path, call: Call) -> bytes:
    """An export: a is done, b waits, c is pending; one worker saved a state."""
    call("items", "add", "matches", "a", "b", "c")
    ledger = Ledger.open(project / "state" / "ledger.db")
    (image,) = ledger.perform([OpenRun(0, "matches", "continue", 5)])
    (found,) = ledger.perform([LeaseFresh(0, "matches", image.run_id, (Front(None, None),), 10)])
    a, b, _ = (item.id for item in found.items)
    ledger.perform([Conclude(0, "matches", image.run_id, a, "a", 1, "matches-0", "done", 1, result=Raw(b'{"n":1}'))])
    ledger.perform([Conclude(0, "matches", image.run_id, b, "b", 2, "matches-0", "retry", 1, delay=3600.0)])
    ledger.close()
    state = Raw(json.dumps({"text": "ä" * transfer_commands.PIECE}).encode())  # more than a request carries
    CheckpointFiles(project / "state").perform(SaveState(0, "matches-0", 1, "cursor/3", state, 0, 0, 0, 10, "none"))
    return export(call)


def export(call: Call, group: str = "matches") -> bytes:
    result = call("items", "export", group)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout_bytes


def elsewhere(project: Path, group: str = "matches") -> Path:
    """Another state folder in the configuration from now on, in which a daemon has begun."""
    (project / "supervisor.toml").write_text(CONFIG.format("other", group), encoding="utf-8")
    return make_ledger(project / "other").parent


def items(lines: bytes) -> list[Any]:
    return [document["item"] for document in map(json.loads, lines.split(b"\n")[:-1]) if "item" in document]


@pytest.mark.parametrize("group", ["matches", "games"])
@pytest.mark.parametrize("by", ["name", "stdin"])
def test_there_and_back(project: Path, call: Call, run: bytes, group: str, by: str) -> None:
    other = elsewhere(project, group)
    (project / "run.jsonl").write_bytes(run)
    given = ("run.jsonl", None) if by == "name" else ("-", run)
    result = call("items", "import", group, given[0], input=given[1])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{group}: imported as run 1: 3 items, 1 of them done, 1 worker states\n"
    again = export(call, group)
    mine, theirs = items(run), items(again)
    assert [item["key"] for item in mine] == ["a", "b", "c"]
    for item in mine:
        if "worker" in item:
            item["worker"] = item["worker"].replace("matches", group)
    assert mine == theirs
    found = CheckpointFiles(other).show(f"{group}-0")
    assert (found.header.run, found.header.schema, found.header.items.done) == (1, "cursor/3", 1)
    assert (other / "checkpoints" / f"{group}-0" / "checkpoint-000000000001.json.gz").exists()
    assert json.loads(run.split(b"\n")[1])["worker"]["state"] == json.loads(bytes(found.state))
    second = call("items", "import", group, "run.jsonl" if by == "name" else "-", input=given[1])
    assert "imported as run 2" in second.stdout
    assert CheckpointFiles(other).show(f"{group}-0").header.generation == 2


def test_a_pipe_can_be_imported(project: Path, call: Call, run: bytes) -> None:
    elsewhere(project)
    os.mkfifo(project / "pipe")
    writer = threading.Thread(target=(project / "pipe").write_bytes, args=(run,))
    writer.start()
    result = call("items", "import", "matches", "pipe")
    writer.join()
    assert "imported as run 1: 3 items" in result.stdout
    assert items(export(call)) == items(run)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda run: run[:-60], "run.jsonl: line 7: expected a line of an export: Input data was truncated"),
        (lambda run: run.replace(b'"key":"c"', b'"key":"d"'), "run.jsonl: line 7: end.sha256: expected "),
        (lambda _: b"", "run.jsonl: it is empty"),
        (lambda run: run.replace(b'{"format":1', b'{"format":2'), "run.jsonl: line 1: format: this version reads"),
    ],
)
def test_what_is_not_whole_is_refused_and_touches_nothing(
    project: Path, call: Call, run: bytes, spoil: Callable[[bytes], bytes], why: str
) -> None:
    other = elsewhere(project)
    (project / "run.jsonl").write_bytes(spoil(run))
    result = call("items", "import", "matches", "run.jsonl")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {why}")
    assert result.stderr.endswith("nothing was imported\n")
    assert "no run yet" in call("items", "export", "matches").stderr
    assert not (other / "checkpoints").exists()


def test_a_key_that_comes_twice_is_refused_and_leaves_the_group_as_it_was(
    project: Path, ledger: Path, call: Call
) -> None:
    call("items", "add", "matches", "old")
    writer, time = Writer(), "2026-05-01T12:00:00.000Z"
    item = PortableItem("twin", None, Raw(b"null"), 0, 1.0, "pending", 0)
    lines = [writer.line(RunHeader(1, "scraper-supervisor-run", "g", 1, "running", time, None, time))]
    lines += [writer.line(item), writer.line(item), writer.end()]
    (project / "run.jsonl").write_bytes(b"".join(lines))
    result = call("items", "import", "matches", "run.jsonl")
    assert (result.exit_code, result.stderr) == (1, "error: matches: item 'twin' comes twice\n")
    assert [item["key"] for item in items(export(call))] == ["old"]


def test_a_state_that_the_disk_does_not_take_is_told_and_waits_for_the_daemon(
    project: Path, call: Call, run: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = elsewhere(project)
    (project / "run.jsonl").write_bytes(run)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Files, "write", full)
    result = call("items", "import", "matches", "run.jsonl")
    monkeypatch.undo()
    assert result.exit_code == 1
    assert "matches-0: its state can't be saved: No space left on device; the run is imported" in result.stderr
    ledger = Ledger.open(other / "ledger.db")
    (image,) = ledger.perform([OpenRun(0, "matches", "continue", 5)])
    assert (image.run, image.owed) == (1, ("matches-0",))
    ledger.close()


def test_beside_a_daemon(project: Path, call: Call, run: bytes, daemon: FakeDaemon) -> None:
    (project / "run.jsonl").write_bytes(run)
    daemon.answers |= {
        "items.import.begin": {"token": 7},
        "items.import.lines": {},
        "items.import.finish": {"run": 4, "state": "stopped"},
        "items.import.drop": {},
    }
    result = call("items", "import", "matches", "run.jsonl")
    assert result.stdout == "matches: imported as run 4: 3 items, 1 of them done, 1 worker states\n"
    assert result.stderr == "matches is stopped; go on with: start matches\n"
    methods = [method.removeprefix("items.import.") for method, _ in daemon.requests]
    assert methods == ["begin", *["lines"] * (len(methods) - 2), "finish"]
    assert {params.get("token") for _, params in daemon.requests[1:]} == {7}
    texts = [params["text"] for method, params in daemon.requests if method == "items.import.lines"]
    assert max(map(len, texts)) == transfer_commands.PIECE
    assert "".join(texts).encode() == run
    daemon.requests.clear()
    daemon.answers["items.import.lines"] = RpcError(-32000, "matches: storage unavailable")
    refused = call("items", "import", "matches", "run.jsonl")
    assert (refused.exit_code, refused.stderr) == (1, "error: matches: storage unavailable\n")
    assert daemon.requests[-1][0] == "items.import.drop"
    daemon.answers["items.import.lines"] = {}
    daemon.answers["items.import.finish"] = RpcError(-32000, "matches: seqs are missing")
    refused = call("items", "import", "matches", "run.jsonl")
    assert (refused.exit_code, refused.stderr) == (1, "error: matches: seqs are missing\n")
    assert daemon.requests[-1] == ("items.import.drop", {"names": ["matches"], "token": 7})
    daemon.answers["items.import.begin"] = RpcError(-32000, "matches is running; stop it first: stop matches")
    refused = call("items", "import", "matches", "run.jsonl")
    assert (refused.exit_code, refused.stderr) == (1, "error: matches is running; stop it first: stop matches\n")


def test_a_file_that_changes_while_it_is_read_is_refused(
    project: Path, call: Call, run: bytes, daemon: FakeDaemon
) -> None:
    path = project / "run.jsonl"
    path.write_bytes(run)

    def spoil(_: Any) -> dict[str, Any]:
        path.write_bytes(run.replace(b'"key":"c"', b'"key":"d"'))
        return {"token": 7}

    daemon.answers |= {"items.import.begin": spoil, "items.import.lines": {}, "items.import.drop": {}}
    result = call("items", "import", "matches", "run.jsonl")
    assert (result.exit_code, "the file was changed while it was read" in result.stderr) == (1, True)
    assert [method for method, _ in daemon.requests][-1] == "items.import.drop"


def test_who_can_not_be_exported(project: Path, call: Call, run: bytes) -> None:
    path = project / "state" / "checkpoints" / "matches-0" / "checkpoint-000000000001.json"
    path.write_bytes(b"nonsense")
    damaged = call("items", "export", "matches")
    assert (damaged.exit_code, "checkpoint restore matches-0" in damaged.stderr) == (4, True)
    assert '"end"' not in damaged.stdout
    assert call("items", "export", "nope").exit_code == 1
    assert call("items", "import", "nope", "-", input=run).exit_code == 1
    assert call("items", "import", "matches", "absent.jsonl").exit_code == 2
    elsewhere(project)
    nothing = call("items", "export", "matches")
    assert (nothing.exit_code, "nothing to export" in nothing.stderr) == (1, True)
