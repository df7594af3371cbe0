from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import Raw

from scraper_supervisor.core.records import (
    Added,
    AddItems,
    Conclude,
    Entries,
    FetchLanes,
    NewItem,
    OpenRun,
    Outcome,
    RunImage,
)
from scraper_supervisor.store import queries
from scraper_supervisor.store.ledger import Ledger
from scraper_supervisor.store.queries import LedgerReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

G = "matches"
START = 1_777_636_800.0  # 2026-05-01T12:00:00Z


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(path, lambda: START)
    yield ledger
    ledger.close()


def add(ledger: Ledger, *items: NewItem) -> list[int]:
    run, added = ledger.perform([OpenRun(1, G, "continue", 5), AddItems(1, G, 1, items)])
    assert isinstance(run, RunImage)
    assert run.run_id == 1
    assert isinstance(added, Added)
    return [item for _, item, _ in added.added]


def item(key: str, target: str = "a.test", data: bytes = b"null") -> NewItem:
    return NewItem(key, target, Raw(data), 0)


def ending(
    item: int, outcome: Outcome, result: bytes = b"null", delay: float | None = None, failure: Raw | None = None
) -> Conclude:
    return Conclude(1, G, 1, item, "k", 7, "matches-0", outcome, 1, result=Raw(result), delay=delay, failure=failure)


def test_reading_beside_the_writer_and_without_one(ledger: Ledger, path: Path) -> None:
    ids = add(ledger, *(item(key, "b.test" if key == "d" else "a.test") for key in "abcd"))
    ledger.perform([ending(ids[0], "done"), ending(ids[1], "failed", failure=Raw(b'{"kind":"permanent"}'))])
    ledger.perform([ending(ids[2], "retry", delay=60.5)])

    def look(reader: LedgerReader) -> None:
        assert reader.groups() == [G]
        (info,) = reader.runs(G)
        assert (info.pending, info.waiting, info.parked, info.done, info.failed) == (1, 1, 0, 1, 1)
        rows = {row.key: row for row in reader.items(G)}
        assert {key: row.state for key, row in rows.items()} == {
            "a": "done",
            "b": "failed",
            "c": "waiting",
            "d": "pending",
        }
        assert rows["c"].not_before == "2026-05-01T12:01:00.500Z"
        assert (rows["b"].worker, rows["b"].last_failure) == ("matches-0", Raw(b'{"kind":"permanent"}'))
        assert (rows["d"].worker, rows["d"].target, rows["d"].attempts) == (None, "b.test", 0)
        for state in ("pending", "waiting", "parked", "done", "failed"):
            assert [row.key for row in reader.items(G, state=state)] == [
                k for k, row in rows.items() if row.state == state
            ]
        assert list(reader.items(G, state="in_flight")) == []
        assert [row.seq for row in reader.results(G, 1)] == [1]
        assert list(reader.results(G, after=1)) == []
        assert reader.verify() is None
        with pytest.raises(LookupError, match="no run 9 of group 'matches'"):
            next(reader.items(G, 9))
        with pytest.raises(LookupError, match="no run of group 'others'"):
            next(reader.results("others"))

    with LedgerReader(path) as reader:
        look(reader)
    ledger.close()
    assert [file.name for file in path.parent.iterdir()] == ["ledger.db"]
    with LedgerReader(path) as reader:
        look(reader)


def test_more_rows_than_one_step_reads(ledger: Ledger, path: Path) -> None:
    ids = add(ledger, *(item(f"k{n}") for n in range(2500)))
    ledger.perform([ending(id_, "done") for id_ in ids])
    with LedgerReader(path) as reader:
        assert [row.key for row in reader.items(G)] == [f"k{n}" for n in range(2500)]
        assert [row.seq for row in reader.results(G, after=3)] == list(range(4, 2501))


@pytest.mark.parametrize(("rows", "size", "ids"), [(5, 10**6, 7), (10**3, 1, 50), (3, 200, 1000), (1, 1, 1)])
def test_steps_of_any_size_read_the_same(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, size: int, ids: int
) -> None:
    # Two groups whose items have their ids in turns, and a gap where a third was.
    (mine,) = ledger.perform([OpenRun(1, G, "continue", 5)])
    (theirs,) = ledger.perform([OpenRun(1, "others", "continue", 5)])
    assert isinstance(mine, RunImage)
    assert isinstance(theirs, RunImage)
    keys = [f"k{n}" for n in range(40)]
    for key in keys:
        ledger.perform([AddItems(1, G, mine.run_id, (item(key),)), AddItems(1, "others", theirs.run_id, (item(key),))])
    ledger._db.execute("UPDATE items SET id = id + 500 WHERE id > 30")
    (found,) = ledger.perform([FetchLanes(1, G, mine.run_id, (("a.test", None),), 100)])
    assert isinstance(found, Entries)
    outcomes: list[Outcome] = ["done", "failed", "retry", "open"]
    for number, entry in enumerate(found.items):
        more = {"delay": 60.0 if number % 4 == 2 else None, "failure": Raw(b'{"message":"%s"}' % (b"x" * 90))}
        ledger.perform([ending(entry.id, outcomes[number % 4], **more)])  # type: ignore[arg-type]  # as named there
    monkeypatch.setattr(queries, "_ROWS", rows)
    monkeypatch.setattr(queries, "_BYTES", size)
    monkeypatch.setattr(queries, "_IDS", ids)
    with LedgerReader(path) as reader:
        assert [row.key for row in reader.items(G)] == keys
        assert [row.key for row in reader.items("others")] == keys
        for number, state in enumerate(("done", "failed", "waiting")):
            assert [row.key for row in reader.items(G, state=state)] == keys[number::4]  # type: ignore[arg-type]
        assert [row.key for row in reader.results(G)] == keys[::4]
        assert [row.seq for row in reader.results(G, after=4)] == [5, 6, 7, 8, 9, 10]
        assert reader.verify() is None


def test_no_reading_sorts_a_run(path: Path, ledger: Ledger) -> None:
    # With an index' order, each step of a million items would sort what is left of them.
    plans: list[str] = []
    add(ledger, item("a"))
    with LedgerReader(path) as reader:
        connection = reader._db

        class Explaining:
            def execute(self, query: str, values: Any = ()) -> Any:
                plans.extend(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", values))
                return connection.execute(query, values)

            def close(self) -> None:
                connection.close()

        reader._db = Explaining()  # type: ignore[assignment]  # as much of a connection as is used
        for state in (None, "pending", "waiting", "parked", "done", "failed"):
            list(reader.items(G, state=state))  # type: ignore[arg-type]
        list(reader.results(G))
    assert len(plans) > 10
    assert not [plan for plan in plans if "B-TREE" in plan]


def test_verifying_finds_a_changed_result_and_a_broken_page(ledger: Ledger, path: Path, tmp_path: Path) -> None:
    ids = add(ledger, *(item(f"k{n}", data=b'"' + b"d" * 500 + b'"') for n in range(100)))
    ledger.perform([ending(ids[0], "done", b'{"score":1}')])
    ledger.close()
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    content = bytearray(path.read_bytes())
    at = content.index(b'{"score":1}')
    content[at + 9 : at + 10] = b"2"
    path.write_bytes(content)
    with LedgerReader(path) as reader:
        assert reader.verify() == "the checksum of result 1 of run id 1 does not fit"
    content = bytearray(copy.read_bytes())
    content[5 * 4096 : 6 * 4096] = bytes(4096)
    copy.write_bytes(content)
    with LedgerReader(copy) as reader:
        assert str(reader.verify()).startswith("SQLite finds: ")


def test_no_ledger_to_read(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LedgerReader(path)
    assert not path.exists()
