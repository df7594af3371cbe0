"""Group commit in simulated time: how many operations each commit carries, and how long anybody waits for it."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scraper_supervisor.store.group_commit import LEAST, MOST, SHARE, GroupCommit


def simulate(callers: int, think: float, cost: float, commits: int, patient: bool = True) -> list[int]:
    """`callers` in a closed loop, each back after `think` (a little apart from one another); the batches' sizes."""
    gathering, now, sizes = GroupCommit(), 0.0, []
    arrivals = [(number * think / callers, number) for number in range(callers)]
    waiting = 0
    while len(sizes) < commits:
        now = max(now, arrivals[0][0])
        batch = []
        while arrivals and arrivals[0][0] <= now:
            batch.append(heapq.heappop(arrivals)[1])
        gathering.begin(waiting, now)
        while arrivals and patient and (patience := gathering.patience(len(batch), now)) > 0:
            coming = arrivals[0][0]
            now = min(now + patience, max(now, coming))
            if coming <= now:
                batch.append(heapq.heappop(arrivals)[1])
        now += cost
        gathering.committed(len(batch), cost)
        sizes.append(len(batch))
        waiting = sum(1 for time, _ in arrivals if time <= now)
        for place, caller in enumerate(batch):
            heapq.heappush(arrivals, (now + think * (place + 1) / callers, caller))
    return sizes


@pytest.mark.parametrize("callers", [8, 32, 100])
def test_two_crowds_of_a_slow_disk_become_one(callers: int) -> None:
    alternating = simulate(callers, think=0.0018, cost=0.005, commits=200, patient=False)
    gathered = simulate(callers, think=0.0018, cost=0.005, commits=200)
    assert max(alternating[50:]) < callers
    assert gathered[50:] == [callers] * 150


def test_on_a_fast_disk_the_wait_is_short() -> None:
    gathering = GroupCommit()
    gathering.committed(32, LEAST / SHARE * 0.1)
    gathering.begin(5, 10.0)
    assert gathering.patience(1, 10.0) == pytest.approx(LEAST)
    assert gathering.patience(36, 10.0 + LEAST) == 0.0


def test_who_comes_singly_is_never_waited_for() -> None:
    gathering = GroupCommit()
    gathering.committed(1, 0.1)
    gathering.begin(0, 10.0)
    assert gathering.patience(1, 10.0) == 0.0


@given(
    before=st.integers(1, 500),
    waiting=st.integers(0, 500),
    cost=st.floats(0.0, 10.0),
    now=st.floats(0.0, 1e6),
    later=st.floats(0.0, 1.0),
)
def test_the_wait_is_bounded_by_a_share_of_a_commit(
    before: int, waiting: int, cost: float, now: float, later: float
) -> None:
    gathering = GroupCommit()
    gathering.committed(before, cost)
    gathering.begin(waiting, now)
    patience = gathering.patience(0, now + later)
    assert 0.0 <= patience <= max(0.0, min(MOST, max(LEAST, SHARE * cost)) - later) + 1e-6
    assert gathering.patience(before + waiting, now) == 0.0
