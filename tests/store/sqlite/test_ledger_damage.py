"""Damage anywhere in the ledger's files: it is refused or reported, or all that was acknowledged reads as it was."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Literal, TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.store.sqlite.ledger_writer import Item, killed, read

from scraper_supervisor.store.errors import LedgerUnreadable, LedgerUnusable
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_supervisor.store.sqlite.reader import LedgerReader

Kind: TypeAlias = Literal["flip", "cut", "zero", "double", "empty", "remove", "older"]
Damage: TypeAlias = tuple[str, Kind, float, int]  # the file's ending, what, where (a share), how much

FILES = {"closed": ("", ".sha256"), "killed": ("", "-wal", "-shm"), "cut off": ("", "-wal")}


class Origins:
    """Ledgers as they are left: closed; by a killed process; by a power cut, without what was in memory.

    `held` is what the last two held after each of their last transactions.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        for name in FILES:
            (root / name).mkdir()
        path = root / "closed" / "ledger.db"
        killed(path, 80)
        shutil.copytree(path.parent, root / "older")
        Ledger.open(path).close()
        for file in ("ledger.db", "ledger.db.sha256"):
            shutil.copy(path.with_name(file), root / "killed")
        self.held = killed(root / "killed" / "ledger.db", 30, seed=2)
        shutil.copytree(root / "killed", root / "cut off", dirs_exist_ok=True)
        (root / "cut off" / "ledger.db-shm").unlink()

    def copy(self, state: str, place: Path) -> Path:
        shutil.copytree(self._root / state, place, dirs_exist_ok=True)
        shutil.copytree(self._root / "older", place / "older")
        return place / "ledger.db"


@pytest.fixture(scope="module")
def origins(tmp_path_factory: pytest.TempPathFactory) -> Origins:
    return Origins(tmp_path_factory.mktemp("origins"))


def harm(folder: Path, damage: Damage) -> None:
    end, kind, where, much = damage
    path = folder / f"ledger.db{end}"
    older = folder / "older" / path.name
    content = path.read_bytes() if path.exists() else b""
    at = min(int(where * len(content)), max(len(content) - 1, 0))
    if kind == "remove":
        path.unlink(missing_ok=True)
    elif kind == "older" and older.exists():
        shutil.copy(older, path)
    elif content:
        flipped = bytes([content[at] ^ (much % 255 + 1)])
        changed = {
            "flip": content[:at] + flipped + content[at + 1 :],
            "cut": content[:at],
            "zero": content[:at] + bytes(min(much, len(content) - at)) + content[at + much :],
            "double": content * 2,
            "empty": b"",
        }
        path.write_bytes(changed.get(kind, content))


def told(path: Path) -> dict[str, Item] | None:
    """What a reader is told of a ledger after a writer had it; None if somebody says that it is damaged."""
    try:
        Ledger.open(path).close()
        with LedgerReader(path) as reader:
            return read(reader) if reader.verify() is None else None
    except (LedgerUnusable, LedgerUnreadable, FileNotFoundError):
        return None


def surely(items: dict[str, Item]) -> dict[str, tuple[object, ...]]:
    """What is there twice or has a checksum, so that no fault changes it unseen: the attempts of the open are not."""
    return {key: (item[0], item[1] if item[0] == "done" else None, *item[2:]) for key, item in items.items()}


DAMAGE = st.tuples(
    st.sampled_from(["", "", "-wal", "-wal", "-shm", ".sha256"]),
    st.sampled_from(["flip", "flip", "flip", "cut", "zero", "double", "empty", "remove", "older"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 9000),
)


@pytest.mark.slow
@settings(max_examples=3 * settings().max_examples)
@given(state=st.sampled_from(sorted(FILES)), damage=DAMAGE)
@example(state="killed", damage=("-wal", "remove", 0.0, 1))
@example(state="killed", damage=("-wal", "older", 0.0, 1))
@example(state="killed", damage=("-wal", "flip", 0.9999, 1))
@example(state="killed", damage=("", "remove", 0.0, 1))
@example(state="closed", damage=("", "remove", 0.0, 1))
@example(state="closed", damage=("", "older", 0.0, 1))
@example(state="closed", damage=("-wal", "older", 0.0, 1))
def test_any_damage(origins: Origins, state: str, damage: Damage) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = origins.copy(state, Path(place))
        before = {file.name: file.read_bytes() for file in path.parent.glob("ledger*")}
        harm(path.parent, damage)
        after = {file.name: file.read_bytes() for file in path.parent.glob("ledger*")}
        found = told(path)
    end, kind, _, _ = damage
    if before == after:
        assert found == origins.held[0 if state == "closed" else -1]
    elif found is None:
        return
    elif state == "closed":
        assert found == origins.held[0]
    elif state == "cut off" and end == "-wal":
        # Nobody can tell a log that was cut off from one that was never longer: what it holds is whole, and of damage
        # within it only that to the last transaction looks as if the transaction had not been finished.
        assert surely(found) in [surely(one) for one in (origins.held if kind != "flip" else origins.held[-3:])]
    else:
        assert surely(found) == surely(origins.held[-1])
