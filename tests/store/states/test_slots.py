"""States in slots: folders inside a worker's, by the same rules."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from msgspec import Raw
from tests.store.states.saving import OTHER, WORKER, load, save

from scraper_supervisor.core.ops.state_ops import LoadState, ProbeFolder, SaveState, SlotsFull, StateLoaded, StateSaved
from scraper_supervisor.store.sqlite.run_numbers import told_by_states
from scraper_supervisor.store.states.checkpoints import CheckpointFiles, TooManySlots
from scraper_supervisor.store.states.reading import CheckpointReader
from scraper_worker.protocol import MAX_SLOTS, is_slot

if TYPE_CHECKING:
    from pathlib import Path


def keep(store: CheckpointFiles, slot: str, state: bytes = b'{"n":1}', run: int = 1, retention: int = 10) -> StateSaved:
    answer = store.perform(SaveState(1, WORKER, run, "s/1", Raw(state), 0, 0, 0, retention, "none", slot))
    assert isinstance(answer, StateSaved)
    return answer


def take(store: CheckpointFiles, slot: str, fresh_from: int = 1, generation: int | None = None) -> StateLoaded:
    answer = store.perform(LoadState(1, WORKER, fresh_from, generation, slot))
    assert isinstance(answer, StateLoaded)
    return answer


def damage(tmp_path: Path, slot: str) -> None:
    for path in (tmp_path / "checkpoints" / WORKER / slot).glob("checkpoint-*"):
        path.write_bytes(path.read_bytes().replace(b'"n":', b'"m":'))


@pytest.mark.parametrize("name", ["a", "session", "a-1", "a" * 16])
def test_names_of_slots(name: str) -> None:
    assert is_slot(name)


@pytest.mark.parametrize("name", ["", "corrupt", "A", "1a", "-a", "a_b", "a" * 17, "a\n", "..", "ä", "a/b"])
def test_what_no_slot_is_named(tmp_path: Path, name: str) -> None:
    assert not is_slot(name)
    for op in (
        SaveState(1, WORKER, 1, "s/1", Raw(b"{}"), 0, 0, 0, 10, "none", name),
        LoadState(1, WORKER, 1, None, name),
        ProbeFolder(1, WORKER, 1, name),
    ):
        with pytest.raises(ValueError, match="not a slot's name"):
            CheckpointFiles(tmp_path).perform(op)
    assert not (tmp_path / "checkpoints").exists()


def test_a_slot_is_a_folder_of_generations_of_its_own(tmp_path: Path) -> None:
    store = CheckpointFiles(tmp_path)
    save(store, b'{"main":1}')
    save(store, b'{"main":2}')
    assert [keep(store, "session").generation, keep(store, "cursor", b'{"n":2}').generation] == [1, 1]
    path = tmp_path / "checkpoints" / WORKER / "session" / "checkpoint-000000000001.json"
    data = path.read_bytes()
    assert data.endswith(b',"sha256":"%b"}\n' % hashlib.sha256(data[:-78]).hexdigest().encode())
    for again in (store, CheckpointFiles(tmp_path)):
        assert bytes(take(again, "session").state) == b'{"n":1}'
        assert bytes(take(again, "cursor").state) == b'{"n":2}'
        assert bytes(load(again).state) == b'{"main":2}'
    assert keep(CheckpointFiles(tmp_path), "session", b'{"n":3}').generation == 2


def test_retention_is_each_slot_s_own(tmp_path: Path) -> None:
    store = CheckpointFiles(tmp_path)
    for number in range(4):
        keep(store, "a", b"%d" % number, retention=2)
    keep(store, "b", retention=2)
    folder = tmp_path / "checkpoints" / WORKER
    assert [len(list((folder / slot).glob("checkpoint-*"))) for slot in "ab"] == [2, 1]


def test_there_are_sixteen_at_most_and_reading_makes_none(tmp_path: Path) -> None:
    store = CheckpointFiles(tmp_path)
    for number in range(MAX_SLOTS + 5):
        assert take(store, f"read-{number}", fresh_from=2).found == "none"
        assert take(store, f"read-{number}", generation=1).found == "unknown"
    for number in range(MAX_SLOTS):
        keep(store, f"s{number}")
    one_more = SaveState(1, WORKER, 1, "s/1", Raw(b"{}"), 0, 0, 0, 10, "none", "more")
    for again in (store, CheckpointFiles(tmp_path)):
        answer = again.perform(one_more)
        assert isinstance(answer, SlotsFull)
        assert len(answer.slots) == MAX_SLOTS
        with pytest.raises(TooManySlots, match="s15"):
            again.save(one_more)
        keep(again, "s3")  # those that are there go on


def test_without_a_sound_generation_it_is_told_once_also_to_a_later_store(tmp_path: Path) -> None:
    keep(CheckpointFiles(tmp_path), "session")
    damage(tmp_path, "session")
    first = take(CheckpointFiles(tmp_path), "session")
    assert (first.found, len(first.damage)) == ("damaged", 1)
    store = CheckpointFiles(tmp_path)
    assert [take(store, "session").found, take(CheckpointFiles(tmp_path), "session").found] == ["none", "none"]
    assert take(store, "session", generation=1).found == "damaged"
    assert keep(store, "session").generation == 2, "its number is not given again"
    assert load(store).found == "none", "the main state is none of its business"


def test_a_fresh_run_begins_without_slots_but_with_its_session(tmp_path: Path) -> None:
    store = CheckpointFiles(tmp_path)
    keep(store, "cursor")
    keep(store, "session")
    for again in (store, CheckpointFiles(tmp_path)):
        assert take(again, "cursor", fresh_from=2).found == "none"
        assert take(again, "session", fresh_from=0).found == "sound"


def test_a_session_of_a_run_that_was_never_opened_counts_too(tmp_path: Path) -> None:
    store = CheckpointFiles(tmp_path)
    keep(store, "session", run=0)
    assert take(store, "session", fresh_from=0).found == "sound"


def test_slots_are_listed_verified_and_shown(tmp_path: Path) -> None:
    store = CheckpointFiles(tmp_path)
    save(store, b'{"main":1}')
    save(store, b'{"main":1}', worker=OTHER)
    keep(store, "session")
    damage(tmp_path, "session")
    keep(store, "cursor")
    reader = CheckpointReader(tmp_path)
    assert [(one.worker, one.slot) for one in reader.list()] == [
        (WORKER, None),
        (WORKER, "cursor"),
        (WORKER, "session"),
        (OTHER, None),
    ]
    assert [(one.slot, one.problem is None) for one in reader.list(slot="session")] == [("session", False)]
    assert [(one.slot, one.ok) for one in reader.verify(WORKER)] == [(None, True), ("cursor", True), ("session", False)]
    assert [one.slot for one in reader.verify(slot="cursor")] == ["cursor"]
    assert bytes(reader.show(WORKER, slot="cursor").state) == b'{"n":1}'


def test_a_number_of_a_run_that_only_a_slot_tells_of_is_not_given_again(tmp_path: Path) -> None:
    store = CheckpointFiles(tmp_path)
    save(store, b"{}", run=2)
    keep(store, "session", run=7)
    assert told_by_states(tmp_path) == {"matches": 7}
