"""An effect may fail in one way, and harms nobody else."""

from __future__ import annotations

import asyncio

from scraper_supervisor.core.config.settings import GroupSettings
from scraper_supervisor.core.events import Event, KillTree, Spawn, SpawnFailed, TreeEnded
from scraper_supervisor.daemon.processes import effects
from scraper_supervisor.daemon.processes.process_tree import EndedTree
from scraper_supervisor.daemon.upkeep.tasks import Tasks


async def fails(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


async def test_what_fails_is_given_to_whoever_waits_and_the_others_go_on() -> None:
    tasks, failed = Tasks(), []
    other = asyncio.Event()

    async def goes_on() -> None:
        await asyncio.sleep(0.01)
        other.set()

    tasks.start(goes_on(), "other")
    tasks.start(fails(ValueError("it")), "bad", failed.append)
    tasks.start(fails(ValueError("untold")), "worse")
    await asyncio.wait_for(other.wait(), 10)
    assert [str(error) for error in failed] == ["it"]
    await tasks.close(1.0)


async def test_at_the_end_only_what_is_to_finish_is_waited_for() -> None:
    tasks, done = Tasks(), []

    async def finishes() -> None:
        await asyncio.sleep(0.05)
        done.append("finished")

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            done.append("cancelled")

    tasks.start(hangs(), "hangs")
    tasks.start(finishes(), "finishes", finish=True)
    await asyncio.sleep(0)
    await asyncio.wait_for(tasks.close(10.0), 10)
    assert done == ["finished", "cancelled"]
    assert tasks.start(finishes(), "too late") is None


class Refusing:
    """Processes of a host that refuses for a while."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals

    async def end_tree(self, *_: object) -> EndedTree:
        if self.refusals:
            self.refusals -= 1
            raise OSError(24, "Too many open files")
        return EndedTree(3)

    async def spawn(self, _: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    def take_seen(self, *_: object) -> dict[int, int]:
        return {}


def made(refusals: int) -> tuple[effects.ProcessEffects, list[Event], Tasks]:
    host, fed, tasks = Refusing(refusals), [], Tasks()
    return effects.ProcessEffects(host, host, tasks, fed.append, "/s", {}), fed, tasks  # type: ignore[arg-type]


async def until(fed: list[Event]) -> Event:
    while not fed:
        await asyncio.sleep(0.001)
    return fed[0]


async def test_an_end_that_fails_is_tried_again(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(effects, "TRY_EVERY", 0.0)
    effect, fed, tasks = made(2)
    effect.kill_tree(KillTree("w-0", 1, ()))
    assert await asyncio.wait_for(until(fed), 10) == TreeEnded("w-0", 1, 3)
    await tasks.close(1.0)


async def test_an_end_that_never_succeeds_is_told_all_the_same(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(effects, "TRY_EVERY", 0.0)
    effect, fed, tasks = made(10**6)
    effect.kill_tree(KillTree("w-0", 1, ()))
    assert await asyncio.wait_for(until(fed), 10) == TreeEnded("w-0", 1, 0)
    await tasks.close(1.0)


async def test_a_start_that_fails_unexpectedly_is_a_failed_start_with_its_errno() -> None:
    effect, fed, tasks = made(0)
    effect.spawn(Spawn("w-0", 1, GroupSettings(name="w", directory="/", command=("true",))))
    event = await asyncio.wait_for(until(fed), 10)
    assert isinstance(event, SpawnFailed)
    assert event.errno == 11
    await tasks.close(1.0)
