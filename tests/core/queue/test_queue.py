"""One queue by itself, against the modelled ledger: loading, claims' numbers, waits, runs that are read again."""

import sys
from itertools import count
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from tests.sim.model import ModelStore

from scraper_supervisor.core.config.settings import RetrySettings
from scraper_supervisor.core.events import Persist, Reply
from scraper_supervisor.core.ops.item_ops import AddItems, Cancel, LeaseFresh, NewItem, ReserveClaims
from scraper_supervisor.core.ops.run_ops import LoadRun, OpenRun
from scraper_supervisor.core.outbox import Outbox
from scraper_supervisor.core.queue.dispatch import CLAIMS_A_RESERVATION, LOADING_PATIENCE
from scraper_supervisor.core.queue.item_calls import Caller, sort_entries, target_of
from scraper_supervisor.core.queue.queue import Queue, QueueCounts
from scraper_supervisor.core.queue.targets import Targets
from scraper_worker.jsonrpc import decode_params
from scraper_worker.protocol import End, Granted, ItemDone, ItemsOffer


class Bench:
    """A queue, its ledger, and what the ledger has still to answer."""

    def __init__(self, *keys):
        self.store = ModelStore()
        run = self.store.perform(OpenRun(0, "g", "continue", 5), 0.0)
        items = tuple(NewItem(key, None, Raw(b"null"), 0) for key in keys)
        self.store.perform(AddItems(0, "g", run.run_id, items), 0.0)
        self.outbox = Outbox("boot")
        self.queue = Queue("g", RetrySettings(jitter="none"), self.outbox, "seed", Targets({}))
        self.queue.open(self.store.perform(LoadRun(0, "g"), 0.0))
        self.asked, self.replies, self.calls = [], [], count(1)

    def take(self):
        """What the queue has said since: commands, and facts behind them."""
        said = [*self.outbox.commands, *self.outbox.facts]
        self.outbox.commands, self.outbox.facts = [], []
        self.asked += [one.op for one in said if isinstance(one, Persist)]
        self.replies += [one.result for one in said if isinstance(one, Reply)]
        return said

    def pump(self, now=0.0, **how):
        self.queue.pump(now, lambda _: True, **how)
        return self.take()

    def ask(self, worker="w", wait=None, now=0.0):
        self.queue.ask(Caller(worker, 1, 1, next(self.calls)), wait, now)

    def answer(self, kind=None, now=0.0):
        """The oldest operation is answered, or the oldest of that kind."""
        op = next(op for op in self.asked if kind is None or isinstance(op, kind))
        self.asked.remove(op)
        self.outbox.pending.pop(op.ticket).answered(self.store.perform(op, now), now)
        self.take()

    def settle(self, now=0.0):
        self.pump(now)
        while self.asked:
            self.answer(now=now)
            self.pump(now)


def test_nothing_is_handed_out_before_its_claims_number_is_reserved():
    bench = Bench("x")
    bench.ask()
    bench.pump()
    bench.answer(LeaseFresh)
    bench.pump()
    assert bench.replies == []
    bench.answer(ReserveClaims)
    bench.pump()
    assert [reply.key for reply in bench.replies] == ["x"]


def test_numbers_are_reserved_ahead_and_go_on_above_after_a_restart():
    keys = [f"k{n}" for n in range(600)]
    bench = Bench(*keys)
    for _ in range(600):
        bench.ask()
    bench.settle()
    assert [reply.claim for reply in bench.replies] == list(range(1, 601))
    assert bench.store.next_claim["g"] > CLAIMS_A_RESERVATION
    second = Queue("g", RetrySettings(), bench.outbox, "seed", Targets({}))
    second.open(bench.store.perform(LoadRun(0, "g"), 0.0))
    bench.queue = second
    bench.replies.clear()
    bench.ask()
    bench.settle()
    assert bench.replies[0].claim > 600


def test_a_wait_of_zero_is_answered_late_rather_than_wrongly_while_the_front_is_loaded():
    bench = Bench("x")
    bench.ask(wait=0.0)
    bench.pump()
    assert bench.replies == []
    bench.settle()
    assert isinstance(bench.replies[0], Granted)


def test_but_not_later_than_patience():
    bench = Bench("x")
    bench.ask(wait=1.0, now=10.0)
    bench.pump(10.0)
    assert bench.queue.next_deadline() == 11.0
    bench.pump(11.0)
    assert (bench.replies, bench.queue.next_deadline()) == ([], 11.0 + LOADING_PATIENCE)
    bench.pump(11.0 + LOADING_PATIENCE)
    assert bench.replies == [End("empty")]


def test_a_wait_ends_also_where_nothing_may_be_handed_out():
    bench = Bench("x")
    bench.settle()
    bench.ask(wait=1.0)
    bench.pump(1.0, open_=False)
    assert bench.replies == [End("empty")]


def test_a_run_that_is_read_again_is_loaded_from_its_front():
    """What was on its way for the lanes as they were would move the new ones past items that they do not hold."""
    bench = Bench(*(f"k{n:04}" for n in range(2000)))
    for _ in range(300):
        bench.ask()
    bench.pump()
    bench.answer(ReserveClaims)
    bench.answer(LeaseFresh)
    bench.pump()
    assert any(isinstance(op, LeaseFresh) for op in bench.asked), "the second front is on its way"
    bench.queue.open(bench.store.perform(LoadRun(0, "g"), 0.0))
    bench.pump()
    bench.answer(LeaseFresh)
    for _ in range(1700):
        bench.ask()
    bench.settle()
    assert [reply.key for reply in bench.replies] == [f"k{n:04}" for n in range(2000)]


def test_items_in_hands_stay_there_when_the_run_is_read_again():
    bench = Bench("x", "y")
    bench.ask()
    bench.settle()
    bench.queue.open(bench.store.perform(LoadRun(0, "g"), 0.0))
    assert bench.queue.counts(0.0) == QueueCounts(pending=1, in_flight=1, waiting=0, parked=0, done=0, failed=0)
    assert bench.queue.claims() == [("x", "w", 1)]
    bench.ask()
    bench.settle()
    assert [reply.key for reply in bench.replies] == ["x", "y"]
    bench.queue.conclude_done(Caller("w", 1, 1, 99), ItemDone("x", 1))
    bench.settle()
    assert bench.queue.counts(0.0) == QueueCounts(pending=0, in_flight=1, waiting=0, parked=0, done=1, failed=0)


def test_nothing_is_handed_out_or_fetched_while_an_operator_changes_items():
    bench = Bench("x")
    bench.queue.cancel(1, ("unknown",))
    bench.take()
    bench.ask()
    assert bench.pump() == []
    bench.answer(Cancel)
    assert bench.pump() == [], "the run has not been read again"
    bench.settle()
    assert len(bench.replies) == 1


def test_an_offer_of_an_earlier_run_does_not_enter_this_one():
    bench = Bench()
    bench.queue.add(1, (NewItem("late", None, Raw(b"null"), 0),))
    bench.take()
    bench.queue.close()
    (op,) = bench.asked
    answer = bench.store.perform(op, 0.0)
    bench.queue.open(bench.store.perform(OpenRun(0, "g", "fresh", 5), 0.0))
    bench.outbox.pending.pop(op.ticket).answered(answer, 0.0)
    assert (bench.queue.unfinished, bench.queue._changes.offers) == (False, 0)


@pytest.mark.parametrize(
    ("key", "given", "target"),
    [
        ("https://user@Example.com:8443/a?b", None, "example.com"),
        ("https://example.com/", "other", "other"),
        ("match-7", None, None),
        ("http://[broken", None, None),
        ("x://", None, None),
    ],
)
def test_the_target_is_as_given_else_the_host_of_a_key_that_is_a_url(key, given, target):
    assert target_of(key, given) == target


@given(
    scheme=st.sampled_from(["http", "https", "HTTP", "ws+x", ""]),
    host=st.text("aZ9.-_@[]:é /", max_size=12),
    rest=st.text("/?#:@a1 ", max_size=6),
)
def test_the_host_of_any_url_is_the_one_that_urllib_finds(scheme, host, rest):
    key = f"{scheme}://{host}{rest}"
    try:
        expected = urlsplit(key).hostname
    except ValueError:
        expected = None
    assert target_of(key, None) == expected


def test_an_offered_item_keeps_nothing_of_the_line_it_came_in():
    line = b'{"items":[{"key":"a","data":{"n":1}}],"fill":"' + b"x" * 100_000 + b'"}'
    before = sys.getrefcount(line)
    (item,) = sort_entries(decode_params(ItemsOffer, Raw(line)).items).items
    assert bytes(item.data) == b'{"n":1}'
    assert sys.getrefcount(line) == before


@pytest.mark.parametrize("priority", [2**53, -(2**53), -(2**63), 10**20])
def test_a_priority_that_no_ledger_could_hold_is_refused(priority):
    entries = decode_params(ItemsOffer, Raw(b'{"items":["b",{"key":"a","priority":%d}]}' % priority)).items
    assert [one.index for one in sort_entries(entries).refused] == [1]
