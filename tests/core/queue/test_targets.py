"""Targets: limits and pacing over all groups together, and whose turn it is."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import Raw, structs
from tests.core.playbook import ANY, BLIP, Play, a_group, writes
from tests.sim.model import ModelStore

from scraper_supervisor.core.config.settings import TargetSettings
from scraper_supervisor.core.events import Answered, Asked, Due, HangUp, Reconfigured, Reply, Spawn, Tell
from scraper_supervisor.core.ops.item_ops import AddItems, LeaseFresh, NewItem, Requeue
from scraper_supervisor.core.ops.run_ops import LoadRun, OpenRun
from scraper_worker.protocol import (
    End,
    Failure,
    Granted,
    ItemDone,
    ItemFailed,
    ItemNext,
    ItemRelease,
    ItemsOffer,
    Offer,
)

ONE = {"h": TargetSettings(max_in_flight=1)}
PACED = {"h": TargetSettings(delay=2.0)}


class Stage:
    """Groups with items in the ledger, whose workers are up and have asked for nothing yet; x1 is of target x."""

    def __init__(self, targets, count=1, **items):
        store = ModelStore()
        for group, keys in items.items():
            run = store.perform(OpenRun(0, group, "continue", 5), 0.0)
            offers = tuple(NewItem(key, target_of(key), Raw(b"null"), 0) for key in keys.split())
            store.perform(AddItems(0, group, run.run_id, offers), 0.0)
        groups = tuple(a_group(name, count=count) for name in items)
        self.play = Play(groups=groups, settings={"targets": targets}, store=store)
        self.puppets = {name: self.play.up(name) for name in [spawn.worker for spawn in self.play.seen]}
        self.claims = {}  # (worker, key) → claim
        self.asking = Counter()
        self.heard()

    def heard(self):
        """Who was granted what since, as "worker key"."""
        seen, self.play.seen = self.play.seen, [one for one in self.play.seen if isinstance(one, Spawn)]
        conns = {puppet.conn: name for name, puppet in self.puppets.items()}
        granted = []
        for reply in [one for one in seen if isinstance(one, Reply) and isinstance(one.result, Granted | End)]:
            worker = conns[reply.conn]
            self.asking[worker] -= 1
            if isinstance(reply.result, Granted):
                self.claims[worker, reply.result.key] = reply.result.claim
                granted.append(f"{worker} {reply.result.key}")
        return granted

    def step(self, *events):
        """What happens at once; who is granted what."""
        self.play._take(self.play.fleet.step(events, self.play.now))
        return self.heard()

    def asks(self, *workers):
        self.asking.update(workers)
        return self.step(*(self.puppets[worker](ItemNext()) for worker in workers))

    def ends(self, *ended, kind=ItemDone, **more):
        events = []
        for one in ended:
            worker, key = one.split()
            events.append(self.puppets[worker](kind(key, claim=self.claims.pop((worker, key)), **more)))
        return self.step(*events)

    def at(self, now):
        """It is that late, and the timer goes off."""
        self.play.at(now)
        return self.step(Due())

    def reload(self, targets):
        self.play.settings = structs.replace(self.play.settings, targets=targets)
        return self.step(Reconfigured(self.play.settings))


def target_of(key):
    return key.rstrip("0123456789") if key[0] != "-" else None


# ---- over all groups -------------------------------------------------------------------------------------------------


def test_no_more_than_max_in_flight_over_all_groups_together():
    stage = Stage(ONE, a="h1 h2", b="h3 x1")
    assert stage.asks("a-0") == ["a-0 h1"]
    assert stage.asks("b-0") == ["b-0 x1"], "h3 comes first, but one of h is in hand"


def test_delay_is_between_two_starts_of_all_groups():
    stage = Stage(PACED, a="h1 h2", b="h3")
    assert stage.asks("a-0") == ["a-0 h1"]
    assert stage.ends("a-0 h1") == []
    assert stage.asks("b-0") == []
    assert stage.play.fleet.next_deadline() == 2.0
    assert stage.at(1.999) == []
    assert stage.at(2.0) == ["b-0 h3"]
    assert stage.asks("a-0") == []
    assert stage.play.fleet.next_deadline() == 4.0
    assert stage.at(4.0) == ["a-0 h2"], "though h3 is still in hand"


def test_a_delay_is_kept_though_no_group_has_items_of_the_target_meanwhile():
    stage = Stage({"*": TargetSettings(delay=2.0)}, a="h1", b="x1")
    stage.asks("a-0")
    stage.ends("a-0 h1")
    stage.asks("b-0")
    stage.step(stage.puppets["b-0"](ItemsOffer([Offer("h2", "h")])))
    assert stage.asks("b-0") == []
    assert stage.at(2.0) == ["b-0 h2"]


def test_the_limits_of_every_other_host_hold_for_each_by_itself():
    limits = {"*": TargetSettings(max_in_flight=1), "free": TargetSettings()}
    stage = Stage(limits, a="h1 h2 x1", b="h3 x2 free1 free2 -1 -2")
    assert stage.asks("a-0", "a-0", "a-0") == ["a-0 h1", "a-0 x1"]
    assert stage.asks(*["b-0"] * 5) == ["b-0 free1", "b-0 free2", "b-0 -1", "b-0 -2"], "who has no host has no limit"
    assert stage.ends("a-0 x1") == ["b-0 x2"]


def test_what_comes_from_the_ledger_after_a_groups_end_keeps_no_target_known():
    stage = Stage(ONE, a="h1 x1")
    play, worker = stage.play, stage.puppets["a-0"]
    play.hold() >> Asked(1, "items.requeue", ("a",), failed=True) << writes(Requeue)
    play >> play.durable() << Answered(1, True, ANY) << writes(LoadRun)
    play >> play.durable() << writes(LeaseFresh)
    play >> Reconfigured(structs.replace(play.settings, groups={})) << Tell(worker.conn, ANY)
    play.dies(worker, 0).ignoring(HangUp)
    assert not play.fleet.state.groups
    play >> play.durable()
    assert not play.fleet.state.targets._known


# ---- what frees a target ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (ItemDone, {}),
        (ItemRelease, {}),
        (ItemFailed, {"failure": BLIP}),
        (ItemFailed, {"failure": Failure("permanent", "parse", "gone", "it is gone")}),
    ],
    ids=["done", "released", "retried", "failed"],
)
def test_however_an_item_ends_the_other_group_gets_its_turn(kind, more):
    stage = Stage(ONE, a="h1 h2", b="h3")
    stage.asks("a-0")
    stage.asks("b-0", "a-0")
    assert stage.ends("a-0 h1", kind=kind, **more) == ["b-0 h3"]
    assert stage.ends("b-0 h3", kind=kind, **more) == ["a-0 h1" if kind is ItemRelease else "a-0 h2"]


def test_a_death_frees_the_target():
    stage = Stage(ONE, a="h1", b="h3")
    stage.asks("a-0")
    stage.asks("b-0")
    assert stage.step(stage.puppets["a-0"].exits(1)) == ["b-0 h3"]


def test_a_group_that_is_removed_frees_the_target_and_is_forgotten():
    stage = Stage(ONE, a="h1 h2", b="h3")
    stage.asks("a-0", "a-0")
    stage.asks("b-0")
    groups = {"b": stage.play.settings.groups["b"]}
    assert stage.step(Reconfigured(structs.replace(stage.play.settings, groups=groups))) == []
    assert stage.step(stage.puppets["a-0"].exits(0)) == ["b-0 h3"]
    assert list(stage.play.fleet.state.groups) == ["b"]
    (target,) = stage.play.fleet.state.targets._known.values()
    assert (target.groups, target.in_flight, target.blocked, len(target.served)) == (1, 1, {}, 1)


def test_what_one_group_gives_back_while_items_are_handed_out_goes_to_another_in_the_same_step():
    stage = Stage({}, a="h3", b="h1 h2")
    stage.asks("b-0", "b-0")
    stage.step(stage.puppets["b-0"].exits(1))  # h1 and h2 are to be handed out alone from now on
    stage.at(1.0)
    stage.puppets["b-0"] = stage.play.up("b-0")
    stage.step(stage.puppets["b-0"](ItemsOffer([Offer("x1", "x", priority=1)])))
    assert stage.asks("b-0", "b-0") == ["b-0 x1"], "h1 is kept for the time when its hands are empty"
    stage.reload(ONE)
    assert stage.asks("a-0") == []
    stage.play.hold()  # no answer of the disk comes to help
    assert stage.step(Asked(1, "pause", ("b-0",))) == ["a-0 h3"]


# ---- reload ----------------------------------------------------------------------------------------------------------


def test_new_limits_count_what_is_in_hand_already():
    stage = Stage({}, a="h1 h2", b="h3 h4")
    assert stage.asks("a-0", "b-0") == ["a-0 h1", "b-0 h3"]
    stage.reload({"h": TargetSettings(max_in_flight=2)})
    assert stage.asks("a-0") == []
    assert stage.reload(ONE) == []
    assert stage.ends("b-0 h3") == [], "h1 is in hand still"
    assert stage.reload({"*": TargetSettings(max_in_flight=2)}) == ["a-0 h2"]


def test_new_limits_take_hold_of_a_start_before_them():
    stage = Stage({}, a="h1", b="h2")
    stage.asks("a-0")
    stage.at(1.0)
    stage.reload(PACED)
    assert stage.asks("b-0") == []
    assert stage.at(2.0) == ["b-0 h2"]


@pytest.mark.parametrize("before", [ONE, PACED], ids=["max_in_flight", "delay"])
def test_limits_that_are_lifted_free_every_group_at_once(before):
    stage = Stage(before, a="h1 h2", b="h3", c="h4")
    assert stage.asks("a-0", "a-0", "b-0", "c-0") == ["a-0 h1"]
    assert sorted(stage.reload({})) == ["a-0 h2", "b-0 h3", "c-0 h4"]
    assert stage.play.fleet.state.targets.next_deadline() is None


# ---- fairness --------------------------------------------------------------------------------------------------------


def test_groups_take_turns_on_a_target_of_one_at_a_time():
    stage = Stage(ONE, a="h1 h2 h3", b="h4 h5 h6", c="h7 h8 h9")
    (last,) = stage.asks(*["a-0", "b-0", "c-0"] * 3)
    order = [last]
    while len(order) < 9:
        (last,) = stage.ends(last)
        order.append(last)
    assert [one[0] for one in order] == ["a", "b", "c"] * 3


def test_groups_take_turns_on_a_paced_target():
    stage = Stage(PACED, a="h1 h2 h3", b="h4 h5 h6")
    order = stage.asks(*["a-0", "b-0"] * 3)
    while len(order) < 6:
        order += stage.at(stage.play.fleet.next_deadline())
    assert [one[0] for one in order] == ["a", "b"] * 3
    assert stage.play.now == 10.0


def test_the_turn_is_of_each_target_by_itself():
    stage = Stage({"*": TargetSettings(max_in_flight=1)}, a="h1 x1 h2 x2", b="h3 x3 h4 x4")
    assert stage.asks("a-0", "a-0") == ["a-0 h1", "a-0 x1"]
    stage.asks("b-0", "a-0")
    assert stage.ends("a-0 h1") == ["b-0 h3"]
    stage.asks("b-0")
    assert stage.ends("a-0 x1") == ["b-0 x3"], "b has had none of x yet"
    assert stage.ends("b-0 h3") == ["a-0 h2"]


def test_who_cannot_take_an_item_keeps_nobody_waiting():
    stage = Stage(ONE, a="h1 h2 h3", b="h4")
    assert stage.asks("a-0", "a-0", "b-0") == ["a-0 h1"]
    stage.step(Asked(1, "pause", ("b-0",)))
    assert stage.ends("a-0 h1") == ["a-0 h2"]
    stage.asks("a-0")
    stage.step(Asked(2, "resume", ("b-0",)))
    assert stage.ends("a-0 h2") == ["b-0 h4"], "it has had none yet"


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_a_target_without_items_is_known_only_until_its_delay_is_over():
    stage = Stage({"p": TargetSettings(delay=5.0)}, a="h1 p1 x1 x2", b="h2")
    stage.asks("b-0", *["a-0"] * 3)
    known = stage.play.fleet.state.targets._known
    stage.ends("a-0 h1", "b-0 h2", "a-0 p1")
    assert set(known) == {"p", "x"}
    stage.at(4.999)
    assert "p" in known
    stage.at(5.0)
    assert set(known) == {"x"}


# ---- whatever happens ------------------------------------------------------------------------------------------------

LIMITS = (
    {},
    ONE,
    PACED,
    {"*": TargetSettings(max_in_flight=1)},
    {"*": TargetSettings(max_in_flight=2, delay=0.5), "i": TargetSettings(max_in_flight=3)},
    {"h": TargetSettings(max_in_flight=2), "i": TargetSettings(delay=1.0)},
)
WORKERS = ("a-0", "a-1", "b-0", "b-1", "c-0", "c-1")


class AnyOrder(RuleBasedStateMachine):
    """Workers ask and end what they hold as they like; limits change in between."""

    @initialize(limits=st.sampled_from(LIMITS))
    def begin(self, limits):
        items = " ".join(f"{target}{{0}}{number}" for number in range(4) for target in ("h", "i", "-"))
        self.stage = Stage(limits, 2, **{name: items.format(number) for number, name in enumerate("abc")})
        self.limits = limits
        self.last_start = {}

    def _limits(self, target):
        return TargetSettings() if target is None else self.limits.get(target) or self.limits.get("*", TargetSettings())

    def _in_flight(self, target):
        return sum(target_of(key) == target for _, key in self.stage.claims)

    def _granted(self, granted):
        for one in granted:
            target = target_of(one.split()[1])
            limits = self._limits(target)
            assert self.stage.play.now >= self.last_start.get(target, -99.0) + limits.delay, f"{one} comes too early"
            self.last_start[target] = self.stage.play.now
        for target in {target_of(one.split()[1]) for one in granted}:
            most = self._limits(target).max_in_flight
            assert most is None or self._in_flight(target) <= most, f"{granted} of {target}"

    @rule(workers=st.lists(st.sampled_from(WORKERS), min_size=1, max_size=4))
    def ask(self, workers):
        self._granted(self.stage.asks(*workers))

    @precondition(lambda self: self.stage.claims)
    @rule(
        indexes=st.sets(st.integers(0, 99), min_size=1, max_size=3),
        how=st.sampled_from([(ItemDone, {}), (ItemRelease, {}), (ItemFailed, {"failure": BLIP})]),
    )
    def end(self, indexes, how):
        claims = sorted(self.stage.claims)
        chosen = {claims[index % len(claims)] for index in indexes}
        self._granted(self.stage.ends(*(" ".join(one) for one in sorted(chosen)), kind=how[0], **how[1]))

    @rule(by=st.sampled_from([0.25, 0.5, 1.0, 2.0]))
    def time_passes(self, by):
        self._granted(self.stage.at(self.stage.play.now + by))

    @rule(limits=st.sampled_from(LIMITS))
    def reload(self, limits):
        self.limits = limits
        self._granted(self.stage.reload(limits))

    @invariant()
    def nobody_waits_for_what_is_free(self):
        now, held = self.stage.play.now, {key for _, key in self.stage.claims}
        for worker in [worker for worker, asks in self.stage.asking.items() if asks]:
            run = self.stage.play.store.newest(worker[0])
            for row in [row for row in run.items.values() if row.state == "open" and row.key not in held]:
                if row.not_before is not None and row.not_before > now:
                    continue
                limits = self._limits(row.target)
                full = limits.max_in_flight is not None and self._in_flight(row.target) >= limits.max_in_flight
                paced = now < self.last_start.get(row.target, -99.0) + limits.delay
                assert full or paced, f"{worker} waits, and {row.key} is free"
                deadline = self.stage.play.fleet.next_deadline()
                assert full or deadline <= self.last_start[row.target] + limits.delay

    @invariant()
    def the_counts_are_those_of_the_hands(self):
        state = self.stage.play.fleet.state
        for target in state.targets._known.values():
            assert target.in_flight == self._in_flight(target.name)
            lanes = [lane for group in state.groups.values() for lane in group.queue.frontier._lanes.values()]
            assert target.groups == sum(lane.target is target for lane in lanes)


@pytest.mark.untraced
def test_limits_hold_and_nobody_waits_for_what_is_free():
    run_state_machine_as_test(
        AnyOrder, settings=settings(max_examples=settings().max_examples // 2, stateful_step_count=40)
    )
