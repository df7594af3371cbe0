"""The daemon killed with -9 at random moments under load: a few rounds of what bench/crash.py does at length."""

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import crash

pytestmark = pytest.mark.slow

ROUNDS = 8


@pytest.fixture
def rig():
    folder = Path(tempfile.mkdtemp(prefix="e2e-"))  # short: a socket's path has 107 bytes at most
    rig = crash.Rig(folder, seed=7, workers=4)
    yield rig
    rig.close()
    shutil.rmtree(folder, ignore_errors=True)


def much(counts):
    return counts["done"] > 100 and counts["saved"] > 20


def test_nothing_acknowledged_is_lost_or_repeated(rig):
    for number in range(ROUNDS):
        rig.round(number)
    rig.start()
    rig.wait("enough to look at", lambda: rig.audit.read() and much(rig.audit.counts))
    rig.finish()
    assert sum(rig.kills.values()) == ROUNDS


def test_a_loss_would_be_noticed(rig):
    """The audit is no better than what it can see: each kind of promise, broken on purpose."""
    rig.start()
    rig.works()
    rig.wait("some checkpoints", lambda: rig.audit.read() and rig.audit.counts["saved"] > 20)
    rig.finish()
    key = next(iter(rig.audit._done))
    worker = next(name for name, saved in rig.audit._saved.items() if saved)
    broken = [
        {"what": "done", "worker": worker, "key": key, "claim": 10**6, "seq": 10**6, "offers": []},
        {"what": "done", "worker": worker, "key": "never", "claim": 10**6, "seq": 10**6, "offers": []},
        {"what": "offered", "worker": worker, "keys": ["never"]},
        {"what": "failed", "worker": worker, "key": key, "action": "final", "attempt": 1},
        {"what": "granted", "worker": worker, "key": key, "claim": min(rig.audit._claims)},
        {"what": "granted", "worker": worker, "key": key, "claim": max(rig.audit._claims) + 1},
        {"what": "saved", "worker": worker, "generation": 1, "sha256": "0" * 64, "at": 1},
        {"what": "saved", "worker": worker, "generation": 10**6, "sha256": "0" * 64, "at": 1},
        {"what": "up", "worker": worker, "generation": 0, "pid": 1},
    ]
    for note in broken:
        audit = crash.Audit(rig.folder)
        audit.read()
        with pytest.raises(crash.Lost):
            audit.compare_with(note)
