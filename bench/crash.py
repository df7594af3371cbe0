"""What kill -9 costs: the daemon killed again and again under load, and what was acknowledged compared with its files.

Run: `python bench/crash.py [--rounds 500] [--seed 1]`. Each round starts the daemon on the state that the last one
left, and kills it, its workers or both at a random moment: while it starts, recovers or works. Whatever the workers
noted as acknowledged must be in the ledger and in the checkpoint files. Exits 1 if anything is lost or was done twice.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import tomli_w

WORKER = Path(__file__).with_name("crash_worker.py")
SUPERVISOR = shlex.split(os.environ.get("SCRAPER_E2E_COMMAND", "")) or [sys.executable, "-m", "scraper_supervisor"]
GROUP = "crash"
RETENTION = 3  # generations
PATIENCE = 60.0  # seconds
STARTING = 0.6  # seconds that a start takes, about; kills during starts are spread over them
WORKING = 0.5  # seconds that a round works at most
LOOK_AT_ALL = 50  # rounds between looks at the whole ledger

_ROW = (
    "SELECT items.id, items.state, items.attempts, items.seq, CAST(results.result AS BLOB), results.sha256"
    " FROM items LEFT JOIN results ON results.run_id = items.run_id AND results.seq = items.seq"
    " WHERE items.run_id = 1 AND items.key = ?"
)


class Lost(AssertionError):
    """Something that was acknowledged is not there, or something was done twice."""


def must(sound: bool, what: str) -> None:
    if not sound:
        raise Lost(what)


class Audit:
    """What the workers noted, and whether the files agree."""

    def __init__(self, folder: Path) -> None:
        self.acks = folder / "acks"
        self.state = folder / "state"
        self.counts: Counter[str] = Counter()
        self.pids: set[int] = set()
        self._read = 0
        self._fresh: list[dict[str, Any]] = []  # notes that the ledger has not been asked about
        self._done: dict[str, tuple[int, int]] = {}  # key → claim, seq
        self._failed: set[str] = set()
        self._claims: dict[int, str] = {}
        self._last_claim: dict[str, int] = {}
        self._saved: dict[str, dict[int, tuple[str, int]]] = {}  # worker → generation → sha256, when its state was

    def read(self) -> bool:
        """Take what was noted since; whether that was anything."""
        if not self.acks.exists():
            return False
        with self.acks.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._read += len(data)
        for line in data.splitlines():
            self._take(json.loads(line))
        return bool(data)

    def _take(self, note: dict[str, Any]) -> None:
        what, worker = note["what"], note["worker"]
        self.counts[what] += 1
        saved = self._saved.setdefault(worker, {})
        match what:
            case "up" | "back":
                self.pids.add(note["pid"])
                last = max(saved, default=0)
                must(note["generation"] >= last, f"{worker} was given generation {note['generation']} after {last}")
            case "granted":
                key, claim = note["key"], note["claim"]
                must(claim not in self._claims, f"claim {claim} of {key} was that of {self._claims.get(claim)}")
                self._claims[claim] = key
                self._last_claim[key] = max(claim, self._last_claim.get(key, 0))
            case "saved":
                generation = note["generation"]
                must(
                    generation > max(saved, default=0),
                    f"{worker}: generation {generation} after {max(saved, default=0)}",
                )
                saved[generation] = (note["sha256"], note["at"])
            case "done":
                before = self._done.setdefault(note["key"], (note["claim"], note["seq"]))
                must(before[1] == note["seq"], f"{note['key']} has seq {note['seq']} after {before[1]}")
            case "failed" if note["action"] == "final":
                self._failed.add(note["key"])
        if what in ("done", "failed", "offered"):
            self._fresh.append(note)

    def compare(self, *, everything: bool = False) -> None:
        """Ask the ledger and the checkpoint files about what was noted since the last time, or ever.

        Raises:
            Lost: they do not hold what was acknowledged.
        """
        ledger = sqlite3.connect(f"{(self.state / 'ledger.db').as_uri()}?mode=ro", uri=True, timeout=PATIENCE)
        try:
            ledger.execute("BEGIN")  # one moment of it
            fresh, self._fresh = self._fresh, []
            for note in fresh:
                self._compare(ledger, note)
            if everything:
                self._compare_all(ledger)
        finally:
            ledger.close()
        for worker in self._saved:
            tries = iter(range(5))
            while (missing := self._compare_files(worker)) is not None:
                must(next(tries, None) is not None, missing)

    def compare_with(self, note: dict[str, Any]) -> None:
        """`compare` everything as if a worker had noted this, too.

        Raises:
            Lost: see `compare`.
        """
        self._take(note)
        self.compare(everything=True)

    def _compare(self, ledger: sqlite3.Connection, note: dict[str, Any]) -> None:
        for key in (*note.get("keys", ()), *note.get("offers", ())):
            must(ledger.execute(_ROW, (key,)).fetchone() is not None, f"{key} was offered and is not there")
        if "key" not in note:
            return
        key = note["key"]
        row = ledger.execute(_ROW, (key,)).fetchone()
        must(row is not None, f"{key} is not there")
        _, state, attempts, seq, result, digest = row
        if note["what"] == "done":
            must((state, seq) == ("done", note["seq"]), f"{key} was done as {note['seq']} and is {state}, {seq}")
            must(result is not None and json.loads(result)["key"] == key, f"{key} has the result {result!r}")
            must(hashlib.sha256(result).hexdigest() == digest, f"{key}: the result's SHA-256 is not that of its row")
        elif note["action"] == "final":
            must(state == "failed", f"{key} failed for good and is {state}")
        else:
            must(attempts >= note["attempt"], f"{key} failed {note['attempt']} times and {attempts} are known")

    def _compare_all(self, ledger: sqlite3.Connection) -> None:
        twice = ledger.execute("SELECT item_id FROM results GROUP BY item_id HAVING count(*) > 1").fetchall()
        must(not twice, f"{len(twice)} items have two results")
        rows, last = ledger.execute("SELECT count(*), max(seq) FROM results WHERE run_id = 1").fetchone()
        must(rows == (last or 0), f"{rows} results are numbered up to {last}")
        states = dict(ledger.execute("SELECT state, count(*) FROM items WHERE run_id = 1 GROUP BY state"))
        done, failed = ledger.execute("SELECT done, failed FROM runs WHERE id = 1").fetchone()
        must((done, failed) == (states.get("done", 0), states.get("failed", 0)), f"counts {done}, {failed}: {states}")
        must(done == rows, f"{done} items are done and {rows} have results")
        (highest,) = ledger.execute("SELECT next_claim FROM groups WHERE name = ?", (GROUP,)).fetchone()
        must(highest > max(self._claims, default=0), f"claims up to {highest} are reserved, one more was given")
        for key, (claim, _) in self._done.items():
            must(self._last_claim.get(key, claim) <= claim, f"{key} was handed out again after it was done")
        stored = dict(ledger.execute("SELECT key, seq FROM items WHERE run_id = 1 AND state = 'done'"))
        for key, (_, seq) in self._done.items():
            must(stored.get(key) == seq, f"{key} was done as {seq} and is {stored.get(key)}")
        self.counts["done in the ledger"] = done

    def _compare_files(self, worker: str) -> str | None:
        """What is missing; while the daemon works, a file may come or go during the look."""
        folder, saved = self.state / "checkpoints" / worker, self._saved[worker]
        must(not (folder / "corrupt").exists(), f"{worker}: a file was found damaged")
        there: dict[int, dict[str, Any]] = {}
        for path in folder.glob("checkpoint-*.json"):
            with contextlib.suppress(FileNotFoundError):  # removed by the running daemon's retention meanwhile
                data = path.read_bytes()
                digest = hashlib.sha256(data[:-78]).hexdigest()
                must(data.endswith(f',"sha256":"{digest}"}}\n'.encode()), f"{path} is damaged")
                there[int(path.stem.removeprefix("checkpoint-"))] = json.loads(data)
        for generation in sorted(saved, reverse=True)[:RETENTION]:
            if generation in there:
                same = there[generation]["sha256"] == saved[generation][0]
                must(same, f"{worker}: generation {generation} is not what was acknowledged")
                continue
            newer = [document["state"] for number, document in there.items() if number > generation]
            again = any(state["at"] == saved[generation][1] for state in newer)  # of equal states the newest is kept
            if not again and len(newer) < RETENTION:
                return f"{worker}: generation {generation} is gone; there are {sorted(there)}"
        return None


class Rig:
    """A daemon that is killed and started again.

    Args:
        folder: for everything; its path must be short enough for a socket's.
        seed: of all that is random here.
        workers: how many.
    """

    def __init__(self, folder: Path, seed: int, workers: int = 6) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.audit = Audit(folder)
        self.kills: Counter[str] = Counter()
        self.starts: list[float] = []  # seconds until a start served
        self._config = folder / "supervisor.toml"
        pace = {"base_delay": 0.05, "max_delay": 0.05, "max_restarts": 0, "max_unstable": 0}
        command = [sys.executable, "-S", "-E", str(WORKER)]
        group = {"command": command, "count": workers, "env": {"CRASH_FOLDER": str(folder)}, "restart_policy": pace}
        document = {
            "supervisor": {
                "state_dir": str(folder / "state"),
                "runtime_dir": str(folder / "run"),
                "log_level": "warning",
            },
            "workers": {GROUP: group},
            "retry": {"default": {"base_delay": 0.02, "max_delay": 0.05, "jitter": "none"}},
            "resources": {"disk_free": "1MiB"},
            "checkpoint": {"retention": RETENTION, "interval": "1s"},
            "abort": {"enabled": False, "consecutive_crashes": 1_000_000},
        }
        self._config.write_text(tomli_w.dumps(document))
        self.daemon: subprocess.Popen[bytes] | None = None

    # ---- the daemon

    def start(self) -> None:
        """Start the daemon, and wait for nothing."""
        with (self.folder / "log").open("ab") as log:
            command = [*SUPERVISOR, "run", "--config", str(self._config)]
            self.daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self._began = time.monotonic()

    def status(self) -> dict[str, Any] | None:
        """Its status; None while it does not answer."""
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(self.folder / "run" / "control.sock"))
                sock.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "status"}\n')
                with sock.makefile("rb") as lines:
                    document: dict[str, Any] = json.loads(lines.readline())["result"]
                    return document
        except (OSError, ValueError):
            return None

    def wait(self, what: str, condition: Any) -> None:
        """Wait until `condition()` is true."""
        until = time.monotonic() + PATIENCE
        while not condition():
            must(self.daemon is not None and self.daemon.poll() is None, f"the daemon ended by itself: {self.log()}")
            must(time.monotonic() < until, f"after {PATIENCE:g} s still not: {what}; {self.log()}")
            time.sleep(0.002)

    def works(self) -> None:
        """Wait until this start's workers are acknowledged something."""
        self.audit.read()
        self.wait("its workers work", self.audit.read)
        self.starts.append(time.monotonic() - self._began)

    def log(self) -> str:
        """The end of its log."""
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def kill(self) -> None:
        """SIGKILL to the daemon alone."""
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait()
            self.daemon = None

    def kill_workers(self, share: float = 1.0) -> None:
        """SIGKILL to that share of the workers."""
        for pid in self.audit.pids:
            with contextlib.suppress(OSError):
                mine = str(WORKER).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
                here = f"CRASH_FOLDER={self.folder}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
                if mine and here and self.rng.random() < share:
                    os.kill(pid, signal.SIGKILL)

    # ---- rounds

    def round(self, number: int) -> None:
        """Start it, kill it."""
        self.start()
        if self.rng.random() < 0.3:
            kind = "while it starts"
            time.sleep(self.rng.uniform(0.0, STARTING))
        else:
            kind = "the daemon"
            self.works()
            self.audit.compare(everything=number % LOOK_AT_ALL == 0)
            until = time.monotonic() + self.rng.uniform(0.0, WORKING)
            if self.rng.random() < 0.3:
                kind = "some workers, then the daemon"
                time.sleep(self.rng.uniform(0.0, WORKING / 2))
                self.audit.read()
                self.kill_workers(0.5)
            time.sleep(max(0.0, until - time.monotonic()))
        if self.rng.random() < 0.3:
            kind += " and all workers"
            self.audit.read()
            self.daemon.kill()
            self.kill_workers()
        self.kill()
        self.kills[kind] += 1
        self.audit.read()

    def finish(self) -> None:
        """Let it finish all that was offered, and look at everything once more."""
        (self.folder / "enough").touch()
        if self.daemon is None:
            self.start()

        def completed() -> bool:
            status = self.status()
            return status is not None and [one["state"] for one in status["groups"]] == ["completed"]

        while not completed():  # each wait is for the next thing to be acknowledged
            self.wait("something more is done", lambda: completed() or self.audit.read())
        assert self.daemon is not None
        self.daemon.terminate()
        must(self.daemon.wait(PATIENCE) == 0, f"it did not end in good order: {self.log()}")
        self.daemon = None
        self.audit.read()
        self.audit.compare(everything=True)
        command = [*SUPERVISOR, "checkpoint", "verify", "--config", str(self._config)]
        verified = subprocess.run(command, capture_output=True, text=True, check=False)
        must(verified.returncode == 0, verified.stdout + verified.stderr)

    def close(self) -> None:
        """End whatever is left."""
        self.kill()
        self.audit.read()
        self.kill_workers()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    rig = Rig(folder, options.seed)
    began = time.monotonic()
    lost: Lost | None = None
    done = 0
    try:
        for done in range(1, options.rounds + 1):
            rig.round(done)
        rig.finish()
    except Lost as error:
        lost = error
    finally:
        rig.close()
        if not options.keep and lost is None:
            shutil.rmtree(folder, ignore_errors=True)
    counts, seconds = rig.audit.counts, time.monotonic() - began
    starts = sorted(rig.starts) or [0.0]
    print(f"{done} rounds of kill -9 in {seconds:.0f} s (seed {options.seed}), {seconds / max(done, 1):.2f} s each")
    for kind, number in sorted(rig.kills.items()):
        print(f"  {number:5} killed: {kind}")
    print(
        f"  from start to the first acknowledgement: median {starts[len(starts) // 2]:.2f} s, most {starts[-1]:.2f} s"
    )
    print(
        f"  acknowledged: {counts['done']} items done ({counts['done in the ledger']} in the ledger),"
        f" {counts['failed']} failures, {counts['released']} releases, {counts['offered']} offers,"
        f" {counts['saved']} checkpoints"
    )
    if lost is not None:
        print(f"  LOST OR REPEATED: {lost}; its files are in {folder}")
        return 1
    print("  lost 0, repeated 0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
