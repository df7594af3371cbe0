"""A storm over a working fleet: signals, reloads, orders, files taken away, processes stopped, all at once.

    python bench/storm.py [--seconds 60] [--seed N] [--browsers 2] [--quick 3]

What happens, and in which order, is the seed's. In the end the daemon must live, every item that was added must be done
once, and every worker must have the PID that it began with, for nothing that is done here orders otherwise.
"""

# ruff: noqa: D102 - the name of an act tells what it does

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "e2e"))

from harness import Daemon, Line, Refused, wait_for

SILENCE = 4.0  # seconds of heartbeat_timeout
STILL = 6.0  # seconds for which the daemon, or all of it, is stopped at most
WORKER_STILL = 0.6  # the same of one worker
AHEAD = 60  # items that are open in a group at the least
SETTLED = 120.0  # seconds until all is done after the storm
SCRAPER = """
import asyncio
async def quick(worker):
    await worker.process([], fetch, browser=False, concurrency=2)
async def fetch(item):
    await asyncio.sleep(0.02)
    return {"key": item.key}
async def pages(worker):
    await worker.process([], show, concurrency=2)
async def show(item):
    await item.page.set_content(f"<title>{item.key}</title><p>text</p>")
    return {"key": await item.page.title()}
"""
BAD = (
    "[supervisor\n",
    "[supervisor]\nlease = " + "7" * 5000 + "\n",
    '[workers.quick]\ncommand = ["true"]\nnonsense = 1\n',
    '[workers.quick]\nentrypoint = "storm:quick"\nenv_file = "fifo"\n',
    "\xef\xbb\xbf\xff",
)


class Storm:
    """What is done to a daemon.

    Args:
        daemon: it; made with an empty configuration.
        seed: of everything that happens.
        browsers: workers with a browser.
        quick: workers without one.
    """

    def __init__(self, daemon: Daemon, seed: int, browsers: int, quick: int) -> None:
        self.daemon, self.seed = daemon, seed
        self.rng = random.Random(seed)
        self.added: dict[str, int] = {}
        self.done: dict[str, int] = {}
        self.logs = 0
        counts = {"pages": browsers, "quick": quick}
        groups = {
            name: {
                "entrypoint": f"storm:{name}",
                "count": count,
                "heartbeat_interval": "500ms",
                "heartbeat_timeout": SILENCE,
                "stop_timeout": "10s",
                "on_complete": "wait",
            }
            for name, count in counts.items()
            if count
        }
        self.good: dict[str, Any] = {"workers": groups, "abort": {"enabled": False}, "supervisor": {}}
        (daemon.folder / "storm.py").write_text(SCRAPER)
        os.mkfifo(daemon.folder / "fifo")
        daemon.configure(self.good)
        self.added = dict.fromkeys(groups, 0)

    # ---- the frame

    def begin(self) -> None:
        """Start the daemon, and wait until every worker has done something."""
        self.daemon.start()
        for group in self.added:
            self.add(group, 3 * AHEAD)

        def all_work() -> dict[str, int] | None:
            workers = self.daemon.status()["workers"]
            return (
                {one["name"]: one["pid"] for one in workers} if all(one["items"]["done"] for one in workers) else None
            )

        self.pids: dict[str, int] = self.daemon.wait(all_work, "every worker works", 120)

    def rage(self, seconds: float) -> None:
        """Let it happen for so long."""
        acts = [
            (6, self.hangup), (2, self.many_hangups), (6, self.status), (3, self.pause), (3, self.resume),
            (3, self.recycle), (3, self.good_reload), (3, self.bad_reload), (2, self.remove_sockets),
            (1, self.remove_folder), (2, self.rename_log), (2, self.stop_daemon), (1, self.stop_all),
            (3, self.stop_worker), (2, self.talk_nonsense), (2, self.idle),
        ]  # fmt: skip
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            (act,) = self.rng.choices([act for _, act in acts], [weight for weight, _ in acts])
            name = act.__name__
            with contextlib.suppress(OSError, EOFError, Refused):  # its sockets may be gone for a moment
                act()
                self.done[name] = self.done.get(name, 0) + 1
            assert self.daemon.process.poll() is None, f"{name} ended the daemon: {self.daemon.log()}"
            for group in self.added:
                with contextlib.suppress(OSError, EOFError, Refused):
                    self.fill(group)
            time.sleep(self.rng.uniform(0.0, 0.2))

    def settle(self) -> dict[str, int]:
        """Calm down, and compare; how many items of each group are done."""
        self.daemon.configure(self.good)
        wait_for(self.answers, "it answers", 30)
        self.daemon.control("reload")
        self.daemon.control("resume", names=list(self.added))
        for group, added in self.added.items():
            self.daemon.wait(lambda group=group, added=added: self.count(group) == added, f"{group} is done", SETTLED)
        workers = self.daemon.status()["workers"]
        assert {one["name"]: one["pid"] for one in workers} == self.pids, self.harm()
        assert not self.harm(), self.harm()
        assert self.daemon.stop() == 0, self.daemon.log()
        for group, added in self.added.items():
            results = self.daemon.results(group)
            assert len(results) == added, f"{group}: {len(results)} results of {added} items"
            assert set(results) == {f"{group}-{number}" for number in range(added)}
        assert self.daemon.none_left()
        return dict(self.added)

    def answers(self) -> Any:
        try:
            return self.daemon.status()
        except (OSError, EOFError):
            return None

    def harm(self) -> list[dict[str, Any]]:
        """Events of the whole storm that tell of a worker that came to harm."""
        bad = {"worker_hung", "worker_exited", "worker_failed", "worker_backoff"}
        found = []
        for path in self.daemon.state.glob("events*"):
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if event["event"] in bad:
                        found.append(event)
        return found

    # ---- items

    def count(self, group: str) -> int:
        done: int = self.daemon.group(group)["items"]["done"]
        return done

    def fill(self, group: str) -> None:
        """See to it that there is enough to do."""
        items = self.daemon.group(group)["items"]
        if items["pending"] < AHEAD:
            self.add(group, AHEAD)

    def add(self, group: str, count: int) -> None:
        """Add items; what was not acknowledged is added again with the next ones, which is harmless."""
        first = self.added[group]
        self.daemon.control(
            "items.add", names=[group], keys=[f"{group}-{number}" for number in range(first, first + count)]
        )
        self.added[group] = first + count

    # ---- what happens

    def hangup(self) -> None:
        self.daemon.send(signal.SIGHUP)

    def many_hangups(self) -> None:
        for _ in range(self.rng.randrange(5, 20)):
            self.daemon.send(signal.SIGHUP)

    def status(self) -> None:
        self.daemon.status()

    def pause(self) -> None:
        self.daemon.control("pause", names=[self.rng.choice(list(self.added))], wait=False)

    def resume(self) -> None:
        self.daemon.control("resume", names=list(self.added), wait=False)

    def recycle(self) -> None:
        self.daemon.control("recycle", names=[self.rng.choice(list(self.pids))], wait=False)

    def good_reload(self) -> None:
        self.good["supervisor"]["log_level"] = self.rng.choice(("info", "warning"))
        self.good["resources"] = {"sample_interval": self.rng.choice(("500ms", "1s"))}
        self.daemon.configure(self.good)
        self.daemon.control("reload")

    def bad_reload(self) -> None:
        self.daemon.config_path.write_bytes(self.rng.choice(BAD).encode("latin-1"))
        self.hangup()

    def remove_sockets(self) -> None:
        for path in self.daemon.runtime.glob("*.sock"):
            path.unlink()

    def remove_folder(self) -> None:
        self.logs += 1
        away = self.daemon.folder / f"runtime-{self.logs}"
        self.daemon.runtime.rename(away)
        shutil.rmtree(away, ignore_errors=True)

    def rename_log(self) -> None:
        self.logs += 1
        (self.daemon.state / "events.jsonl").rename(self.daemon.state / f"events-{self.logs}")

    def _still(self, pids: list[int], seconds: float) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        self.rng.shuffle(pids)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    def stop_daemon(self) -> None:
        self._still([self.daemon.pid], self.rng.uniform(0.1, STILL))

    def stop_all(self) -> None:
        self._still([self.daemon.pid, *self.pids.values()], self.rng.uniform(0.1, STILL))

    def stop_worker(self) -> None:
        self._still([self.rng.choice(list(self.pids.values()))], self.rng.uniform(0.05, WORKER_STILL))

    def talk_nonsense(self) -> None:
        for name in ("worker.sock", "control.sock"):
            with Line.to(self.daemon.runtime / name) as line:
                line.send(self.rng.randbytes(self.rng.randrange(1, 5000)) + b"\n{}\n[]\n")

    def idle(self) -> None:
        lines = [Line.to(self.daemon.runtime / "worker.sock") for _ in range(self.rng.randrange(20))]
        for line in lines:
            line.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--browsers", type=int, default=2)
    parser.add_argument("--quick", type=int, default=3)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    daemon = Daemon({})
    try:
        storm = Storm(daemon, options.seed, options.browsers, options.quick)
        storm.begin()
        storm.rage(options.seconds)
        items = storm.settle()
    finally:
        daemon.close()
    print(f"the daemon lives; items done, each once: {items}; workers kept: {len(storm.pids)}")
    print(", ".join(f"{name} {count}" for name, count in sorted(storm.done.items())))


if __name__ == "__main__":
    main()
