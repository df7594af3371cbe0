"""The ledger against a naive queue in memory: random operations, in batches, with reopening in between."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec import Raw

from scraper_supervisor.core.ops.item_ops import (
    RETRY_ORIGIN,
    Added,
    AddItems,
    Cancel,
    Changed,
    Conclude,
    Concluded,
    FindConclusion,
    Front,
    Leased,
    LeaseFresh,
    LeaseWaiting,
    NewItem,
    Park,
    Requeue,
    Unpark,
)
from scraper_supervisor.core.ops.run_ops import Lane, LoadRun, OpenRun, RunImage, WorkerTotals
from scraper_supervisor.store.errors import StoreFault
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_supervisor.store.sqlite.reader import LedgerReader

if TYPE_CHECKING:
    from scraper_supervisor.core.ops.all_ops import LedgerOp

KEYS = st.sampled_from("abcdefgh")
TARGETS = st.sampled_from([None, "x", "y"])
ITEMS = st.builds(NewItem, KEYS, TARGETS, st.just(Raw(b"null")), st.integers(-1, 1))
OUTCOMES = st.sampled_from(["done", "failed", "retry", "open"])
WORKERS = st.sampled_from(["g-0", "g-1"])
DELAYS = st.sampled_from([None, 0.0, 5.0])


class Modelled:
    """An item as the model has it."""

    def __init__(self, item: NewItem, item_id: int, order: float) -> None:
        self.id, self.key, self.target, self.priority, self.order = item_id, item.key, item.target, item.priority, order
        self.state, self.attempts = "open", 0
        self.not_before: float | None = None
        self.seq: int | None = None
        self.claim: int | None = None
        self.cancelled = False


class AgainstTheModel(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.db"
        self.now = 1_777_636_800.0
        self.ledger = Ledger.open(self.path, lambda: self.now)
        self.items: dict[str, Modelled] = {}
        self.orders = 0
        self.done: list[str] = []
        self.totals: dict[str, list[int]] = {}
        self.claims = 0
        run = self.perform(OpenRun(1, "g", "continue", 5))
        assert isinstance(run, RunImage)
        self.run_id = run.run_id

    def perform(self, *ops: LedgerOp) -> Any:
        answers = self.ledger.perform(ops)
        assert len(answers) == len(ops)
        assert not any(isinstance(answer, StoreFault) for answer in answers), answers
        return answers[0] if len(ops) == 1 else answers

    def teardown(self) -> None:
        self.ledger.close()
        self.folder.cleanup()

    # ---- the model's side of each operation --------------------------------------------------------------------------

    def offered(self, items: tuple[NewItem, ...], answer: Added) -> None:
        new = {index: (item_id, order) for index, item_id, order in answer.added}
        for index, item in enumerate(items):
            self.orders += 1
            assert (index in new) == (item.key not in self.items)
            if index in new:
                item_id, order = new[index]
                assert order == self.orders
                self.items[item.key] = Modelled(item, item_id, order)
        assert answer.known == len(items) - len(new)

    def concluded(self, op: Conclude, answer: Concluded) -> None:
        item = self.items[op.key]
        if item.state == "done":
            assert answer == Concluded(item.seq, None, Added((), 0))
            return
        item.attempts, item.claim, item.target = op.attempts, op.claim, op.target or item.target
        item.not_before = None
        if op.outcome in ("done", "failed"):
            item.state = op.outcome
            self.totals.setdefault(op.worker, [0, 0])[op.outcome == "failed"] += 1
        else:
            item.state = "open"
            item.not_before = None if op.delay is None else self.now + op.delay
        if op.outcome == "done":
            self.done.append(item.key)
            item.seq = len(self.done)
        if op.outcome == "retry":
            assert answer.order is not None
            assert abs(answer.order - (self.now + (op.delay or 0) - RETRY_ORIGIN)) < 0.1
            item.order = answer.order
        assert answer.seq == item.seq
        self.offered(op.offers, answer.offered)

    # ---- what happens ------------------------------------------------------------------------------------------------

    @rule(items=st.lists(ITEMS, max_size=5).map(tuple))
    def add(self, items: tuple[NewItem, ...]) -> None:
        self.offered(items, self.perform(AddItems(1, "g", self.run_id, items)))

    @rule(data=st.data(), length=st.integers(1, 4))
    def conclude(self, data: st.DataObject, length: int) -> None:
        """Several at once: what a batch counts together must come out as if each had been alone."""
        if not self.items:
            return
        ops: list[LedgerOp] = []
        for _ in range(length):
            item = self.items[data.draw(st.sampled_from(sorted(self.items)))]
            self.claims += 1
            ops.append(
                Conclude(
                    1,
                    "g",
                    self.run_id,
                    item.id,
                    item.key,
                    self.claims,
                    data.draw(WORKERS),
                    data.draw(OUTCOMES),
                    data.draw(st.integers(0, 3)),
                    delay=data.draw(DELAYS),
                    target=data.draw(TARGETS),
                    result=Raw(b'"%d"' % self.claims),
                    offers=tuple(data.draw(st.lists(ITEMS, max_size=2))),
                )
            )
        answers = self.ledger.perform(ops)
        for op, answer in zip(ops, answers, strict=True):
            assert isinstance(op, Conclude)
            assert isinstance(answer, Concluded)
            self.concluded(op, answer)

    @rule(keys=st.lists(KEYS, max_size=3).map(tuple), failed=st.booleans(), parked=st.booleans())
    def requeue(self, keys: tuple[str, ...], failed: bool, parked: bool) -> None:
        wanted = {key for key in keys if key in self.items and self.items[key].state in ("failed", "parked")}
        untouched = tuple(key for key in dict.fromkeys(keys) if key not in wanted)
        if failed:
            wanted |= {key for key, item in self.items.items() if item.state == "failed" and not item.cancelled}
        if parked:
            wanted |= {key for key, item in self.items.items() if item.state == "parked"}
        answer = self.perform(Requeue(1, "g", self.run_id, keys, failed, parked))
        assert answer == Changed(len(wanted), untouched, sum(self.items[key].state == "parked" for key in wanted))
        for key in sorted(wanted, key=lambda key: self.items[key].id):
            item = self.items[key]
            self.orders += 1
            item.state, item.attempts, item.not_before, item.order = "open", 0, None, float(self.orders)
            item.cancelled = False

    @rule(keys=st.lists(KEYS, max_size=3).map(tuple))
    def cancel(self, keys: tuple[str, ...]) -> None:
        wanted = {key for key in keys if key in self.items and self.items[key].state in ("open", "parked")}
        answer = self.perform(Cancel(1, "g", self.run_id, keys))
        assert answer == Changed(len(wanted), tuple(key for key in dict.fromkeys(keys) if key not in wanted))
        for key in wanted:
            self.items[key].state, self.items[key].not_before = "failed", None
            self.items[key].cancelled = True

    @rule(kind=st.sampled_from([Park, Unpark]), limit=st.integers(1, 9))
    def park(self, kind: type[Park | Unpark], limit: int) -> None:
        before, after = ("open", "parked") if kind is Park else ("parked", "open")
        there = [key for key, item in self.items.items() if item.state == before]
        changed = 0
        while (answer := self.perform(kind(1, "g", self.run_id, limit))).changed:
            assert answer == Changed(min(limit, len(there) - changed), ())
            changed += answer.changed
        assert changed == len(there)
        for key in there:
            self.items[key].state = after

    @rule(by=st.sampled_from([0.0, 0.001, 3.0, -1.5]))
    def time_passes(self, by: float) -> None:
        self.now += by

    @rule()
    def reopen(self) -> None:
        self.ledger.close()
        self.ledger = Ledger.open(self.path, lambda: self.now)

    # ---- what must hold ----------------------------------------------------------------------------------------------

    def lane(self, target: str | None) -> list[Modelled]:
        found = [
            item
            for item in self.items.values()
            if item.state == "open" and item.not_before is None and item.target == target
        ]
        return sorted(found, key=lambda item: (-item.priority, item.order))

    @invariant()
    def the_image_is_right(self) -> None:
        image = self.perform(LoadRun(1, "g"))
        states = [item.state for item in self.items.values()]
        ended = (len(self.done), states.count("failed"), states.count("parked"))
        assert (image.done, image.failed, image.parked) == ended
        waiting = [item for item in self.items.values() if item.state == "open" and item.not_before is not None]
        assert image.waiting == len(waiting)
        lanes = {target: len(self.lane(target)) for target in (None, "x", "y")}
        assert image.lanes == tuple(Lane(target, count) for target, count in lanes.items() if count)
        assert image.workers == tuple(WorkerTotals(worker, *did) for worker, did in sorted(self.totals.items()))

    @invariant()
    def lanes_page_through_in_order(self) -> None:
        for target in (None, "x", "y"):
            found: list[str] = []
            after = None
            while True:
                answer = self.perform(LeaseFresh(1, "g", self.run_id, (Front(target, after),), 2))
                if not answer.items:
                    break
                found += [entry.key for entry in answer.items]
                after = (-answer.items[-1].priority, answer.items[-1].order)
            assert found == [item.key for item in self.lane(target)]

    @invariant()
    def waiting_items_and_conclusions_are_right(self) -> None:
        answers = self.perform(
            LeaseWaiting(1, "g", self.run_id, 99), *(FindConclusion(1, "g", self.run_id, key) for key in "abcdefgh")
        )
        assert isinstance(answers[0], Leased)
        times = {entry.key: entry.due_in for entry in answers[0].items}
        expected = {
            key: item.not_before
            for key, item in self.items.items()
            if item.not_before is not None and item.state == "open"
        }
        assert times.keys() == expected.keys()
        assert all(abs(times[key] + self.now - at) < 0.1 for key, at in expected.items())
        for key, found in zip("abcdefgh", answers[1:], strict=True):
            item = self.items.get(key)
            assert (found is None) == (item is None)
            if item is not None:
                assert (found.state, found.seq, found.claim) == (item.state, item.seq, item.claim)

    @invariant()
    def a_reader_sees_the_same(self) -> None:
        with LedgerReader(self.path) as reader:
            assert {row.key: row.attempts for row in reader.items("g")} == {
                key: item.attempts for key, item in self.items.items()
            }
            assert [row.key for row in reader.results("g")] == self.done
            assert reader.verify() is None


@pytest.mark.slow
class TestAgainstTheModel(AgainstTheModel.TestCase):  # type: ignore[misc,name-defined]  # hypothesis makes it at run time
    settings = settings(max_examples=2 * settings().max_examples // 5, stateful_step_count=20)
