"""The two sides of `bench/pages.py`: the same pages by the SDK under supervision, and by plain Playwright.

Each notes, from the first page on, how many pages, seconds and CPU seconds it took: of its own processes and of the
supervisor.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

SITE, PAGES, CONCURRENCY = (
    os.environ["BENCH_SITE"],
    int(os.environ["BENCH_PAGES"]),
    int(os.environ["BENCH_CONCURRENCY"]),
)
FIGURES = Path(os.environ["BENCH_FIGURES"])
HOSTS = int(os.environ.get("BENCH_HOSTS", "1"))
WARM = 5  # pages before the first that counts
TICKS = os.sysconf("SC_CLK_TCK")


def url(number: int) -> str:
    """The page of an item: the hosts in turn."""
    host = number % HOSTS
    return SITE.format(host=f"127.0.{host // 200 + 1}.{host % 200 + 1}", number=number)


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()
    return sum(map(int, fields[11:15]))


def cpu_seconds() -> float:
    """CPU time of this process, all that it started, and what those have reaped; of the supervisor, too."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parents[int(name)] = int(Path(f"/proc/{name}/stat").read_bytes().rsplit(b")", 1)[1].split()[1])
            except OSError:
                continue  # it has ended
    found = {os.getpid()}
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    if "SCRAPER_WORKER_SOCKET" in os.environ:
        found.add(os.getppid())
    total = 0
    for pid in found:
        try:
            total += _ticks(pid)
        except OSError:
            continue
    return total / TICKS


class Count:
    """Counts pages, and notes the figures at the last one."""

    def __init__(self) -> None:
        self.done = 0
        self.began = (0.0, 0.0)
        self.last_end = 0.0
        self.gaps: list[float] = []

    def starts(self) -> None:
        """A page is there."""
        if self.last_end and CONCURRENCY == 1:
            self.gaps.append(time.perf_counter() - self.last_end)

    def ends(self) -> None:
        """A page was read."""
        self.done += 1
        self.last_end = time.perf_counter()
        if self.done == WARM:
            self.began = (time.perf_counter(), cpu_seconds())
        elif self.done == WARM + PAGES:
            seconds, cpu = time.perf_counter() - self.began[0], cpu_seconds() - self.began[1]
            gaps = sorted(self.gaps)
            figures = {
                "pages": PAGES,
                "seconds": seconds,
                "cpu": cpu,
                "gap": gaps[-len(gaps) // 100 :][:1] if gaps else [],
            }
            FIGURES.write_text(json.dumps(figures))


async def read(page: Any, number: int) -> int:
    """One page, as a scraper reads it."""
    await page.goto(url(number), wait_until="load")
    return len(await page.inner_text("main"))


async def scrape(worker: Any) -> None:
    """By the SDK."""
    count = Count()

    async def one(item: Any) -> int:
        count.starts()
        length = await read(item.page, int(item.key))
        count.ends()
        return length

    await worker.process([str(number) for number in range(WARM + PAGES)], one, concurrency=CONCURRENCY)


async def plain() -> None:
    """By Playwright alone: a fresh page an item in one context."""
    from playwright.async_api import async_playwright

    count = Count()
    numbers = iter(range(WARM + PAGES))
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=os.environ["BENCH_CHROMIUM"], chromium_sandbox=False)
        context = await browser.new_context()

        async def work() -> None:
            for number in numbers:
                page = await context.new_page()
                count.starts()
                await read(page, number)
                count.ends()
                await page.close()

        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
        await browser.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(plain()))
