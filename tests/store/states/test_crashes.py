"""Power cuts and kills at every step of the checkpoint files' life: what was acknowledged is there, nothing half."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec import Raw, Struct
from tests.store.states.crashes import (
    WORKER,
    Acknowledged,
    Begun,
    Create,
    Killed,
    Mkdir,
    Quick,
    Recorder,
    Rename,
    Restarted,
    Scenario,
    Spoiled,
    Step,
    Unlink,
    build,
    crash_states,
)

from scraper_supervisor.core.formats.checkpoint_file import FileName, parse_file_name, retention_plan
from scraper_supervisor.core.ops.state_ops import LoadState, SaveState, StateLoaded, StateSaved
from scraper_supervisor.store.files import Files
from scraper_supervisor.store.states.checkpoints import CheckpointFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Script = Callable[[Scenario], None]

CHANGES = (Create, Mkdir, Rename, Unlink)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of states are made and thrown away, none need be durable."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


# ---- what must hold --------------------------------------------------------------------------------------------------


class Story(Struct):
    """What the steps so far promised."""

    acknowledged: dict[int, SaveState] = {}
    unfinished: list[SaveState] = []
    spoiled: dict[int, bytes] = {}
    fresh_from: int = 1

    def kept(self, generations: set[int]) -> set[int]:
        """The acknowledged generations that retention must have left, given which there are that were not."""
        kept: list[tuple[FileName, bytes]] = []
        for generation in sorted(self.acknowledged.keys() | generations):
            op = self.acknowledged.get(generation) or self.unfinished[-1]
            kept.insert(0, (FileName(generation, str(generation), "none"), bytes(op.state)))
            gone = set(retention_plan(kept, op.retention))
            kept = [one for one in kept if one[0] not in gone]
        return {file.generation for file, _ in kept} & self.acknowledged.keys() - self.spoiled.keys()


def story(trace: list[Step]) -> Story:
    told = Story()
    for step in trace:
        match step:
            case Begun(op=SaveState() as op):
                told.unfinished.append(op)
            case Begun(op=LoadState(fresh_from=fresh_from)):
                told.fresh_from = max(told.fresh_from, fresh_from)
            case Acknowledged(op=SaveState() as op, answer=StateSaved(generation=generation)):
                told.unfinished.remove(op)
                told.acknowledged[generation] = op
            case Spoiled(generation=generation, data=data):
                told.spoiled[generation] = data
            case _:
                pass
    return told


def judge(told: Story, root: Path) -> None:
    """Recover from a state, and hold what is found against what was promised."""
    folder = root / "checkpoints" / WORKER
    store = CheckpointFiles(root, Quick())
    for check in store.verify():
        assert check.ok or check.generation in told.spoiled, f"{check.path}: {check.reason}"
    there = {file.generation for path in folder.glob("*") if (file := parse_file_name(path.name)) is not None}
    found = store.perform(LoadState(0, WORKER, told.fresh_from))
    assert isinstance(found, StateLoaded)
    counting = {number: op for number, op in told.acknowledged.items() if op.run >= told.fresh_from}
    sound = counting.keys() - told.spoiled.keys()
    if found.found == "sound":
        assert found.generation >= max(sound, default=1), "an older one than was acknowledged"
        op = told.acknowledged.get(found.generation)
        assert bytes(found.state) in [bytes(one.state) for one in ([op] if op is not None else told.unfinished)]
    else:
        assert not sound, f"{found.found}, though acknowledged"
        assert found.found == ("damaged" if counting else "none")
    assert len(found.damage) <= len(told.spoiled)
    assert not list(folder.glob(".*")), "something unfinished was left"
    for generation in told.kept(there - told.acknowledged.keys()):
        assert store.show(WORKER, generation).state == told.acknowledged[generation].state
    for data in told.spoiled.values():
        assert data in [path.read_bytes() for path in (*folder.glob("*.json*"), *folder.glob("corrupt/*"))]
    again = store.perform(SaveState(0, WORKER, told.fresh_from, "x/1", Raw(b'"again"'), 0, 0, 0, 3, "none"))
    assert isinstance(again, StateSaved)
    assert again.generation > max([*told.acknowledged, *there], default=0), "a generation is used again"
    newest = CheckpointFiles(root, Quick()).perform(LoadState(0, WORKER, told.fresh_from))
    assert isinstance(newest, StateLoaded)
    assert (newest.found, newest.generation, newest.state) == ("sound", again.generation, Raw(b'"again"'))


def survive(trace: list[Step], folder: Path, *, after: int = 0) -> int:
    """Judge every state that a crash after the first `after` steps can leave; how many there were."""
    count, last, told = 0, -1, Story()
    for taken, tree in crash_states(trace):
        if taken < after:
            continue
        if taken != last:
            last, told = taken, story(trace[:taken])
        root = folder / "state"
        root.mkdir()
        build(tree, root)
        try:
            judge(told, root)
        except Exception as error:
            steps = "\n".join(map(repr, trace[max(0, taken - 12) : taken]))
            raise AssertionError(f"{error!r}\nafter step {taken}:\n{steps}\nfound: {sorted(tree)}") from error
        shutil.rmtree(root)
        count += 1
    return count


# ---- the scripts -----------------------------------------------------------------------------------------------------


def plain(at: Scenario) -> None:
    for number in range(1, 6):
        at.save(f'"state {number}"')


def packed(at: Scenario) -> None:
    for number in range(1, 6):
        at.save(f'"state {number}"', gzip=number != 3)


def equal(at: Scenario) -> None:
    for state in ('"a"', '"b"', '"a"', '"a"', '"c"', '"b"'):
        at.save(state)


def lowered(at: Scenario) -> None:
    for number in range(1, 6):
        at.save(f'"state {number}"', retention=9)
    at.restart()
    at.save('"few"', retention=2)
    at.save('"fewer"', retention=1)


def damaged(at: Scenario) -> None:
    for number in range(1, 4):
        at.save(f'"state {number}"')
    at.spoil(3)
    at.restart()
    assert at.load().generation == 2
    at.save('"state 4"')
    at.spoil(4)
    assert at.load().generation == 2


def all_damaged(at: Scenario) -> None:
    at.save('"state 1"')
    at.save('"state 2"', gzip=True)
    at.spoil(1)
    at.spoil(2)
    at.restart()
    assert at.load().found == "damaged"
    at.restart()
    assert at.load().found == "damaged"
    at.save('"state 3"')


def fresh(at: Scenario) -> None:
    at.save('"state 1"')
    at.save('"state 2"')
    at.spoil(2)
    at.restart()
    assert at.load(fresh_from=2).found == "none"
    at.save('"state 3"', run=2)
    at.spoil(3)
    at.restart()
    assert at.load(fresh_from=2).found == "damaged"


def restored(at: Scenario) -> None:
    for number in range(1, 4):
        at.save(f'"state {number}"')
    at.spoil(3)
    at.restore(2)
    at.restore(1)
    assert at.load().generation == 5


SCRIPTS = [plain, packed, equal, lowered, damaged, all_damaged, fresh, restored]


def record(script: Script, root: Path, files: Recorder) -> Scenario:
    root.mkdir()
    scenario = Scenario(root, files)
    script(scenario)
    return scenario


# What each script gave when it was written; packed states are as long as zlib makes them, so a little less will do.
FLOORS = {
    "plain": 450, "packed": 300, "equal": 580, "lowered": 1_650, "damaged": 375, "all_damaged": 235, "fresh": 300,
    "restored": 460, "brief": 5_900, "brief_damage": 2_300,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_state_that_a_power_cut_can_leave_is_recovered_from(tmp_path: Path, script: Script) -> None:
    files = Recorder(tmp_path / "recorded")
    record(script, tmp_path / "recorded", files)
    count = survive(files.trace, tmp_path)
    print(f"{script.__name__}: {count} states of {len(files.trace)} steps")
    assert count >= FLOORS[script.__name__], "fewer than there were: does the harness still see every step?"


def killed_everywhere(script: Script, folder: Path, recorder: Callable[[Path, int], Recorder]) -> Iterator[Recorder]:
    """The script, killed before each of its steps; then another process goes on, and loads and saves."""
    kill_at, ended = 0, False
    while not ended:
        root = folder / f"killed-{kill_at}"
        root.mkdir()
        files = recorder(root, kill_at)
        scenario = Scenario(root, files)
        try:
            script(scenario)
            ended = True
        except Killed:
            pass
        scenario.restart()
        scenario.load()
        scenario.save('"after the kill"')
        yield files
        kill_at += 1


def survive_kills(script: Script, folder: Path, recorder: Callable[[Path, int], Recorder]) -> int:
    """Judge what a power cut can leave after each kill; how many states there were."""
    count = 0
    for files in killed_everywhere(script, folder, recorder):
        after = max(place for place, step in enumerate(files.trace) if isinstance(step, Restarted))
        count += survive(files.trace, folder, after=after)
    return count


def brief(at: Scenario) -> None:
    at.save('"state 1"', retention=1)
    at.save('"state 2"', retention=1, gzip=True)


def brief_damage(at: Scenario) -> None:
    at.save('"state 1"')
    at.save('"state 2"')
    at.spoil(2)
    at.restart()
    at.load(fresh_from=2)
    at.load()


@pytest.mark.slow
@pytest.mark.parametrize("script", [brief, brief_damage])
def test_a_power_cut_after_a_kill_is_recovered_from(tmp_path: Path, script: Script) -> None:
    count = survive_kills(script, tmp_path, Recorder)
    print(f"{script.__name__}: {count} states after kills")
    assert count >= FLOORS[script.__name__], "fewer than there were: does the harness still see every step?"


# ---- the harness itself ----------------------------------------------------------------------------------------------


class Broken(Recorder):
    def _write_all(self, fd: int, part: bytes | memoryview) -> None:
        rest = memoryview(part)
        while rest:
            rest = rest[self.append(fd, rest) :]


class NoSyncOfFiles(Recorder):
    def sync(self, fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            super().sync(fd)


class NoSyncOfFolders(Recorder):
    def sync_folder(self, folder: Path) -> None:
        pass


class NoSyncOfNewFolders(Recorder):
    """The files are in a folder whose own name may be lost."""

    def make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self.make_folder(folder.parent)
            self.mkdir(folder)


class RenamesFirst(Broken):
    def write(self, path: Path, parts: Iterable[bytes | bytearray | memoryview]) -> int:
        temporary = path.with_name(f".{path.name}.tmp")
        fd = self.create(temporary)
        for part in parts:
            self._write_all(fd, part)
        self.rename(temporary, path)
        self.sync(fd)
        os.close(fd)
        self.sync_folder(path.parent)
        return path.stat().st_size


class WritesInPlace(Broken):
    def write(self, path: Path, parts: Iterable[bytes | bytearray | memoryview]) -> int:
        fd = self.create(path)
        for part in parts:
            self._write_all(fd, part)
        self.sync(fd)
        os.close(fd)
        self.sync_folder(path.parent)
        return path.stat().st_size


class RemovesFirst(Recorder):
    """Retention makes room before the new state is safe."""

    def write(self, path: Path, parts: Iterable[bytes | bytearray | memoryview]) -> int:
        known = sorted(path.parent.glob("checkpoint-*"))
        if len(known) == 3:
            self.unlink(known[0])
        return super().write(path, parts)


class RemovesTheDamaged(Recorder):
    def move(self, path: Path, target: Path) -> None:  # noqa: ARG002 - the mistake
        self.unlink(path)
        self.sync_folder(path.parent)


class Trusts(Recorder):
    """What a predecessor left is taken for durable."""

    def sync_folder(self, folder: Path) -> None:
        mine = self.trace[max((at for at, step in enumerate(self.trace) if isinstance(step, Restarted)), default=0) :]
        changed = [step.target if isinstance(step, Rename) else step.path for step in mine if isinstance(step, CHANGES)]
        if self._name(folder) in {os.path.dirname(path) or "." for path in changed}:
            super().sync_folder(folder)


@pytest.mark.parametrize(
    ("broken", "script"),
    [
        (NoSyncOfFiles, plain),
        (NoSyncOfFolders, plain),
        (NoSyncOfNewFolders, plain),
        (RenamesFirst, plain),
        (RenamesFirst, packed),
        (WritesInPlace, plain),
        (RemovesFirst, plain),
        (RemovesTheDamaged, damaged),
    ],
)
def test_a_store_that_does_it_wrong_is_found_out(tmp_path: Path, broken: type[Recorder], script: Script) -> None:
    with pytest.raises(AssertionError, match="after step"):
        survive(record(script, tmp_path / "recorded", broken(tmp_path / "recorded")).files.trace, tmp_path)


def test_a_store_that_trusts_its_predecessor_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="after step"):
        survive_kills(plain, tmp_path, Trusts)


def test_the_recorder_changes_nothing(tmp_path: Path) -> None:
    for name, files in (("recorded", Recorder(tmp_path / "recorded")), ("real", Files())):
        root = tmp_path / name
        root.mkdir()
        store = CheckpointFiles(root, files, clock=lambda: 1_777_636_800.0)
        store.perform(SaveState(0, WORKER, 1, "x/1", Raw(b"[1]"), 0, 0, 0, 3, "gzip"))
    one, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.gz")} for name in ("recorded", "real")
    )
    assert one == other
