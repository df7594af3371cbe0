"""A farm of scrapers around the hold policy: workers, lanes of items, retries, and a site that fails as it is told.

Only the policy is the supervisor's; the rest is as plain as it can be. Seconds are simulated, chance is seeded.
"""

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field
from zlib import crc32

from scraper_supervisor.core.config.settings import AbortSettings
from scraper_supervisor.core.policy.holds.policy import HoldPolicy, spread


@dataclass(frozen=True)
class Fault:
    """How an attempt failed."""

    kind: str = "transient"
    status: int | None = None
    retry_after: float | None = None


ERROR = Fault()


@dataclass
class Try:
    """An item, and what it has cost so far."""

    key: str
    attempts: int = 0
    free: int = 0
    starts: int = 0


@dataclass
class Lane:
    """The items of one target in one group: retries by the time they are due; new ones never run out."""

    group: str
    target: str | None
    retries: list = field(default_factory=list)
    made: int = 0

    def take(self, now, probe=False):
        """Due retries first; a probe is an item that never failed, for those that did may fail by their own fault."""
        if not probe and self.retries and self.retries[0][0] <= now:
            return heapq.heappop(self.retries)[2]
        self.made += 1
        return Try(f"{self.target}/{self.made}")


class Farm:
    """Runs `workers` of each group over its targets; `site(now, group, target, item)` gives None or a Fault."""

    def __init__(
        self, site, groups=None, *, settings=None, seconds=2.0, seed=0, max_attempts=5, watched=False, each=None
    ):
        self.groups = groups or {"g": (8, ["a.test"])}
        self.policy = HoldPolicy(settings or AbortSettings(), each or {})
        self.site, self.seconds, self.max_attempts, self.watched = site, seconds, max_attempts, watched
        self.dice = random.Random(seed)
        self.lanes = {name: [Lane(name, target) for target in targets] for name, (_, targets) in self.groups.items()}
        self.rulings, self.outcomes = [], Counter()
        self.begun, self.ends = [], []  # (time, target), where watched
        self.attempts = []  # (time, group, target, key, fault), where watched
        self.now, self._number = 0.0, 0
        self._queue = []
        self.idle = []
        for name, (workers, _) in self.groups.items():
            for index in range(workers):
                self._push(index * seconds / workers, "ask", name)

    def run(self, until):
        queue = self._queue
        while True:
            deadline = self.policy.next_deadline() if self.idle else None
            if deadline is not None and deadline <= until and not (queue and queue[0][0] <= deadline):
                self._wake(max(deadline, self.now))
                continue
            if not queue or queue[0][0] > until:
                break
            self.now, _, what, about = heapq.heappop(queue)
            if what == "ask":
                self._ask(about)
            else:
                self._end(*about)
        self.now = until
        return self

    def actions(self, scope=None):
        return [ruling.action for ruling in self.rulings if scope is None or ruling.name.scope == scope]

    def first(self, action, since=0.0):
        return next((one.time for one in self.rulings if one.action == action and one.time >= since), None)

    # ---- inside

    def _push(self, time, what, about):
        self._number += 1
        heapq.heappush(self._queue, (time, self._number, what, about))

    def _wake(self, now):
        """A probe may go, or a retry be due."""
        self.now = now
        self._rule()
        idle, self.idle = self.idle, []
        for name in idle:
            self._ask(name)

    def _ask(self, name):
        lanes, policy, now = self.lanes[name], self.policy, self.now
        count = len(lanes)
        first = self.dice.randrange(count) if count > 1 else 0
        for place in range(count):
            lane = lanes[(first + place) % count]
            gate = "open" if policy.all_open else policy.gate(now, name, lane.target)
            if gate == "shut":
                continue
            probe = None
            if gate == "open":
                item = lane.take(now)
            else:
                item = lane.take(now, probe=True)
                probe = policy.begin_probe(now, name, lane.target, item.key)
            if self.watched:
                self.begun.append((now, lane.target))
            self._push(now + self.seconds, "end", (lane, item, probe))
            return
        self.idle.append(name)

    def _end(self, lane, item, probe):
        policy, now, group, target = self.policy, self.now, lane.group, lane.target
        fault = self.site(now, group, target, item.key)
        if self.watched:
            self.attempts.append((now, group, target, item.key, fault))
        if fault is None:
            self.outcomes["done"] += 1
            if self.watched:
                self.ends.append((now, target))
            policy.vote(now, group, item.key, failed=False, target=target)
            if probe is not None:
                policy.end_probe(now, probe, "done")
        else:
            self._failed(lane, item, fault)
            infrastructure = fault.kind == "infrastructure"
            policy.vote(now, group, item.key, failed=True, target=target, infrastructure=infrastructure)
            if probe is not None:
                fate = fault.kind if fault.kind in ("permanent", "infrastructure") else "failed"
                policy.end_probe(now, probe, fate)
        self._push(now, "ask", group)
        if not policy.all_open or policy._rulings:
            self._rule()

    def _failed(self, lane, item, fault):
        """What it costs the item, by the contract."""
        policy, now = self.policy, self.now
        held = policy.stands(lane.group, lane.target)
        may_start = item.starts < 3
        starts = policy.told(now, lane.group, lane.target, fault.status, fault.retry_after, start=may_start)
        due = now
        if fault.kind == "permanent":
            self.outcomes["failed"] += 1
            return
        if held:
            due = now + (fault.retry_after or 0.0)
        elif starts:
            item.free, item.starts = item.free + 1, item.starts + 1
            due = now + (fault.retry_after or 0.0)
        else:
            item.attempts += 1
            if item.attempts >= self.max_attempts:
                self.outcomes["failed"] += 1
                return
            due = now + self.dice.random() * min(60.0, 2.0 ** (item.attempts - 1))
        self._number += 1
        heapq.heappush(lane.retries, (due, self._number, item))

    def _rule(self):
        rulings = self.policy.evaluate(self.now)
        self.rulings += rulings
        if any(ruling.action == "resumed" for ruling in rulings):
            idle, self.idle = self.idle, []
            for time, name in zip(spread(self.now, len(idle)), idle, strict=True):
                self._push(time, "ask", name)
        elif rulings or self.idle:
            idle, self.idle = self.idle, []
            for name in idle:
                self._ask(name)


def healthy(seed, rate=0.1):
    """A site of which each attempt fails with this probability."""
    dice = random.Random(f"site {seed}")

    def site(now, group, target, key):
        return ERROR if dice.random() < rate else None

    return site


def out(spans, otherwise, where=None):
    """Everything fails (or: all of the target `where`) in these spans of time."""
    spans = sorted(spans)
    place = 0

    def site(now, group, target, key):
        nonlocal place
        while place < len(spans) and now >= spans[place][1]:
            place += 1
        if place < len(spans) and now >= spans[place][0] and where in (None, target):
            return ERROR
        return otherwise(now, group, target, key)

    return site


def drifting(seed, least=0.02, most=0.18):
    """The rate of failures changes each hour."""
    dice = random.Random(f"drift {seed}")
    hours = {}

    def site(now, group, target, key):
        hour = int(now // 3600)
        if hour not in hours:
            hours[hour] = dice.uniform(least, most)
        return ERROR if dice.random() < hours[hour] else None

    return site


def poisoned(seed, share=0.1):
    """This share of the items fails every attempt."""

    def site(now, group, target, key):
        return ERROR if crc32(f"{seed}{group}{key}".encode()) < share * 2**32 else None

    return site


def blips(seed, a_day=24, least=10.0, most=30.0, day=86_400.0):
    """Spans of some seconds, spread over a day."""
    dice = random.Random(f"blips {seed}")
    begins = sorted(dice.uniform(0, day) for _ in range(a_day))
    return [(begin, begin + dice.uniform(least, most)) for begin in begins]
