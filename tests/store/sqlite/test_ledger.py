from __future__ import annotations

import errno
import hashlib
import json
import sqlite3
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import pytest
from msgspec import Raw

from scraper_supervisor.core.formats.run_export import PortableItem, Writer
from scraper_supervisor.core.ops.import_ops import ImportBegin, Imported, ImportLines
from scraper_supervisor.core.ops.item_ops import (
    RETRY_ORIGIN,
    Added,
    AddItems,
    Cancel,
    Changed,
    Conclude,
    Concluded,
    Conclusion,
    ConfirmClaims,
    Confirmed,
    FindConclusion,
    Front,
    Leased,
    LeaseFresh,
    LeaseLost,
    LeaseWaiting,
    NamedClaim,
    NewItem,
    Outcome,
    Requeue,
    ReserveClaims,
    Reserved,
)
from scraper_supervisor.core.ops.run_ops import (
    CompleteRun,
    Intents,
    Lane,
    LoadIntents,
    LoadRun,
    OpenRun,
    Probe,
    RunEnd,
    RunImage,
    SetIntent,
    SetRunState,
    WorkerTotals,
)
from scraper_supervisor.store.errors import StoreFault
from scraper_supervisor.store.sqlite import ledger as ledger_module
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_supervisor.store.sqlite.reader import LedgerReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scraper_supervisor.core.ops.all_ops import Answer, LedgerOp

G = "matches"
START = 1_777_636_800.0  # 2026-05-01T12:00:00Z
A = TypeVar("A")


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def warned() -> list[tuple[str, str]]:
    """What the ledger told of its upkeep, and why."""
    return []


@pytest.fixture
def ledger(path: Path, clock: Clock, warned: list[tuple[str, str]]) -> Iterator[Ledger]:
    ledger = Ledger.open(path, clock, warn=lambda what, why: warned.append((what, why)))
    yield ledger
    ledger.close()


def ask(ledger: Ledger, op: LedgerOp, kind: type[A]) -> A:
    (answer,) = ledger.perform([op])
    assert isinstance(answer, kind), answer
    return answer


def open_run(ledger: Ledger, mode: str = "continue", keep_runs: int = 5) -> RunImage:
    return ask(ledger, OpenRun(1, G, mode, keep_runs), RunImage)  # type: ignore[arg-type]  # one of the modes


def item(key: str, target: str | None = "a.test", priority: int = 0, data: bytes = b"null") -> NewItem:
    return NewItem(key, target, Raw(data), priority)


def add(ledger: Ledger, run: RunImage, *items: NewItem) -> Added:
    return ask(ledger, AddItems(1, G, run.run_id, items), Added)


def ending(run: RunImage, id_: int, outcome: Outcome, **more: object) -> Conclude:
    given = {"claim": 7, "worker": "matches-0", "attempts": 1} | more
    return Conclude(1, G, run.run_id, id_, "k", outcome=outcome, **given)  # type: ignore[arg-type]  # tests name them


def lane(
    ledger: Ledger, run: RunImage, target: str | None = "a.test", after: tuple[int, float] | None = None
) -> list[str]:
    answer = ask(ledger, LeaseFresh(1, G, run.run_id, (Front(target, after),), 100), Leased)
    return [entry.key for entry in answer.items]


def park(path: Path, key: str) -> None:
    """Park an item behind the ledger's back: no operation does so yet."""
    db = sqlite3.connect(path)
    with db:
        db.execute("UPDATE items SET state = 'parked' WHERE key = ?", (key,))
        db.execute("UPDATE runs SET parked = parked + 1")
        db.execute("UPDATE lanes SET open = open - 1")
    db.close()


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_first_run_is_begun_and_continued(ledger: Ledger) -> None:
    run = open_run(ledger)
    assert (run.run, run.state, run.fresh_from, run.lanes) == (1, "running", 1, ())
    assert run.started_at == "2026-05-01T12:00:00.000Z"
    assert open_run(ledger) == run == open_run(ledger, "next") == ask(ledger, LoadRun(1, G), RunImage)


def test_modes_of_opening(ledger: Ledger) -> None:
    run = open_run(ledger)
    ledger.perform([SetRunState(1, G, run.run_id, "completed")])
    completed = open_run(ledger)
    assert (completed.run, completed.state, completed.finished_at) == (1, "completed", "2026-05-01T12:00:00.000Z")
    second = open_run(ledger, "next")
    assert (second.run, second.state, second.fresh_from) == (2, "running", 1)
    ledger.perform([SetRunState(1, G, second.run_id, "aborted")])
    assert open_run(ledger, "next").run == 2
    ledger.perform([SetRunState(1, G, second.run_id, "running")])
    assert open_run(ledger).finished_at is None
    third = open_run(ledger, "fresh")
    assert (third.run, third.fresh_from) == (3, 3)
    ledger.perform([SetRunState(1, G, third.run_id, "completed")])
    assert open_run(ledger, "next").fresh_from == 3


def test_old_runs_are_removed_in_idle_moments(ledger: Ledger, path: Path) -> None:
    while ledger._untidy:
        ledger._tidy(10)
    for _ in range(4):
        run = open_run(ledger, "fresh", keep_runs=2)
        added = add(ledger, run, *(item(f"k{n}") for n in range(25)))
        ledger.perform([ending(run, id_, "done") for _, id_, _ in added.added[:12]])
    assert ledger._untidy
    with LedgerReader(path) as reader:
        assert [info.run for info in reader.runs(G)] == [4, 3]
    steps = 0
    while ledger._untidy:
        ledger._tidy(10)
        steps += 1
    assert steps > 5
    db = sqlite3.connect(path)
    for table in ("items", "results"):
        assert db.execute(f"SELECT count(DISTINCT run_id) FROM {table}").fetchone() == (2,)
    assert db.execute("SELECT count(*) FROM items").fetchone() == (50,)
    assert db.execute("SELECT count(*) FROM runs").fetchone() == (2,)
    db.close()


def test_old_runs_with_large_results_are_removed_in_smaller_steps(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row at a time where that takes all the time there is; a step is never empty."""
    while ledger._untidy:
        ledger._tidy(10)
    run = open_run(ledger)
    added = add(ledger, run, *(item(f"k{n}") for n in range(12)))
    ledger.perform([ending(run, id_, "done") for _, id_, _ in added.added])
    open_run(ledger, "fresh", keep_runs=1)
    monkeypatch.setattr(ledger_module, "_TIDY_SECONDS", 0.0)
    left = []
    while ledger._untidy:
        ledger._tidy(100)
        with LedgerReader(path) as reader:
            left.append(reader._db.execute("SELECT count(*) FROM results").fetchone()[0])
    assert left[:13] == [*range(11, -1, -1), 0]
    with LedgerReader(path) as reader:
        assert reader._db.execute("SELECT count(*) FROM items").fetchone() == (0,)
        assert [info.run for info in reader.runs(G)] == [2]


def rows(path: Path) -> tuple[int, int]:
    """Items, and runs that have some."""
    with LedgerReader(path) as reader:
        found: tuple[int, int] = reader._db.execute("SELECT count(*), count(DISTINCT run_id) FROM items").fetchone()
        return found


def test_an_idle_moment_ends_when_something_is_asked(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_TIDY_SECONDS", 60.0)
    for _ in range(2):
        add(ledger, open_run(ledger, "fresh", keep_runs=1), *(item(f"k{n}") for n in range(1200)))
    asked = iter((False, False, True, True))
    assert ledger.idle(lambda: next(asked)) is None
    assert rows(path) == (1400, 2), "two steps of 500 items were made of it"
    assert ledger.idle(lambda: False) is None
    assert rows(path) == (1200, 1)


def test_old_runs_are_removed_in_small_steps_when_no_moment_is_idle(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        add(ledger, open_run(ledger, "fresh", keep_runs=1), *(item(f"k{n}") for n in range(600)))
    steps: list[tuple[int, int]] = []  # commits before it, its limit
    commits, tidy = 0, ledger._tidy

    def noted(limit: int) -> None:
        steps.append((commits, limit))
        tidy(limit)

    monkeypatch.setattr(ledger, "_tidy", noted)
    while ledger._untidy:
        assert ledger.perform([Probe(1)]) == [None]
        commits += 1
    assert len(steps) > 3
    assert {limit for _, limit in steps} == {ledger_module._TIDY_BUSY}
    assert {after - before for (before, _), (after, _) in pairwise(steps)} == {ledger_module._TIDY_EVERY}
    assert rows(path) == (600, 1)


def test_a_log_that_cannot_be_folded_is_told_once(ledger: Ledger, warned: list[tuple[str, str]]) -> None:
    for _ in range(2):
        ledger._db.close()
        ledger._unfolded_commits = ledger_module._FOLD_COMMITS
        ledger.idle(lambda: True)
    assert [what for what, _ in warned] == ["the ledger's log can't be folded back and grows"]


def test_numbers_of_claims_are_never_allotted_twice(ledger: Ledger, path: Path) -> None:
    ops = [ReserveClaims(1, G, 100), ReserveClaims(2, G, 50), ReserveClaims(3, "new", 7)]
    assert ledger.perform(ops) == [Reserved(1, 101), Reserved(101, 151), Reserved(1, 8)]
    ledger.close()
    again = Ledger.open(path)
    open_run(again, "fresh")
    assert again.perform([ReserveClaims(1, G, 10)]) == [Reserved(151, 161)]
    again.close()


def test_a_claim_that_is_not_the_latest_ends_nothing(ledger: Ledger) -> None:
    run = open_run(ledger)
    ((_, x, _),) = add(ledger, run, item("x")).added
    assert isinstance(ledger.perform([ending(run, x, "retry", claim=9, delay=0.0)])[0], Concluded)
    before = ask(ledger, LoadRun(1, G), RunImage)
    assert ledger.perform([ending(run, x, "done", claim=8)]) == [LeaseLost()]
    assert ask(ledger, LoadRun(1, G), RunImage) == before
    assert isinstance(ledger.perform([ending(run, x, "done", claim=9)])[0], Concluded)


def test_claims_of_a_supervisor_that_died_are_confirmed_while_nothing_was_recorded_of_them_or_later_ones(
    ledger: Ledger,
) -> None:
    run = open_run(ledger)
    added = add(ledger, run, item("open"), item("done"), item("tried")).added
    ids = {key: one[1] for key, one in zip(("open", "done", "tried"), added, strict=True)}
    ledger.perform([ReserveClaims(1, G, 20)])
    ledger.perform([ending(run, ids["done"], "done", claim=5), ending(run, ids["tried"], "retry", claim=6, delay=0.0)])
    named = [("open", 3), ("open", 21), ("done", 7), ("tried", 6), ("tried", 5), ("tried", 8), ("gone", 4)]
    op = ConfirmClaims(1, G, run.run_id, tuple(NamedClaim(*one) for one in named))
    confirmed = ask(ledger, op, Confirmed).claims
    assert [(one.claim, one.item.key) for one in confirmed] == [(3, "open"), (8, "tried")]


def test_a_run_is_completed_by_the_ledger_and_not_while_an_item_is_open(ledger: Ledger) -> None:
    run = open_run(ledger)
    ((_, x, _),) = add(ledger, run, item("x")).added
    assert ask(ledger, CompleteRun(1, G, run.run_id), RunEnd).state == "running"
    ledger.perform([ending(run, x, "retry", delay=9.0)])
    assert ask(ledger, CompleteRun(1, G, run.run_id), RunEnd).state == "running"
    ledger.perform([ending(run, x, "done", claim=8)])
    end = ask(ledger, CompleteRun(1, G, run.run_id), RunEnd)
    assert (end.state, end.image.state, end.image.done) == ("completed", "completed", 1)
    assert end.image.finished_at is not None
    open_run(ledger, "fresh")
    assert isinstance(ledger.perform([CompleteRun(1, G, run.run_id)])[0], StoreFault), "it is not the newest"


def test_a_run_with_parked_items_is_aborted(ledger: Ledger, path: Path) -> None:
    run = open_run(ledger)
    add(ledger, run, item("x"))
    park(path, "x")
    ledger._db.execute("UPDATE lanes SET open = 0")
    ledger._db.execute("UPDATE runs SET parked = 1")
    assert ask(ledger, CompleteRun(1, G, run.run_id), RunEnd).state == "aborted"


def test_intents_outlive_the_ledgers_closing(ledger: Ledger, path: Path) -> None:
    ledger.perform([SetIntent(1, "matches-0", "paused"), SetIntent(2, "b", "stopped"), SetIntent(3, "c", "drained")])
    ledger.perform([SetIntent(1, "matches-0", "drained"), SetIntent(2, "b", None), SetIntent(3, "never", None)])
    ledger.close()
    again = Ledger.open(path)
    assert ask(again, LoadIntents(1), Intents) == Intents((("c", "drained"), ("matches-0", "drained")))
    again.close()


# ---- items -----------------------------------------------------------------------------------------------------------


def test_a_known_key_is_not_added_again(ledger: Ledger) -> None:
    run = open_run(ledger)
    first = add(ledger, run, item("x"), item("y", None), item("x"))
    assert [index for index, _, _ in first.added] == [0, 1]
    assert first.known == 1
    second = add(ledger, run, item("y", "other"), item("z"))
    assert [index for index, _, _ in second.added] == [1]
    assert ask(ledger, LoadRun(1, G), RunImage).lanes == (Lane(None, 1), Lane("a.test", 2))
    assert [entry[2] for entry in first.added + second.added] == sorted(
        entry[2] for entry in first.added + second.added
    )
    again = open_run(ledger, "fresh")
    assert add(ledger, again, item("x")).known == 0


def test_data_comes_back_as_it_was(ledger: Ledger) -> None:
    run = open_run(ledger)
    datas = [b"null", b'{"a": [1, 2.50],  "b":"\xc3\xa9\\u0000"}', b'""', b"0"]
    add(ledger, run, *(item(f"k{n}", data=data) for n, data in enumerate(datas)))
    entries = ask(ledger, LeaseFresh(1, G, run.run_id, (Front("a.test", None),), 9), Leased).items
    assert [bytes(entry.data) for entry in entries] == datas
    assert all(entry.due_in is None and entry.attempts == 0 and not entry.alone for entry in entries)


def test_lanes_are_read_by_priority_and_order_and_in_pages(ledger: Ledger) -> None:
    run = open_run(ledger)
    add(
        ledger,
        run,
        item("low", priority=-1),
        item("a"),
        item("b"),
        item("top", priority=9),
        item("n", None),
        item("o", "b.test"),
    )
    assert lane(ledger, run) == ["top", "a", "b", "low"]
    assert lane(ledger, run, None) == ["n"]
    asked = (Front(None, None), Front("a.test", None), Front("none.test", None))
    answer = ask(ledger, LeaseFresh(1, G, run.run_id, asked, 2), Leased)
    assert [entry.key for entry in answer.items] == ["n", "top", "a"]
    last = answer.items[-1]
    assert lane(ledger, run, after=(-last.priority, last.order)) == ["b", "low"]
    assert lane(ledger, run, after=(-9, 0.5)) == ["top", "a", "b", "low"]


def test_a_done_item_has_a_result_with_its_checksum(ledger: Ledger, path: Path) -> None:
    run = open_run(ledger)
    (_, x, _), (_, y, _) = add(ledger, run, item("x"), item("y")).added
    result = b'{"score":"3:2","\xc3\xa9":1}'
    answers = ledger.perform([ending(run, y, "done", result=Raw(result), attempts=3), ending(run, x, "done", claim=8)])
    assert answers == [Concluded(1, None, Added((), 0)), Concluded(2, None, Added((), 0))]
    image = ask(ledger, LoadRun(1, G), RunImage)
    assert (image.done, image.lanes, image.workers) == (2, (), (WorkerTotals("matches-0", 2, 0),))
    with LedgerReader(path) as reader:
        rows = [(row.seq, row.key, bytes(row.result), row.attempts, row.finished_at) for row in reader.results(G)]
    assert rows == [(1, "y", result, 3, "2026-05-01T12:00:00.000Z"), (2, "x", b"null", 1, "2026-05-01T12:00:00.000Z")]
    db = sqlite3.connect(path)
    assert db.execute("SELECT typeof(result), sha256 FROM results WHERE seq = 1").fetchone() == (
        "text",
        hashlib.sha256(result).hexdigest(),
    )
    db.close()


def test_concluding_a_done_item_again_changes_nothing(ledger: Ledger) -> None:
    run = open_run(ledger)
    ((_, x, _),) = add(ledger, run, item("x")).added
    ledger.perform([ending(run, x, "done", result=Raw(b"1"), answer=Raw(b'{"a":1}'))])
    before = ask(ledger, LoadRun(1, G), RunImage), ask(ledger, FindConclusion(1, G, run.run_id, "x"), Conclusion)
    for outcome in ("done", "failed", "retry", "open"):
        op = ending(run, x, outcome, claim=9, worker="matches-1", result=Raw(b"2"), offers=(item("new"),))  # type: ignore[arg-type]
        assert ledger.perform([op]) == [Concluded(1, None, Added((), 0))]
    after = ask(ledger, LoadRun(1, G), RunImage), ask(ledger, FindConclusion(1, G, run.run_id, "x"), Conclusion)
    assert after == before
    assert before[1] == Conclusion("done", 1, 7, "done", Raw(b'{"a":1}'))


def test_offers_come_with_the_conclusion(ledger: Ledger) -> None:
    run = open_run(ledger)
    ((_, x, _),) = add(ledger, run, item("x")).added
    answer = ask(ledger, ending(run, x, "done", offers=(item("x"), item("y"), item("z", "b.test"))), Concluded)
    assert (answer.seq, answer.offered.known, [index for index, _, _ in answer.offered.added]) == (1, 1, [1, 2])
    assert lane(ledger, run) == ["y"]


def test_a_retry_waits_and_then_comes_before_what_was_offered(ledger: Ledger, clock: Clock) -> None:
    run = open_run(ledger)
    (_, x, _), _ = add(ledger, run, item("x"), item("y")).added
    op = ending(run, x, "retry", attempts=2, infrastructure=1, blocked=3, alone=True, delay=30.0, failure=Raw(b"{}"))
    order = ask(ledger, op, Concluded).order
    assert order == pytest.approx(START + 30.0 - RETRY_ORIGIN, abs=1e-3)
    assert lane(ledger, run) == ["y"]
    clock.now += 50.0
    (entry,) = ask(ledger, LeaseWaiting(1, G, run.run_id, 5), Leased).items
    assert (entry.key, entry.due_in, entry.order) == ("x", pytest.approx(-20.0, abs=1e-3), order)
    assert (entry.attempts, entry.infrastructure, entry.blocked, entry.alone) == (2, 1, 3, True)
    image = ask(ledger, LoadRun(1, G), RunImage)
    assert (image.waiting, image.lanes) == (1, (Lane("a.test", 1),))
    assert ask(ledger, ending(run, x, "open", attempts=2), Concluded).order == order
    assert lane(ledger, run) == ["x", "y"]
    assert ask(ledger, LoadRun(1, G), RunImage).waiting == 0


def test_waiting_items_are_read_the_earliest_first(ledger: Ledger) -> None:
    run = open_run(ledger)
    added = add(ledger, run, *(item(key) for key in "abc")).added
    delays = (9.0, 1.0, 5.0)
    ledger.perform([ending(run, id_, "retry", delay=delay) for (_, id_, _), delay in zip(added, delays, strict=True)])
    waiting = ask(ledger, LeaseWaiting(1, G, run.run_id, 2), Leased).items
    assert [entry.key for entry in waiting] == ["b", "c"]


def test_retries_without_a_time_keep_their_places_apart(ledger: Ledger) -> None:
    """The clock stands still within a batch: places must differ all the same, or a page would end between equals."""
    run = open_run(ledger)
    added = add(ledger, run, *(item(f"k{n:02}") for n in range(40))).added
    answers = ledger.perform([ending(run, id_, "retry") for _, id_, _ in added])
    orders = [answer.order for answer in answers if isinstance(answer, Concluded)]
    assert len(set(orders)) == 40
    assert lane(ledger, run) == [f"k{n:02}" for n in range(40)]


def test_a_page_that_ends_between_equal_places_holds_them_all(ledger: Ledger, path: Path) -> None:
    run = open_run(ledger)
    add(ledger, run, item("a"), item("b"), item("c"))
    db = sqlite3.connect(path)
    with db:
        db.execute("UPDATE items SET ord = 1")
    db.close()
    answer = ask(ledger, LeaseFresh(1, G, run.run_id, (Front("a.test", None),), 2), Leased)
    assert sorted(entry.key for entry in answer.items) == ["a", "b", "c"]


def test_the_target_that_an_attempt_reported_becomes_the_items(ledger: Ledger) -> None:
    run = open_run(ledger)
    (_, x, _), (_, y, _) = add(ledger, run, item("x", None), item("y", None)).added
    ledger.perform([ending(run, x, "retry", target="b.test"), ending(run, y, "failed", target="c.test")])
    image = ask(ledger, LoadRun(1, G), RunImage)
    assert (image.lanes, image.failed) == ((Lane("b.test", 1),), 1)
    ledger.perform([Requeue(1, G, run.run_id, (), True, False)])
    assert lane(ledger, run, "c.test") == ["y"]


def test_how_an_item_stands(ledger: Ledger, path: Path) -> None:
    run = open_run(ledger)
    added = add(ledger, run, *(item(key) for key in "abcd")).added
    ids = {"abcd"[index]: id_ for index, id_, _ in added}
    answer = Raw(b'{"action":"final"}')
    ledger.perform([ending(run, ids["b"], "failed", claim=11, answer=answer), ending(run, ids["c"], "open", claim=12)])
    park(path, "d")
    found = ledger.perform([FindConclusion(1, G, run.run_id, key) for key in "abcdx"])
    assert found == [
        Conclusion("open", None, None, None, None),
        Conclusion("failed", None, 11, "failed", answer),
        Conclusion("open", None, 12, "open", None),
        Conclusion("parked", None, None, None, None),
        None,
    ]


def test_requeue_and_cancel(ledger: Ledger, path: Path) -> None:
    run = open_run(ledger)
    added = add(ledger, run, *(item(key) for key in "abcdef")).added
    ids = {"abcdef"[index]: id_ for index, id_, _ in added}
    ledger.perform([ending(run, ids[key], "failed", attempts=5, blocked=2) for key in "abc"])
    ledger.perform([ending(run, ids["d"], "done")])
    park(path, "e")
    requeue = ask(ledger, Requeue(1, G, run.run_id, ("b", "d", "f", "nope", "b"), False, False), Changed)
    assert requeue == Changed(1, ("d", "f", "nope"))
    assert lane(ledger, run) == ["f", "b"]
    assert ask(ledger, Requeue(1, G, run.run_id, ("a",), True, True), Changed) == Changed(3, ())
    entries = ask(ledger, LeaseFresh(1, G, run.run_id, (Front("a.test", None),), 9), Leased).items
    assert [(entry.key, entry.attempts, entry.blocked) for entry in entries] == [
        ("f", 0, 0), ("b", 0, 0), ("a", 0, 0), ("c", 0, 0), ("e", 0, 0),
    ]  # fmt: skip
    assert ask(ledger, Cancel(1, G, run.run_id, ("a", "d", "x")), Changed) == Changed(1, ("d", "x"))
    image = ask(ledger, LoadRun(1, G), RunImage)
    assert (image.failed, image.parked, image.done, image.lanes) == (1, 0, 1, (Lane("a.test", 4),))
    with LedgerReader(path) as reader:
        (cancelled,) = reader.items(G, state="failed")
        assert cancelled.last_failure is not None
        assert json.loads(bytes(cancelled.last_failure))["signature"] == "cancelled"


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_the_whole_batch_and_heals(ledger: Ledger) -> None:
    run = open_run(ledger)
    (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
    ledger._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    big = tuple(item(f"big{n}", data=b'"' + b"x" * 3000 + b'"') for n in range(50))
    answers = ledger.perform([AddItems(1, G, run.run_id, (item("small"),)), AddItems(2, G, run.run_id, big), Probe(3)])
    assert [answer.errno for answer in answers if isinstance(answer, StoreFault)] == [errno.ENOSPC] * 3
    assert ask(ledger, LoadRun(1, G), RunImage) == run
    ledger._db.execute("PRAGMA max_page_count = 100000")
    assert ledger.perform([Probe(1)]) == [None]
    assert len(add(ledger, run, item("small"), *big).added) == 51


def test_a_read_only_disk_and_a_foreign_writer(ledger: Ledger, path: Path) -> None:
    ledger._db.execute("PRAGMA query_only = ON")
    (answer,) = ledger.perform([Probe(1)])
    assert isinstance(answer, StoreFault)
    assert answer.errno == errno.EROFS
    ledger._db.execute("PRAGMA query_only = OFF")
    ledger._db.execute("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    (answer,) = ledger.perform([Probe(1)])
    assert isinstance(answer, StoreFault)
    assert answer.errno == errno.EBUSY
    other.close()
    assert ledger.perform([Probe(1)]) == [None]


def test_one_senseless_operation_does_not_poison_the_others(ledger: Ledger) -> None:
    run = open_run(ledger)
    ((_, x, _),) = add(ledger, run, item("x")).added
    ops: list[LedgerOp] = [
        AddItems(1, G, run.run_id, (item("y"),)),
        ending(run, 999, "done"),
        AddItems(3, G, run.run_id, (item("z"), item("\ud800"))),
        ending(run, x, "done", result=Raw(b"1")),
        AddItems(5, G, 77, (item("z"),)),
        LoadRun(6, "nobody"),
        SetRunState(7, G, 99, "completed"),
    ]
    answers: list[Answer | StoreFault] = ledger.perform(ops)
    assert isinstance(answers[0], Added)
    assert isinstance(answers[3], Concluded)
    assert [answer.errno for answer in answers if isinstance(answer, StoreFault)] == [
        errno.EINVAL, errno.EINVAL, errno.EINVAL, errno.EINVAL, errno.EINVAL,
    ]  # fmt: skip
    image = ask(ledger, LoadRun(1, G), RunImage)
    assert (image.done, image.lanes) == (1, (Lane("a.test", 1),))
    assert lane(ledger, run) == ["y"]


@pytest.mark.parametrize("what", ["results", "failures", "data", "imported data"])
def test_the_log_is_folded_back_by_what_it_holds(
    ledger: Ledger, path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1 MiB each, a few dozen commits are many."""
    log = path.with_name("ledger.db-wal")
    run = open_run(ledger)
    text = b'"%s"' % (b"x" * 2**20)
    ids = [id_ for _, id_, _ in add(ledger, run, *(item(f"k{n}") for n in range(48))).added]
    imported, writer = ask(ledger, ImportBegin(1, "other"), Imported).run_id, Writer()
    folds: list[int] = []
    fold = ledger._fold
    monkeypatch.setattr(ledger, "_fold", lambda: (folds.append(1), fold()))
    for number, id_ in enumerate(ids):
        if what == "results":
            ask(ledger, ending(run, id_, "done", result=Raw(text)), Concluded)
        elif what == "failures":
            ask(ledger, ending(run, id_, "failed", failure=Raw(text)), Concluded)
        elif what == "data":
            add(ledger, run, item(f"large{number}", data=text))
        else:
            line = writer.line(PortableItem(f"k{number}", None, Raw(text), 0, float(number), "pending", 0))
            assert ask(ledger, ImportLines(1, "other", imported, line), Imported).problem is None
        assert log.stat().st_size < 24 * 2**20
    assert 2 <= len(folds) <= 4


def test_a_connection_that_broke_is_opened_anew(ledger: Ledger) -> None:
    run = open_run(ledger)
    ledger._broken = True
    assert ask(ledger, LoadRun(1, G), RunImage) == run


def test_a_connection_that_is_closed_is_opened_anew(ledger: Ledger, warned: list[tuple[str, str]]) -> None:
    run = open_run(ledger)
    ledger._db.close()
    ledger._tidy(10)
    ledger._tidy(10)
    ((what, why),) = warned
    assert what == "the rows of removed runs stay for now"
    assert why.startswith("ProgrammingError: ")
    ledger._db.close()
    assert len(add(ledger, run, item("x")).added) == 1


def test_what_is_asked_often_is_a_range_of_an_index(ledger: Ledger) -> None:
    from scraper_supervisor.store.sqlite import batch  # the queries are nobody else's matter

    asked = {
        batch._LANE: (5, "items_lane (run_id=? AND target=? AND (rank,ord)>(?,?))"),
        batch._LANE_FROM_START: (3, "items_lane (run_id=? AND target=?)"),
        batch._LANE_PLACE: (4, "items_lane (run_id=? AND target=? AND rank=? AND ord=?)"),
        batch._WAITING: (2, "items_waiting (run_id=? AND not_before>?)"),
    }
    for query, (values, plan) in asked.items():
        steps = [row[3] for row in ledger._db.execute(f"EXPLAIN QUERY PLAN {query}", [None] * values)]
        assert steps == [f"SEARCH items USING INDEX {plan}"]
