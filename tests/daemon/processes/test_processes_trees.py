"""A worker's whole tree: sessions of its own, orphans, and what a supervisor that was killed left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

from tests.daemon.processes.worlds import (
    BROWSER,
    FOREVER,
    PYTHON,
    World,
    environ_holds,
    on_loop,
    records,
    running,
    until,
    zombies,
)

from scraper_supervisor.daemon.processes import procfs
from scraper_supervisor.daemon.processes.processes import Exit
from scraper_worker.protocol import ENV_TOKEN

# ---- whole trees ----------------------------------------------------------------------------------------------------


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
    assert records(world) == []
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
async def test_a_browser_that_a_script_started_is_killed_with_all_of_its_session(world: World) -> None:
    processes = world.open()
    # The leader of the session is no browser: what is reported is its child.
    pid = await world.spawn(BROWSER + FOREVER)
    leader, main = map(int, (await world.hears(1))[0].split())
    assert await processes.kill_browser("w-0", 1, main)
    assert not running(main)
    assert not running(leader)
    assert running(pid)


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
    assert [pid for pid in procfs.table() if pid != os.getpid() and environ_holds(pid, token) and running(pid)] == []


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
    (record,) = records(world)
    assert (record.worker, record.incarnation) == ("w-0", 4)
    assert running(record.pid)
    (world.folder / "run/tmp/older-0-1").mkdir()
    assert await processes.end_predecessors() == ["w-0"]
    assert not any(running(one) for one in (record.pid, browser, child))
    assert records(world) == []
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
