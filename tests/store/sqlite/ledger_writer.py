"""A process that writes to a ledger and tells what was acknowledged, and what a ledger is held against afterwards.

Run as a script: `ledger_writer.py LEDGER SEED [--transactions N]`. Before each transaction it prints what it is about
to do, after it what was answered; it ends by being killed, or after N transactions without closing the ledger.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from msgspec import Raw

from scraper_supervisor.core.ops.item_ops import Added, AddItems, Conclude, Concluded, NewItem, Outcome
from scraper_supervisor.core.ops.run_ops import OpenRun, RunImage
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_supervisor.store.sqlite.reader import LedgerReader

if TYPE_CHECKING:
    from scraper_supervisor.core.ops.all_ops import Answer, LedgerOp
    from scraper_supervisor.store.errors import StoreFault

G = "matches"
Item = tuple[str, int, int | None, Any]  # state, attempts, seq, result
STATES = {"done": "done", "failed": "failed", "retry": "waiting", "open": "pending"}


def start(path: Path, seed: int, *more: str) -> subprocess.Popen[bytes]:
    """A writer in a process of its own."""
    return subprocess.Popen([sys.executable, __file__, str(path), str(seed), *more], stdout=subprocess.PIPE)


def killed(path: Path, transactions: int, seed: int = 1) -> list[dict[str, Item]]:
    """Have a ledger written to by a process that dies after so many transactions; tells what it held after each."""
    acknowledged = Acknowledged()
    if path.exists():
        acknowledged.items = contents(path)
    held = [acknowledged.items]
    process = start(path, seed, "--transactions", str(transactions))
    said, _ = process.communicate()
    assert process.returncode == 9
    for line in said.splitlines():
        acknowledged.hear(line)
        held.append(acknowledged.items)
    return held


class Acknowledged:
    """What a writer said, and what the ledger may hold therefore."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self.transactions = 0
        self._pending: list[list[Any]] = []

    def hear(self, line: bytes) -> None:
        said = json.loads(line)
        if "about" in said:
            self._pending = said["about"]
            return
        self.items = self._after(said["seqs"])
        self.transactions += 1
        self._pending = []

    def _after(self, seqs: dict[str, int]) -> dict[str, Item]:
        after = dict(self.items)
        for key, outcome, attempts, result in self._pending:
            after[key] = (STATES[outcome], attempts, seqs.get(key), result)
        return after

    def check(self, path: Path) -> dict[str, Item]:
        """The ledger holds what was acknowledged, and of the rest one whole transaction or nothing; tells what."""
        found = contents(path)
        if found != self.items:
            done = sum(1 for state, *_ in self.items.values() if state == "done")
            ended = [key for key, outcome, *_ in self._pending if outcome == "done"]
            assert found == self._after({key: done + 1 + number for number, key in enumerate(ended)})
        return found


def contents(path: Path) -> dict[str, Item]:
    """What a reader is told; it verifies, too."""
    with LedgerReader(path) as reader:
        assert reader.verify() is None
        return read(reader)


def read(reader: LedgerReader) -> dict[str, Item]:
    if G not in reader.groups():
        return {}
    results = {row.key: (row.seq, row.attempts, json.loads(bytes(row.result))) for row in reader.results(G)}
    found: dict[str, Item] = {}
    for row in reader.items(G):
        seq, attempts, result = results.get(row.key, (None, row.attempts, None))
        assert attempts == row.attempts
        found[row.key] = (row.state, row.attempts, seq, result)
    return found


def write(path: Path, seed: int, transactions: int | None) -> None:
    dice = random.Random(seed)
    ledger = Ledger.open(path)
    (run,) = ledger.perform([OpenRun(1, G, "continue", 5)])
    assert isinstance(run, RunImage)
    with LedgerReader(path) as reader:
        ids = {key: number for number, key in reader._db.execute("SELECT id, key FROM items WHERE state = 'open'")}
        count, claim = reader._db.execute("SELECT count(*), coalesce(max(last_claim), 0) FROM items").fetchone()
    number = 0
    while transactions is None or number < transactions:
        number += 1
        claim += 1  # as one that the ledger allots, it rises over deaths
        offered = [f"key-{count + n}" for n in range(dice.choice((0, 1, 1, 2, 3)) if len(ids) < 40 else 0)]
        count += len(offered)
        ended = dice.sample(sorted(ids), min(len(ids), dice.choice((0, 1, 1, 2))))
        about: list[list[Any]] = [[key, "open", 0, None] for key in offered]
        ops: list[LedgerOp] = [
            AddItems(1, G, run.run_id, tuple(NewItem(k, "a.test", Raw(b"null"), 0) for k in offered))
        ]
        for key in ended:
            outcome = dice.choice(("done", "done", "done", "failed", "retry"))
            attempts = dice.randrange(1, 9)
            result = {"key": key, "text": "x" * dice.choice((3, 90, 90, 5000))} if outcome == "done" else None
            about.append([key, outcome, attempts, result])
            ops.append(conclude(run.run_id, ids[key], key, cast("Outcome", outcome), attempts, result, claim))
        say({"about": about})
        answers = ledger.perform(ops)
        say({"seqs": settle(ids, offered, ended, answers)})


def conclude(run_id: int, item: int, key: str, outcome: Outcome, attempts: int, result: Any, claim: int) -> Conclude:
    failure = None if outcome == "done" else Raw(json.dumps({"kind": "transient", "message": f"of {key}"}).encode())
    raw = None if outcome != "done" else Raw(json.dumps(result).encode())
    delay = 600.0 if outcome == "retry" else None
    return Conclude(
        1, G, run_id, item, key, claim, "matches-0", outcome, attempts, result=raw, failure=failure, delay=delay
    )  # fmt: skip


def settle(
    ids: dict[str, int], offered: list[str], ended: list[str], answers: list[Answer | StoreFault]
) -> dict[str, int]:
    added, *concluded = answers
    assert isinstance(added, Added)
    ids |= {offered[index]: item for index, item, _ in added.added}
    seqs = {}
    for key, answer in zip(ended, concluded, strict=True):
        assert isinstance(answer, Concluded), answer
        if answer.order is None:
            del ids[key]
        if answer.seq is not None:
            seqs[key] = answer.seq
    return seqs


def say(document: object) -> None:
    os.write(1, json.dumps(document).encode() + b"\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("--transactions", type=int)
    given = parser.parse_args()
    write(given.path, given.seed, given.transactions)
    os._exit(9)  # as if killed: nothing is closed
