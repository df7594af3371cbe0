"""Real workers that hang: where they stand is found, and nobody who does not tell is harmed by being asked."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
from tests.daemon.processes.worlds import ENV, World, on_loop, until

from scraper_supervisor.daemon.processes import procfs, stacks
from scraper_supervisor.daemon.processes.processes import SpawnSpec
from scraper_worker.protocol import ENV_SOCKET, STACK_FILE

TELLS = """
import ctypes, time
from scraper_worker.connection.stack import tell_on_signal
tell_on_signal()

def handle():
    print("ready", flush=True)
    {hang}

handle()
"""


async def hang(world: World, how: str) -> int:
    """A worker of the SDK's that hangs so."""
    assert world.now is not None
    argv = (sys.executable, "-c", TELLS.format(hang=how))
    spec = SpawnSpec("w-0", 1, argv, str(world.folder), {**ENV, ENV_SOCKET: "/nowhere"})
    pid = (await world.now.spawn(spec)).pid
    world.spawned.append(pid)
    await world.hears(1)
    return pid


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("time.sleep(600)", id="a call"),
        pytest.param("while True: pass", id="a loop"),
        pytest.param("ctypes.PyDLL(None).pause()", id="C code that keeps the interpreter's lock"),
    ],
)
@on_loop
async def test_where_a_worker_hangs_is_found(world: World, how: str) -> None:
    processes = world.open()
    pid = await hang(world, how)
    assert procfs.catches(pid, stacks.SIGNAL)
    for _ in range(2 if "pause" not in how else 1):  # which returns upon any signal
        lines = await processes.stack("w-0", 1)
        assert [line.rpartition(" in ")[2] for line in lines] == ["<module>", "handle"]


@on_loop
async def test_who_does_not_tell_is_not_sent_the_signal(world: World) -> None:
    processes = world.open()
    pid = await world.spawn("print(1, flush=True); import time; time.sleep(600)")
    await world.hears(1)
    assert await processes.stack("w-0", 1) == ()
    assert await processes.stack("w-0", 2) == await processes.stack("unheard-of", 1) == ()
    found = procfs.stat(pid)
    assert found is not None
    assert found.alive
    assert world.exits == []


@on_loop
async def test_a_stopped_worker_is_not_waited_for(world: World) -> None:
    processes = world.open()
    pid = await hang(world, "time.sleep(600)")
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: (procfs.stat(pid) or pytest.fail("it is gone")).state == "T")
    began = time.monotonic()
    assert await processes.stack("w-0", 1) == ()
    assert time.monotonic() - began < stacks.WITHIN


@on_loop
async def test_one_that_catches_the_signal_and_writes_nothing_is_given_a_moment(world: World) -> None:
    processes = world.open()
    await world.spawn(
        f"""
        import os, signal, time
        open(os.path.join(os.environ["TMPDIR"], {STACK_FILE!r}), "w").close()
        signal.signal({int(stacks.SIGNAL)}, lambda *_: None)
        print(1, flush=True)
        while True: time.sleep(600)
        """
    )
    await world.hears(1)
    assert await processes.stack("w-0", 1) == ()
    assert world.exits == []


def test_of_a_deep_stack_the_innermost_calls_are_told_as_a_traceback_has_them() -> None:
    frames = [f'  File "a.py", line {number} in f{number}' for number in range(100)]
    written = "\n".join(["Stack (most recent call first):", *frames, "  ...", ""]).encode()
    assert stacks.parse(written) == tuple(reversed(frames[: stacks.MOST_FRAMES]))
    assert stacks.parse(b"") == stacks.parse(b"\xff\xfe") == ()
