from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec import Raw

from scraper_supervisor.core.ops.item_ops import Added, AddItems, Conclude, Front, Leased, LeaseFresh, NewItem, Outcome
from scraper_supervisor.core.ops.run_ops import OpenRun, RunImage
from scraper_supervisor.store.errors import LedgerDamaged, LedgerUnreadable, StoreFault
from scraper_supervisor.store.sqlite import reader as queries
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_supervisor.store.sqlite.reader import LedgerReader

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
    assert {file.name for file in path.parent.iterdir()} == {"ledger.db", "ledger.db.sha256"}
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
    (found,) = ledger.perform([LeaseFresh(1, G, mine.run_id, (Front("a.test", None),), 100)])
    assert isinstance(found, Leased)
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


def test_a_damaged_result_is_never_told_as_a_sound_one(ledger: Ledger, path: Path, tmp_path: Path) -> None:
    ids = add(ledger, *(item(f"k{n}", data=b'"' + b"d" * 500 + b'"') for n in range(100)))
    ledger.perform([ending(ids[0], "done", b'{"score":0}'), ending(ids[1], "done", b'{"score":1}')])
    ledger.close()
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    content = bytearray(path.read_bytes())
    at = content.index(b'{"score":1}')
    content[at + 9 : at + 10] = b"2"
    path.write_bytes(content)
    with LedgerReader(path) as reader:
        assert reader.verify() == "run 1 of matches: the checksum of result 2 does not fit"
        told = reader.results(G)
        assert next(told).seq == 1
        with pytest.raises(LedgerUnreadable, match=r"the checksum of result 2 \('k1'\) does not fit"):
            next(told)
    with pytest.raises(LedgerDamaged, match="its SHA-256 is another"):
        Ledger.open(path)
    content = bytearray(copy.read_bytes())
    for page in range(3, len(content) // 4096):
        content[page * 4096 : page * 4096 + 8] = bytes(8)
    copy.write_bytes(content)
    with LedgerReader(copy) as reader:
        assert str(reader.verify()).startswith("SQLite finds: ")
        with pytest.raises(LedgerUnreadable, match="malformed"):
            list(reader.items(G))


UNCHECKED = "PRAGMA ignore_check_constraints = ON"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("UPDATE items SET state = 'open' WHERE key = 'a'", "result 1 is not the one of its item"),
        (
            "UPDATE items SET seq = NULL WHERE key = 'b'; DELETE FROM results WHERE seq = 2",
            "1 items are done and have no",
        ),
        ("UPDATE items SET seq = 9 WHERE key = 'a'", "result 1 is not the one of its item"),
        ("UPDATE items SET seq = 9 WHERE key = 'c'", "items are failed and have no result, or the reverse"),
        ("UPDATE items SET attempts = 7 WHERE key = 'a'", "result 1 is not the one of its item"),
        ("UPDATE items SET seq = 3 - seq WHERE state = 'done'", "result 1 is not the one of its item"),
        ("UPDATE results SET seq = 3 WHERE seq = 2", "result 2 is missing"),
        ("UPDATE results SET result = '{}' WHERE seq = 2", "the checksum of result 2 does not fit"),
        ("DELETE FROM results WHERE seq = 2", "2 items are done, and there are 1 results"),
        ("DELETE FROM items WHERE key = 'a'", "result 1 is not the one of its item"),
        ("UPDATE runs SET failed = 0", "1 waiting, and counted as 2 done, 0 failed"),
        ("UPDATE runs SET waiting = 2", "counted as 2 done, 1 failed, 0 parked, 2 waiting"),
        ("UPDATE lanes SET open = 3", "the counts of its targets"),
        ("UPDATE totals SET done = 1", "the counts of its workers"),
        (f"{UNCHECKED}; UPDATE items SET state = 'doe' WHERE key = 'e'", "1 items have a state or an outcome"),
        (f"{UNCHECKED}; UPDATE items SET last_outcome = 'doe' WHERE key = 'e'", "1 items have a state or an outcome"),
    ],
)
def test_tables_that_contradict_each_other(ledger: Ledger, path: Path, change: str, found: str) -> None:
    ids = add(ledger, *(item(key) for key in "abcde"))
    ledger.perform([ending(ids[0], "done"), ending(ids[1], "done"), ending(ids[2], "failed")])
    ledger.perform([ending(ids[3], "retry", delay=60.0)])
    with LedgerReader(path) as reader:
        assert reader.verify() is None
        ledger._db.executescript(f"PRAGMA foreign_keys = OFF; {change}")
        assert found in str(reader.verify())


def test_verifying_beside_a_busy_writer_raises_no_false_alarm(ledger: Ledger, path: Path) -> None:
    """Items are added, ended and waited for, and whole runs are removed, as fast as it goes."""
    over = threading.Event()
    ledger._db.execute("PRAGMA wal_autocheckpoint = 50")  # the log begins anew again and again

    def work() -> None:
        for number in range(1_000_000):
            if over.is_set():
                return
            if number % 40 == 0:
                image = ledger.perform([OpenRun(1, G, "fresh", 2)])[0]
            assert isinstance(image, RunImage)
            added = ledger.perform([AddItems(1, G, image.run_id, tuple(item(f"{number}-{n}") for n in range(12)))])[0]
            assert isinstance(added, Added)
            ids = [id_ for _, id_, _ in added.added]
            ends = [ending(id_, "done") for id_ in ids[:7]] + [
                ending(ids[7], "failed"),
                ending(ids[8], "retry", b"", 9),
            ]
            assert not any(
                isinstance(answer, StoreFault)
                for answer in ledger.perform([msgspec.structs.replace(op, run_id=image.run_id) for op in ends])
            )
            ledger._tidy(100)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        newest = verified = 0
        while verified < 40 or newest < 5:
            with LedgerReader(path) as reader:
                assert reader.verify() is None
                newest = max((info.run for info in reader.runs(G)), default=0)
            verified += 1
            assert thread.is_alive()
    finally:
        over.set()
        thread.join()


def test_no_ledger_to_read(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LedgerReader(path)
    assert not path.exists()
