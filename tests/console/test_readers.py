"""What every reader says of a ledger that is gone, and of a folder that it may not look into."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.console.conftest import CONFIG, make_ledger

from scraper_supervisor.store.states.reading import FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from click.testing import Result

    Call = Callable[..., Result]

NOBODY = 65534  # a user number that owns nothing
READERS = [
    ("results", "matches"),
    ("results", "matches", "--after", "3"),
    ("items", "list", "matches"),
    ("items", "list", "matches", "--json"),
    ("items", "export", "matches"),
    ("abort", "status"),
]
ALL = [*READERS, ("events",), ("checkpoint", "list"), ("checkpoint", "list", "matches-0"), ("checkpoint", "verify")]


@pytest.mark.parametrize(
    "left", ["ledger.db.sha256", "ledger.db-wal", f"{FOLDER}/matches-0/checkpoint-000000000001.json"]
)
@pytest.mark.parametrize("arguments", READERS)
def test_a_ledger_that_is_gone_is_refused_as_by_run(
    project: Path, ledger: Path, call: Call, arguments: tuple[str, ...], left: str
) -> None:
    ledger.unlink()
    for beside in ledger.parent.glob("ledger.db*"):
        beside.unlink()
    (ledger.parent / left).parent.mkdir(parents=True, exist_ok=True)
    (ledger.parent / left).write_bytes(b"x")
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (65, "")
    assert str(ledger) in result.stderr
    assert "it is missing" in result.stderr
    assert not ledger.exists()


@pytest.fixture
def foreign() -> Iterator[Path]:
    """A project whose state folder belongs to another user, in a place that everybody may look into."""
    folder = Path(tempfile.mkdtemp(prefix="readers-"))
    folder.chmod(0o755)
    (folder / "supervisor.toml").write_text(CONFIG, encoding="utf-8")
    (folder / "supervisor.toml").chmod(0o644)  # whatever the umask is by now
    make_ledger(folder / "state")
    (folder / "state" / "events.jsonl").write_bytes(b"{}\n")
    (folder / "state" / FOLDER / "matches-0").mkdir(parents=True)
    (folder / "state").chmod(0o700)
    yield folder
    (folder / "state").chmod(0o700)
    shutil.rmtree(folder)


@contextlib.contextmanager
def as_another(folder: Path) -> Generator[None]:
    """Be a user who may not look into the state folder; root becomes one for that time."""
    if os.geteuid() != 0:
        (folder / "state").chmod(0)
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("arguments", ALL)
def test_without_permission_it_is_1_with_the_path(
    foreign: Path, call: Call, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    call(*arguments)  # what is imported late is not for everybody to read, either
    monkeypatch.chdir(foreign)
    with as_another(foreign):
        result = call(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{foreign / 'state'}" in result.stderr
    assert "Permission denied" in result.stderr
