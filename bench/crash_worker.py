"""The worker of crash.py: it speaks the protocol by hand, and notes what was acknowledged after it was.

A line in the file `acks` is appended by one write when an answer has arrived, so that whatever is noted was promised.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
import zlib

FOLDER = os.environ["CRASH_FOLDER"]
NAME = os.environ["SCRAPER_WORKER_NAME"]
PAUSE = float(os.environ.get("CRASH_PAUSE", "0"))  # seconds that an item takes
BATCH = int(os.environ.get("CRASH_BATCH", "20"))  # keys that are offered at once
PAD = int(os.environ.get("CRASH_PAD", "200"))  # bytes of a result; a state has ten times as many
SAVE_EVERY = 5  # items
ENOUGH = 200  # open keys, with which a worker begins without offering any
MOST = 60  # keys of our own that may wait
LOST_AFTER = 20.0  # seconds without a supervisor
STORAGE, NOT_CLAIMED, REFUSED = -32001, -32007, -32003

acks = os.open(os.path.join(FOLDER, "acks"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def note(what: str, **fields: object) -> None:
    os.write(acks, json.dumps({"what": what, "worker": NAME, **fields}).encode() + b"\n")


class CallError(Exception):
    """The supervisor refused a call."""

    def __init__(self, error: dict) -> None:
        super().__init__(error["message"])
        self.code = error["code"]


class Supervisor:
    """The connection, made again as often as it breaks; a call that was not answered is then sent once more."""

    def __init__(self) -> None:
        self.held: dict[int, str] = {}  # claim → key
        self._numbers = 0
        self._met = False
        self._connect()

    def call(self, method: str, **params: object) -> dict:
        """Ask until there is an answer that is one."""
        while True:
            try:
                return self._ask(method, params)
            except OSError:
                self._connect()
            except CallError as error:
                if error.code != STORAGE:
                    raise
                note("refused", method=method)

    def _ask(self, method: str, params: dict) -> dict:
        self._numbers += 1
        line = {"jsonrpc": "2.0", "id": self._numbers, "method": method, "params": params}
        self._socket.sendall(json.dumps(line).encode() + b"\n")
        while True:
            answer = self._lines.readline()
            if not answer.endswith(b"\n"):
                raise ConnectionError("the supervisor is gone")
            message = json.loads(answer)
            if message.get("id") != self._numbers:
                continue  # drain; item.next tells it too
            if "error" in message:
                data = message["error"].get("data") or {}
                if message["error"]["code"] == STORAGE:
                    time.sleep(min(data["retry_after"], 1.0))
                raise CallError(message["error"])
            return message["result"]

    def _connect(self) -> None:
        until = time.monotonic() + LOST_AFTER
        while True:
            try:
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.connect(os.environ["SCRAPER_WORKER_SOCKET"])
                self._lines = self._socket.makefile("rb")
                params = {"protocol": 1, "worker": NAME, "token": os.environ["SCRAPER_WORKER_TOKEN"], "client": "c/1"}
                if self._met:
                    params["in_flight"] = [{"key": key, "claim": claim} for claim, key in self.held.items()]
                self.welcome = self._ask("hello", params)
            except (OSError, CallError) as error:
                self._socket.close()
                if (isinstance(error, CallError) and error.code != STORAGE) or time.monotonic() > until:
                    sys.exit(3)
                time.sleep(0.01)
                continue
            kept = {one["claim"]: one["key"] for one in self.welcome["in_flight"]}
            self.held = {claim: key for claim, key in self.held.items() if claim in kept}
            saved = self.welcome["checkpoint"]
            generation = saved["generation"] if saved else 0
            note("back" if self._met else "up", pid=os.getpid(), generation=generation, run=self.welcome["run"])
            self._met = True
            return


def offer(supervisor: Supervisor, serial: int, number: int, more: bool) -> None:
    life = f"{NAME}-{supervisor.welcome['incarnation']}-{time.time_ns()}"
    keys = [f"{life}-{serial + n}" for n in range(number)]
    answer = supervisor.call("items.offer", items=keys, more=more)
    note("offered", keys=keys, added=answer["added"], known=answer["known"])


def work(supervisor: Supervisor, key: str, claim: int, attempt: int) -> bool:
    """Deal with an item as its key says; whether it is done."""
    mine = {"key": key, "claim": claim}
    roll = zlib.crc32(f"{key}:{claim}:{attempt}".encode()) % 100
    supervisor.held[claim] = key
    time.sleep(PAUSE)
    if roll < 6:
        supervisor.call("item.release", **mine, reason="not now")
        note("released", **mine)
    elif roll < 18:
        kind = "permanent" if roll < 9 else "transient"
        failure = {"kind": kind, "category": "external", "signature": "s", "message": "m"}
        answer = supervisor.call("item.failed", **mine, failure=failure)
        note("failed", **mine, action=answer["action"], attempt=answer["attempt"])
    else:
        offers = [f"{key}/{n}" for n in range(2)] if roll < 30 and "/" not in key else []
        result = {"key": key, "pad": "x" * PAD}
        answer = supervisor.call("item.done", **mine, result=result, offers=offers)
        note("done", **mine, seq=answer["seq"], duplicate=answer["duplicate"], offers=offers)
    supervisor.held.pop(claim, None)
    return roll >= 18


def main() -> None:
    supervisor = Supervisor()
    offered = BATCH if supervisor.welcome["items"]["pending"] > ENOUGH else 0
    ended = empty = 0
    told = None
    while True:
        more = not os.path.exists(os.path.join(FOLDER, "enough"))
        if (more and offered <= ended) or more is not told:
            number = BATCH if more and offered <= ended else 0
            offer(supervisor, offered, number, more)
            offered, told = offered + number, more
        item = supervisor.call("item.next", **({"wait": 0.05} if more else {}))
        if item.get("end") == "empty":
            empty += 1
            if offered - ended < MOST or empty % 20 == 0:  # others ended what we offered, or everybody is held
                offer(supervisor, offered, BATCH, more)
                offered += BATCH
            continue
        if "end" in item:
            with contextlib.suppress(OSError):
                supervisor.call("goodbye", reason="complete" if item["end"] == "complete" else "drained")
            return
        note("granted", key=item["key"], claim=item["claim"])
        try:
            work(supervisor, item["key"], item["claim"], item["attempt"])
        except CallError as error:
            if error.code != NOT_CLAIMED:
                raise
            note("lost", key=item["key"], claim=item["claim"])
            supervisor.held.pop(item["claim"], None)
        ended += 1
        if ended % SAVE_EVERY == 0:
            state = {"at": time.time_ns(), "ended": ended, "pad": "x" * 10 * PAD}
            answer = supervisor.call("checkpoint.save", schema="crash/1", state=state)
            note("saved", generation=answer["generation"], sha256=answer["sha256"], at=state["at"])


main()
