"""Ledgers, open in state folders of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.store.sqlite.ledger_talk import START, Clock

from scraper_supervisor.store.sqlite.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A state folder."""
    folder = tmp_path / "a"
    folder.mkdir()
    return folder


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "ledger.db"


@pytest.fixture
def warned() -> list[tuple[str, str]]:
    """What the ledger told of its upkeep, and why."""
    return []


@pytest.fixture
def ledger(path: Path, clock: Clock, warned: list[tuple[str, str]]) -> Iterator[Ledger]:
    ledger = Ledger.open(path, clock, warn=lambda what, why: warned.append((what, why)))
    yield ledger
    ledger.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Ledger]:
    """One in another state folder."""
    (tmp_path / "b").mkdir()
    other = Ledger.open(tmp_path / "b" / "ledger.db", lambda: START)
    yield other
    other.close()
