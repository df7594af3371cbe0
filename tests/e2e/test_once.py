"""`run MODULE:FUNCTION` and `run --once` as an author sees them: on a terminal, and what is said at the end."""

from __future__ import annotations

import os
import pty
import subprocess

import pytest
from harness import SUPERVISOR, wait_for

SCRAPER = """
import asyncio
from scraper_worker import PermanentError, TransientError

async def basic(worker):
    await worker.process([f"k{i}" for i in range(8)], one, browser=False)

async def one(item):
    await asyncio.sleep(0.3)
    if item.key == "k1" and item.attempt == 1:
        raise TransientError("not yet", signature="slow", retry_after=0)
    if item.key in ("k3", "k5"):
        raise PermanentError("gone", status=404)
    return 1
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sc.py").write_text(SCRAPER)
    return tmp_path


def environment():
    ours = ("SCRAPER_", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "XDG_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {"TERM": "xterm"}


def command(folder, *arguments):
    return subprocess.run(
        [*SUPERVISOR, *arguments], cwd=folder, env=environment(), capture_output=True, text=True, timeout=60
    )


def on_a_terminal(folder, *arguments):
    """What the command shows on a terminal, and its exit code."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*SUPERVISOR, *arguments], cwd=folder, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        shown += data
    os.close(ours)
    return process.wait(), shown.decode()


def test_what_came_of_it_is_said_at_the_end(folder):
    done = command(folder, "run", "sc:basic")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    told = done.stderr.splitlines()[-6:]
    assert told[:2] == ["basic: run 1 completed: 6 done, 2 failed", "  2 x http-404: k3, k5"]
    assert told[2].startswith("1 retry, 0 recoveries, ")
    assert told[3:] == [
        "  what failed: scraper-supervisor items list basic --state failed",
        "  the results: scraper-supervisor results basic",
        "  what happened: scraper-supervisor events",
    ]
    added = command(folder, "items", "add", "basic", "late")  # with the daemon down, and no configuration
    assert (added.returncode, added.stdout) == (0, "basic: 1 added, 0 known already\n")


def test_on_a_terminal_a_line_tells_how_far_it_is(folder):
    code, shown = on_a_terminal(folder, "run", "sc:basic")
    assert code == 0, shown
    assert "of 8 done" in shown
    assert "1 in hand" in shown
    assert "basic: run 1 completed: 6 done, 2 failed" in shown


def test_another_function_of_the_same_name_does_not_go_on_with_the_run(folder):
    (folder / "other.py").write_text(SCRAPER.replace("asyncio.sleep(0.3)", "asyncio.sleep(0)"))
    process = subprocess.Popen([*SUPERVISOR, "run", "sc:basic"], cwd=folder, env=environment(), stderr=subprocess.PIPE)
    with process:
        wait_for(lambda: command(folder, "results", "basic").stdout, "a result")
        process.terminate()
        process.communicate(timeout=60)
    refused = command(folder, "run", "other:basic")
    assert refused.returncode == 1
    assert "run 1 of basic is sc:basic's, and other:basic can't go on with it" in refused.stderr
    begun = command(folder, "run", "other:basic", "--fresh")
    assert (begun.returncode, "basic: run 2 completed: 6 done, 2 failed" in begun.stderr) == (0, True)
    assert command(folder, "run", "sc:basic").returncode == 0, "the run is completed: this begins another"
