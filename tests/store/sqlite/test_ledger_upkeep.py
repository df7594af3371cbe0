"""What a ledger does for itself: rows of old runs removed, its log folded back, a lost connection opened anew."""

from __future__ import annotations

import sqlite3
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from msgspec import Raw
from tests.store.sqlite.ledger_talk import add, ask, ending, item, open_run
from tests.store.sqlite.ledger_writer import G

from scraper_supervisor.core.formats.run_export import PortableItem, Writer
from scraper_supervisor.core.ops.import_ops import ImportBegin, Imported, ImportLines
from scraper_supervisor.core.ops.item_ops import Concluded
from scraper_supervisor.core.ops.run_ops import LoadRun, Probe, RunImage
from scraper_supervisor.store.sqlite import ledger as ledger_module
from scraper_supervisor.store.sqlite.reader import LedgerReader

if TYPE_CHECKING:
    from pathlib import Path

    from scraper_supervisor.store.sqlite.ledger import Ledger


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
