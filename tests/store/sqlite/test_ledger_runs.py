"""A ledger's runs: how they begin and end, the claims allotted and confirmed, and what operators intend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.store.sqlite.ledger_talk import add, ask, ending, item, open_run, park
from tests.store.sqlite.ledger_writer import G

from scraper_supervisor.core.ops.item_ops import (
    Concluded,
    ConfirmClaims,
    Confirmed,
    LeaseLost,
    NamedClaim,
    ReserveClaims,
    Reserved,
)
from scraper_supervisor.core.ops.run_ops import (
    CompleteRun,
    Intents,
    LoadIntents,
    LoadRun,
    RunEnd,
    RunImage,
    SetIntent,
    SetRunState,
)
from scraper_supervisor.store.errors import StoreFault
from scraper_supervisor.store.sqlite.ledger import Ledger

if TYPE_CHECKING:
    from pathlib import Path


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
