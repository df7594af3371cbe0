"""The lanes: what is next, against a list that holds everything; windows, retries, targets' limits."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import Raw

from scraper_supervisor.core.config.settings import TargetSettings
from scraper_supervisor.core.ops.item_ops import Entry, Front, NewItem
from scraper_supervisor.core.ops.run_ops import Lane, Prefetch
from scraper_supervisor.core.queue import frontier as lanes_module
from scraper_supervisor.core.queue.frontier import Frontier, Wanted
from scraper_supervisor.core.queue.item import Item
from scraper_supervisor.core.queue.targets import Targets

NULL = Raw(b"null")
PREFETCH = Prefetch(fresh=12, waiting=6)
TARGETS = (None, "a", "b")


def item(number, *, target=None, priority=0, order=None):
    return Item(number, f"k{number}", target, NULL, priority, float(number if order is None else order))


def with_items(*items, targets=None):
    lanes = Frontier(Targets(targets or {}))
    lanes.open((), 0)
    for one in items:
        lanes.added(one.id, one, one.order)
    return lanes


def take(lanes, now=0.0):
    lanes._targets.advance(now)
    lanes.advance(now)
    found = lanes.peek(now)
    if found is not None:
        lanes.take(found, now)
    return found


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_priority_then_order_over_all_lanes():
    lanes = with_items(item(1, target="a"), item(2, target="b"), item(3, target="b", priority=1), item(4, target="a"))
    assert [take(lanes).id for _ in range(4)] == [3, 1, 2, 4]
    assert take(lanes) is None


def test_a_due_retry_comes_before_what_was_never_tried():
    lanes = with_items(item(1), item(2))
    one = take(lanes)
    lanes.retry(one, 5.0, -100.0, None)
    lanes.added(3, item(3), item(3).order)
    assert lanes.next_deadline() == 5.0
    assert take(lanes, 4.999).id == 2
    assert take(lanes, 5.0).id == 1
    assert (lanes.open_items, lanes.waiting(5.0)) == (3, 0)


def test_a_retry_goes_where_the_attempt_went():
    lanes = with_items(item(1), targets={"a": TargetSettings(max_in_flight=1)})
    one = take(lanes)
    lanes.retry(one, 1.0, -1.0, "a")
    lanes.added(2, item(2, target="a"), item(2).order)
    assert take(lanes).id == 2
    assert take(lanes, 2.0) is None, "one of a is in hands"


def test_what_is_put_back_keeps_its_place():
    lanes = with_items(item(1), item(2))
    one = take(lanes)
    lanes.put_back(one)
    assert take(lanes).id == 1


@pytest.mark.parametrize("limit", [1, 2])
def test_max_in_flight_starves_nobody_else(limit):
    targets = {"a": TargetSettings(max_in_flight=limit)}
    lanes = with_items(*(item(n, target="a") for n in (1, 2, 3)), item(9, target="b"), targets=targets)
    first = take(lanes)
    taken = [one.id for one in iter(lambda: take(lanes), None)]
    assert taken == [2, 9][2 - limit :] if limit == 1 else taken == [2, 9]
    lanes.gone(first)
    assert take(lanes).target == "a"


def test_delay_is_between_two_starts_to_the_millisecond():
    lanes = with_items(item(1, target="a"), item(2, target="a"), targets={"a": TargetSettings(delay=2.0)})
    lanes.gone(take(lanes, 10.0))
    assert take(lanes, 11.999) is None
    assert lanes.next_deadline() == 12.0
    assert take(lanes, 12.0).id == 2


def test_a_limit_that_is_lifted_frees_its_lane_at_once():
    lanes = with_items(item(1, target="a"), item(2, target="a"), targets={"a": TargetSettings(delay=1000.0)})
    take(lanes)
    assert take(lanes, 1.0) is None
    lanes._targets.configure({})
    assert take(lanes, 1.0).id == 2


def test_advance_leaves_no_deadline_in_the_past_though_nobody_takes():
    lanes = with_items(item(1))
    lanes.retry(take(lanes), 5.0, -1.0, None)
    lanes.advance(7.0)
    assert lanes.next_deadline() is None


def test_an_item_given_back_with_nothing_to_wait_for_any_more_is_counted_as_fresh():
    lanes = with_items(item(1))
    one = take(lanes)
    lanes.retry(one, 5.0, -1.0, None)
    one = take(lanes, 5.0)
    lanes.reopened(one)
    assert (lanes.retries_open, lanes.open_items, lanes.waiting(9.0)) == (0, 1, 0)
    lanes.gone(take(lanes, 9.0))
    assert lanes.open_items == 0


def test_find_and_pull():
    lanes = with_items(item(1), item(2))
    two = lanes.find("k2")
    lanes.pull(two, 0.0)
    assert lanes.find("k2") is None
    retried = take(lanes)
    lanes.retry(retried, 50.0, -1.0, None)
    lanes.pull(lanes.find("k1"), 0.0)
    assert (take(lanes, 60.0), lanes.waiting(0.0)) == (None, 0)


# ---- against a list --------------------------------------------------------------------------------------------------


@dataclass
class Row:
    id: int
    target: str | None
    priority: int
    order: float
    due: float | None = None
    where: str = "open"

    @property
    def rank(self):
        return (-self.priority, self.order, self.id)


class AgainstAList(RuleBasedStateMachine):
    """The ledger is a list; memory has windows so small that everything happens at their edges."""

    @initialize(stored=st.integers(0, 30), spread=st.integers(1, 3))
    def begin(self, stored, spread):
        self.now, self.ids = 0.0, 0
        self.rows: dict[int, Row] = {}
        self.hands: list[Item] = []
        for _ in range(stored):
            self._row(TARGETS[self.ids % spread], self.ids % 7 == 0)
        self.frontier = Frontier(Targets({}))
        self._open()

    def _row(self, target, priority):
        self.ids += 1
        row = Row(self.ids, target, int(priority), float(self.ids))
        self.rows[row.id] = row
        return row

    def _open(self):
        counts = {}
        for row in self.rows.values():
            if row.due is None:
                counts[row.target] = counts.get(row.target, 0) + 1
        timed = sum(row.due is not None for row in self.rows.values())
        self.frontier.open([Lane(target, count) for target, count in counts.items()], timed, self.hands, PREFETCH)

    def _entry(self, row):
        due_in = None if row.due is None else row.due - self.now
        return Entry(row.id, f"k{row.id}", row.target, NULL, row.priority, row.order, due_in=due_in)

    def _load(self):
        """Whatever is wanted is fetched; it must come to an end."""
        for _ in range(200):
            wanted = self.frontier.wants(self.now)
            if not wanted.fronts and not wanted.waiting:
                return
            for target, after in ((front.target, front.after) for front in wanted.fronts):
                lane = sorted(
                    (r for r in self.rows.values() if r.target == target and r.due is None), key=lambda r: r.rank
                )
                found = [row for row in lane if after is None or (-row.priority, row.order) > after][: wanted.limit]
                self.frontier.fetched(target, [self._entry(row) for row in found], self.now)
            if wanted.waiting:
                timed = sorted((r for r in self.rows.values() if r.due is not None), key=lambda r: r.due)
                self.frontier.retries_fetched([self._entry(row) for row in timed[: wanted.waiting]], self.now)
            self.frontier.advance(self.now)
        raise AssertionError("it fetches for ever")

    @rule(host=st.sampled_from(TARGETS), priority=st.booleans())
    def add(self, host, priority):
        row = self._row(host, priority)
        self.frontier.added(row.id, NewItem(f"k{row.id}", host, NULL, row.priority), row.order)

    @rule()
    def take(self):
        self._load()
        self.frontier.advance(self.now)
        found = self.frontier.peek(self.now)
        free = [row for row in self.rows.values() if row.where == "open" and (row.due is None or row.due <= self.now)]
        if found is None:
            assert not free
            return
        assert any(row.id == found.id for row in free)
        if (
            found.due is None
            and len([row for row in self.rows.values() if row.due is not None]) <= PREFETCH.waiting // 2
        ):
            assert found.rank == min(row.rank for row in free), "the best of all, also of those in the ledger alone"
        self.frontier.take(found, self.now)
        self.rows[found.id].where = "hands"
        self.hands.append(found)

    def _pick(self, index):
        return self.hands.pop(index % len(self.hands))

    @precondition(lambda self: self.hands)
    @rule(index=st.integers(0, 99))
    def put_back(self, index):
        one = self._pick(index)
        self.rows[one.id].where = "open"
        self.frontier.put_back(one)

    @precondition(lambda self: self.hands)
    @rule(index=st.integers(0, 99))
    def gone(self, index):
        one = self._pick(index)
        del self.rows[one.id]
        self.frontier.gone(one)

    @precondition(lambda self: self.hands)
    @rule(index=st.integers(0, 99), delay=st.sampled_from([0.0, 1.0, 5.0]), host=st.sampled_from(TARGETS))
    def retry(self, index, delay, host):
        one = self._pick(index)
        row = self.rows[one.id]
        row.where, row.due, row.order = "open", self.now + delay, -1000.0 + self.now + delay
        row.target = one.target if one.target is not None else host
        self.frontier.retry(one, row.due, row.order, row.target)

    @precondition(lambda self: self.hands)
    @rule(index=st.integers(0, 99))
    def set_apart(self, index):
        one = self._pick(index)
        row = self.rows[one.id]
        row.where, row.due = "open", None
        self.frontier.reopened(one)

    @rule(by=st.sampled_from([0.001, 1.0, 7.0]))
    def time_passes(self, by):
        self.now += by
        self.frontier.advance(self.now)
        deadline = self.frontier.next_deadline()
        assert deadline is None or deadline > self.now

    @rule()
    def read_again(self):
        self._open()

    @invariant()
    def the_counts_are_those_of_the_list(self):
        assert self.frontier.open_items == len(self.rows)
        waiting = sum(row.where == "open" and row.due is not None and row.due > self.now for row in self.rows.values())
        assert self.frontier.waiting(self.now) >= waiting
        for lane in self.frontier._lanes.values():
            assert 0 <= lane.loaded <= lane.open
            assert lane.in_flight == sum(one.target == lane.target.name for one in self.hands)
            assert lane.in_flight == lane.target.in_flight
        held = sum(len(lane.ready) for lane in self.frontier._lanes.values())
        assert held <= 60


@pytest.fixture(autouse=True)
def small_windows(request, monkeypatch):
    if "list" in request.node.name:
        monkeypatch.setattr(lanes_module, "LANE_MOST", 4)
        monkeypatch.setattr(lanes_module, "LANE_LEAST", 2)


@pytest.mark.untraced
def test_against_a_list(small_windows):
    run_state_machine_as_test(
        AgainstAList, settings=settings(max_examples=3 * settings().max_examples // 5, stateful_step_count=50)
    )


@given(st.lists(st.tuples(st.sampled_from(TARGETS), st.integers(-2, 2)), max_size=30))
def test_everything_offered_is_handed_out_once_in_order(offers):
    items = [item(number, target=target, priority=priority) for number, (target, priority) in enumerate(offers)]
    lanes = with_items(*items)
    taken = list(iter(lambda: take(lanes), None))
    assert [one.id for one in taken] == [one.id for one in sorted(items, key=lambda one: one.rank)]


def test_a_million_keys_cost_what_a_window_costs():
    lanes = Frontier(Targets({}))
    lanes.open([Lane(None, 1_000_000)], 0)
    limit = lanes_module.LANE_MOST
    assert lanes.wants(0.0) == Wanted((Front(None, None),), limit)
    entries = [Entry(n, f"k{n}", None, NULL, 0, float(n)) for n in range(limit)]
    lanes.fetched(None, entries, 0.0)
    for _ in range(limit // 2 - 1):
        lanes.gone(take(lanes))
    assert lanes.wants(0.0).fronts == ()
    lanes.gone(take(lanes))
    assert lanes.wants(0.0).fronts == (Front(None, (0, float(limit - 1))),)
    assert lanes.open_items == 1_000_000 - limit // 2
