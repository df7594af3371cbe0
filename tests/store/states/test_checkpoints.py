from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest
from msgspec import Raw

from scraper_supervisor.core.formats.checkpoint_file import Damaged
from scraper_supervisor.core.ops.state_ops import LoadState, SaveState, StateLoaded, StateSaved
from scraper_supervisor.store.files import Files
from scraper_supervisor.store.states.checkpoints import CheckpointFiles
from scraper_supervisor.store.states.reading import NoSuchGeneration

if TYPE_CHECKING:
    from pathlib import Path

WORKER = "matches-0"


class FailingFiles(Files):
    """A disk whose syncs, or removals, fail when told to."""

    def __init__(self) -> None:
        self.failing_syncs = 0
        self.syncs_before = 0
        self.failing_removals = False

    def sync(self, fd: int) -> None:
        if self.syncs_before:
            self.syncs_before -= 1
        elif self.failing_syncs:
            self.failing_syncs -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync(fd)

    def remove(self, path: Path) -> None:
        if self.failing_removals:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        super().remove(path)


def save(
    store: CheckpointFiles, state: bytes, *, run: int = 1, retention: int = 10, gzip: bool = False, worker: str = WORKER
) -> StateSaved:
    op = SaveState(1, worker, run, "scores/1", Raw(state), 3, 4, 5, retention, "gzip" if gzip else "none")
    answer = store.perform(op)
    assert isinstance(answer, StateSaved)
    return answer


def load(store: CheckpointFiles, fresh_from: int = 1, generation: int | None = None) -> StateLoaded:
    answer = store.perform(LoadState(1, WORKER, fresh_from, generation))
    assert isinstance(answer, StateLoaded)
    return answer


def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / WORKER


def path(tmp_path: Path, generation: int) -> Path:
    return folder(tmp_path) / f"checkpoint-{generation:012d}.json"


def generations(tmp_path: Path) -> list[int]:
    return sorted(int(file.name[11:23]) for file in folder(tmp_path).glob("checkpoint-*"))


def spoil(file: Path) -> bytes:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return bytes(data)


def test_a_saved_state_is_loaded_again_by_another_process(tmp_path: Path) -> None:
    saved = save(CheckpointFiles(tmp_path, clock=lambda: 1_777_636_800.0), b'{"page":7}')
    assert saved.generation == 1
    assert saved.saved_at == "2026-05-01T12:00:00.000Z"
    assert saved.removed == ()
    found = load(CheckpointFiles(tmp_path))
    assert found == StateLoaded("sound", 1, 1, "scores/1", "2026-05-01T12:00:00.000Z", Raw(b'{"page":7}'))


def test_the_file_is_verified_by_common_tools(tmp_path: Path) -> None:
    saved = save(CheckpointFiles(tmp_path), b'{"page":7}')
    file = path(tmp_path, 1)
    assert saved.bytes == file.stat().st_size
    head = subprocess.run(["head", "-c", "-78", str(file)], check=True, capture_output=True).stdout
    assert hashlib.sha256(head).hexdigest() == saved.sha256 == json.loads(file.read_bytes())["sha256"]


@pytest.mark.parametrize("gzip", [False, True])
def test_folders_and_files_are_private(tmp_path: Path, gzip: bool) -> None:
    save(CheckpointFiles(tmp_path), b"{}", gzip=gzip)
    (file,) = folder(tmp_path).iterdir()
    assert file.suffix == (".gz" if gzip else ".json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder(tmp_path).stat().st_mode) == 0o700
    assert stat.S_IMODE(folder(tmp_path).parent.stat().st_mode) == 0o700


def test_plain_and_packed_generations_live_side_by_side(tmp_path: Path) -> None:
    store = CheckpointFiles(tmp_path)
    save(store, b"1", gzip=True)
    save(store, b"2")
    save(store, b"3", gzip=True)
    assert [(info.generation, info.schema) for info in store.list()] == [
        (3, "scores/1"),
        (2, "scores/1"),
        (1, "scores/1"),
    ]
    assert bytes(load(store).state) == b"3"
    assert bytes(load(store, generation=1).state) == b"1"


def test_nothing_saved_is_told_from_an_unknown_generation(tmp_path: Path) -> None:
    store = CheckpointFiles(tmp_path)
    assert load(store).found == "none"
    save(store, b"1")
    assert load(store, generation=9).found == "unknown"


def test_a_fresh_run_begins_without_the_states_before_it(tmp_path: Path) -> None:
    store = CheckpointFiles(tmp_path)
    save(store, b"1", run=1)
    save(store, b"2", run=2)
    assert bytes(load(store, fresh_from=2).state) == b"2"
    assert load(store, fresh_from=3) == StateLoaded("none")
    assert load(store, fresh_from=3, generation=1).found == "sound"


def test_generations_rise_over_restarts_removed_and_damaged_files(tmp_path: Path) -> None:
    store = CheckpointFiles(tmp_path)
    for state in (b"1", b"2", b"3"):
        save(store, state)
    path(tmp_path, 3).unlink()
    assert save(store, b"4").generation == 4
    spoil(path(tmp_path, 4))
    store = CheckpointFiles(tmp_path)
    assert load(store).generation == 2
    assert save(store, b"5").generation == 5
    assert save(CheckpointFiles(tmp_path), b"6").generation == 6


def test_a_damaged_file_is_set_aside_and_the_one_before_it_used(tmp_path: Path) -> None:
    store = CheckpointFiles(tmp_path)
    save(store, b'{"page":1}')
    save(store, b'{"page":2}')
    data = spoil(path(tmp_path, 2))
    found = load(store)
    assert (found.found, found.generation) == ("sound", 1)
    (damage,) = found.damage
    corrupt = folder(tmp_path) / "corrupt" / "checkpoint-000000000002.json"
    assert damage.path == str(corrupt)
    assert "checksum" in damage.reason
    assert corrupt.read_bytes() == data
    assert load(store).damage == ()


def test_a_worker_whose_files_are_all_damaged_stays_so_until_a_fresh_run(tmp_path: Path) -> None:
    assert load(CheckpointFiles(tmp_path), fresh_from=2).found == "none"
    save(CheckpointFiles(tmp_path), b"1", run=2)
    path(tmp_path, 1).write_bytes(b"")
    assert load(CheckpointFiles(tmp_path), fresh_from=2).found == "damaged"
    again = load(CheckpointFiles(tmp_path), fresh_from=2)
    assert (again.found, again.damage) == ("damaged", ())
    assert load(CheckpointFiles(tmp_path), fresh_from=2, generation=1).found == "damaged"
    assert load(CheckpointFiles(tmp_path), fresh_from=3).found == "none"
    save(CheckpointFiles(tmp_path), b"2", run=2)  # what `restore` does
    assert load(CheckpointFiles(tmp_path), fresh_from=2).found == "sound"


def test_damage_of_a_run_before_a_fresh_one_does_not_matter_to_it(tmp_path: Path) -> None:
    store = CheckpointFiles(tmp_path)
    save(store, b'{"page":1}', run=1)
    spoil(path(tmp_path, 1))
    found = load(store, fresh_from=2)
    assert found.found == "none"
    assert len(found.damage) == 1


def test_a_name_taken_in_corrupt_is_not_overwritten(tmp_path: Path) -> None:
    store = CheckpointFiles(tmp_path)
    for content in (b"first", b"second", b"third"):
        folder(tmp_path).mkdir(parents=True, exist_ok=True)
        path(tmp_path, 1).write_bytes(content)
        assert load(store).found == "damaged"
    contents = {file.read_bytes() for file in (folder(tmp_path) / "corrupt").iterdir()}
    assert contents == {b"first", b"second", b"third"}
    assert save(CheckpointFiles(tmp_path), b"1").generation == 2


def test_retention_keeps_the_newest_and_of_equal_states_one(tmp_path: Path) -> None:
    store = CheckpointFiles(tmp_path)
    save(store, b"1")
    save(store, b"2")
    assert save(store, b"2").removed == (2,)
    assert generations(tmp_path) == [1, 3]
    store = CheckpointFiles(tmp_path)  # which has to read what is there
    assert save(store, b"1").removed == (1,)
    assert save(store, b"5", retention=2).removed == (3,)
    assert generations(tmp_path) == [4, 5]


def test_retention_deletes_no_damaged_file(tmp_path: Path) -> None:
    store = CheckpointFiles(tmp_path)
    for state in (b'"1"', b'"2"', b'"3"'):
        save(store, state, retention=3)
    spoil(path(tmp_path, 1))
    spoil(path(tmp_path, 2))
    assert save(store, b'"4"', retention=1).removed == (3,)
    assert save(CheckpointFiles(tmp_path), b'"5"', retention=1).removed == (4,)
    assert generations(tmp_path) == [1, 2, 5]
    assert {check.generation: check.ok for check in store.verify()} == {5: True, 2: False, 1: False}


def test_a_removal_that_fails_does_not_fail_the_save(tmp_path: Path) -> None:
    files = FailingFiles()
    store = CheckpointFiles(tmp_path, files)
    save(store, b"1", retention=1)
    files.failing_removals = True
    assert save(store, b"2", retention=1).removed == ()
    files.failing_removals = False
    assert save(store, b"3", retention=1).removed == (2, 1)


@pytest.mark.parametrize("syncs_before", [0, 1])  # of the file, of its folder
def test_a_failed_sync_is_answered_by_writing_anew(tmp_path: Path, syncs_before: int) -> None:
    files = FailingFiles()
    store = CheckpointFiles(tmp_path, files)
    save(store, b"1")
    files.syncs_before, files.failing_syncs = syncs_before, 1
    with pytest.raises(OSError, match="Input/output error"):
        save(store, b"2")
    assert not list(folder(tmp_path).glob(".*"))
    saved = save(store, b"2")
    assert saved.generation == 3
    assert bytes(load(CheckpointFiles(tmp_path)).state) == b"2"


def test_an_unreadable_file_is_a_fault_and_no_damage(tmp_path: Path) -> None:
    class Unreadable(Files):
        def read(self, path: Path) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    save(CheckpointFiles(tmp_path), b"1")
    with pytest.raises(OSError, match="Input/output error"):
        load(CheckpointFiles(tmp_path, Unreadable()))
    assert generations(tmp_path) == [1]


def test_foreign_files_stay_and_unfinished_ones_go(tmp_path: Path) -> None:
    save(CheckpointFiles(tmp_path), b"1")
    unfinished = folder(tmp_path) / ".checkpoint-000000000002.json.tmp"
    unfinished.write_bytes(b"half")
    foreign = [folder(tmp_path) / name for name in ("notes.txt", ".hidden", "checkpoint-7.json", "x.tmp")]
    for file in foreign:
        file.write_bytes(b"mine")
    (folder(tmp_path) / "checkpoint-000000000009.json").mkdir()
    store = CheckpointFiles(tmp_path)
    assert load(store).generation == 1
    save(store, b"2", retention=1)
    assert not unfinished.exists()
    assert all(file.read_bytes() == b"mine" for file in foreign)


def test_looking_moves_nothing(tmp_path: Path) -> None:
    store = CheckpointFiles(tmp_path)
    save(store, b'"1"')
    save(store, b'"2"')
    save(store, b'"9"', worker="matches-1")
    spoil(path(tmp_path, 2))
    looker = CheckpointFiles(tmp_path)
    listed = [(info.worker, info.generation, info.schema) for info in looker.list()]
    assert listed == [(WORKER, 2, None), (WORKER, 1, "scores/1"), ("matches-1", 1, "scores/1")]
    assert [(check.worker, check.generation, check.ok) for check in looker.verify()] == [
        (WORKER, 2, False),
        (WORKER, 1, True),
        ("matches-1", 1, True),
    ]
    assert [check.ok for check in looker.verify("matches-1")] == [True]
    assert looker.list("matches-9") == []
    assert bytes(looker.show(WORKER, 1).state) == b'"1"'
    with pytest.raises(Damaged):
        looker.show(WORKER)
    with pytest.raises(NoSuchGeneration, match="matches-0: it has no checkpoint 9"):
        looker.show(WORKER, 9)
    assert generations(tmp_path) == [1, 2]


@pytest.mark.parametrize("worker", ["", "../x", "a/b", ".", "a\0b"])
def test_a_workers_name_leads_nowhere_else(tmp_path: Path, worker: str) -> None:
    with pytest.raises(ValueError, match="not a worker's name"):
        CheckpointFiles(tmp_path).perform(LoadState(1, worker, 1))
