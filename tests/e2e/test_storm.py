"""A short storm; bench/storm.py raises longer ones, with browsers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from storm import Storm


def test_the_fleet_works_on_through_a_storm(daemons):
    storm = Storm(daemons({}), seed=1, browsers=0, quick=3)
    storm.begin()
    storm.rage(8.0)
    items = storm.settle()
    assert items["quick"] > 0
    assert len(storm.done) >= 5, storm.done
