"""Runs to be exported and imported, and what the lines of one say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from msgspec import Raw
from tests.store.sqlite.ledger_talk import START
from tests.store.sqlite.ledger_writer import G

from scraper_supervisor.core.formats.run_export import Checker
from scraper_supervisor.core.ops.import_ops import ImportBegin, Imported, ImportFinish, ImportLines
from scraper_supervisor.core.ops.item_ops import (
    Added,
    AddItems,
    Conclude,
    Concluded,
    Entry,
    Front,
    Leased,
    LeaseFresh,
    LeaseWaiting,
    NewItem,
)
from scraper_supervisor.core.ops.run_ops import OpenRun, RunImage
from scraper_supervisor.core.ops.state_ops import SaveState
from scraper_supervisor.store.sqlite.reader import LedgerReader
from scraper_supervisor.store.sqlite.run_export import Export
from scraper_supervisor.store.states.checkpoints import CheckpointFiles

if TYPE_CHECKING:
    from pathlib import Path

    from scraper_supervisor.store.sqlite.ledger import Ledger

NOW = START
TIME = "2026-05-01T12:00:00.000Z"  # the same
FAILURE = Raw(b'{"kind":"transient","signature":"timeout"}')


def never() -> bool:
    """Nothing is asked."""
    return False


def ask(ledger: Ledger, op: Any) -> Any:
    (answer,) = ledger.perform([op])
    return answer


def open_run(ledger: Ledger, mode: Any = "continue", keep_runs: int = 5, group: str = G) -> RunImage:
    answer = ask(ledger, OpenRun(0, group, mode, keep_runs))
    assert isinstance(answer, RunImage), answer
    return answer


def fill(ledger: Ledger, run: RunImage, **outcomes: Any) -> dict[str, int]:
    """Add items; end them as "done", "failed", "retry" (waits an hour), "open" (as after a death), or not at all."""
    items = tuple(NewItem(key, f"{key[0]}.test", Raw(b"null"), 0) for key in outcomes)
    added = ask(ledger, AddItems(0, G, run.run_id, items))
    assert isinstance(added, Added)
    ids = {key: id_ for key, (_, id_, _) in zip(outcomes, added.added, strict=True)}
    answers = ledger.perform([ending(run, ids[key], outcome) for key, outcome in outcomes.items() if outcome])
    assert all(isinstance(answer, Concluded) for answer in answers)
    return ids


def ending(run: RunImage, id_: int, outcome: Any) -> Conclude:
    more: dict[str, Any] = {"result": Raw(b'{"id": %d}' % id_)}
    if outcome != "done":
        more = {"failure": FAILURE, "answer": Raw(b"{}"), "delay": 3600.0 if outcome == "retry" else None}
    return Conclude(0, G, run.run_id, id_, "k", id_ + 100, "matches-0", outcome, 1, alone=True, **more)


def newest(folder: Path, group: str = G) -> Any:
    with LedgerReader(folder / "ledger.db") as reader:
        return reader.runs(group)[0]


def export(folder: Path, group: str = G) -> list[bytes]:
    with Export(folder, newest(folder, group)) as lines:
        found = list(lines.lines(NOW))
    checker = Checker()
    for line in found:
        checker.take(line)
    checker.finish()
    return found


def items_of(lines: list[bytes]) -> dict[str, Any]:
    found = [json.loads(line) for line in lines]
    return {line["item"]["key"]: line["item"] for line in found if "item" in line}


def put(ledger: Ledger, lines: list[bytes], group: str = G) -> Imported:
    """Import lines, each in a step of its own, up to the first that is refused."""
    begun = ask(ledger, ImportBegin(0, group))
    for line in lines:
        answer = ask(ledger, ImportLines(0, group, begun.run_id, line))
        if answer.problem is not None:
            return answer  # type: ignore[no-any-return]  # it is
    return ask(ledger, ImportFinish(0, group, begun.run_id))  # type: ignore[no-any-return]  # it is


def save(folder: Path, worker: str, run: int, number: int) -> None:
    op = SaveState(0, worker, run, "cursor/1", Raw(b'{"page":%d}' % number), 0, 0, 0, 10, "none")
    CheckpointFiles(folder).perform(op)


def same(first: list[bytes], second: list[bytes]) -> bool:
    """Whether two exports differ in nothing but the header, the end and the states' numbers."""

    def plain(lines: list[bytes]) -> list[Any]:
        found = [json.loads(line) for line in lines[1:-1]]
        for line in found:
            for name in ("run", "generation", "saved_at"):
                line.get("worker", {}).pop(name, None)
        return found

    return plain(first) == plain(second)


def entries(ledger: Ledger, run: RunImage) -> list[tuple[Any, ...]]:
    """The open items in their order, as the queue is given them."""
    fronts = tuple(Front(lane.target, None) for lane in run.lanes)
    found: list[Entry] = []
    for op in (LeaseFresh(0, G, run.run_id, fronts, 10), LeaseWaiting(0, G, run.run_id, 10)):
        answer = ask(ledger, op)
        assert isinstance(answer, Leased)
        found += answer.items
    return [
        (
            one.key, one.target, bytes(one.data), one.priority, one.order, one.attempts, one.infrastructure,
            one.blocked, one.alone, None if one.due_in is None else round(one.due_in, 3),
        )
        for one in found
    ]  # fmt: skip
