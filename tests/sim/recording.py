"""A world's events as a file, which can be run through the fleet again."""

from __future__ import annotations

import pickle
import re
from typing import TYPE_CHECKING, Any
from zlib import crc32

import msgspec
from msgspec import Struct

from scraper_supervisor.core.events import Command, Reconfigured
from scraper_supervisor.core.fleet import Fleet

if TYPE_CHECKING:
    from tests.sim.world import World

    from scraper_supervisor.core.config.settings import Settings


class Record(Struct, frozen=True):
    """A line of a saved log."""

    time: float
    event: str
    pickled: bytes  # the events themselves; what the line says is for people


def save(world: World, path: Any) -> None:
    """Write a world's events, one a line, so that `replay` can read them."""
    lines = [
        msgspec.json.encode(Record(time, event if isinstance(event, str) else repr(event), pickle.dumps(event)))
        for time, event in world.log
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")


def replay(path: Any, settings: Settings) -> int:
    """Run a saved log through the fleet again; a digest of all its commands, as in `World.commands`."""
    found, fleet = 0, None
    for line in path.read_bytes().splitlines():
        record = msgspec.json.decode(line, type=Record)
        if record.event.startswith("boot "):
            fleet = Fleet(settings, record.event)
            commands = fleet.start(record.time)
        elif record.event == "killed" or fleet is None:
            continue
        else:
            events = pickle.loads(record.pickled)
            settings = ([settings] + [event.settings for event in events if isinstance(event, Reconfigured)])[-1]
            commands = fleet.step(events, record.time)
        found = digest(found, commands)
    return found


def digest(before: int, commands: list[Command]) -> int:
    """What was commanded so far, in one number."""
    return crc32(re.sub(r" at 0x[0-9a-f]+", "", repr(commands)).encode(), before)  # a Raw shows its address
