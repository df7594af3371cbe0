from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import uvloop

from scraper_supervisor.core.events import Sampled, Watch
from scraper_supervisor.core.measurements import Sample
from scraper_supervisor.daemon.processes import host_usage, procfs
from scraper_supervisor.daemon.processes import sampler as sampling
from scraper_supervisor.daemon.processes.sampler import Sampler, SamplerFault, Usage, pss_due

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

MIB = 1024 * 1024

# A worker of 24 MiB with a "driver" that leads to a "browser" in a session of its own, which has one child of 16 MiB.
TREE = """
import os, sys, time
kept = b"x" * (24 << 20)
def forever(*said):
    os.write(1, b"%s %d\\n" % said)
    while True: time.sleep(60)
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        child = os.fork()
        if child == 0:
            more = b"y" * (16 << 20)
            os.write(1, b"c %d\\n" % os.getpid())
            if len(sys.argv) > 1:
                while True: pass
            while True: time.sleep(60)
        forever(b"b", os.getpid())
    forever(b"d", os.getpid())
forever(b"w", os.getpid())
"""


@contextmanager
def tree(*arguments: str) -> Iterator[dict[str, int]]:
    worker = subprocess.Popen([sys.executable, "-S", "-c", TREE, *arguments], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    pids: dict[str, int] = {}
    try:
        while len(pids) < 4:
            name, pid = worker.stdout.readline().split()
            pids[name] = int(pid)
        yield pids
    finally:
        worker.stdout.close()
        for pid in pids.values():
            if procfs.stat(pid) is not None:
                os.kill(pid, signal.SIGKILL)
        worker.wait()


class Rounds:
    """Starts a sampler and waits for what it delivers."""

    def __init__(self, folder: Path) -> None:
        self.got: asyncio.Queue[Sampled | SamplerFault] = asyncio.Queue()
        self.sampler = Sampler(asyncio.get_running_loop(), self.got.put_nowait, folder, 0.002)

    async def sampled(self) -> Sampled:
        async with asyncio.timeout(60):
            found = await self.got.get()
        assert isinstance(found, Sampled)
        return found

    async def sample(self, condition: Callable[[Sample], object] = lambda _: True) -> Sample:
        while True:
            for sample in (await self.sampled()).samples:
                if condition(sample):
                    return sample


def on_loop(test: Callable[[Rounds], Coroutine[object, object, None]], folder: Path) -> None:
    async def run() -> None:
        rounds = Rounds(folder)
        try:
            await test(rounds)
        finally:
            rounds.sampler.stop()

    uvloop.run(run())


def test_a_worker_is_measured_without_its_browsers(tmp_path: Path) -> None:
    async def measure(rounds: Rounds) -> None:
        with tree() as pids:
            rounds.sampler.watch(Watch("w-0", 1, pids["w"], (("b1", pids["b"]),)))
            rounds.sampler.start()
            sample = await rounds.sample()
            assert sample.worker == "w-0"
            assert sample.processes == 4
            assert sample.cpu_percent is None  # of one round nothing can be said
            assert sample.worker_memory is not None
            assert sample.rss is not None
            # Its 24 MiB are shared by all four: half of that is in the worker and driver, and RSS counts it twice.
            assert 12 * MIB < sample.worker_memory < 24 * MIB
            assert sample.rss > 48 * MIB
            (browser,) = sample.browsers
            assert (browser.id, browser.pid, browser.pages) == ("b1", pids["b"], None)
            assert browser.memory is not None
            assert 28 * MIB < browser.memory < 48 * MIB
            assert 0 <= browser.age < 60
            assert rounds.sampler.pids("w-0") == frozenset(pids.values())
            assert rounds.sampler.pids("w-1") == frozenset()
            assert (await rounds.sample()).cpu_percent is not None

    on_loop(measure, tmp_path)


def test_what_is_none_of_the_worker_s_processes_is_never_measured_as_its_browser(tmp_path: Path) -> None:
    async def measure(rounds: Rounds) -> None:
        with tree() as pids, tree() as others:
            rounds.sampler.watch(Watch("w-0", 1, pids["w"], (("b1", others["b"]), ("b2", os.getpid()))))
            rounds.sampler.start()
            for _ in range(3):
                sample = await rounds.sample()
                assert (sample.processes, sample.browsers) == (4, ())
            assert rounds.sampler.pids("w-0") == frozenset(pids.values())

    on_loop(measure, tmp_path)


def test_cpu_time_is_that_of_the_whole_tree(tmp_path: Path) -> None:
    async def measure(rounds: Rounds) -> None:
        with tree("busy") as pids:
            rounds.sampler.set_interval(0.05)
            rounds.sampler.watch(Watch("w-0", 1, pids["w"], (("b1", pids["b"]),)))
            rounds.sampler.start()
            sample = await rounds.sample(lambda one: (one.cpu_percent or 0) > 10)
            assert sample.cpu_percent is not None
            assert sample.cpu_percent < 150

    on_loop(measure, tmp_path)


def test_what_is_reparented_is_still_seen(tmp_path: Path) -> None:
    async def measure(rounds: Rounds) -> None:
        with tree() as pids:
            rounds.sampler.watch(Watch("w-0", 1, pids["w"], (("b1", pids["b"]),)))
            rounds.sampler.start()
            await rounds.sample()
            os.kill(pids["d"], signal.SIGKILL)  # the browser's parent
            sample = await rounds.sample(lambda one: one.processes == 3)
            assert [browser.id for browser in sample.browsers] == ["b1"]
            os.kill(pids["b"], signal.SIGKILL)
            sample = await rounds.sample(lambda one: one.processes == 2)
            assert sample.browsers == ()  # what is left of it is no browser, and not the worker's memory
            assert pids["c"] in rounds.sampler.pids("w-0")

    on_loop(measure, tmp_path)


def test_a_worker_that_is_gone_or_forgotten_has_no_sample(tmp_path: Path) -> None:
    async def measure(rounds: Rounds) -> None:
        with tree() as pids:
            rounds.sampler.watch(Watch("w-0", 1, pids["w"]))
            rounds.sampler.watch(Watch("w-1", 1, 2**22 + 1, (("b", 2**22 + 2),)))
            rounds.sampler.start()
            first = await rounds.sampled()
            assert [sample.worker for sample in first.samples] == ["w-0"]
            rounds.sampler.forget("w-0")
            await rounds.sampled()  # may have been delivered before
            assert (await rounds.sampled()).samples == ()
            assert rounds.sampler.pids("w-0") == frozenset()

    on_loop(measure, tmp_path)


def test_an_old_incarnations_sample_is_not_delivered(tmp_path: Path) -> None:
    async def measure(rounds: Rounds) -> None:
        with tree() as pids:
            rounds.sampler.watch(Watch("w-0", 1, pids["w"]))
            stale = rounds.sampler._watched["w-0"]
            rounds.sampler.watch(Watch("w-0", 2, pids["d"]))
            sample = Sample(0.0, "w-0", 1, 1, 1.0, 1)
            rounds.sampler._arrived([(stale, sample, frozenset({1}))], 1.0, 1)
            assert (await rounds.sampled()).samples == ()
            assert rounds.sampler.pids("w-0") == frozenset()

    on_loop(measure, tmp_path)


def test_a_fault_is_delivered_and_sampling_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_proc: object = None) -> float:
        monkeypatch.undo()
        raise ZeroDivisionError("odd")

    async def measure(rounds: Rounds) -> None:
        monkeypatch.setattr(host_usage, "memory_percent", fail)
        rounds.sampler.start()
        fault = await rounds.got.get()
        assert isinstance(fault, SamplerFault)
        assert fault.message == "ZeroDivisionError: odd"
        assert "Traceback" in fault.traceback
        assert await rounds.sampled()

    on_loop(measure, tmp_path)


def test_the_host_is_in_every_round(tmp_path: Path) -> None:
    async def measure(rounds: Rounds) -> None:
        rounds.sampler.start()
        found = await rounds.sampled()
        assert found.samples == ()
        assert found.memory_percent is not None
        assert 0 < found.memory_percent < 100
        assert found.disk_free is not None
        assert found.disk_free > 0

    on_loop(measure, tmp_path)


def test_a_long_interval_is_shortened_at_once(tmp_path: Path) -> None:
    async def measure(rounds: Rounds) -> None:
        rounds.sampler.set_interval(3600)
        rounds.sampler.start()
        await rounds.sampled()
        rounds.sampler.set_interval(0.001)
        await rounds.sampled()

    on_loop(measure, tmp_path)


def test_without_the_kernels_lists_of_children_a_scan_finds_the_same(tmp_path: Path) -> None:
    with tree() as pids:
        children = sampling._children_by_scan()
        for pid in (*pids.values(), os.getpid()):
            assert sorted(children(pid)) == sorted(procfs.children(pid))


# ---- when PSS is due ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rss", "limit", "last", "now", "due"),
    [
        (100, 1000, None, 0.0, True),  # never measured
        (100, 1000, Usage(50, 100, 0.0), 1.0, False),  # far from the limit
        (100, 1000, Usage(50, 100, 0.0), 5.0, True),  # too old
        (501, 1000, Usage(490, 501, 0.0), 1.0, False),
        (900, 1000, Usage(490, 501, 0.0), 1.0, True),  # grew towards the limit
        (3000, 1000, Usage(300, 2900, 0.0), 1.0, False),  # a browser: RSS counts shared pages many times over
        (3100, 1000, Usage(300, 2900, 0.0), 1.0, False),
        (3101, 1000, Usage(300, 2900, 0.0), 1.0, True),
        (400, 1000, Usage(600, 900, 0.0), 1.0, False),  # shrank below half of it
        (9000, None, Usage(8000, 9000, 0.0), 1.0, False),  # no limit
    ],
)
def test_pss_is_read_where_it_can_decide_something(
    rss: int, limit: int | None, last: Usage | None, now: float, due: bool
) -> None:
    assert pss_due(rss, limit, last, now) is due


def test_between_measurements_the_last_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(rounds: Rounds) -> None:
        with tree() as pids:
            rounds.sampler.watch(
                Watch("w-0", 1, pids["w"], (("b1", pids["b"]),), browser_limit=1 << 40, worker_limit=1 << 40)
            )
            rounds.sampler.start()
            first = await rounds.sample()
            monkeypatch.setattr(sampling.psutil, "Process", None)  # a further measurement would be a fault
            second = await rounds.sample()
            assert second.worker_memory == first.worker_memory
            assert second.browsers[0].memory == first.browsers[0].memory

    on_loop(measure, tmp_path)


def test_memory_that_may_not_be_read_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> None:
        raise sampling.psutil.AccessDenied(pid)

    async def measure(rounds: Rounds) -> None:
        with tree() as pids:
            monkeypatch.setattr(sampling.psutil, "Process", refuse)
            rounds.sampler.watch(Watch("w-0", 1, pids["w"], (("b1", pids["b"]),)))
            rounds.sampler.start()
            sample = await rounds.sample()
            assert sample.worker_memory is None
            assert sample.browsers[0].memory is None
            assert sample.rss is not None

    on_loop(measure, tmp_path)


# ---- the machine ----------------------------------------------------------------------------------------------------


def fake_proc(folder: Path, kind: str, options: str, entry: str) -> Path:
    proc = folder / "proc"
    proc.mkdir()
    (folder / "cg").mkdir()
    (proc / "mounts").write_text(f"none {folder / 'cg'} {kind} rw,{options} 0 0\n/dev/x / ext4 rw 0 0\n")
    (proc / "cgroup").write_text(entry + "\n")
    return proc


def group(folder: Path, limit: tuple[str, str], usage: tuple[str, int], cache: tuple[str, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit[0]).write_text(limit[1] + "\n")
    (folder / usage[0]).write_text(f"{usage[1]}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{cache[0]} {cache[1]}\n")


def test_a_containers_limit_counts_in_version_2(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, "cgroup2", "nsdelegate", "0::/a.slice/b.service")
    group(tmp_path / "cg/a.slice", ("memory.max", "1000"), ("memory.current", 800), ("inactive_file", 100))
    group(tmp_path / "cg/a.slice/b.service", ("memory.max", "max"), ("memory.current", 400), ("inactive_file", 0))
    assert host_usage.memory_percent(proc) == 70.0
    group(tmp_path / "cg/a.slice/b.service", ("memory.max", "500"), ("memory.current", 400), ("inactive_file", 0))
    assert host_usage.memory_percent(proc) == 80.0


def test_a_containers_limit_counts_in_version_1(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, "cgroup", "memory", "4:memory:/docker/abc")  # a path of the host's, not mounted here
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    group(tmp_path / "cg", (names[0], "2000"), (names[1], 1000), (names[2], 500))
    assert host_usage.memory_percent(proc) == 25.0


@pytest.mark.parametrize("limit", ["9223372036854771712", "nonsense"])
def test_without_a_limit_the_machine_counts(tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = fake_proc(tmp_path, "cgroup", "memory", "4:memory:/")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    group(tmp_path / "cg", (names[0], limit), (names[1], 1000), (names[2], 500))

    class Machine:
        percent = 42.0

    monkeypatch.setattr(host_usage.psutil, "virtual_memory", Machine)
    assert host_usage.memory_percent(proc) == 42.0
    assert host_usage.memory_percent(tmp_path / "nothing") == 42.0


def test_a_disk_that_cannot_be_asked_is_unknown(tmp_path: Path) -> None:
    assert host_usage.disk_free(tmp_path / "none") is None
