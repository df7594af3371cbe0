"""States and their migrations."""

from __future__ import annotations

import pytest

from scraper_worker import CallError, StateMismatch, UsageError
from scraper_worker.checkpoint import Checkpoint
from scraper_worker.connection.alone import Alone


@pytest.fixture
def checkpoint():
    return Checkpoint(Alone(quiet=True))


async def test_saved_and_loaded(checkpoint):
    assert await checkpoint.load() is None
    assert await checkpoint.save({"a": 1}) == 1
    assert await checkpoint.save({"a": 2}) == 2
    assert await checkpoint.load() == {"a": 2}
    assert await checkpoint.load(1) == {"a": 1}
    with pytest.raises(CallError, match="generation 9"):
        await checkpoint.load(9)


async def test_an_old_state_is_migrated_step_by_step(checkpoint):
    await checkpoint.save({"ids": [1]}, schema="matches/1")
    checkpoint.schema("matches", 3)
    checkpoint.migration("matches", 1)(lambda state: {"keys": state["ids"]})

    @checkpoint.migration("matches", 2)
    def _(state):
        return {**state, "since": None}

    assert await checkpoint.load() == {"keys": [1], "since": None}
    await checkpoint.save({"keys": [], "since": 1})
    assert await checkpoint.load() == {"keys": [], "since": 1}


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (
            "matches/1",
            r"no migration leads from version 1: register one with @worker.checkpoint.migration\(\"matches\", 1\)",
        ),
        ("matches/4", "newer code wrote it"),
        ("players/3", "players/3, this code reads matches/3"),
    ],
)
async def test_what_does_not_fit_is_said_and_left_alone(checkpoint, saved, message):
    await checkpoint.save({"a": 1}, schema=saved)
    checkpoint.schema("matches", 3)
    with pytest.raises(StateMismatch, match=message):
        await checkpoint.load()
    assert (await checkpoint._link.load()).schema == saved


async def test_misuse(checkpoint):
    with pytest.raises(UsageError, match="JSON object"):
        await checkpoint.save([1])
    with pytest.raises(UsageError, match="not JSON"):
        await checkpoint.save({"a": object()})
    with pytest.raises(UsageError, match="NAME/INTEGER"):
        await checkpoint.save({}, schema="matches")
    with pytest.raises(UsageError, match="version from 1"):
        checkpoint.schema("matches", 0)
    checkpoint.migration("matches", 1)(dict)
    with pytest.raises(UsageError, match="already"):
        checkpoint.migration("matches", 1)(dict)
