"""Files that went bad, by chance and by hand: found, set aside and told of, and never a start from silence."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
import zlib
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Raw
from tests.store.states.crashes import Quick
from tests.store.states.saving import OTHER, WORKER, load, paths, save

from scraper_supervisor.core.formats.checkpoint_file import parse_file_name
from scraper_supervisor.core.ops.state_ops import SaveState, StateSaved
from scraper_supervisor.store.files import Files
from scraper_supervisor.store.states.checkpoints import CheckpointFiles

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def sound(path: Path, worker: str) -> bool:
    """Whether a file is what the contract calls a checkpoint; by other means than the store's own."""
    name = parse_file_name(path.name)
    if name is None or path.is_symlink() or not path.is_file():
        return False
    data = path.read_bytes()
    if name.compression == "gzip":
        unpacker = zlib.decompressobj(31)
        try:
            data = unpacker.decompress(data)
        except zlib.error:
            return False
        if not unpacker.eof or unpacker.unused_data:
            return False
    text, footer = data[:-78], data[-78:]
    if footer != b',"sha256":"%b"}\n' % hashlib.sha256(text).hexdigest().encode() or b"\n" in text:
        return False
    document = json.loads(data)
    return (document["worker"], document["generation"]) == (worker, name.generation)


def snapshot(root: Path) -> dict[str, Any]:
    """Everything below a folder: kind, and content or target."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        kind = stat.S_IFMT(path.lstat().st_mode)
        content = path.read_bytes() if stat.S_ISREG(kind) else os.readlink(path) if stat.S_ISLNK(kind) else None
        found[str(path.relative_to(root))] = (kind, content)
    return found


# ---- by chance -------------------------------------------------------------------------------------------------------

Damage = tuple[str, int, int, bytes]
damages = st.tuples(
    st.sampled_from(
        [
            "flip",
            "flip",
            "cut",
            "insert",
            "extend",
            "empty",
            "swap",
            "copy",
            "other",
            "folder",
            "link",
            "pipe",
            "foreign",
        ]
    ),
    st.integers(0, 9),
    st.integers(0, 10_000),
    st.binary(min_size=1, max_size=20),
)


def spoil(folder: Path, others: Path, damage: Damage) -> None:
    """Do a damage to one of the files that a folder holds; `where` and `what` say which and how."""
    kind, which, where, what = damage
    files = sorted(path for path in folder.glob("checkpoint-*") if path.is_file() and not path.is_symlink())
    if not files:
        return
    path = files[which % len(files)]
    data = bytearray(path.read_bytes()) or bytearray(b"x")
    at = where % len(data)
    match kind:
        case "flip":
            data[at] ^= 1 << where % 8
            path.write_bytes(data)
        case "cut":
            path.write_bytes(data[:at])
        case "insert":
            path.write_bytes(data[:at] + what + data[at:])
        case "extend":
            path.write_bytes(data + what)
        case "empty":
            path.write_bytes(b"")
        case "swap":
            path.write_bytes(files[where % len(files)].read_bytes())
        case "copy":
            copy = folder / f"checkpoint-{50 + where:012d}{''.join(path.suffixes)}"
            if not os.path.lexists(copy):  # an earlier damage may have made something else of it
                copy.write_bytes(data)
        case "other":
            shutil.copy(min(others.glob("checkpoint-*")), path)
        case "folder":
            path.unlink()
            path.mkdir()
            (path / "notes").write_bytes(what)
        case "link":
            path.rename(folder.parent.parent / f"moved-{where}")
            path.symlink_to(folder.parent.parent / f"moved-{where}")
        case "pipe":
            path.unlink()
            os.mkfifo(path)
        case _:
            with contextlib.suppress(IsADirectoryError):  # what was made a folder may have got this name
                (folder / f"{path.name}.{where}.bak").write_bytes(what)


@settings(max_examples=5 * settings().max_examples // 2)
@given(st.lists(st.booleans(), min_size=1, max_size=5), st.lists(damages, min_size=1, max_size=4))
@example([False, False], [("copy", 0, 0, b"x"), ("folder", 2, 0, b"x"), ("copy", 0, 0, b"x")])
def test_any_damage_is_found_and_the_newest_sound_generation_used(packed: list[bool], done: list[Damage]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        root = Path(place)
        folder, others = root / "checkpoints" / WORKER, root / "checkpoints" / OTHER
        for number, gzip in enumerate(packed):
            save(CheckpointFiles(root, Quick()), b'{"page":%d}' % number, gzip=gzip)
        save(CheckpointFiles(root, Quick()), b'{"page":99}', worker=OTHER)
        for damage in done:
            spoil(folder, others, damage)
        before = snapshot(root)
        files = [path for path in folder.iterdir() if parse_file_name(path.name) is not None]
        bad = {str(path) for path in files if not sound(path, WORKER)}
        good = sorted((path for path in files if str(path) not in bad), key=lambda path: path.name)

        checks = list(CheckpointFiles(root, Quick()).verify())
        assert {check.path for check in checks if not check.ok} == bad
        assert len(checks) == len(files) + 1
        assert all(check.reason for check in checks if not check.ok)
        assert snapshot(root) == before, "verify moved something"

        store = CheckpointFiles(root, Quick())
        found = load(store)
        newer = sorted(path for path in bad if not good or Path(path).name > good[-1].name)
        assert sorted(Path(one.path).name for one in found.damage) == [Path(path).name for path in newer]
        assert all(one.reason for one in found.damage)
        for path in newer:
            aside = folder / "corrupt" / Path(path).name
            assert snapshot(aside.parent)[aside.name] == before[str(Path(path).relative_to(root))]
        if good:
            assert (found.found, found.generation) == ("sound", parse_file_name(good[-1].name).generation)
        else:
            assert found.found == "damaged"
        assert snapshot(others) == {name.split("/")[-1]: what for name, what in before.items() if f"{OTHER}/" in name}
        assert load(store, OTHER).found == "sound"
        foreign = {name: what for name, what in before.items() if name.endswith(".bak")}
        assert foreign.items() <= snapshot(root).items()

        again = load(CheckpointFiles(root, Quick()))
        assert (again.found, again.generation, again.state, again.damage) == (
            found.found,
            found.generation,
            found.state,
            (),
        )
        shutil.rmtree(folder / "corrupt", ignore_errors=True)
        store = CheckpointFiles(root, Quick())
        assert load(store).found == found.found, (
            "deleting what was set aside is no word that the state may be forgotten"
        )
        highest = max(parse_file_name(path.name).generation for path in files)
        assert save(store, b"{}").generation > highest
        assert load(store).generation > highest


@settings(max_examples=3 * settings().max_examples // 2)
@given(damages, st.sampled_from(["files kept", "files deleted"]))
def test_a_damaged_mark_never_lets_a_worker_start_from_nothing(damage: Damage, files: str) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        root = Path(place)
        folder = root / "checkpoints" / WORKER
        save(CheckpointFiles(root, Quick()), b'{"page":1}')
        (folder / "checkpoint-000000000001.json").write_bytes(b"spoilt")
        assert load(CheckpointFiles(root, Quick())).found == "damaged"
        mark = folder / "mark.json"
        shelf = root / "on" / "shelf"
        shelf.mkdir(parents=True)
        shutil.move(mark, shelf / "checkpoint-000000000001.json")
        (root / "one").mkdir()
        (root / "one" / "checkpoint-000000000009.json").write_bytes(b"of another kind")
        spoil(shelf, root / "one", damage)
        spoilt = shelf / "checkpoint-000000000001.json"
        if damage[0] not in ("swap", "copy", "foreign"):
            checked = spoilt.read_bytes() if spoilt.is_file() and not spoilt.is_symlink() else None
            os.rename(spoilt, mark)
            (check,) = [check for check in CheckpointFiles(root, Quick()).verify() if not check.ok]
            assert (check.path, check.worker, check.generation) == (str(mark), WORKER, None)
            found = load(CheckpointFiles(root, Quick()))
            assert [Path(one.path).name for one in found.damage] == ["mark.json"]
            assert checked is None or (folder / "corrupt" / "mark.json").read_bytes() == checked
            assert found.found == "damaged"
        assert load(CheckpointFiles(root, Quick())).found == "damaged"  # without any, too
        if files == "files deleted":
            shutil.rmtree(folder / "corrupt")
        assert load(CheckpointFiles(root, Quick())).found == "damaged"
        assert load(CheckpointFiles(root, Quick()), fresh_from=2).found == "none"
        assert save(CheckpointFiles(root, Quick()), b"{}", run=2).generation == 2


# ---- by hand ---------------------------------------------------------------------------------------------------------


def newer_format(data: bytes) -> bytes:
    text = data[:-78].replace(b'{"format":1,', b'{"format":2,')
    return text + b',"sha256":"%b"}\n' % hashlib.sha256(text).hexdigest().encode()


def test_a_later_format_is_neither_damage_nor_passed_over(tmp_path: Path) -> None:
    first, second, third = paths(tmp_path, 3)
    data = newer_format(third.read_bytes())
    third.write_bytes(data)
    store = CheckpointFiles(tmp_path)
    found = load(store)
    assert (found.found, found.generation, found.damage, found.there) == ("newer", 3, (), (2, 1))
    assert "written by a later version" in found.reason
    assert load(store, generation=2).found == "sound"
    asked = load(store, generation=3)
    assert (asked.found, asked.reason) == ("newer", found.reason)
    (check,) = [check for check in store.verify() if not check.ok]
    assert (check.path, check.reason) == (str(third), found.reason)
    assert [(info.generation, info.problem) for info in store.list()] == [(3, found.reason), (2, None), (1, None)]
    assert save(store, b'{"page":7}').generation == 4
    assert load(store).generation == 4
    answer = store.perform(SaveState(1, WORKER, 1, "scores/1", Raw(b"{}"), 0, 0, 0, 1, "none"))
    assert isinstance(answer, StateSaved)
    assert answer.removed == (4, 2, 1), "what it cannot read, retention does not remove"
    assert third.read_bytes() == data
    assert not first.exists()
    assert not second.exists()


def test_a_fresh_run_takes_no_notice_of_a_later_format_before_it(tmp_path: Path) -> None:
    (only,) = paths(tmp_path, 1)
    only.write_bytes(newer_format(only.read_bytes()))
    assert load(CheckpointFiles(tmp_path), fresh_from=2).found == "none"
    assert load(CheckpointFiles(tmp_path), fresh_from=1).found == "newer"
    assert only.exists()


def test_damage_in_front_of_a_later_format(tmp_path: Path) -> None:
    _, second, third = paths(tmp_path, 3)
    second.write_bytes(newer_format(second.read_bytes()))
    third.write_bytes(b"")
    found = load(CheckpointFiles(tmp_path))
    assert (found.found, found.generation, len(found.damage)) == ("newer", 2, 1)


def test_a_fresh_run_takes_no_notice_of_damage_before_it_and_all_of_damage_in_it(tmp_path: Path) -> None:
    for path in paths(tmp_path, 2):
        path.write_bytes(b"")
    assert load(CheckpointFiles(tmp_path), fresh_from=2).found == "none"
    save(CheckpointFiles(tmp_path), b"{}", run=2)
    (path,) = (tmp_path / "checkpoints" / WORKER).glob("checkpoint-*3.json")
    path.write_bytes(path.read_bytes().replace(b'"run":2', b'"run":1'))  # it looks like one of the run before
    assert load(CheckpointFiles(tmp_path), fresh_from=2).found == "damaged"
    assert load(CheckpointFiles(tmp_path), fresh_from=2).found == "damaged"
    assert load(CheckpointFiles(tmp_path), fresh_from=3).found == "none"


def test_a_file_that_goes_away_while_it_is_looked_for_is_not_there(tmp_path: Path) -> None:
    class Racing(Files):
        def read(self, path: Path) -> bytes:
            if path.name.endswith("2.json"):
                path.unlink(missing_ok=True)
            return super().read(path)

    paths(tmp_path, 2)
    store = CheckpointFiles(tmp_path, Racing())
    assert [check.generation for check in store.verify()] == [1]
    assert load(store).generation == 1


# ---- retention -------------------------------------------------------------------------------------------------------


def test_a_much_lower_retention_is_reached_in_small_steps(tmp_path: Path) -> None:
    store = CheckpointFiles(tmp_path, Quick())
    for number in range(100):
        answer = store.perform(SaveState(1, WORKER, 1, "x/1", Raw(b"%d" % number), 0, 0, 0, 1000, "none"))
    reads = 0

    class Counting(Quick):
        def read(self, path: Path) -> bytes:
            nonlocal reads
            reads += 1
            return super().read(path)

    store = CheckpointFiles(tmp_path, Counting())
    removed, saves = 0, 0
    while removed < 100:
        reads = 0
        answer = store.perform(SaveState(1, WORKER, 1, "x/1", Raw(b'"new %d"' % saves), 0, 0, 0, 2, "none"))
        assert isinstance(answer, StateSaved)
        assert len(answer.removed) <= 16
        assert reads <= 50
        removed, saves = removed + len(answer.removed), saves + 1
        assert len(store._known[tmp_path / "checkpoints" / WORKER].digests) <= 101 - removed + saves
    assert saves <= 12
    assert load(store).generation == 100 + saves
