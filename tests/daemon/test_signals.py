from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import uvloop

from scraper_supervisor.daemon.signals import SIGNALS, Signals

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def signals() -> Iterator[Signals]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield Signals()
    for number, handler in before.items():
        signal.signal(number, handler)


async def arrive(got: list[int], count: int) -> None:
    while len(got) < count:
        await asyncio.sleep(0.001)


def test_signals_arrive_on_the_loop(signals: Signals) -> None:
    async def listen() -> list[int]:
        got: list[int] = []
        signals.pass_on(asyncio.get_running_loop(), got.append)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            await arrive(got, len(got) + 1)
        return got

    assert uvloop.run(listen()) == [signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGTERM]


def test_what_came_before_there_was_a_loop_arrives_once_there_is_one(signals: Signals) -> None:
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), number)

    async def listen() -> list[int]:
        got: list[int] = []
        signals.pass_on(asyncio.get_running_loop(), got.append)
        await arrive(got, 2)
        return got

    assert uvloop.run(listen()) == [signal.SIGHUP, signal.SIGTERM]


def test_nothing_is_done_about_what_comes_on_the_way_out_nor_after_the_loop(signals: Signals) -> None:
    got: list[int] = []

    async def leave() -> None:
        signals.pass_on(asyncio.get_running_loop(), got.append)
        signals.stop()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)

    uvloop.run(leave())
    for number in SIGNALS:
        os.kill(os.getpid(), number)
    signals.ignore()
    for number in SIGNALS:
        os.kill(os.getpid(), number)
    assert got == []


def test_what_is_blocked_by_the_first_line_is_there_for_the_daemon() -> None:
    program = (
        "import os, signal, sys; from scraper_supervisor.__main__ import runs_the_daemon\n"
        "assert runs_the_daemon(['--config', 'run', 'run']) and not runs_the_daemon(['events', '--worker', 'run'])\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP}); os.kill(os.getpid(), signal.SIGHUP)\n"
        "from scraper_supervisor.daemon.signals import Signals\n"
        "print(list(Signals()._waiting))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "SIGHUP" in ended.stdout
