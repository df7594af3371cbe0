"""What durability costs: items a second and latencies over the real socket, beside what bounds them in the same run.

Run: `python bench/store.py [SECTION...]`, sections: rates slow scale states; all without any. Ratios count, since the
machine's speed and its disk's do not matter to them. `--rounds` repeats what is compared, in turn; medians are shown.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from load import PATIENCE, RESULT, Figures, Load
from rig import HERE, daemon
from scale import scale
from states import states
from targets import Targets

KEYS = "https://example.com/match/"
FSYNC_DELAY = 0.005  # seconds
MOST = 40_000  # items a second that the load may need


def fdatasyncs(folder: Path, seconds: float) -> float:
    """Seconds of one append of 150 bytes with its fdatasync."""
    fd = os.open(folder / "append", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            os.write(fd, b"x" * 150)
            os.fdatasync(fd)
            count += 1
        return (time.perf_counter() - begin) / count
    finally:
        os.close(fd)


def sqlite_alone(folder: Path, seconds: float) -> float:
    """Items a second of one transaction an item (WAL, synchronous=FULL): its state is changed, its result inserted."""
    path = folder / "alone.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, state TEXT NOT NULL)")
    db.execute("CREATE TABLE results (id INTEGER PRIMARY KEY, result TEXT NOT NULL)")
    keys = [f"{KEYS}{number:08d}" for number in range(int(MOST * seconds))]
    db.execute("BEGIN")
    db.executemany("INSERT INTO items (key, state) VALUES (?, 'open')", ((key,) for key in keys))
    db.execute("COMMIT")
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE items SET state = 'done' WHERE key = ?", (keys[count],))
        db.execute("INSERT INTO results (id, result) VALUES (?, ?)", (count, RESULT.decode()))
        db.execute("COMMIT")
        count += 1
    rate = count / (time.perf_counter() - begin)
    db.close()
    path.unlink()
    return rate


async def echo(folder: Path, clients: int, seconds: float) -> Figures:
    """The same load on the wire with nothing behind it."""
    path = folder / "echo.sock"
    server = subprocess.Popen([sys.executable, str(HERE / "echo.py"), str(path)])
    try:
        deadline = time.monotonic() + PATIENCE
        load = Load()
        while not load.clients:
            try:
                await load.connect(path, clients)
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise SystemExit("the echo did not come up") from None
                time.sleep(0.01)
        figures = await load.measure(seconds)
        load.close()
        return figures
    finally:
        server.kill()
        server.wait()
        path.unlink(missing_ok=True)


async def supervised(
    folder: Path, clients: int, seconds: float, *, most: int = MOST, environment: dict[str, str] | None = None
) -> Figures:
    """The load on a real daemon with an empty state folder."""
    with daemon(folder, clients, environment) as one:
        load = await one.load()
        await load.offer(int(most * (seconds + 0.5)), KEYS)
        figures = await load.measure(seconds)
        load.close()
    shutil.rmtree(folder)
    return figures


def rates(folder: Path, seconds: float, rounds: int, targets: Targets) -> None:
    """Items a second and latencies by the number of clients."""
    for clients in (1, 8, 32, 100):
        shares, gains, lines, excess, tails = [], [], [], [], []
        for number in range(rounds):
            sync, alone = fdatasyncs(folder, 0.5), sqlite_alone(folder, 1.0)
            bare = uvloop.run(echo(folder, clients, seconds / 2))
            real = uvloop.run(supervised(folder / f"c{clients}-{number}", clients, seconds))
            shares.append(real.rate / bare.rate)
            gains.append(real.rate / alone)
            excess.append(real.quantile(0.5) / (sync + bare.quantile(0.5)))
            tails.append(real.quantile(0.99))
            lines.append(
                f"  {clients:3d} clients: {real.rate:6.0f} items/s; item.done p50 {real.quantile(0.5) * 1e3:.2f} ms, "
                f"p99 {real.quantile(0.99) * 1e3:.2f} ms; echo {bare.rate:.0f} items/s, p50 "
                f"{bare.quantile(0.5) * 1e3:.2f} ms; SQLite {alone:.0f} /s; append + fdatasync {sync * 1e3:.2f} ms"
            )
        print("\n".join(lines), flush=True)
        share, gain = statistics.median(shares), statistics.median(gains)
        print(f"      {share:.0%} of the echo, {gain:.2f} times SQLite's one transaction an item", flush=True)
        if clients == 32:
            targets.at_least("32 clients: share of the echo's items a second", share, 0.35)
            targets.at_least("32 clients: items a second by SQLite's one transaction an item", gain, 1.4)
            targets.at_most(
                "32 clients: p99 of item.done in ms, the log being folded", statistics.median(tails) * 1e3, 20
            )
        if clients == 1:
            targets.at_most("1 client: p50 of item.done by fdatasync + echo", statistics.median(excess), 3.0)


def slow(folder: Path, seconds: float, targets: Targets) -> None:
    """Items a second where each sync takes 5 ms longer."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        print("  skipped: slowing syncs takes a C compiler (apt-get install gcc)")
        return
    shim = folder / "slowsync.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(shim), str(HERE / "slowsync.c")], check=True)
    environment = {"LD_PRELOAD": str(shim), "SLOWSYNC_MICROSECONDS": str(int(FSYNC_DELAY * 1e6))}
    sync = fdatasyncs(folder, 0.5) + FSYNC_DELAY
    for clients in (8, 32, 100):
        real = uvloop.run(supervised(folder / f"slow{clients}", clients, seconds, most=20_000, environment=environment))
        share = real.rate / (clients / sync)
        print(
            f"  {clients:3d} clients, a sync takes {sync * 1e3:.2f} ms: {real.rate:.0f} items/s, {share:.0%} of "
            f"requests in flight by sync; p50 {real.quantile(0.5) * 1e3:.1f} ms",
            flush=True,
        )
        if clients == 32:
            targets.at_least("syncs slowed by 5 ms: share of requests in flight by sync", share, 0.75)


def main() -> int:
    """Run the sections asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="rates, slow, scale, states [all]")
    parser.add_argument("--seconds", type=float, default=4.0, help="that a rate is measured")
    parser.add_argument("--rounds", type=int, default=3, help="of each rate")
    parser.add_argument("--items", type=int, default=1_000_000, help="done in the section scale")
    options = parser.parse_args()
    wanted = options.sections or ["rates", "slow", "scale", "states"]
    targets = Targets()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        for section in wanted:
            print(f"== {section} ==", flush=True)
            match section:
                case "rates":
                    rates(folder, options.seconds, options.rounds, targets)
                case "slow":
                    slow(folder, options.seconds, targets)
                case "scale":
                    uvloop.run(scale(folder / "scale", options.items, targets))
                case "states":
                    uvloop.run(states(folder / "states", targets))
                case _:
                    parser.error(f"no section is named {section!r}")
    return targets.report()


if __name__ == "__main__":
    sys.exit(main())
