from __future__ import annotations

import asyncio
import os
import signal

import uvloop

from scraper_supervisor.daemon.signals import Signals


def test_signals_arrive_on_the_loop() -> None:
    async def listen() -> list[int]:
        got: list[int] = []
        signals = Signals(asyncio.get_running_loop(), got.append)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            count = len(got) + 1
            while len(got) < count:
                await asyncio.sleep(0.001)
        signals.close()
        return got

    assert uvloop.run(listen()) == [signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGTERM]
