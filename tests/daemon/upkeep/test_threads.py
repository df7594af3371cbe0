"""Threads that are there from the start, and hold nobody up at the end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from scraper_supervisor.daemon.upkeep.pulse import BEAT, GAP, Pulse
from scraper_supervisor.daemon.upkeep.threads import Threads, ThreadsStopped


async def test_results_and_what_was_raised_arrive_and_no_thread_is_made_later() -> None:
    threads = Threads(asyncio.get_running_loop(), "test", 2)
    before = threading.active_count()
    results = await asyncio.gather(*(threads.run(lambda number=number: number * 2) for number in range(50)))  # type: ignore[misc]
    assert results == [number * 2 for number in range(50)]
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    assert threading.active_count() == before
    assert threads.stop()
    with pytest.raises(ThreadsStopped):
        threads.run(int)


async def test_one_that_hangs_is_not_waited_for() -> None:
    threads, hanging = Threads(asyncio.get_running_loop(), "test", 1), threading.Event()
    future = threads.run(hanging.wait)
    assert not threads.stop(0.05)
    hanging.set()
    assert await asyncio.wait_for(future, 10)
    assert threads.stop(10.0)


def test_a_gap_is_more_than_a_late_beat() -> None:
    pulse = Pulse(100.0)
    assert pulse.beat(100.0 + BEAT) is None
    assert pulse.beat(100.0 + 2 * BEAT + GAP / 2) is None
    last = 100.0 + 2 * BEAT + GAP / 2
    assert pulse.beat(last + BEAT + GAP) == last
    assert pulse.beat(last + BEAT + GAP + BEAT) is None
