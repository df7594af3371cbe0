"""What the benchmarks run against: a real daemon in a folder of its own, its workers' connections in this process."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import tomli_w
from load import PATIENCE, Load, listener_at

if TYPE_CHECKING:
    from collections.abc import Generator

HERE = Path(__file__).parent
SUPERVISOR = shlex.split(os.environ.get("SCRAPER_E2E_COMMAND", "")) or [sys.executable, "-m", "scraper_supervisor"]
GROUP = "load"


class Daemon:
    """A running daemon with one group of `clients` workers that hand their connections over.

    Args:
        folder: where it keeps everything; a state in it is continued.
        clients: how many workers.
        environment: added to the daemon's.
    """

    def __init__(self, folder: Path, clients: int, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.clients = clients
        self._listener = listener_at(folder / "load.sock")
        document = {
            "supervisor": {"state_dir": str(folder / "state"), "runtime_dir": str(folder / "run")},
            "workers": {
                GROUP: {
                    "command": [sys.executable, "-I", "-S", str(HERE / "handover.py"), str(folder / "load.sock")],
                    "count": clients,
                    "on_complete": "wait",
                }
            },
        }
        config = folder / "supervisor.toml"
        config.write_text(tomli_w.dumps(document))
        self.log = (folder / "log").open("ab")
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [*SUPERVISOR, "run", "--config", str(config)],
            stdout=self.log,
            stderr=self.log,
            env=os.environ | (environment or {}),
        )
        self.status_until(lambda status: status["supervisor"]["state"] != "starting")
        self.start_seconds = time.perf_counter() - started

    async def load(self, apart: int = 0) -> Load:
        """All workers' connections, introduced; `apart` of them for threads of their own."""
        load = Load()
        await load.receive(self._listener, self.clients, apart)
        for client in load.clients:
            await client.hello()
        return load

    def status(self) -> dict[str, Any]:
        """The status document."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(self.folder / "run" / "control.sock"))
            sock.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "status"}\n')
            with sock.makefile("rb") as lines:
                document: dict[str, Any] = json.loads(lines.readline())["result"]
                return document

    def status_until(self, condition: Any) -> dict[str, Any]:
        """The first status that fulfils the condition."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                status = self.status()
                if condition(status):
                    return status
            if self.process.poll() is not None:
                raise SystemExit(f"the daemon ended; see {self.folder / 'log'}")
            time.sleep(0.01)
        raise SystemExit(f"the daemon did not come up; see {self.folder / 'log'}")

    def memory(self) -> int:
        """The daemon's own memory in bytes: what would be free if it ended (USS)."""
        found: int = psutil.Process(self.process.pid).memory_full_info().uss
        return found

    def cpu_seconds(self) -> float:
        """The processor time that the daemon has used."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def stop(self) -> None:
        """End it; its workers end with it."""
        self._listener.close()
        for signum in (15, 15, 9):
            self.process.send_signal(signum)
            try:
                self.process.wait(10 if signum == 9 else 3)
                break
            except subprocess.TimeoutExpired:
                continue
        self.log.close()


@contextlib.contextmanager
def daemon(folder: Path, clients: int, environment: dict[str, str] | None = None) -> Generator[Daemon]:
    """A daemon for a while."""
    folder.mkdir(parents=True, exist_ok=True)
    one = Daemon(folder, clients, environment)
    try:
        yield one
    finally:
        one.stop()
