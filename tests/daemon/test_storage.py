from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, TypeVar

import pytest
from msgspec import Raw

from scraper_supervisor.core.ops.item_ops import Added, AddItems, Conclude, Concluded, NewItem
from scraper_supervisor.core.ops.run_ops import LoadRun, OpenRun, Probe, RunImage
from scraper_supervisor.core.ops.state_ops import LoadState, SaveState, StateLoaded, StateSaved
from scraper_supervisor.daemon import storage
from scraper_supervisor.store.errors import LedgerDamaged, StoreFault
from scraper_supervisor.store.files import Files
from scraper_supervisor.store.opening import LedgerLocation
from scraper_supervisor.store.sqlite.reader import LedgerReader
from scraper_supervisor.store.states.checkpoints import CheckpointFiles

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from scraper_supervisor.core.ops.all_ops import Answer, Op

G = "matches"
A = TypeVar("A")


class Bench:
    """A storage with what it has answered."""

    def __init__(self, state_dir: Path, files: Files | None = None) -> None:
        self.batches: list[list[tuple[Op, Answer | StoreFault]]] = []
        self.arrived = asyncio.Event()
        self.told: list[StoreFault] = []
        loop = asyncio.get_running_loop()
        self.storage = storage.StorageThreads(LedgerLocation(state_dir), self.deliver, self.tell, loop, files)

    def deliver(self, answered: list[tuple[Op, Answer | StoreFault]]) -> None:
        self.batches.append(answered)
        self.arrived.set()

    def tell(self, fault: StoreFault) -> None:
        self.told.append(fault)
        self.arrived.set()

    @property
    def answered(self) -> list[tuple[Op, Answer | StoreFault]]:
        return [each for batch in self.batches for each in batch]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.arrived.clear()
                await self.arrived.wait()

    async def ask(self, op: Op, kind: type[A]) -> A:
        before = len(self.answered)
        self.storage.submit(op)
        await self.until(lambda: any(done is op for done, _ in self.answered[before:]))
        answer = next(answer for done, answer in self.answered[before:] if done is op)
        assert isinstance(answer, kind), answer
        return answer


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.storage.close()


def items(*keys: str) -> tuple[NewItem, ...]:
    return tuple(NewItem(key, "a.test", Raw(b"null"), 0) for key in keys)


def state(ticket: int, text: bytes, worker: str = "matches-0", retention: int = 10) -> SaveState:
    return SaveState(ticket, worker, 1, "scores/1", Raw(text), 0, 0, 0, retention, compression="none")


def done(run: RunImage, ticket: int, item: int) -> Conclude:
    return Conclude(ticket, G, run.run_id, item, "k", ticket, "matches-0", "done", 1, result=Raw(b"%d" % ticket))


async def test_what_arrives_during_a_commit_goes_into_the_next(bench: Bench) -> None:
    run = await bench.ask(OpenRun(0, G, "continue", 5), RunImage)
    keys = [f"k{n}" for n in range(500)]
    added = await bench.ask(AddItems(1, G, run.run_id, items(*keys)), Added)
    batches = len(bench.batches)
    ops = [done(run, ticket, item) for ticket, (_, item, _) in enumerate(added.added)]
    for op in ops:
        bench.storage.submit(op)
    await bench.until(lambda: len(bench.answered) == 502)
    assert [op for op, _ in bench.answered[2:]] == ops
    assert [answer.seq for _, answer in bench.answered[2:] if isinstance(answer, Concluded)] == list(range(1, 501))
    assert len(bench.batches) - batches < 100


async def test_a_checkpoint_that_takes_long_delays_no_commit(tmp_path: Path) -> None:
    release = threading.Event()

    class Slow(Files):
        def sync(self, fd: int) -> None:
            assert release.wait(60)
            super().sync(fd)

    bench = Bench(tmp_path, Slow())
    bench.storage.submit(state(1, b'"' + b"x" * 1_000_000 + b'"'))
    bench.storage.submit(LoadState(2, "matches-0", 1))
    await bench.ask(OpenRun(3, G, "continue", 5), RunImage)
    assert [op.ticket for op, _ in bench.answered] == [3]
    release.set()
    await bench.until(lambda: len(bench.answered) == 3)
    saved, loaded = (answer for _, answer in bench.answered[1:])
    assert isinstance(saved, StateSaved)
    assert isinstance(loaded, StateLoaded)
    assert (saved.generation, loaded.generation, len(bytes(loaded.state))) == (1, 1, 1_000_002)
    bench.storage.close()


async def test_closing_carries_out_what_was_submitted(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.storage.submit(OpenRun(1, G, "continue", 5))
    for ticket in range(2, 50):
        bench.storage.submit(AddItems(ticket, G, 1, items(f"k{ticket}")))
        bench.storage.submit(state(100 + ticket, b"%d" % ticket))
    bench.storage.close()
    bench.storage.close()
    with pytest.raises(RuntimeError, match="the storage is closed"):
        bench.storage.submit(Probe(1))
    await bench.until(lambda: len(bench.answered) == 97)
    assert not any(isinstance(answer, StoreFault) for _, answer in bench.answered)
    with LedgerReader(tmp_path / "ledger.db") as reader:
        assert len(list(reader.items(G))) == 48
    assert [info.generation for info in CheckpointFiles(tmp_path).list()] == list(range(48, 38, -1))
    assert not [thread for thread in threading.enumerate() if thread.name in ("ledger", "checkpoints")]


async def test_a_failed_sync_is_a_fault_and_the_next_attempt_writes_anew(tmp_path: Path) -> None:
    class Failing(Files):
        failures = 1

        def sync(self, fd: int) -> None:
            if self.failures and stat.S_ISREG(os.fstat(fd).st_mode):
                self.failures -= 1
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            super().sync(fd)

    (tmp_path / "checkpoints" / "matches-0").mkdir(parents=True)
    bench = Bench(tmp_path, Failing())
    fault = await bench.ask(state(1, b"1"), StoreFault)
    assert fault == StoreFault(errno.EIO, "Input/output error")
    assert list((tmp_path / "checkpoints" / "matches-0").iterdir()) == []
    assert (await bench.ask(state(2, b"1"), StateSaved)).generation == 2
    bench.storage.close()


async def test_whatever_goes_wrong_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    fault = await bench.ask(state(1, b"1", worker="../elsewhere"), StoreFault)
    assert fault.errno == errno.EIO
    assert "not a worker's name" in fault.message
    monkeypatch.setattr(bench.storage._ledger, "perform", lambda *_: [][0])
    assert (await bench.ask(Probe(2), StoreFault)).message == "IndexError: list index out of range"
    monkeypatch.undo()
    await bench.ask(OpenRun(3, G, "continue", 5), RunImage)
    bench.storage.close()


async def test_removed_runs_go_in_idle_moments(bench: Bench, tmp_path: Path) -> None:
    for ticket in range(3):
        run = await bench.ask(OpenRun(ticket, G, "fresh", 1), RunImage)
        await bench.ask(AddItems(ticket, G, run.run_id, items(*(f"k{n}" for n in range(50)))), Added)
    async with asyncio.timeout(60):
        with LedgerReader(tmp_path / "ledger.db") as reader:
            while reader._db.execute("SELECT count(*), count(DISTINCT run_id) FROM items").fetchone() != (50, 1):
                await bench.ask(Probe(9), type(None))


async def test_a_ledger_that_is_removed_while_nothing_is_asked_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_LOOK_EVERY", 0.01)
    bench = Bench(tmp_path)
    run = await bench.ask(OpenRun(0, G, "continue", 5), RunImage)
    await bench.ask(AddItems(1, G, run.run_id, items("a")), Added)
    (tmp_path / "ledger.db").unlink()
    await bench.until(lambda: bool(bench.told))
    (fault,) = bench.told
    assert (fault.errno, "ledger.db was removed while it was open" in fault.message) == (errno.EIO, True)
    assert len(bench.answered) == 2, "it is no answer: nothing was asked"
    assert (await bench.ask(AddItems(2, G, run.run_id, items("a", "b")), Added)).known == 1, "it is back already"
    bench.storage.close()
    assert len(bench.told) == 1


async def test_runs_beyond_a_lowered_keep_runs_go_when_a_run_is_continued(bench: Bench, tmp_path: Path) -> None:
    for ticket in range(4):
        await bench.ask(OpenRun(ticket, G, "fresh", 5), RunImage)
    assert (await bench.ask(OpenRun(5, G, "continue", 2), RunImage)).run == 4  # as a daemon does at its start
    with LedgerReader(tmp_path / "ledger.db") as reader:
        assert [info.run for info in reader.runs(G)] == [4, 3]


async def test_a_ledger_that_does_not_open_starts_no_thread(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"")
    with pytest.raises(LedgerDamaged, match="it is empty"):
        Bench(tmp_path)
    assert not [thread for thread in threading.enumerate() if thread.name in ("ledger", "checkpoints")]


# ---- power and disk --------------------------------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from pathlib import Path
from msgspec import Raw
from scraper_supervisor.core.ops.all_ops import *
from scraper_supervisor.core.ops.import_ops import *
from scraper_supervisor.core.ops.item_ops import *
from scraper_supervisor.core.ops.operation import *
from scraper_supervisor.core.ops.run_ops import *
from scraper_supervisor.core.ops.state_ops import *
from scraper_supervisor.daemon import storage
from scraper_supervisor.daemon.storage import StorageThreads
from scraper_supervisor.store.opening import LedgerLocation

async def main():
    loop, busy, keys = asyncio.get_running_loop(), asyncio.Event(), iter(range(1_000_000))
    def deliver(answered):
        lines = []
        for op, answer in answered:
            match answer:
                case RunImage():
                    for worker in range(8):
                        offer(answer.run_id)
                    save()
                case Added():
                    key, item = op.items[0].key, answer.added[0][1]
                    result = Raw(b'"of %b"' % key.encode())
                    storage.submit(Conclude(0, "g", op.run_id, item, key, 1, "g-0", "done", 1, result=result))
                case Concluded():
                    lines.append(f"done {answer.seq} {op.key}")
                    offer(op.run_id)
                case StateSaved():
                    lines.append(f"saved {answer.generation} {bytes(op.state).decode()}")
                    save()
                case _:
                    lines.append(f"unexpected {answer}")
        print("".join(line + "\\n" for line in lines), end="", flush=True)
    def offer(run_id):
        storage.submit(AddItems(0, "g", run_id, (NewItem(f"{sys.argv[2]}-{next(keys)}", None, Raw(b"null"), 0),)))
    def save():
        storage.submit(SaveState(0, "g-0", 1, "x/1", Raw(b"%d" % next(keys)), 0, 0, 0, 3, "none"))
    storage = StorageThreads(LedgerLocation(Path(sys.argv[1])), deliver, print, loop)
    storage.submit(OpenRun(0, "g", "continue", 5))
    await busy.wait()

asyncio.run(main())
"""


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    acknowledged: dict[int, str] = {}
    saved = (0, "")
    for life, lines in enumerate((1, 40, 150, 300)):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(life)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            heard = [writer.stdout.readline() for _ in range(lines)]
            writer.kill()
            heard += writer.stdout.readlines()
        for line in heard:
            if not line.endswith("\n"):
                continue  # cut off by the kill: not acknowledged
            kind, number, text = line.split()
            if kind == "done":
                assert int(number) not in acknowledged
                acknowledged[int(number)] = text
            else:
                assert kind == "saved"
                saved = (int(number), text)
        with LedgerReader(tmp_path / "ledger.db") as reader:
            rows = {row.seq: row for row in reader.results("g")}
            assert sorted(rows) == list(range(1, len(rows) + 1))
            assert acknowledged.items() <= {seq: row.key for seq, row in rows.items()}.items()
            assert all(bytes(row.result) == b'"of %b"' % row.key.encode() for row in rows.values())
            (info,) = reader.runs("g")
            states = [row.state for row in reader.items("g")]
            assert (info.done, info.pending) == (states.count("done"), states.count("pending"))
            assert info.done == len(rows)
            assert reader.verify() is None
        assert all(check.ok for check in CheckpointFiles(tmp_path).verify())
        if saved[0]:
            # At most one state is on its way, so that three generations hold the last one acknowledged.
            assert bytes(CheckpointFiles(tmp_path).show("g-0", saved[0]).state).decode() == saved[1]
    assert len(acknowledged) > 100


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    point = tmp_path / "small"
    point.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(point)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield point
    subprocess.run(["umount", str(point)], check=True)


async def test_a_full_disk_is_a_fault_that_heals_and_loses_nothing(small_disk: Path) -> None:
    bench = Bench(small_disk)
    run = await bench.ask(OpenRun(1, G, "continue", 5), RunImage)
    added = await bench.ask(AddItems(2, G, run.run_id, items("a", "b")), Added)
    await bench.ask(done(run, 3, added.added[0][1]), Concluded)
    await bench.ask(state(4, b"1"), StateSaved)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    conclude = done(run, 5, added.added[1][1])
    assert (await bench.ask(conclude, StoreFault)).errno == errno.ENOSPC
    assert (await bench.ask(state(6, b"2"), StoreFault)).errno == errno.ENOSPC
    assert (await bench.ask(Probe(7), StoreFault)).errno == errno.ENOSPC
    assert (await bench.ask(LoadRun(8, G), RunImage)).done == 1
    filler.unlink()
    await bench.ask(Probe(9), type(None))
    assert (await bench.ask(conclude, Concluded)).seq == 2
    assert (await bench.ask(state(10, b"2"), StateSaved)).removed == ()
    bench.storage.close()
    with LedgerReader(small_disk / "ledger.db") as reader:
        assert [row.key for row in reader.results(G)] == ["a", "b"]
        assert reader.verify() is None
    assert all(check.ok for check in CheckpointFiles(small_disk).verify())
