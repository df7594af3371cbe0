"""Pages per second and CPU a page, under supervision beside plain Playwright: the same browser, a fresh page in both.

All sides take turns, so that what else the machine does meets each alike; what counts is the median of the ratios of
neighbouring turns. Run: `python bench/pages.py [ROUNDS [PAGES [HOSTS]]]`.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
from targets import Targets

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

HERE = Path(__file__).parent
BYTES = 30_000  # of a page
PATIENCE = 600.0  # seconds for one turn
KINDS = {"full": "chromium", "shell": "chromium-headless-shell"}


def page() -> bytes:
    """A page as sites have them: text, some style, a script that keeps something in local storage."""
    script = "<script>localStorage.setItem('seen', (localStorage.seen || 0) * 1 + 1)</script>"
    rows = "".join(f"<tr><td>{row}</td><td class=score>{row * 7 % 5}:{row * 3 % 4}</td></tr>" for row in range(2000))
    text = f"<!doctype html><title>x</title><style>td {{ padding: 2px }}</style>{script}<main><table>{rows}"
    return text[:BYTES].encode()


def serve(told: Connection) -> None:
    """A site on all loopback addresses."""
    body = page()
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nSet-Cookie: seen=1\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def forever() -> None:
        server = await asyncio.start_server(talk, "0.0.0.0", 0)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


def turn(side: str, kind: str, environment: dict[str, str], folder: Path) -> dict[str, Any]:
    """One side works on all pages; its figures."""
    figures = folder / "figures.json"
    figures.unlink(missing_ok=True)
    executable = shutil.which(KINDS[kind])
    assert executable is not None
    environment = {**environment, "BENCH_FIGURES": str(figures), "BENCH_CHROMIUM": executable}
    if side == "plain":
        command = [sys.executable, str(HERE / "page_worker.py")]
    else:
        run = Path(tempfile.mkdtemp(dir=folder))
        group = {"entrypoint": "page_worker:scrape", "directory": str(HERE)}
        group["env"] = {**environment, "SCRAPER_WORKER_CHROMIUM": executable}
        document = {
            "supervisor": {"state_dir": str(run / "state"), "runtime_dir": str(run / "run")},
            "workers": {"pages": group},
            "resources": {"host_memory_percent": "off", "disk_free": "1MiB"},
        }
        config = run / "supervisor.toml"
        config.write_text(tomli_w.dumps(document))
        command = [sys.executable, "-m", "scraper_supervisor", "run", "--once", "--config", str(config)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    if done.returncode or not figures.exists():
        raise SystemExit(f"{side} {kind}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(figures.read_text())
    return {
        "pages/s": found["pages"] / found["seconds"],
        "cpu/page": found["cpu"] / found["pages"],
        "gap": found["gap"],
    }


def main(rounds: int, pages: int, hosts: int) -> int:
    targets = Targets()
    sides = [(side, kind) for kind in KINDS if shutil.which(KINDS[kind]) for side in ("plain", "supervised")]
    ours, told = multiprocessing.Pipe()
    site = multiprocessing.Process(target=serve, args=(told,), daemon=True)
    site.start()
    address = f"http://{{host}}:{ours.recv()}/{{number}}"
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            for concurrency in (1, 4):
                environment = {
                    "BENCH_SITE": address,
                    "BENCH_PAGES": str(pages),
                    "BENCH_HOSTS": str(hosts),
                    "BENCH_CONCURRENCY": str(concurrency),
                }
                seen: dict[tuple[str, str], list[dict[str, Any]]] = {side: [] for side in sides}
                for number in range(rounds):
                    for side in sides if number % 2 else reversed(sides):
                        seen[side].append(turn(*side, environment, Path(name)))
                print(
                    f"== {pages} pages of {BYTES} bytes on {hosts} hosts, {concurrency} at a time, {rounds} rounds =="
                )
                for (side, kind), figures in seen.items():
                    speed, cpu = (statistics.median(one[what] for one in figures) for what in ("pages/s", "cpu/page"))
                    gaps = [gap for one in figures for gap in one["gap"]]
                    between = f", p99 between two items {statistics.median(gaps) * 1000:.0f} ms" if gaps else ""
                    print(f"  {side:10} {kind:5} {speed:6.2f} pages/s, {cpu * 1000:4.0f} ms CPU a page{between}")
                compare(targets, seen, concurrency)
    finally:
        site.terminate()
    return targets.report()


def compare(targets: Targets, seen: dict[tuple[str, str], list[dict[str, Any]]], concurrency: int) -> None:
    """Each turn under supervision beside the plain one of its round."""

    def ratio(ours: tuple[str, str], theirs: tuple[str, str], what: str) -> float:
        pairs = zip(seen[ours], seen[theirs], strict=True)
        return statistics.median(one[what] / other[what] for one, other in pairs)

    for kind in KINDS:
        ours, theirs = ("supervised", kind), ("plain", kind)
        if ours in seen:
            named = f"{kind}, {concurrency} at a time: supervised ÷ plain"
            targets.at_least(f"{named}, pages/s", ratio(ours, theirs, "pages/s"), 0.98)
            targets.at_most(f"{named}, CPU a page", ratio(ours, theirs, "cpu/page"), 1.05)
    if ("supervised", "shell") in seen and ("plain", "full") in seen:
        named = f"{concurrency} at a time: supervised shell ÷ plain full, pages/s"
        targets.at_least(named, ratio(("supervised", "shell"), ("plain", "full"), "pages/s"), 2.0)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:4]]
    sys.exit(main(*(numbers + [10, 100, 20][len(numbers) :])))
