"""Runs exported from one ledger and imported into another."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import Raw
from tests.store.sqlite.ledger_writer import G
from tests.store.sqlite.run_files import (
    NOW,
    ask,
    ending,
    entries,
    export,
    fill,
    items_of,
    never,
    newest,
    open_run,
    put,
    same,
    save,
)

from scraper_supervisor.core.formats.run_export import RunHeader
from scraper_supervisor.core.ops.import_ops import DropState, StateTaken, TakeState
from scraper_supervisor.core.ops.item_ops import Added, AddItems, Conclude, FindConclusion, NewItem
from scraper_supervisor.core.ops.run_ops import SetRunState, WorkerTotals
from scraper_supervisor.core.ops.state_ops import LoadState
from scraper_supervisor.store.errors import NotExportable
from scraper_supervisor.store.ports import RunGone
from scraper_supervisor.store.sqlite.reader import LedgerReader
from scraper_supervisor.store.sqlite.run_export import Export
from scraper_supervisor.store.states.checkpoints import CheckpointFiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scraper_supervisor.store.sqlite.ledger import Ledger


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


def test_a_header_may_be_all_there_is(folder: Path, ledger: Ledger, other: Ledger) -> None:
    open_run(ledger)
    whole = export(folder)
    assert len(whole) == 2
    assert put(other, whole).run == 1
    assert isinstance(json.loads(whole[0]), dict)
    assert RunHeader.__struct_fields__[0] == "format"
