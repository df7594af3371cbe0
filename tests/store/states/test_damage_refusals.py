"""A disk that refuses: nothing is taken for damage, passed over or lost; tried again, it is told of."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.store.states.saving import OTHER, WORKER, load, paths, save

from scraper_supervisor.store.files import Files
from scraper_supervisor.store.states.checkpoints import CheckpointFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Refusing(Files):
    """Refuses a call with an error, while told to."""

    def __init__(self, call: str, number: int) -> None:
        self.call, self.number, self.on = call, number, True

    def _may(self, call: str, path: Path) -> None:
        if self.on and call == self.call:
            raise OSError(self.number, os.strerror(self.number), str(path))

    def read(self, path: Path) -> bytes:
        self._may("read", path)
        return super().read(path)

    def names(self, folder: Path) -> list[str]:
        self._may("names", folder)
        return super().names(folder)

    def folders(self, folder: Path) -> list[str]:
        self._may("folders", folder)
        return super().folders(folder)

    def create(self, path: Path) -> int:
        self._may("create", path)
        return super().create(path)

    def rename(self, path: Path, target: Path) -> None:
        self._may("rename", path)
        super().rename(path, target)

    def mkdir(self, folder: Path) -> None:
        self._may("mkdir", folder)
        super().mkdir(folder)

    def unlink(self, path: Path) -> None:
        self._may("unlink", path)
        super().unlink(path)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("call", ["read", "names"])
def test_what_cannot_be_read_is_no_damage_and_nothing_older_is_given_for_it(
    tmp_path: Path, call: str, number: int
) -> None:
    paths(tmp_path, 2)
    files = Refusing(call, number)
    store = CheckpointFiles(tmp_path, files)
    for _ in range(2):
        with pytest.raises(OSError, match=WORKER) as caught:
            load(store)
        assert caught.value.errno == number
    files.on = False
    assert load(store).generation == 2
    assert not (tmp_path / "checkpoints" / WORKER / "corrupt").exists()


@pytest.mark.parametrize("call", ["create", "rename", "mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_what_cannot_be_set_aside_is_not_passed_over(tmp_path: Path, call: str, number: int) -> None:
    """The caller comes again, and once the disk heals the file is moved and told of."""
    first, second = paths(tmp_path, 2)
    second.write_bytes(b"spoilt")
    files = Refusing(call, number)
    store = CheckpointFiles(tmp_path, files)
    for _ in range(2):
        with pytest.raises(OSError, match=WORKER):
            load(store)
        assert second.read_bytes() == b"spoilt"
    files.on = False
    found = load(store)
    assert (found.found, found.generation, len(found.damage)) == ("sound", 1, 1)
    assert Path(found.damage[0].path).read_bytes() == b"spoilt"
    first.unlink()
    assert load(CheckpointFiles(tmp_path)).found == "damaged"


def test_a_disk_that_takes_no_changes_can_still_be_loaded_from(tmp_path: Path) -> None:
    newest = paths(tmp_path, 2)[-1]
    newest.with_name(f".{newest.name}.tmp").write_bytes(b"half")
    assert load(CheckpointFiles(tmp_path, Refusing("unlink", errno.EROFS))).generation == 2


def test_a_save_is_acknowledged_though_its_folder_cannot_be_listed_afterwards(tmp_path: Path) -> None:
    files = Refusing("names", errno.EIO)
    files.on = False
    store = CheckpointFiles(tmp_path, files)
    save(store, b'{"page":1}')
    files.on = True
    assert save(store, b'{"page":1}').removed == ()
    files.on = False
    assert save(store, b'{"page":1}').removed == (2, 1)


@pytest.mark.parametrize(
    ("call", "where"),
    [("read", "checkpoint-000000000001.json"), ("names", WORKER), ("folders", "checkpoints")],
)
def test_verify_tells_of_what_cannot_be_read(tmp_path: Path, call: str, where: str) -> None:
    paths(tmp_path, 1)
    save(CheckpointFiles(tmp_path), b"{}", worker=OTHER)

    class Picky(Refusing):
        def _may(self, call: str, path: Path) -> None:
            if OTHER not in str(path):
                super()._may(call, path)

    checks = list(CheckpointFiles(tmp_path, Picky(call, errno.EACCES)).verify())
    bad = [check for check in checks if not check.ok and not check.path.endswith("mark.json")]
    assert [(Path(check.path).name, check.reason) for check in bad] == [(where, "it cannot be read: Permission denied")]
    assert call == "folders" or any(check.ok and check.worker == OTHER for check in checks)


@pytest.fixture
def unreadable(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Takes a path's permissions away, where that means anything to us."""
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    taken: list[tuple[Path, int]] = []

    def take(path: Path) -> None:
        taken.append((path, path.stat().st_mode))
        path.chmod(0)

    yield take
    for path, mode in reversed(taken):  # a folder before what it holds
        path.chmod(mode)


def test_permissions_taken_away(tmp_path: Path, unreadable: Callable[[Path], None]) -> None:
    newest = paths(tmp_path, 2)[-1]
    unreadable(newest)
    with pytest.raises(PermissionError):
        load(CheckpointFiles(tmp_path))
    assert [check.ok for check in CheckpointFiles(tmp_path).verify()] == [False, True]
    unreadable(newest.parent)
    (check,) = CheckpointFiles(tmp_path).verify()
    assert (check.path, check.ok) == (str(newest.parent), False)
