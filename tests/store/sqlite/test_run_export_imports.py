"""Imports that are given up, or whose file says what is not so: nothing of one is seen before it is whole."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import Raw
from tests.store.sqlite.ledger_writer import G
from tests.store.sqlite.run_files import TIME, ask, fill, never, open_run, put

from scraper_supervisor.core.formats.run_export import PortableItem, Result, RunHeader, WorkerState, Writer
from scraper_supervisor.core.ops.import_ops import ImportBegin, ImportDrop, ImportFinish, ImportLines
from scraper_supervisor.core.ops.run_ops import WorkerTotals
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_supervisor.store.sqlite.reader import LedgerReader

if TYPE_CHECKING:
    from pathlib import Path


def line(writer: Writer, *records: Any) -> bytes:
    return b"".join(writer.line(record) for record in records)


def pending(key: str) -> PortableItem:
    return PortableItem(key, None, Raw(b"null"), 0, 1.0, "pending", 0)


def done(key: str, seq: int) -> PortableItem:
    result = Result(seq, Raw(b"1"), TIME, hashlib.sha256(b"1").hexdigest())
    return PortableItem(key, None, Raw(b"null"), 0, 1.0, "done", 1, worker="g-0", result=result)


@pytest.mark.parametrize("ending", ["drop", "begin", "crash", "twice"])
def test_an_import_that_is_not_finished_leaves_nothing(folder: Path, ledger: Ledger, ending: str) -> None:
    run = open_run(ledger)
    fill(ledger, run, a=None)
    begun = ask(ledger, ImportBegin(0, G))
    state = WorkerState("matches-0", 1, 1, "cursor/1", TIME, Raw(b"{}"))
    ask(ledger, ImportLines(0, G, begun.run_id, line(Writer(), state, *map(pending, "abcdefgh"))))
    assert ledger.idle(never) is None  # what is being imported is no removed run
    count = "SELECT count(*) FROM items"
    assert ledger._db.execute(count).fetchone() == (9,)
    assert open_run(ledger).run_id == run.run_id
    assert open_run(ledger, "next").run_id == run.run_id
    with LedgerReader(folder / "ledger.db") as reader:
        assert [info.run for info in reader.runs(G)] == [1]
    if ending == "drop":
        ask(ledger, ImportDrop(0, G, begun.run_id))
    elif ending == "begin":
        ask(ledger, ImportDrop(0, G, ask(ledger, ImportBegin(0, G)).run_id))
    elif ending == "twice":
        again = ask(ledger, ImportLines(0, G, begun.run_id, line(Writer(), pending("a"))))
        assert again.problem == "item 'a' comes twice"
    else:
        ledger.close()
        ledger = Ledger.open(folder / "ledger.db")
    for op in (ImportLines(0, G, begun.run_id, line(Writer(), pending("z"))), ImportFinish(0, G, begun.run_id)):
        assert "it was given up" in ask(ledger, op).problem
    assert ledger.idle(never) is None
    assert ledger._db.execute(count).fetchone() == (1,)
    assert ledger._db.execute("SELECT count(*) FROM imported_states").fetchone() == (0,)
    assert ledger._db.execute("SELECT count(*) FROM runs").fetchone() == (1,)
    ledger.close()


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([pending("a"), pending("a")], "item 'a' comes twice"),
        ([done("a", 1), done("b", 1)], "seq 1, of item 'b', comes twice"),
        ([done("a", 2)], "expected seqs 1 to 1 of 1 done items, the last is 2"),
        (
            [WorkerState("g-0", 1, 1, "c/1", TIME, Raw(b"{}")), WorkerState("g-00", 1, 1, "c/1", TIME, Raw(b"{}"))],
            "matches-0 comes twice",
        ),
        ([b"{}"], "expected a header"),
    ],
)
def test_what_contradicts_itself_is_given_up(ledger: Ledger, records: list[Any], why: str) -> None:
    fill(ledger, open_run(ledger), x=None)
    writer = Writer()
    lines = [record if isinstance(record, bytes) else writer.line(record) for record in records]
    answer = put(ledger, lines)
    assert answer.problem is not None
    assert answer.problem.startswith(why)
    assert "it was given up" in str(ask(ledger, ImportFinish(0, G, answer.run_id)).problem)
    assert open_run(ledger).run == 1


def test_an_import_is_its_groups_alone(ledger: Ledger) -> None:
    first, second = ask(ledger, ImportBegin(0, G)), ask(ledger, ImportBegin(0, "games"))
    assert "it was given up" in ask(ledger, ImportFinish(0, "games", first.run_id)).problem
    assert ask(ledger, ImportFinish(0, G, first.run_id)).run == 1
    assert ask(ledger, ImportFinish(0, "games", second.run_id)).run == 1


def test_the_counts_that_a_file_tells_of_done_items_are_not_believed(tmp_path: Path, other: Ledger) -> None:
    writer = Writer()
    header = RunHeader(1, "scraper-supervisor-run", "g", 1, "completed", TIME, TIME, TIME)
    answer = put(other, [writer.line(one) for one in (header, WorkerTotals("g-0", 99, 3), done("a", 1))])
    assert answer.problem is None
    image = open_run(other)
    assert (image.workers, image.state, image.finished_at) == ((WorkerTotals("matches-0", 1, 3),), "completed", TIME)
    with LedgerReader(tmp_path / "b" / "ledger.db") as reader:
        assert reader.verify() is None
