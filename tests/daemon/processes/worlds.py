"""What the tests of processes share: processes and what they said, programs to run, and who is left."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from scraper_supervisor.daemon.processes import procfs
from scraper_supervisor.daemon.processes.process_tree import ProcessRecord, read_record
from scraper_supervisor.daemon.processes.processes import Exit, Processes, SpawnSpec

if TYPE_CHECKING:
    from collections.abc import Callable

PYTHON = (sys.executable, "-S", "-E", "-c")
ENV = {"PATH": os.environ["PATH"]}
FOREVER = "while True: __import__('time').sleep(60)"


def on_loop(test: Callable[..., Any]) -> Callable[..., Any]:
    """Runs on uvloop, the daemon's loop, whose child and reader handling differs from asyncio's."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        async def bounded() -> None:
            world = fixtures.get("world")
            try:
                async with asyncio.timeout(60):
                    await test(**fixtures)
            finally:
                if world is not None and world.now is not None:
                    world.now.stop_all()

        uvloop.run(bounded())

    assert inspect.iscoroutinefunction(test)
    return run


class World:
    """A Processes and what it said, with the pids of everything that a test must not leave running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exits: list[tuple[str, int, Exit]] = []
        self.lines: list[tuple[str, str, str]] = []
        self.spawned: list[int] = []
        self.now: Processes | None = None

    def open(self) -> Processes:
        self.now = Processes(
            asyncio.get_running_loop(),
            self.folder / "run",
            self.folder / "state",
            lambda *said: self.exits.append(said),
            lambda *said: self.lines.append(said),
        )
        self.now.limit_output(1_000_000)  # what is within a worker's share is not the point here
        return self.now

    async def spawn(self, code: str, worker: str = "w-0", incarnation: int = 1, **env: str) -> int:
        assert self.now is not None
        spec = SpawnSpec(worker, incarnation, (*PYTHON, textwrap.dedent(code)), str(self.folder), {**ENV, **env})
        spawned = await self.now.spawn(spec)
        self.spawned.append(spawned.pid)
        return spawned.pid

    def said(self, stream: str = "out") -> list[str]:
        return [text for _, of, text in self.lines if of == stream]

    async def hears(self, count: int, stream: str = "out") -> list[str]:
        await until(lambda: len(self.said(stream)) >= count)
        return self.said(stream)


# A "browser": a session of its own that ignores SIGTERM, with a child, told to the parent by its pid on stdout.
BROWSER = """
import os, signal, sys, time
ready, tell = os.pipe()
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = os.fork()
    if child:
        print(os.getpid(), child, flush=True)
        os.write(tell, b".")
    while True: time.sleep(60)
os.read(ready, 1)
"""


def handles() -> set[str]:
    return {name for name in os.listdir("/proc/self/fd") if _is_open(name)}


def _is_open(name: str) -> bool:
    try:
        os.fstat(int(name))
    except OSError:  # the listing's own
        return False
    return True


def environ_holds(pid: int, text: bytes) -> bool:
    try:
        return text in Path(f"/proc/{pid}/environ").read_bytes()  # TMPDIR names the test's folder
    except OSError:
        return False


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def running(pid: int) -> bool:
    found = procfs.stat(pid)
    return found is not None and found.alive


def zombies() -> list[int]:
    return [pid for pid in procfs.children(os.getpid()) if not running(pid)]


def records(world: World) -> list[ProcessRecord]:
    return [read_record(path) for path in sorted((world.folder / "state/workers").glob("*.json"))]
