from __future__ import annotations

import resource
import signal
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from scraper_supervisor.store.event_log import (
    EVENTS_FILE,
    KEPT,
    EventLogWriter,
    decode_event,
    follow_lines,
    read_events,
    rotated,
)

if TYPE_CHECKING:
    from pathlib import Path


def line(name: object) -> bytes:
    return f'{{"time":"t","event":"{name}"}}\n'.encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / EVENTS_FILE


def names(path: Path) -> list[str]:
    return [record.event for record in read_events(path)]


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_the_file_is_only_ours_to_read(path: Path) -> None:
    writer = EventLogWriter(path)
    assert not path.exists()
    assert writer.append(line("a")) is None
    assert path.stat().st_mode & 0o777 == 0o600
    writer.close()
    writer.close()


def test_the_file_rotates_and_five_are_kept(path: Path) -> None:
    writer = EventLogWriter(path, rotate_at=3 * len(line(10)))
    for number in range(10, 50):
        assert writer.append(line(number)) is None
    writer.close()
    assert sorted(one.name for one in path.parent.iterdir()) == [path.name] + [f"{path.name}.{n}" for n in range(1, 6)]
    assert all(rotated(path, number).stat().st_size <= 3 * len(line(10)) for number in range(6))
    assert names(path) == [str(number) for number in range(34, 50)][-len(names(path)) :]
    assert [one.event for one in read_events(path, with_rotated=False)] == ["49"]


def test_what_is_longer_than_a_file_may_be_is_written_whole(path: Path) -> None:
    writer = EventLogWriter(path, rotate_at=10)
    writer.append(line("a") + line("b"))
    writer.append(line("c"))
    writer.close()
    assert rotated(path, 1).read_bytes() == line("a") + line("b")
    assert names(path) == ["a", "b", "c"]


def test_a_torn_line_spoils_nothing(path: Path) -> None:
    path.write_bytes(line("a") + b'noise\n[1]\n{"time":"t","event":"to')
    assert names(path) == ["a"]
    writer = EventLogWriter(path)
    writer.append(line("b"))
    writer.close()
    assert names(path) == ["a", "b"]


def test_a_write_that_fails_leaves_nothing(path: Path) -> None:
    """A file-size limit makes a write stop in the middle of a line, as a full disk does."""
    writer = EventLogWriter(path)
    writer.append(line("a"))
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(line("a")) + 10, old_limit[1]))
        with pytest.raises(OSError, match="File too large"):
            writer.append(line("b"))
        assert path.read_bytes() == line("a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert writer.append(line("b")) is None
    writer.close()
    assert names(path) == ["a", "b"]


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
def test_a_file_that_is_taken_away_is_begun_anew_and_that_is_told_once(path: Path, how: str) -> None:
    writer = EventLogWriter(path)
    writer.append(line("a"))
    if how == "removed":
        path.unlink()
    else:
        path.rename(path.with_suffix(".old"))
    if how == "replaced":
        path.write_bytes(b"half a line")
    told = writer.append(line("b"))
    assert told is not None
    assert told.startswith(str(path))
    assert ("replaced" in told) == (how == "replaced")
    assert writer.append(line("c")) is None
    writer.close()
    assert names(path) == ["b", "c"]


def test_a_file_that_is_cut_is_written_to_at_its_new_end(path: Path) -> None:
    writer = EventLogWriter(path)
    writer.append(line("a") + line("b"))
    with path.open("r+b") as file:
        file.truncate(len(line("a")) + 3)
    told = writer.append(line("c"))
    assert told is not None
    assert "was cut from" in told
    writer.close()
    assert names(path) == ["a", "c"]


def test_what_was_found_is_told_even_where_the_write_after_it_fails(path: Path) -> None:
    writer = EventLogWriter(path)
    writer.append(line("a"))
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        writer.append(line("b"))
    path.rmdir()
    assert "replaced" in (writer.append(line("b")) or "")
    assert writer.append(line("c")) is None
    writer.close()
    assert names(path) == ["b", "c"]


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_no_file_is_said(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_events(path))
    rotated(path, 1).write_bytes(line("a"))
    assert names(path) == ["a"]
    assert decode_event(b"nonsense") is None


def test_reading_survives_a_rotation_meanwhile(path: Path) -> None:
    for number, name in ((0, "c"), (1, "b"), (2, "a")):
        rotated(path, number).write_bytes(line(name))
    events = read_events(path)
    assert next(events).event == "a"
    for number in (2, 1, 0):
        rotated(path, number).replace(rotated(path, number + 1))
    assert [record.event for record in events] == ["b", "c"]


# ---- following -------------------------------------------------------------------------------------------------------


def test_following_survives_rotation_and_halves_of_lines(path: Path) -> None:
    lines = follow_lines(path)
    assert next(lines) is None  # there is no file yet
    path.write_bytes(line(1) + line(2)[:20])
    assert list(islice(lines, 2)) == [line(1), None]
    with path.open("ab") as file:
        file.write(line(2)[20:])
    assert list(islice(lines, 2)) == [line(2), None]
    with path.open("ab") as file:
        file.write(line(3))
    path.rename(rotated(path, 1))
    path.write_bytes(line(4))
    assert list(islice(lines, 3)) == [line(3), line(4), None]
    lines.close()
    again = follow_lines(path)
    found = [one for one in islice(again, 5) if one is not None]
    assert found == [line(1), line(2), line(3), line(4)]
    again.close()


def test_a_follower_misses_nothing_of_several_rotations(path: Path) -> None:
    writer = EventLogWriter(path, rotate_at=len(line(0)))
    writer.append(line(0))
    lines = follow_lines(path)
    assert list(islice(lines, 2)) == [line(0), None]
    for number in range(1, KEPT + 1):
        writer.append(line(number))
    assert list(islice(lines, KEPT + 1)) == [*(line(number) for number in range(1, KEPT + 1)), None]
    lines.close()
    writer.close()


def test_a_follower_goes_on_with_what_takes_a_removed_files_place(path: Path) -> None:
    writer = EventLogWriter(path)
    writer.append(line(1))
    lines = follow_lines(path)
    assert list(islice(lines, 2)) == [line(1), None]
    path.unlink()
    assert next(lines) is None
    writer.append(line(2))
    assert list(islice(lines, 2)) == [line(2), None]
    lines.close()
    writer.close()


def test_a_follower_reads_a_line_again_that_was_taken_back(path: Path) -> None:
    path.write_bytes(line(1) + line(2)[:20])
    lines = follow_lines(path)
    assert list(islice(lines, 2)) == [line(1), None]
    with path.open("r+b") as file:
        file.truncate(len(line(1)))
    assert next(lines) is None
    with path.open("ab") as file:
        file.write(line(3))
    assert list(islice(lines, 2)) == [line(3), None]
    with path.open("r+b") as file:
        file.truncate(0)  # as logrotate's copytruncate does
    assert next(lines) is None
    with path.open("ab") as file:
        file.write(line(4))
    assert list(islice(lines, 2)) == [line(4), None]
    lines.close()
