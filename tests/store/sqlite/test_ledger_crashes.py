"""The ledger after kill -9 and power cuts at random moments: what was acknowledged is there, the rest whole or not."""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import signal
from typing import TYPE_CHECKING

import pytest
from tests.store.sqlite.ledger_writer import Acknowledged, start

from scraper_supervisor.store.sqlite.ledger import Ledger

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

KILLS = 12
IMAGES = 12


class Listener:
    """Hears what a writer says."""

    def __init__(self, process: subprocess.Popen[bytes], acknowledged: Acknowledged) -> None:
        assert process.stdout is not None
        self._fd = process.stdout.fileno()
        self._acknowledged = acknowledged
        self._rest = b""

    def wait_for(self, transactions: int) -> None:
        """Until so many more are acknowledged."""
        wanted = self._acknowledged.transactions + transactions
        while self._acknowledged.transactions < wanted:
            assert self._hear()

    def hear_out(self) -> None:
        """All that was said; of a process that is stopped or dead."""
        while select.select([self._fd], [], [], 0)[0] and self._hear():
            pass

    def _hear(self) -> bool:
        said = os.read(self._fd, 1 << 16)
        *lines, self._rest = (self._rest + said).split(b"\n")
        for line in lines:
            self._acknowledged.hear(line)
        return bool(said)


@contextlib.contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """The process stands still, at whatever instruction it was."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def rounds_of_kills(path: Path, rounds: int, seed: int = 0) -> int:
    """Kill the writer again and again, each time at a random moment; tells how many transactions were acknowledged."""
    dice = random.Random(seed)
    acknowledged = Acknowledged()
    for number in range(rounds):
        with start(path, seed + number) as process:
            listener = Listener(process, acknowledged)
            listener.wait_for(dice.randrange(1, 60))
            process.kill()
            process.wait()
            listener.hear_out()
        acknowledged.items = acknowledged.check(path)  # the next round goes on from there
    return acknowledged.transactions


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    assert rounds_of_kills(tmp_path / "ledger.db", KILLS) > KILLS


def images(path: Path, copies: Path, count: int, seed: int = 0) -> int:
    """Take the files at random moments as a power cut leaves them, and recover each; tells what was acknowledged."""
    dice = random.Random(seed)
    acknowledged = Acknowledged()
    with start(path, seed) as process:
        try:
            listener = Listener(process, acknowledged)
            for number in range(count):
                listener.wait_for(dice.randrange(1, 400))
                copy = copies / str(number)
                copy.mkdir()
                names = ["ledger.db", "ledger.db-wal", "ledger.db-shm"][: dice.choice((2, 3))]
                dice.shuffle(names)
                with stopped(process):
                    listener.hear_out()
                    for name in names:
                        shutil.copy(path.with_name(name), copy / name)
                    if dice.random() < 0.5:
                        Ledger.open(copy / "ledger.db").close()
                    acknowledged.check(copy / "ledger.db")
        finally:
            process.kill()
    return acknowledged.transactions


@pytest.mark.slow
def test_images_at_random_moments(tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    assert images(tmp_path / "live" / "ledger.db", tmp_path, IMAGES) > IMAGES
