"""A damaged ledger is replaced by its newest sound backup; what that lacks is told, and nothing is deleted."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from tests.store.sqlite.ledger_writer import contents
from tests.store.sqlite.test_schema import die_in_a_transaction

from scraper_supervisor.core.formats.timestamps import timestamp
from scraper_supervisor.core.ops.item_ops import Added, AddItems, Conclude, NewItem, ReserveClaims, Reserved
from scraper_supervisor.core.ops.run_ops import LoadRun, OpenRun, RunImage
from scraper_supervisor.store.errors import LedgerDamaged, LedgerTooNew
from scraper_supervisor.store.sqlite.backups.backup import back_up
from scraper_supervisor.store.sqlite.backups.restore import CLAIMS_A_SECOND, NotRestored, restore
from scraper_supervisor.store.sqlite.backups.salvage import Missing
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_supervisor.store.sqlite.reader import LedgerReader

if TYPE_CHECKING:
    from collections.abc import Callable

G = "matches"
START = 1_777_636_800.0  # 2026-05-01T12:00:00Z
NEVER = threading.Event()


class Site:
    """A ledger with 300 items, 100 of them done before the backup and 100 after it; then 50 items more, one failed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "ledger.db"
        self.now = START
        ledger = Ledger.open(self.path, lambda: self.now)
        ledger.perform([OpenRun(1, G, "continue", 5), ReserveClaims(1, G, 1024)])
        ids = self.add(ledger, range(300))
        self.done(ledger, ids[:100])
        self.backup = back_up(folder, NEVER, lambda: START + 60)
        self.now += 120
        self.done(ledger, ids[100:200])
        more = self.add(ledger, range(300, 350))
        ledger.perform([self.ending(more[0], "failed")])
        self.log(350, "done")
        ledger.close()

    def add(self, ledger: Ledger, numbers: range) -> list[int]:
        items = tuple(NewItem(f"k{number}", "a.test", Raw(b"null"), 0) for number in numbers)
        (added,) = ledger.perform([AddItems(1, G, 1, items)])
        assert isinstance(added, Added)
        return [item for _, item, _ in added.added]

    def ending(self, item: int, outcome: Any) -> Conclude:
        return Conclude(1, G, 1, item, "k", item, "matches-0", outcome, 1, result=Raw(b'{"item":%d}' % item))

    def done(self, ledger: Ledger, ids: list[int]) -> None:
        ledger.perform([self.ending(item, "done") for item in ids])
        for item in ids:
            self.log(item - 1, "done")

    def log(self, number: int, outcome: str) -> None:
        data = {"key": f"k{number}", "attempt": 1, "outcome": outcome}
        event = {
            "time": timestamp(self.now, "microseconds"), "event": "item_finished", "worker": "matches-0", "data": data,
        }  # fmt: skip
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture(scope="module")
def closed_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """One that is copied before it is harmed."""
    return Site(tmp_path_factory.mktemp("site"))


def break_header(path: Path) -> None:
    path.write_bytes(b"x" * 100 + path.read_bytes()[100:])


def break_page(number: int) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[number * 4096 : (number + 1) * 4096] = bytes(4096)
        path.write_bytes(content)

    return harm


def test_what_the_backup_lacks_is_told_from_the_damaged_ledger_and_the_events(site: Site) -> None:
    """One result does not fit its checksum: all other rows are sound."""
    db = sqlite3.connect(site.path)
    with db:
        db.execute("UPDATE results SET result = '{}' WHERE seq = 150")
    db.close()
    told = restore(site.folder, lambda: START + 600)
    assert told.damage == "run 1 of matches: the checksum of result 150 does not fit"
    assert (told.backup, told.backup_at) == (str(site.backup.path), "2026-05-01T12:01:00.000Z")
    assert (told.unsound, told.unread) == ([], None)
    missing = {one.key: one for one in told.missing}
    assert set(missing) == {f"k{number}" for number in [*range(100, 200), *range(300, 351)]}
    assert missing["k100"] == Missing(G, 1, "k100", "done", True, Raw(b'{"item":101}'))
    assert missing["k149"] == Missing(G, 1, "k149", "done", False)
    assert missing["k300"] == Missing(G, 1, "k300", "failed", True)
    assert missing["k301"] == Missing(G, 1, "k301", "added", True)
    assert missing["k350"] == Missing(G, 1, "k350", "done", False)  # of which the event log alone knows
    corrupt = site.folder / "corrupt" / "ledger-20260501T121000.000Z"
    assert told.moved == [str(corrupt / f"ledger.db{end}") for end in ("", "-wal", "-shm", ".sha256")]
    assert {str(file) for file in corrupt.iterdir()} == set(told.moved)
    assert site.path.read_bytes()[18:20] == b"\2\2", "it uses the log from the first moment on"
    assert {file.name for file in site.folder.glob("ledger*")} == {"ledger.db", "ledger.db.sha256"}
    with LedgerReader(site.path) as reader:
        assert reader.verify() is None
        (info,) = reader.runs(G)
        assert (info.done, info.pending) == (100, 200)
    ledger = Ledger.open(site.path)
    image = ledger.perform([LoadRun(1, G)])[0]
    assert isinstance(image, RunImage)
    first = 1_777_637_400 * CLAIMS_A_SECOND  # the time of the restore
    assert ledger.perform([ReserveClaims(1, G, 10)]) == [Reserved(first, first + 10)]
    row = ledger._db.execute("SELECT restored_at, backup, backup_at FROM restores").fetchone()
    assert row == ("2026-05-01T12:10:00.000Z", site.backup.path.name, "2026-05-01T12:01:00.000Z")
    ledger.close()


def test_a_journal_that_a_death_left_is_undone_and_the_ledger_is_sound(site: Site) -> None:
    shutil.copy(site.backup.path, site.path)
    for ending in ("-wal", "-shm", ".sha256"):
        site.path.with_name(f"ledger.db{ending}").unlink(missing_ok=True)
    before = contents(site.path)
    die_in_a_transaction(site.path)
    with pytest.raises(NotRestored, match="the ledger is sound"):
        restore(site.folder)
    assert contents(site.path) == before


def test_a_journal_goes_with_the_ledger_that_is_damaged(site: Site) -> None:
    break_header(site.path)
    site.path.with_name("ledger.db-journal").write_bytes(b"x" * 512)
    for ending in ("-journal", "-wal", "-shm"):
        site.path.with_name(f"ledger.db.restored{ending}").write_bytes(b"x" * 8192)  # of a restore that was cut off
    moved = restore(site.folder).moved
    assert [os.path.basename(path) for path in moved] == ["ledger.db", "ledger.db-journal", "ledger.db.sha256"]
    assert {file.name for file in site.folder.glob("ledger*")} == {"ledger.db", "ledger.db.sha256"}
    Ledger.open(site.path).close()


def test_a_page_that_cannot_be_read_leaves_the_others(site: Site) -> None:
    break_page(leaf_of_items(site.path))(site.path)
    told = restore(site.folder)
    assert told.unread is not None
    assert "some of its items can't be read" in told.unread
    keys = {one.key for one in told.missing}
    assert {f"k{number}" for number in range(100, 200)} <= keys  # the event log has all that are done
    assert 50 < sum(one.recoverable for one in told.missing) < 150


def leaf_of_items(path: Path) -> int:
    """The page that item 150 is on, counted from 0: a table's leaf begins with 13."""
    content = path.read_bytes()
    for page in range(1, len(content) // 4096):
        part = content[page * 4096 : (page + 1) * 4096]
        if part[0] == 13 and b"k150a.test" in part:
            return page
    raise AssertionError("no such page")


def change(statement: str) -> Callable[[Path], None]:
    """Have a value of another type, as one changed byte of a row's header makes it: nothing else is different."""

    def harm(path: Path) -> None:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("PRAGMA ignore_check_constraints = ON")
            assert db.execute(statement).rowcount > 0

    return harm


def lose_result(path: Path) -> None:
    """The header of k150's result says NULL, where it said a text of 12 bytes before one of 64 bytes."""
    content = bytearray(path.read_bytes())
    at = content.rindex(b"\x25\x81\x0d", 0, content.index(b'{"item":151}'))
    content[at] = 0
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "table", "unread"),
    [
        (lose_result, "results", None),
        (change("UPDATE results SET result = CAST(result AS BLOB) WHERE seq = 151"), "results", None),
        (change("UPDATE results SET sha256 = CAST(sha256 AS BLOB) WHERE seq = 151"), "results", None),
        (change("UPDATE items SET key = CAST(key AS BLOB) WHERE key = 'k150'"), "items", "some of its items have"),
        (change("UPDATE items SET state = CAST(state AS BLOB) WHERE key = 'k150'"), "items", "some of its items have"),
        (change("UPDATE items SET run_id = 1.5 WHERE key = 'k150'"), "items", "some of its items have"),
        (change("UPDATE items SET seq = x'' WHERE key = 'k150'"), "items", None),
        (change("UPDATE lanes SET open = x''"), "lanes", None),
        (change("UPDATE totals SET done = x''"), "totals", None),
        (change("UPDATE runs SET done = x''"), "runs", None),
        (change("UPDATE runs SET run = x''"), "runs", "some of its items are of a run that can't be read"),
        (change("UPDATE runs SET started_at = x''"), "runs", "some of its runs have values that can't be"),
        (change("UPDATE groups SET name = CAST(name AS BLOB)"), "groups", "some of its items are of a run that"),
    ],
)
def test_values_of_another_type_are_damage_and_are_passed_over(
    site: Site, harm: Callable[[Path], None], table: str, unread: str | None
) -> None:
    """SQLite tells no error of them, and reads them as what they are now."""
    harm(site.path)
    told = restore(site.folder)
    assert told.damage.startswith((f"a row of {table} has a value of a type that it can't have", "SQLite finds: "))
    assert (told.unread or "").startswith(unread or "")
    assert (told.unread is None) == (unread is None)
    missing = {one.key: one for one in told.missing}
    assert {f"k{number}" for number in [*range(100, 200), 350]} <= missing.keys()  # by the event log at the least
    assert all(one.result == Raw(b'{"item":%d}' % (int(key[1:]) + 1)) for key, one in missing.items() if one.result)
    if table == "items" or harm is lose_result:
        assert not missing["k150"].recoverable
        assert missing["k151"].recoverable
    with LedgerReader(site.path) as reader:
        assert reader.verify() is None
    with pytest.raises(NotRestored, match="the ledger is sound"):
        restore(site.folder)


def test_a_schema_that_is_no_text_is_damage(site: Site) -> None:
    """SQLite quotes it in the message of its error, which is no text then."""
    content = site.path.read_bytes()
    site.path.write_bytes(content.replace(b"CREATE TABLE items (", b"CREATE TABLE items \x83", 1))
    with pytest.raises(LedgerDamaged, match="its schema is damaged"):
        Ledger.open(site.path)
    told = restore(site.folder)
    assert told.damage == "its schema is damaged"
    assert told.unread is not None
    assert {one.key for one in told.missing} == {f"k{number}" for number in [*range(100, 200), 350]}


def test_an_id_out_of_all_bounds_costs_neither_memory_nor_the_other_items(site: Site) -> None:
    with closing(sqlite3.connect(site.path)) as db, db:
        db.execute("UPDATE items SET id = ? WHERE key = 'k349'", (1 << 50,))
        db.execute("UPDATE results SET result = '{}' WHERE seq = 150")
    told = restore(site.folder)
    assert told.unread == "some of its items are not where their ids say"
    assert {one.key for one in told.missing} == {f"k{number}" for number in [*range(100, 200), *range(300, 349), 350]}


@pytest.mark.slow
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_whichever_byte_is_damaged_there_is_a_ledger_again(closed_site: Site, where: float, flip: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "state"
        shutil.copytree(closed_site.folder, folder)
        path = folder / "ledger.db"
        content = bytearray(path.read_bytes())
        content[int(where * len(content))] ^= flip
        path.write_bytes(content)
        try:
            told = restore(folder)
        except LedgerTooNew:
            assert content[60:64] != closed_site.path.read_bytes()[60:64]
            return
        assert {f"k{number}" for number in [*range(100, 200), 350]} <= {one.key for one in told.missing}
        with LedgerReader(path) as reader:
            assert reader.verify() is None


@pytest.mark.parametrize("harm", [break_header, break_page(0), lambda path: path.write_bytes(b""), os.unlink])
def test_where_nothing_of_it_can_be_read_the_event_log_tells(site: Site, harm: Callable[[Path], None]) -> None:
    harm(site.path)
    with pytest.raises(LedgerDamaged):
        Ledger.open(site.path)
    told = restore(site.folder)
    assert {one.key for one in told.missing} == {f"k{number}" for number in [*range(100, 200), 350]}
    assert {one.outcome for one in told.missing} == {"done"}
    assert {one.run for one in told.missing} == {1}
    with LedgerReader(site.path) as reader:
        assert reader.verify() is None
    assert site.path.with_name("ledger.db.sha256").exists()


def test_the_rotated_events_are_read_too(site: Site) -> None:
    os.rename(site.folder / "events.jsonl", site.folder / "events.jsonl.1")
    site.now += 1
    site.log(351, "failed")
    site.log(352, "failed")
    site.log(352, "done")
    site.path.unlink()
    told = {one.key: one.outcome for one in restore(site.folder).missing}
    assert (len(told), told["k199"], told["k351"], told["k352"]) == (103, "done", "failed", "done")


def test_a_damaged_backup_is_passed_over(site: Site) -> None:
    newer = back_up(site.folder, NEVER, lambda: START + 200)
    newer.path.write_bytes(newer.path.read_bytes()[:-4096])
    break_header(site.path)
    told = restore(site.folder)
    assert told.backup == str(site.backup.path)
    assert [one.path for one in told.unsound] == [str(newer.path)]
    assert newer.path.exists()


def test_an_older_version_is_migrated_when_it_is_restored(site: Site) -> None:
    db = sqlite3.connect(site.backup.path, isolation_level=None)
    db.execute("DROP TABLE restores")
    later = (("runs", "offered"), ("runs", "host"), ("runs", "hosts"), ("runs", "entrypoint"), ("items", "given"))
    for table, column in later:
        db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    (sql,) = db.execute("SELECT sql FROM sqlite_schema WHERE name = 'items'").fetchone()
    sql = sql.replace(" CHECK (state IN ('open', 'parked', 'done', 'failed'))", "")
    sql = sql.replace(" CHECK (last_outcome IN ('done', 'failed', 'retry', 'open'))", "")
    db.execute("PRAGMA writable_schema = ON")
    db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'items'", (sql,))
    db.execute("PRAGMA user_version = 1")
    db.close()
    site.backup.path.with_name(site.backup.path.name + ".sha256").unlink()
    break_header(site.path)
    restore(site.folder)
    ledger = Ledger.open(site.path)
    assert ledger._db.execute("PRAGMA user_version").fetchone() == (4,)
    assert ledger._db.execute("SELECT count(*) FROM restores").fetchone() == (1,)
    ledger.close()


def test_what_is_not_restored(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    def files() -> dict[str, bytes]:
        return {
            str(file): file.read_bytes()
            for file in site.folder.rglob("*")
            if file.is_file() and not file.name.endswith(("-shm", "-wal"))
        }

    before = files()
    with pytest.raises(NotRestored, match="the ledger is sound"):
        restore(site.folder)
    assert files() == before
    db = sqlite3.connect(site.path)
    db.execute("PRAGMA user_version = 77")
    db.close()
    before = files()
    with pytest.raises(LedgerTooNew):
        restore(site.folder)
    assert files() == before
    break_header(site.path)
    site.backup.path.write_bytes(b"nonsense")
    before = files()
    with pytest.raises(NotRestored, match=r"there is no sound backup of the ledger; .*it is no SQLite database"):
        restore(site.folder)
    assert files() == before
    shutil.rmtree(site.folder / "backups")
    with pytest.raises(NotRestored, match="there is no backup of the ledger"):
        restore(site.folder)
    with pytest.raises(NotRestored, match="there is no backup of the ledger"):
        restore(tmp_path_factory.mktemp("empty"))


DYING = """
import os, sys
from pathlib import Path
from scraper_supervisor.store.sqlite.backups.restore import restore
left = int(sys.argv[2])
def audit(event, arguments):
    global left
    changes = event in ("os.rename", "os.remove", "os.mkdir", "open")
    reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_DIRECTORY)  # folders are synced
    left -= changes and not reads and sys.argv[1] in str(arguments[0])
    if left < 0:
        os._exit(9)
sys.addaudithook(audit)
restore(Path(sys.argv[1]))
os._exit(0)
"""


@pytest.mark.slow
def test_a_restore_that_is_cut_off_is_made_again(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    """It dies before each of its operations on files in turn: there is never an empty ledger, nor a part of one."""
    break_header(site.path)
    expected = {f"k{number}" for number in [*range(100, 200), 350]}
    code, step, died = 9, 0, 0
    while code == 9:
        folder = tmp_path_factory.mktemp("cut") / "state"
        shutil.copytree(site.folder, folder)
        code = subprocess.run([sys.executable, "-c", DYING, str(folder), str(step)], check=False).returncode
        step += 1
        died += code == 9
        try:
            Ledger.open(folder / "ledger.db").close()
        except LedgerDamaged:
            assert {one.key for one in restore(folder).missing} == expected
        with LedgerReader(folder / "ledger.db") as reader:
            assert reader.verify() is None
            assert reader.runs(G)[0].done == 100
        assert next(folder.glob("corrupt/ledger-*/ledger.db")).read_bytes() == site.path.read_bytes()
    assert code == 0
    assert died > 15


def test_the_document_is_json(site: Site) -> None:
    break_header(site.path)
    document = json.loads(msgspec.json.encode(restore(site.folder)))
    assert set(document) == {"backup", "backup_at", "damage", "moved", "missing", "unsound", "unread"}
    assert document["missing"][0] == {"group": G, "run": 1, "key": "k100", "outcome": "done", "recoverable": False}
