"""How long a dead worker is missed: from kill -9 to its replacement's exec, 50 plain workers, one at a time.

Run: `python bench/replacement.py [WORKERS]`. The target is a median of at most 10 ms.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tomli_w

TARGET = 0.010  # seconds
PATIENCE = 20.0  # seconds
POLL = 0.0002  # seconds; looking all the time would take the kernel's lock on processes from the daemon
COMMAND = ["sleep", "1000"]
SUPERVISOR = shlex.split(os.environ.get("SCRAPER_E2E_COMMAND", "")) or [sys.executable, "-m", "scraper_supervisor"]


def status(path: Path) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "status"}\n')
        with sock.makefile("rb") as lines:
            document: dict[str, Any] = json.loads(lines.readline())["result"]
            return document


def children(pid: int) -> set[int]:
    """The children of a process, without asking it: polling must not load what is measured."""
    found: set[int] = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            found.update(map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split()))
        except FileNotFoundError:
            continue  # a thread ended
    return found


def runs(pid: int, command: list[str]) -> bool:
    """Whether that process has executed the command, and is no mere fork of the daemon any more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1] == [word.encode() for word in command]
    except (FileNotFoundError, ProcessLookupError):
        return False


def replaced(daemon: int, victim: int, known: set[int]) -> float:
    """Kill a worker; seconds until another process runs its command."""
    begin = time.perf_counter()
    os.kill(victim, signal.SIGKILL)
    while time.perf_counter() - begin < PATIENCE:
        for pid in children(daemon) - known:
            if runs(pid, COMMAND):
                return time.perf_counter() - begin
        time.sleep(POLL)
    raise SystemExit(f"no replacement of {victim} within {PATIENCE:g} s")


def wait_until_up(control: Path, workers: int) -> list[int]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            pids = [worker["pid"] for worker in status(control)["workers"]]
        except OSError:
            pids = []
        if len(pids) == workers and all(pid and runs(pid, COMMAND) for pid in pids):
            return pids
        time.sleep(0.005)
    raise SystemExit(f"{workers} workers were not up within {PATIENCE:g} s")


def main(workers: int) -> int:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        document = {
            "supervisor": {"state_dir": str(folder / "state"), "runtime_dir": str(folder / "run")},
            "workers": {"plain": {"command": COMMAND, "count": workers, "restart": "always"}},
            "abort": {"enabled": False},
        }
        config = folder / "supervisor.toml"
        config.write_text(tomli_w.dumps(document))
        with (folder / "log").open("wb") as log:
            daemon = subprocess.Popen([*SUPERVISOR, "run", "--config", str(config)], stdout=log, stderr=log)
        try:
            pids = wait_until_up(folder / "run" / "control.sock", workers)
            seconds = []
            for pid in pids:
                seconds.append(replaced(daemon.pid, pid, children(daemon.pid)))
                wait_until_up(folder / "run" / "control.sock", workers)  # one at a time: it is all over before the next
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(60)
    seconds.sort()
    median, p90 = statistics.median(seconds), seconds[int(len(seconds) * 0.9)]
    figures = {"min": seconds[0], "median": median, "p90": p90, "max": seconds[-1]}
    print(f"{workers} workers, each killed once; kill to exec in ms:")
    print("  " + "  ".join(f"{name} {value * 1000:.1f}" for name, value in figures.items()))
    print(f"  target: median at most {TARGET * 1000:.0f} ms: {'met' if median <= TARGET else 'MISSED'}")
    return 0 if median <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50))
