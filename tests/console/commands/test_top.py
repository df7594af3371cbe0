"""`top` on terminals of any size, and on one that cannot move its cursor."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from scraper_supervisor.console.commands.top import Screen

if TYPE_CHECKING:
    from pathlib import Path

    from tests.console.conftest import FakeDaemon


def with_workers(document: dict[str, Any], count: int) -> dict[str, Any]:
    """The status of a fleet of so many workers, the eighth of which has failed."""
    plain, failed = document["workers"]
    team = [{**plain, "name": f"matches-{index}", "index": index} for index in range(count)]
    if count > 7:
        team[7] = {**failed, "name": "matches-7", "index": 7}
    return {**document, "workers": team}


def drawn(screen: Screen, console: Console, document: dict[str, Any]) -> list[str]:
    """What the screen shows, line by line."""
    assert isinstance(console.file, io.TextIOWrapper)
    console.file.seek(0)
    console.file.truncate()
    console.print(screen.draw(document), end="")
    console.file.flush()
    console.file.seek(0)
    return console.file.read().split("\n")


def terminal(width: int, height: int, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    return Console(file=file, width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False)


def test_forty_workers_on_24_lines_are_all_within_reach(document: dict[str, Any]) -> None:
    console, fleet = terminal(80, 24), with_workers(document, 40)
    screen = Screen(console)
    seen: set[str] = set()
    for _ in range(40):
        lines = drawn(screen, console, fleet)
        assert len(lines) == 24
        assert all(len(line) <= 80 for line in lines)
        text = "\n".join(lines)
        for shown in ("scraper-supervisor 1.0", "matches  running", "availability 99.99%", "items lost 0", "WORKER"):
            assert shown in text
        assert "matches-7: failed: died" in text  # wherever the workers are scrolled to
        assert lines[-1].startswith("q: quit")
        new = {line.split()[0] for line in lines if line.startswith("matches-") and "MiB" in line}
        if new <= seen:
            break
        seen |= new
        screen.scroll("\x1b[6~")
    assert len(seen - {"matches-7"}) == 39  # the failed one has no memory to show, and is told of above
    assert "of 40" in lines[-1]


def test_the_keys_scroll_and_stop_at_the_ends(document: dict[str, Any]) -> None:
    console, fleet = terminal(80, 24), with_workers(document, 40)
    screen = Screen(console)

    def first(*keys: str) -> str:
        for key in keys:
            screen.scroll(key)
        lines = drawn(screen, console, fleet)
        return next(line.split()[0] for line in lines if line.startswith("matches-"))

    assert first() == "matches-0"
    assert first("\x1b[B", "j") == "matches-2"
    assert first("k", "\x1b[A", "\x1b[A") == "matches-0"
    last = first("G")
    assert last not in {"matches-0", "matches-39"}
    assert first("\x1b[6~") == last
    assert first("g") == "matches-0"
    assert first("x", "") == "matches-0"


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 12), (40, 8), (200, 60), (30, 4), (80, 1)])
@pytest.mark.parametrize("workers", [0, 1, 40])
def test_it_fits_any_terminal(document: dict[str, Any], width: int, height: int, workers: int) -> None:
    console, fleet = terminal(width, height), with_workers(document, workers)
    lines = drawn(Screen(console), console, fleet)
    assert len(lines) == height
    assert all(len(line) <= width for line in lines)
    assert lines[-1].startswith("q: quit")


def test_many_groups_leave_room_for_workers(document: dict[str, Any]) -> None:
    fleet = with_workers(document, 40)
    fleet["groups"] = [{**fleet["groups"][0], "name": f"group-{index}"} for index in range(30)]
    console = terminal(80, 24)
    text = "\n".join(drawn(Screen(console), console, fleet))
    assert "more groups" in text
    assert "matches-0 " in text


def test_copied_text_tells_done_from_left(document: dict[str, Any]) -> None:
    for encoding, done, left in (("utf-8", "█", "░"), ("ascii", "#", ".")):
        console = terminal(80, 24, encoding)
        (line,) = [one for one in drawn(Screen(console), console, document) if one.startswith("matches  ")]
        assert (line.count(done), line.count(left)) == (2, 10)  # 101 of 508


@pytest.mark.parametrize(("term", "code", "shown"), [("xterm-256color", 0, "q: quit"), ("dumb", 2, "TERM='dumb'")])
def test_on_a_real_terminal(
    project: Path, daemon: FakeDaemon, document: dict[str, Any], term: str, code: int, shown: str
) -> None:
    daemon.answers["status"] = with_workers(document, 40)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "scraper_supervisor", "top"]
    environment = {**os.environ, "TERM": term}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while data := os.read(ours, 65536):
                asked = shown.encode() in text
                text += data
                if not asked and shown.encode() in text:
                    os.write(ours, b"q")
        assert process.wait(30) == code
    os.close(ours)
    assert shown.encode() in text
    assert (b"matches-0" in text) == (code == 0)
