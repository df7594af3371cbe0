"""Which of our children nobody owns."""

from __future__ import annotations

from scraper_supervisor.daemon.processes.orphans import ownerless
from scraper_supervisor.daemon.processes.procfs import Stat


def child(pid: int, started: int) -> Stat:
    return Stat(pid, "S", 1, pid, pid, 1, started, 0, 0)


def test_only_what_no_living_worker_can_have_left_is_ownerless() -> None:
    children = [child(10, 100), child(11, 200), child(12, 300)]
    assert ownerless(children, [], 250) == {10: 100, 11: 200}, "what starts now may be being started by us"
    assert ownerless(children, [150], 999) == {10: 100}
    assert ownerless(children, [50, 400], 999) == {}, "one lived all the while"
    assert ownerless(children, [400], 999) == {10: 100, 11: 200, 12: 300}
