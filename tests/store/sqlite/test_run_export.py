"""Runs exported from one ledger and imported into another."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import Raw

from scraper_supervisor.core.formats.run_export import Checker, PortableItem, Result, RunHeader, WorkerState, Writer
from scraper_supervisor.core.ops.import_ops import (
    DropState,
    ImportBegin,
    ImportDrop,
    Imported,
    ImportFinish,
    ImportLines,
    StateTaken,
    TakeState,
)
from scraper_supervisor.core.ops.item_ops import (
    Added,
    AddItems,
    Conclude,
    Concluded,
    Entry,
    FindConclusion,
    Front,
    Leased,
    LeaseFresh,
    LeaseWaiting,
    NewItem,
)
from scraper_supervisor.core.ops.run_ops import OpenRun, RunImage, SetRunState, WorkerTotals
from scraper_supervisor.core.ops.state_ops import LoadState, SaveState
from scraper_supervisor.store.errors import NotExportable
from scraper_supervisor.store.ports import RunGone
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_supervisor.store.sqlite.reader import LedgerReader
from scraper_supervisor.store.sqlite.run_export import Export
from scraper_supervisor.store.states.checkpoints import CheckpointFiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

G = "matches"
NOW = 1_777_636_800.0
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a"


@pytest.fixture
def ledger(folder: Path) -> Iterator[Ledger]:
    folder.mkdir()
    ledger = Ledger.open(folder / "ledger.db", lambda: NOW)
    yield ledger
    ledger.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Ledger]:
    (tmp_path / "b").mkdir()
    other = Ledger.open(tmp_path / "b" / "ledger.db", lambda: NOW)
    yield other
    other.close()


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


# ---- there and back --------------------------------------------------------------------------------------------------


def test_a_run_is_the_same_in_another_ledger(folder: Path, tmp_path: Path, ledger: Ledger, other: Ledger) -> None:
    run = open_run(ledger)
    fill(ledger, run, a="done", b="failed", c="retry", d="open", e=None, f="done", g=None)
    ask(ledger, AddItems(0, G, run.run_id, (NewItem("first", None, Raw(b'{"n": 1}'), 9),)))
    ledger._db.execute("UPDATE items SET state = 'parked' WHERE key = 'g'")
    ledger._db.execute("UPDATE runs SET parked = 1")
    ledger._db.execute("DELETE FROM lanes WHERE target = 'g.test'")
    save(folder, "matches-0", 1, 1)
    save(folder, "matches-0", 1, 2)
    save(folder, "matches-7", 1, 3)
    save(folder, "others-0", 1, 4)
    whole = export(folder)
    assert [json.loads(line)["worker"]["name"] for line in whole[1:3]] == ["matches-0", "matches-7"]
    assert json.loads(whole[1])["worker"]["state"] == {"page": 2}

    answer = put(other, whole)
    assert (answer.run, answer.problem) == (1, None)
    image = open_run(other)
    mine = open_run(ledger)
    for name in ("state", "done", "failed", "parked", "waiting", "lanes", "workers", "started_at", "finished_at"):
        assert getattr(image, name) == getattr(mine, name), name
    assert (image.run, image.fresh_from, image.owed) == (1, 1, ("matches-0", "matches-7"))
    assert entries(other, image) == entries(ledger, mine)
    assert ask(other, FindConclusion(0, G, image.run_id, "b")).claim is None  # claims of another ledger mean nothing
    (added,) = other.perform([AddItems(0, G, image.run_id, (NewItem("z", None, Raw(b"null"), 0),))])
    assert isinstance(added, Added)
    assert added.added[0][2] == 9.0  # behind all that was offered
    with LedgerReader(tmp_path / "b" / "ledger.db") as reader:
        assert [(row.seq, row.key, bytes(row.result)) for row in reader.results(G)] == [
            (1, "a", b'{"id": 1}'), (2, "f", b'{"id": 6}'),
        ]  # fmt: skip
        assert reader.verify() is None


def test_it_is_the_next_run_and_the_group_may_have_another_name(
    folder: Path, tmp_path: Path, ledger: Ledger, other: Ledger
) -> None:
    fill(ledger, open_run(ledger), a="done", b=None)
    ask(ledger, SetRunState(0, G, open_run(ledger).run_id, "aborted"))
    save(folder, "matches-3", 1, 1)
    whole = export(folder)
    open_run(other, "fresh", group="games")
    old = open_run(other, "fresh", group="games")
    assert put(other, whole, "games").run == 3
    image = open_run(other, group="games")
    assert (image.run, image.fresh_from, image.state, image.owed) == (3, 3, "aborted", ("games-3",))
    assert image.workers == (WorkerTotals("games-0", 1, 0),)
    taken = ask(other, TakeState(0, "games", image.run_id, "games-3"))
    assert (taken.run, taken.schema, bytes(taken.state)) == (3, "cursor/1", b'{"page":1}')
    assert ask(other, TakeState(0, "games", image.run_id, "games-9")) is None
    assert ask(other, TakeState(0, "games", old.run_id, "games-3")) is None
    assert open_run(other, keep_runs=1, group="games").run == 3
    with LedgerReader(tmp_path / "b" / "ledger.db") as reader:
        assert [row.worker for row in reader.items("games")] == ["games-0", None]
        assert [info.run for info in reader.runs("games")] == [3]


def test_states_that_are_owed_carry_over_into_a_repeated_run_but_not_into_a_fresh_one(
    folder: Path, tmp_path: Path, ledger: Ledger, other: Ledger
) -> None:
    fill(ledger, open_run(ledger), a="done")
    ask(ledger, SetRunState(0, G, open_run(ledger).run_id, "completed"))
    save(folder, "matches-0", 1, 1)
    put(other, export(folder))
    repeated = open_run(other, "next")
    assert (repeated.run, repeated.owed) == (2, ("matches-0",))
    assert isinstance(ask(other, TakeState(0, G, repeated.run_id, "matches-0")), StateTaken)
    assert open_run(other, "fresh").owed == ()
    put(other, export(folder))
    with pytest.raises(NotExportable, match="matches-0: the state that was imported is not saved as a checkpoint yet"):
        export(tmp_path / "b")
    image = open_run(other)
    ask(other, DropState(0, G, image.run_id, "matches-0"))
    assert open_run(other).owed == ()
    assert items_of(export(tmp_path / "b"))["a"]["state"] == "done"


# ---- nothing of it is seen before it is whole ------------------------------------------------------------------------


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


# ---- a run that moves while it is exported ---------------------------------------------------------------------------


def test_done_are_the_items_that_were_done_at_the_beginning(
    folder: Path, tmp_path: Path, ledger: Ledger, other: Ledger
) -> None:
    run = open_run(ledger)
    ids = fill(ledger, run, **{f"k{n:04}": "done" if n < 3 else None for n in range(2500)})
    with Export(folder, newest(folder)) as lines:
        found = lines.lines(NOW)
        taken = [next(found) for _ in range(10)]  # the header, a worker's totals, and items of the first step
        ask(ledger, ending(run, ids["k0500"], "done"))  # was read already
        ask(ledger, ending(run, ids["k2000"], "done"))
        ask(ledger, ending(run, ids["k2001"], "failed"))
        fill(ledger, run, later=None)
        taken += found
    items = items_of(taken)
    assert len(items) == 2500
    assert len(taken) == 2503
    assert sorted(key for key, item in items.items() if item["state"] == "done") == ["k0000", "k0001", "k0002"]
    assert (items["k2000"]["state"], items["k2000"]["attempts"]) == ("pending", 0)
    assert items["k2001"]["state"] == "failed"
    assert put(other, [b"".join(taken)]).problem is None
    assert open_run(other).done == 3
    assert same(taken, export(tmp_path / "b"))


def test_a_slow_reader_lets_the_writers_log_begin_anew(folder: Path, ledger: Ledger) -> None:
    run = open_run(ledger)
    fill(ledger, run, **{f"k{n:04}": "done" for n in range(2500)})
    with LedgerReader(folder / "ledger.db") as reader, Export(folder, newest(folder)) as lines:
        slow: list[Iterator[Any]] = [
            reader.items(G),
            reader.results(G),
            lines.lines(NOW),
            reader.items(G, state="done"),
        ]
        for one in slow:
            assert next(one) is not None
        fill(ledger, run, later=None)
        busy, pages, moved = ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert (busy, pages, moved) == (0, 0, 0)
        assert [sum(1 for _ in one) for one in slow] == [
            2500,
            2499,
            2503,
            2499,
        ]  # the export has totals and an end


def test_a_run_that_is_removed_while_it_is_read_ends_the_reading(folder: Path, ledger: Ledger) -> None:
    run = open_run(ledger)
    fill(ledger, run, **{f"k{n:04}": "done" for n in range(2500)})
    with LedgerReader(folder / "ledger.db") as reader, Export(folder, newest(folder)) as lines:
        slow: list[Iterator[Any]] = [reader.items(G), reader.results(G), lines.lines(NOW)]
        for one in slow:
            next(one)
        for _ in range(2):
            open_run(ledger, "fresh", keep_runs=1)
        assert ledger.idle(never) is None
        for one in slow:
            with pytest.raises(RunGone, match="matches: run 1 was removed while it was read"):
                list(one)
        with pytest.raises(LookupError, match="the ledger has no run 1 of group 'matches'"):
            list(reader.results(G, 1))


def test_big_results_are_read_a_few_at_a_time(folder: Path, ledger: Ledger, other: Ledger) -> None:
    run = open_run(ledger)
    ids = fill(ledger, run, **{f"k{n}": None for n in range(8)})
    big = Raw(b'"' + b"x" * 3_000_000 + b'"')
    for id_ in ids.values():
        ask(ledger, Conclude(0, G, run.run_id, id_, "k", id_, "matches-0", "done", 1, result=big))
    with LedgerReader(folder / "ledger.db") as reader:
        assert [row.seq for row in reader.results(G)] == list(range(1, 9))
    whole = export(folder)
    assert len(whole) == 11
    assert put(other, [b"".join(whole)]).problem is None


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_a_damaged_result_is_not_exported(folder: Path, ledger: Ledger) -> None:
    fill(ledger, open_run(ledger), a="done")
    db = sqlite3.connect(folder / "ledger.db")
    with db:
        db.execute("UPDATE results SET result = '{}'")
    db.close()
    with pytest.raises(NotExportable, match=r"result 1 of 'a' is damaged.*checkpoint verify"):
        export(folder)


def test_of_damaged_states_the_newest_sound_one_is_exported_and_without_any_it_is_refused(
    folder: Path, ledger: Ledger
) -> None:
    fill(ledger, open_run(ledger), a=None)
    for number in range(3):
        save(folder, "matches-0", 1, number)
    one, two, three = sorted((folder / "checkpoints" / "matches-0").glob("checkpoint-*"))
    three.write_bytes(b"")
    assert json.loads(export(folder)[1])["worker"]["state"] == {"page": 1}
    two.write_bytes(one.read_bytes())
    assert json.loads(export(folder)[1])["worker"]["state"] == {"page": 0}
    one.write_bytes(b"nonsense")
    with pytest.raises(
        NotExportable, match=r"matches-0: none of its checkpoints is sound .*checkpoint restore matches-0"
    ):
        export(folder)
    assert three.exists()  # nothing is moved
    assert CheckpointFiles(folder).perform(LoadState(0, "matches-0", 1)).found == "damaged"  # which moves them
    with pytest.raises(NotExportable, match="its files are damaged and were set aside"):
        export(folder)
    open_run(ledger, "fresh")
    save(folder, "matches-0", 1, 9)  # an earlier run's, which does not count any more
    assert b'"worker"' not in b"".join(export(folder))


def test_the_counts_that_a_file_tells_of_done_items_are_not_believed(tmp_path: Path, other: Ledger) -> None:
    writer = Writer()
    header = RunHeader(1, "scraper-supervisor-run", "g", 1, "completed", TIME, TIME, TIME)
    answer = put(other, [writer.line(one) for one in (header, WorkerTotals("g-0", 99, 3), done("a", 1))])
    assert answer.problem is None
    image = open_run(other)
    assert (image.workers, image.state, image.finished_at) == ((WorkerTotals("matches-0", 1, 3),), "completed", TIME)
    with LedgerReader(tmp_path / "b" / "ledger.db") as reader:
        assert reader.verify() is None


def test_a_header_may_be_all_there_is(folder: Path, ledger: Ledger, other: Ledger) -> None:
    open_run(ledger)
    whole = export(folder)
    assert len(whole) == 2
    assert put(other, whole).run == 1
    assert isinstance(json.loads(whole[0]), dict)
    assert RunHeader.__struct_fields__[0] == "format"
