"""A ledger's items: added, read in their order, concluded, requeued; and a batch when something is wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import sqlite3
from typing import TYPE_CHECKING

import pytest
from msgspec import Raw
from tests.store.sqlite.ledger_talk import START, Clock, add, ask, ending, item, lane, open_run, park
from tests.store.sqlite.ledger_writer import G

from scraper_supervisor.core.ops.item_ops import (
    RETRY_ORIGIN,
    Added,
    AddItems,
    Cancel,
    Changed,
    Concluded,
    Conclusion,
    FindConclusion,
    Front,
    Leased,
    LeaseFresh,
    LeaseWaiting,
    Requeue,
)
from scraper_supervisor.core.ops.run_ops import Lane, LoadRun, Probe, RunImage, SetRunState, WorkerTotals
from scraper_supervisor.store.errors import StoreFault
from scraper_supervisor.store.sqlite.reader import LedgerReader

if TYPE_CHECKING:
    from pathlib import Path

    from scraper_supervisor.core.ops.all_ops import Answer, LedgerOp
    from scraper_supervisor.store.sqlite.ledger import Ledger


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
    assert ask(ledger, Requeue(1, G, run.run_id, ("a",), True, True), Changed) == Changed(3, (), parked=1)
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
