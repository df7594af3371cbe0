from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from msgspec import Raw

from scraper_supervisor.core.records import Added, AddItems, Conclude, NewItem, OpenRun, Outcome, RunImage
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
    assert {file.name for file in path.parent.iterdir()} == {"ledger.db", "ledger.db.sha256"}
    with LedgerReader(path) as reader:
        look(reader)


def test_more_rows_than_one_step_reads(ledger: Ledger, path: Path) -> None:
    ids = add(ledger, *(item(f"k{n}") for n in range(2500)))
    ledger.perform([ending(id_, "done") for id_ in ids])
    with LedgerReader(path) as reader:
        assert [row.key for row in reader.items(G)] == [f"k{n}" for n in range(2500)]
        assert [row.seq for row in reader.results(G, after=3)] == list(range(4, 2501))


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
