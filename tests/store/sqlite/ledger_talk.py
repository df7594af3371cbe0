"""What tests ask of a ledger, in few words, and the clock that it goes by."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, TypeVar

from msgspec import Raw
from tests.store.sqlite.ledger_writer import G

from scraper_supervisor.core.ops.item_ops import Added, AddItems, Conclude, Front, Leased, LeaseFresh, NewItem, Outcome
from scraper_supervisor.core.ops.run_ops import OpenRun, RunImage

if TYPE_CHECKING:
    from pathlib import Path

    from scraper_supervisor.core.ops.all_ops import LedgerOp
    from scraper_supervisor.store.sqlite.ledger import Ledger

START = 1_777_636_800.0  # 2026-05-01T12:00:00Z
A = TypeVar("A")


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


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
