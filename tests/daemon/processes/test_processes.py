from __future__ import annotations

import asyncio
import errno
import os
import shlex
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.daemon.processes.worlds import ENV, FOREVER, World, handles, on_loop, records, running, until, zombies

from scraper_supervisor.daemon.processes import procfs, worker_output
from scraper_supervisor.daemon.processes.processes import Exit, SpawnError, SpawnSpec
from scraper_supervisor.daemon.processes.spawning import LONGEST_TMPDIR, ProcessFolders
from scraper_worker.protocol import ENV_TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable


# ---- starting and dying ---------------------------------------------------------------------------------------------


@on_loop
async def test_a_worker_runs_in_its_own_session_with_its_environment(world: World) -> None:
    processes = world.open()
    pid = await world.spawn(
        f"""
        import os, sys
        for name in ("A", "{ENV_TOKEN}", "TMPDIR"): print(os.environ[name])
        print(os.getsid(0), os.getcwd(), os.fstat(0).st_rdev == os.stat("/dev/null").st_rdev)
        print("oops", file=sys.stderr, flush=True)
        """,
        A="1",
        **{ENV_TOKEN: "secret"},
    )
    await until(lambda: world.exits)
    assert world.exits == [("w-0", 1, Exit(code=0, last_line="oops"))]
    tmpdir = world.folder / "run/tmp/w-0-1"
    assert world.said() == ["1", "secret", str(tmpdir), f"{pid} {world.folder} True"]
    assert world.said("err") == ["oops"]
    assert tmpdir.stat().st_mode & 0o777 == 0o700
    await processes.end_tree("w-0", 1)
    assert not tmpdir.exists()


@on_loop
async def test_a_token_is_made_where_none_is_given(world: World) -> None:
    processes = world.open()
    spec = SpawnSpec("w-0", 1, ("/bin/true",), "/", ENV)
    tokens = set()
    for incarnation in (1, 2):
        tokens.add((await processes.spawn(SpawnSpec("w-0", incarnation, spec.argv, "/", ENV))).token)
        await until(lambda count=incarnation: len(world.exits) == count)
    assert len(tokens) == 2
    assert all(len(token) == 32 for token in tokens)


@on_loop
async def test_a_killed_worker_is_reported_within_a_moment(
    world: World, on_this_machine: Callable[[float], float]
) -> None:
    world.open()
    pid = await world.spawn(FOREVER)
    begin = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: world.exits)
    assert world.exits == [("w-0", 1, Exit(signal=signal.SIGKILL))]
    assert time.monotonic() - begin < on_this_machine(1.0)


@on_loop
async def test_an_exit_code_is_reported(world: World) -> None:
    world.open()
    await world.spawn("raise SystemExit(7)")
    await until(lambda: world.exits)
    assert world.exits == [("w-0", 1, Exit(code=7))]


@pytest.mark.parametrize(
    ("argv", "cwd", "number", "named"),
    [
        (("/no/such/program",), "/", errno.ENOENT, "/no/such/program"),
        (("/etc/passwd",), "/", errno.EACCES, "/etc/passwd"),
        (("/bin/true",), "/no/such/folder", errno.ENOENT, "/no/such/folder"),
        (("/bin/true", "\0"), "/", errno.EINVAL, "/bin/true"),
    ],
)
def test_what_cannot_be_started_says_why_and_leaves_nothing(
    world: World, argv: tuple[str, ...], cwd: str, number: int, named: str
) -> None:
    @on_loop
    async def run() -> None:
        processes = world.open()
        with pytest.raises(SpawnError, match=named) as caught:
            await processes.spawn(SpawnSpec("w-0", 1, argv, cwd, ENV))
        assert caught.value.errno == number
        for folder in ("run/output", "run/tmp", "state/workers"):
            assert list((world.folder / folder).iterdir()) == []
        assert zombies() == []

    run()


@on_loop
async def test_a_worker_that_runs_is_not_started_twice(world: World) -> None:
    world.open()
    await world.spawn(FOREVER)
    with pytest.raises(SpawnError, match="still running"):
        await world.spawn(FOREVER, incarnation=2)


@on_loop
async def test_a_cancelled_spawn_is_watched_all_the_same(world: World) -> None:
    processes = world.open()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(world.spawn("pass"))
        await asyncio.sleep(0)
        task.cancel()
    await until(lambda: world.exits)
    await processes.end_tree("w-0", 1)


@on_loop
async def test_twenty_lives_leave_no_zombie_and_no_handle(world: World) -> None:
    processes = world.open()
    spec = SpawnSpec("w-0", 0, ("/bin/sleep", "60"), "/", ENV)
    at_first: set[str] = set()
    for incarnation in range(1, 21):
        spawned = await processes.spawn(SpawnSpec("w-0", incarnation, spec.argv, "/", ENV))
        assert processes.signal("w-0", incarnation, signal.SIGKILL)
        await until(lambda count=incarnation: len(world.exits) == count)
        await processes.end_tree("w-0", incarnation)
        assert not running(spawned.pid)
        if incarnation == 1:
            at_first = handles()
    assert zombies() == []
    assert handles() == at_first
    assert {end for _, _, end in world.exits} == {Exit(signal=signal.SIGKILL)}


@on_loop
async def test_many_at_once_keep_their_own_status(world: World) -> None:
    """Strangers die all the while: reaping them must never take a worker's status, not even of one being started."""
    world.open()
    strangers = (
        "import os\nfor _ in range(5):\n    if os.fork() == 0:\n        os.fork()\n        os._exit(0)\nos._exit({})"
    )
    async with asyncio.TaskGroup() as group:
        for index in range(12):
            group.create_task(world.spawn(strangers.format(index), f"w-{index}"))
    await until(lambda: len(world.exits) == 12)
    assert {worker: end.code for worker, _, end in world.exits} == {f"w-{index}": index for index in range(12)}
    await until(lambda: not procfs.children(os.getpid()))


# ---- signals --------------------------------------------------------------------------------------------------------


@on_loop
async def test_a_signal_reaches_the_worker_alone(world: World) -> None:
    processes = world.open()
    await world.spawn(
        """
        import os, signal, time
        child = os.fork()
        if child == 0:
            time.sleep(60)
        def stop(*_):
            os.write(1, str(os.waitpid(child, os.WNOHANG)).encode())
            os._exit(0)
        signal.signal(signal.SIGTERM, stop)
        os.write(1, b"ready\\n")
        while True: time.sleep(60)
        """
    )
    await world.hears(1)
    assert not processes.signal("w-0", 2, signal.SIGTERM)
    assert not processes.signal("w-1", 1, signal.SIGTERM)
    assert processes.signal("w-0", 1, signal.SIGTERM)
    await until(lambda: world.exits)
    assert world.said() == ["ready", "(0, 0)"]
    assert not processes.signal("w-0", 1, signal.SIGTERM)
    assert (await processes.end_tree("w-0", 1)).killed == 1


# ---- output ---------------------------------------------------------------------------------------------------------


@on_loop
async def test_the_last_lines_come_before_the_exit(world: World) -> None:
    world.open()
    await world.spawn("import os; os.write(1, b'x' * 30000 + b'\\n' + b'caf\\xc3\\xa9\\r\\n\\xff\\nlast'); os.abort()")
    await until(lambda: world.exits)
    assert [len(text) for text in world.said()[:2]] == [16384, 13616]
    assert world.said()[2:] == ["café", "\N{REPLACEMENT CHARACTER}", "last"]
    assert world.exits[0][2].signal == signal.SIGABRT


@on_loop
async def test_a_worker_prints_on_when_the_supervisor_is_gone(world: World) -> None:
    world.open()
    pid = await world.spawn(
        """
        import os, sys, time
        print("ready", flush=True)
        while not os.path.exists("gone"): time.sleep(0.002)
        for _ in range(1000): print("x" * 50, flush=True)
        open("wrote", "w").close()
        time.sleep(60)
        """
    )
    await world.hears(1)
    (record,) = records(world)
    assert world.now is not None
    world.now.stop_all()
    (world.folder / "gone").touch()
    await until((world.folder / "wrote").exists)
    assert running(pid)
    # a new supervisor reads on where the last one stopped
    successor = world.open()
    assert [found.pid for found in successor.predecessors()] == [pid] == [record.pid]
    adopted = successor.adopt(record)
    assert adopted is not None
    assert adopted.pid == pid
    assert successor.predecessors() == []
    assert await world.hears(1001) == ["ready"] + ["x" * 50] * 1000
    await successor.end_tree("w-0", 1)
    assert world.exits == [("w-0", 1, Exit(signal=signal.SIGKILL))]


def test_lines_are_cut_between_characters() -> None:
    splitter = worker_output.LineSplitter()
    text = "é" * worker_output.MAX_OUTPUT_LINE
    splitter.feed(b"a" + text.encode())
    lines = splitter.take(10) + splitter.flush()
    assert "".join(lines) == "a" + text
    assert all(len(line.encode()) <= worker_output.MAX_OUTPUT_LINE for line in lines)
    splitter.feed(b"\xbf" * (worker_output.MAX_OUTPUT_LINE + 1))
    assert splitter.take(10) == ["\N{REPLACEMENT CHARACTER}" * worker_output.MAX_OUTPUT_LINE]
    assert splitter.flush() == ["\N{REPLACEMENT CHARACTER}"]
    assert splitter.flush() == []


# ---- the rest -------------------------------------------------------------------------------------------------------


@on_loop
async def test_a_command_reads_its_input_and_ends(world: World) -> None:
    processes = world.open()
    target = world.folder / "copy"
    command = ("/bin/sh", "-c", f"cat > {shlex.quote(str(target))}; exit 3")
    assert await processes.run(command, b"x" * 100_000, ENV, 10) == Exit(code=3)
    assert target.stat().st_size == 100_000
    assert await processes.run(("/bin/sleep", "60"), b"", ENV, 0.01) == Exit(signal=signal.SIGKILL)
    with pytest.raises(SpawnError, match="nowhere"):
        await processes.run(("/nowhere",), b"", ENV, 1)
    assert zombies() == []


def test_tmpdirs_are_short_enough_for_chromium_wherever_the_runtime_folder_is(tmp_path: Path) -> None:
    short = ProcessFolders.of(Path("/run/ss"), Path("/var/lib/ss"))
    assert short.tmpdir("matches-0", 1) == Path("/run/ss/tmp/matches-0-1")
    for runtime in (Path("/run/ss"), tmp_path / ("x" * 60)):
        folders = ProcessFolders.of(runtime, tmp_path)
        for worker in ("a-0", "a" * 48 + "-9999"):
            assert len(str(folders.tmpdir(worker, 1_000_000))) <= LONGEST_TMPDIR


def test_a_temporary_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tmp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError):
        ProcessFolders(tmp_path / "output", tmp_path / "tmp", tmp_path / "records").make()
