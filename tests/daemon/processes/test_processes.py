from __future__ import annotations

import asyncio
import errno
import functools
import inspect
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from scraper_supervisor.daemon.processes import procfs, worker_output
from scraper_supervisor.daemon.processes.processes import Exit, Processes, SpawnError, SpawnSpec
from scraper_supervisor.daemon.processes.spawning import LONGEST_TMPDIR, ProcessFolders
from scraper_worker.protocol import ENV_TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    left = [pid for pid in procfs.table() if pid != os.getpid() and _environ_holds(pid, marked)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    for pid in made.spawned:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            continue
    assert handles() <= before


def handles() -> set[str]:
    return {name for name in os.listdir("/proc/self/fd") if _is_open(name)}


def _is_open(name: str) -> bool:
    try:
        os.fstat(int(name))
    except OSError:  # the listing's own
        return False
    return True


def _environ_holds(pid: int, text: bytes) -> bool:
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
    assert world.exits == [("w-0", 1, Exit(code=0))]
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
    (record,) = _records(world)
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
    lines = splitter.feed(b"a" + text.encode())
    lines += splitter.flush()
    assert "".join(lines) == "a" + text
    assert all(len(line.encode()) <= worker_output.MAX_OUTPUT_LINE for line in lines)
    assert splitter.feed(b"\xbf" * (worker_output.MAX_OUTPUT_LINE + 1)) == [
        "\N{REPLACEMENT CHARACTER}" * worker_output.MAX_OUTPUT_LINE
    ]
    assert splitter.flush() == ["\N{REPLACEMENT CHARACTER}"]
    assert splitter.flush() == []


# ---- whole trees ----------------------------------------------------------------------------------------------------

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


@on_loop
async def test_a_tree_with_a_session_of_its_own_is_ended(world: World) -> None:
    processes = world.open()
    pid = await world.spawn(BROWSER + FOREVER)
    (line,) = await world.hears(1)
    browser, child = map(int, line.split())
    ended = await processes.end_tree("w-0", 1, [browser])
    assert (ended.killed, ended.left, ended.residue) == (3, 0, None)
    assert not any(running(one) for one in (pid, browser, child))
    assert world.exits == [("w-0", 1, Exit(signal=signal.SIGKILL))]
    assert not (world.folder / "run/tmp/w-0-1").exists()
    assert _records(world) == []
    assert list((world.folder / "run/output").iterdir()) == []
    await until(lambda: not zombies())
    assert (await processes.end_tree("w-0", 1)).killed == 0


@on_loop
async def test_a_double_forked_orphan_is_found_by_its_token(world: World) -> None:
    processes = world.open()
    await world.spawn(BROWSER + "os._exit(0)")
    await until(lambda: world.exits)
    browser, child = map(int, world.said()[0].split())
    assert running(browser)
    assert (await processes.end_tree("w-0", 1)).killed == 2  # never reported, no parent left
    assert not running(browser)
    assert not running(child)


@on_loop
async def test_an_orphan_without_a_token_is_found_by_its_session(world: World) -> None:
    processes = world.open()
    code = "import os\nif os.fork() == 0:\n    os.execve({!r}, {!r}, {{}})\nos.wait()"
    for incarnation, leader_lives in ((1, True), (2, False)):
        await world.spawn(code.format(PYTHON[0], [*PYTHON, BROWSER + "os._exit(0)"]), incarnation=incarnation)
        await until(lambda count=incarnation: len(world.exits) == count)
        browser, child = map(int, world.said()[-1].split())
        if not leader_lives:
            os.kill(browser, signal.SIGKILL)  # only its child is left, which names nobody but the dead leader
            await until(lambda pid=browser: procfs.stat(pid) is None)
        assert (await processes.end_tree("w-0", incarnation, [browser])).killed == 1 + leader_lives
        assert not running(browser)
        assert not running(child)


@on_loop
async def test_nobody_else_is_ended(world: World) -> None:
    processes = world.open()
    pid = await world.spawn(FOREVER)
    other = await world.spawn(FOREVER, "w-1")
    stranger = subprocess.Popen(["/bin/sleep", "60"], start_new_session=True)
    try:
        # reported by mistake or malice: another worker, the supervisor, somebody else, init
        ended = await processes.end_tree("w-0", 1, [other, os.getpid(), os.getppid(), 1, 0])
        assert ended.killed == 1
        assert not running(pid)
        assert running(other)
        assert running(stranger.pid)
        assert (await processes.end_tree("w-1", 2)).killed == 0
        assert running(other)
        assert not await processes.kill_browser("w-1", 1, stranger.pid)
        assert not await processes.kill_browser("w-1", 1, other)
        assert not await processes.kill_browser("w-1", 1, os.getpid())
        assert not await processes.kill_browser("w-1", 9, stranger.pid)
        assert running(stranger.pid)
    finally:
        stranger.kill()
        stranger.wait()


@on_loop
async def test_a_browser_is_killed_and_its_worker_stays(world: World) -> None:
    processes = world.open()
    pid = await world.spawn(BROWSER + FOREVER)
    browser, child = map(int, (await world.hears(1))[0].split())
    assert await processes.kill_browser("w-0", 1, browser)
    assert not running(browser)
    assert not running(child)
    assert running(pid)
    assert not await processes.kill_browser("w-0", 1, browser)
    assert world.exits == []


@on_loop
async def test_a_tree_that_forks_all_the_time_is_ended(world: World) -> None:
    processes = world.open()
    await world.spawn(
        """
        import os, time
        print("go", flush=True)
        while True:
            time.sleep(0.002)
            if os.fork():
                os._exit(0)
            os.setsid()
        """
    )
    await world.hears(1)
    ended = await processes.end_tree("w-0", 1)
    assert ended.left == 0
    token = world.folder.name.encode()
    assert [pid for pid in procfs.table() if pid != os.getpid() and _environ_holds(pid, token) and running(pid)] == []


@on_loop
async def test_a_new_incarnation_ends_what_the_last_one_left(world: World) -> None:
    world.open()
    await world.spawn(BROWSER + "os._exit(0)")
    await until(lambda: world.exits)
    browser, _ = map(int, world.said()[0].split())
    await world.spawn("pass", incarnation=2)
    assert not running(browser)
    assert [path.name for path in (world.folder / "run/tmp").iterdir()] == ["w-0-2"]


# ---- predecessors ---------------------------------------------------------------------------------------------------


def _records(world: World) -> list[Any]:
    from scraper_supervisor.daemon.processes.process_tree import read_record

    return [read_record(path) for path in sorted((world.folder / "state/workers").glob("*.json"))]


@on_loop
async def test_a_killed_supervisors_trees_are_ended(world: World) -> None:
    first = """
        import asyncio, pathlib, sys
        from scraper_supervisor.daemon.processes.processes import Processes, SpawnSpec
        folder = pathlib.Path(sys.argv[1])
        async def main():
            loop = asyncio.get_running_loop()
            said = loop.create_future()
            heard = lambda *line: said.set_result(line)
            processes = Processes(loop, folder / "run", folder / "state", lambda *_: None, heard)
            await processes.spawn(SpawnSpec("w-0", 4, tuple(sys.argv[2:]), str(folder), {"PATH": "/bin"}))
            print((await said)[2], flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
    """
    code = textwrap.dedent(first)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(world.folder), *PYTHON, BROWSER + FOREVER], stdout=subprocess.PIPE
    ) as supervisor:
        assert supervisor.stdout is not None
        browser, child = map(int, supervisor.stdout.readline().split())
        supervisor.kill()
    processes = world.open()
    (record,) = _records(world)
    assert (record.worker, record.incarnation) == ("w-0", 4)
    assert running(record.pid)
    (world.folder / "run/tmp/older-0-1").mkdir()
    assert await processes.end_predecessors() == ["w-0"]
    assert not any(running(one) for one in (record.pid, browser, child))
    assert _records(world) == []
    assert list((world.folder / "run/tmp").iterdir()) == []
    assert await processes.end_predecessors() == []


@on_loop
async def test_a_predecessor_is_known_by_more_than_its_number(world: World) -> None:
    from scraper_supervisor.daemon.processes.process_tree import ProcessRecord, write_record

    processes = world.open()
    stranger = subprocess.Popen(["/bin/sleep", "60"])
    try:
        started = procfs.stat(stranger.pid)
        assert started is not None
        path = world.folder / "state/workers/w-0.json"
        for boot, ticks in ((procfs.boot_id(), started.start_time - 1), ("another", started.start_time)):
            record = ProcessRecord("w-0", 1, "token", boot, str(world.folder / "run/tmp/w-0-1"), stranger.pid, ticks)
            write_record(path, record)
            assert processes.adopt(record) is None
            assert await processes.end_predecessors() == []
            assert not path.exists()
        assert running(stranger.pid)
    finally:
        stranger.kill()
        stranger.wait()


@on_loop
async def test_a_supervisor_that_died_while_starting_is_covered_by_the_token(world: World) -> None:
    from scraper_supervisor.daemon.processes.process_tree import ProcessRecord, write_record

    processes = world.open()
    nameless = subprocess.Popen(["/bin/sleep", "60"], env={ENV_TOKEN: "half-started"}, start_new_session=True)
    record = ProcessRecord("w-0", 1, "half-started", procfs.boot_id(), str(world.folder / "run/tmp/w-0-1"))
    write_record(world.folder / "state/workers/w-0.json", record)
    assert await processes.end_predecessors() == ["w-0"]
    await until(lambda: not running(nameless.pid))
    nameless.wait()


# ---- the rest -------------------------------------------------------------------------------------------------------


@on_loop
async def test_descent_is_read_from_the_parents(world: World) -> None:
    world.open()
    pid = await world.spawn(BROWSER + FOREVER)
    _, child = map(int, (await world.hears(1))[0].split())
    assert procfs.descends(child, pid)
    assert procfs.descends(pid, pid)
    assert procfs.descends(child, os.getpid())
    assert not procfs.descends(pid, child)
    assert not procfs.descends(os.getpid(), pid)
    assert not procfs.descends(2**22 + 1, pid)
    assert procfs.ancestry(child)[:1] + procfs.ancestry(child)[2:4] == (child, pid, os.getpid())


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
