"""A worker that prints more than anybody can read."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import uvloop
from tests.daemon.processes.worlds import ENV

from scraper_supervisor.daemon.processes.processes import Exit, Processes, SpawnSpec
from scraper_supervisor.daemon.processes.worker_output import LINES_A_TURN

if TYPE_CHECKING:
    from pathlib import Path


def printed(folder: Path, script: str, seconds: float, rate: int = 1000) -> tuple[list[str], int, int]:
    """The lines that were delivered of a shell script, the most in one turn of the loop, and how many were dropped."""

    async def run() -> tuple[list[str], int, int]:
        loop = asyncio.get_running_loop()
        lines: list[str] = []
        most = 0
        ended = asyncio.Event()

        def exited(_worker: str, _incarnation: int, _end: Exit) -> None:
            ended.set()

        processes = Processes(loop, folder / "run", folder / "state", exited, lambda _w, _s, line: lines.append(line))
        processes.limit_output(rate)
        try:
            await processes.spawn(SpawnSpec("w-0", 1, ("/bin/sh", "-c", script), str(folder), ENV))
            over = loop.time() + seconds
            while not ended.is_set() and loop.time() < over:
                before = len(lines)
                await asyncio.sleep(0)
                most = max(most, len(lines) - before)
            await processes.end_tree("w-0", 1)
        finally:
            processes.stop_all()
        return lines, most, processes.lines_dropped()["w-0"]

    return uvloop.run(run())


def told(lines: list[str]) -> tuple[list[str], int]:
    """What was printed of them, and how many are told to be missing."""
    gaps = [int(found[1]) for line in lines if (found := re.fullmatch(r"(\d+) lines dropped", line))]
    return [line for line in lines if not line.endswith(" lines dropped")], sum(gaps)


def test_endless_output_is_cut_to_its_share_and_told(folder: Path) -> None:
    """`yes` took a neighbour from 4.5 to 0.9 items a second, and wrote 167 MB in seconds."""
    lines, most, dropped = printed(folder, "exec yes", 1.5)
    kept, gaps = told(lines)
    assert set(kept) == {"y"}
    assert 1000 <= len(kept) <= 1000 + 1000 * 3 + 1000  # what it left in the pipe may come on top
    assert gaps == dropped > 10_000
    assert most <= LINES_A_TURN + 1


def test_output_without_an_end_of_line_is_bounded_too(folder: Path) -> None:
    lines, _, dropped = printed(folder, "exec cat /dev/zero", 1.0)
    assert dropped
    assert sum(map(len, told(lines)[0])) < 20_000_000


def test_what_is_within_the_share_is_all_kept_in_its_order(folder: Path) -> None:
    lines, most, dropped = printed(folder, "seq 900; sleep 0.2", 20.0)
    assert lines == [str(number) for number in range(1, 901)]
    assert dropped == 0
    assert most <= LINES_A_TURN


def test_what_is_missing_of_a_burst_is_told_to_the_line(folder: Path) -> None:
    lines, _, dropped = printed(folder, "seq 30000", 20.0)
    kept, gaps = told(lines)
    assert len(kept) >= 1000
    assert kept == sorted(kept, key=int)
    assert gaps == dropped == 30_000 - len(kept)
