"""How long a checkpoint takes to be durable, and what a large one costs the others."""

from __future__ import annotations

import asyncio
import statistics
from typing import TYPE_CHECKING, Any

import msgspec
from rig import daemon

if TYPE_CHECKING:
    from pathlib import Path

    from targets import Targets

SAVES = 500
LARGE_SAVES = 5
KIB, MIB = 1024, 1024 * 1024


def state(size: int, salt: int) -> dict[str, Any]:
    """A state of about so many bytes of JSON, different for each salt."""
    row = {"url": f"https://example.com/match/{salt:08d}", "score": [1, 2, 3], "seen": True, "note": "x" * 100}
    return {"salt": salt, "rows": [row] * (size // (len(msgspec.json.encode(row)) + 1) - 1)}


def params(size: int, salt: int) -> bytes:
    """Those of a checkpoint.save."""
    return msgspec.json.encode({"schema": "bench/1", "state": state(size, salt)})


async def states(folder: Path, targets: Targets) -> None:
    """Save many of 256 KiB, then some of 64 MiB beside a worker that goes on with small calls."""
    with daemon(folder, 2) as one:
        load = await one.load(apart=1)
        saver, (other,) = load.apart[0], load.clients
        seconds = sorted(saver.call("checkpoint.save", params(256 * KIB, salt)) for salt in range(SAVES))
        median, p99 = statistics.median(seconds), seconds[int(SAVES * 0.99)]
        print(f"  256 KiB: median {median * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms, most {seconds[-1] * 1e3:.1f} ms")
        targets.at_most("256 KiB durable, median in ms", median * 1e3, 10)
        targets.at_most("256 KiB durable, p99 in ms", p99 * 1e3, 100)

        await load.offer(50_000, "small/")
        others: list[float] = []
        took: list[float] = []
        for salt in range(LARGE_SAVES):
            large = params(64 * MIB, salt)
            task = asyncio.get_running_loop().run_in_executor(None, saver.call, "checkpoint.save", large)
            while not task.done():
                grant = await other.call("item.next", {})
                done = {"key": grant["key"], "claim": grant["claim"], "result": {}}
                others.append(await other.timed("item.done", done))
            took.append(await task)
        others.sort()
        p99 = others[int(len(others) * 0.99)]
        print(
            f"  64 MiB, {LARGE_SAVES} times: most {max(took):.2f} s; beside them {len(others)} item.done: "
            f"p50 {statistics.median(others) * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms, most {others[-1] * 1e3:.1f} ms"
        )
        targets.at_most("64 MiB durable in s", max(took), 10)
        targets.at_most("beside 64 MiB: p99 of another worker's item.done in ms", p99 * 1e3, 50)
        load.close()
