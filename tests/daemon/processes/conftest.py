"""Processes on a loop of their own; whatever a test starts, nothing of it is left behind it."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop
from tests.daemon.processes.worlds import World, environ_holds, handles

from scraper_supervisor.daemon.processes import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough to hold TMPDIRs, as pytest's own would not be."""
    with tempfile.TemporaryDirectory(prefix="ss-", dir="/tmp") as made:
        yield Path(made)


@pytest.fixture
def world(folder: Path) -> Iterator[World]:
    uvloop.run(asyncio.sleep(0))  # libuv keeps one pipe for ever
    before = handles()
    made = World(folder)
    yield made
    marked = str(folder).encode()
    left = [pid for pid in procfs.table() if pid != os.getpid() and environ_holds(pid, marked)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    for pid in made.spawned:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            continue
    assert handles() <= before
