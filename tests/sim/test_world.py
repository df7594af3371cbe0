"""Random worlds by their seeds. A failing one leaves its events in a file and names it.

`SIM_SEEDS=5000 pytest tests/sim` looks longer; `SIM_FIRST=123 SIM_SEEDS=1` looks at one seed again.
"""

import os
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.sim.recording import replay, save
from tests.sim.world import World

from scraper_supervisor.core.events import Reconfigured
from scraper_supervisor.core.queue import dispatch as handout
from scraper_supervisor.core.queue import frontier as lanes

pytestmark = pytest.mark.untraced

SEEDS = int(os.environ.get("SIM_SEEDS", "150"))
FIRST = int(os.environ.get("SIM_FIRST", "0"))
STEPS = 300
PARTS = 10


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """Windows so small that a few dozen items reach their edges."""
    monkeypatch.setattr(lanes, "LANE_MOST", 8)
    monkeypatch.setattr(lanes, "LANE_LEAST", 2)
    monkeypatch.setattr(handout, "CLAIMS_A_RESERVATION", 10)


def live(seed: int, folder: Path) -> World:
    world = World(seed)
    try:
        for _ in range(STEPS):
            world.step()
        world.heal()
        world.finish()
        world.terminate()
    except BaseException as error:
        path = folder / f"seed-{seed}.jsonl"
        save(world, path)
        error.add_note(f"seed {seed}; its events are in {path}")
        raise
    assert world.left is not None
    assert world.left.code == 0
    return world


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_safe_at_every_step_and_complete_when_the_faults_end(part, tmp_path):
    for seed in range(FIRST + part, FIRST + SEEDS, PARTS):
        live(seed, tmp_path)


def test_a_saved_log_replays_to_the_same_commands(tmp_path):
    world = World(7)
    for _ in range(200):
        world.step()
    save(world, tmp_path / "log")
    assert replay(tmp_path / "log", world.whole) == world.commands


def test_a_successor_in_a_replay_has_the_last_of_the_configurations_that_came_together(tmp_path):
    world = World(7)
    while world.fleet.state.phase == "starting":
        world.step()
    more = {name: replace(one, count=one.count + 3) for name, one in world.whole.groups.items()}
    last = replace(world.whole, groups=more)
    world.inbox = [Reconfigured(world.whole)]
    world.settings = last
    world.feed(Reconfigured(last))
    world.kill_supervisor()
    for _ in range(50):
        world.step()
    save(world, tmp_path / "log")
    assert replay(tmp_path / "log", world.whole) == world.commands
