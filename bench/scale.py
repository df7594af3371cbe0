"""One item's cost as the number of done ones grows, and what a daemon with a million of them weighs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rig import daemon

if TYPE_CHECKING:
    from pathlib import Path

    from targets import Targets

CLIENTS = 32
SAMPLE = 20_000  # items over which a cost is taken
MIB = 1024 * 1024


async def scale(folder: Path, items: int, targets: Targets) -> None:
    """Offer a million items, do them all, look on the way, and start again.

    The cost of an item is the processor time that the daemon spends on it: unlike a rate, it is the daemon's alone.
    """
    marks = [mark for mark in (1_000, 100_000) if mark < items // 2] + [items]
    costs: dict[int, float] = {}
    memory: dict[int, int] = {}
    with daemon(folder, CLIENTS) as one:
        load = await one.load()
        await load.offer(2_000, "warm/")
        begin = time.perf_counter()
        done, offered = 0, 2_000
        for mark in marks:
            if mark > offered:
                before, rest = time.perf_counter(), items + 2 * SAMPLE - offered
                await load.offer(rest, "https://example.com/match/")
                offered += rest
                print(f"  {rest} items offered in {time.perf_counter() - before:.1f} s", flush=True)
            await load.run(mark - done)
            done = mark
            memory[mark] = one.memory()
            sample = min(SAMPLE, offered - done)
            cpu = one.cpu_seconds()
            figures = await load.run(sample)
            costs[mark] = (one.cpu_seconds() - cpu) / sample
            done += sample
            print(
                f"  at {mark} done: {costs[mark] * 1e6:.0f} us of processor time an item, {figures.rate:.0f} items/s, "
                f"daemon {memory[mark] / MIB:.1f} MiB",
                flush=True,
            )
        print(f"  {done} items in {time.perf_counter() - begin:.0f} s", flush=True)
        load.close()
    size = sum(path.stat().st_size for path in (folder / "state").glob("ledger.db*"))
    with daemon(folder, CLIENTS) as again:
        print(f"  started again in {again.start_seconds:.2f} s; the ledger has {size / MIB:.0f} MiB", flush=True)
        targets.at_most(f"start-up with {done} done in s", again.start_seconds, 5.0)
    targets.at_most("cost of an item at the most done by that at 1,000", costs[items] / costs[marks[0]], 1.2)
    targets.at_most("growth of the daemon in MiB", (memory[items] - memory[marks[0]]) / MIB, 30)
