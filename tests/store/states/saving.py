"""A worker's states saved and loaded, in few words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Raw

from scraper_supervisor.core.ops.state_ops import LoadState, SaveState, StateLoaded, StateSaved
from scraper_supervisor.store.states.checkpoints import CheckpointFiles

if TYPE_CHECKING:
    from pathlib import Path

WORKER, OTHER = "matches-0", "matches-1"


def save(store: CheckpointFiles, state: bytes, *, worker: str = WORKER, gzip: bool = False, run: int = 1) -> StateSaved:
    answer = store.perform(SaveState(1, worker, run, "scores/1", Raw(state), 3, 4, 5, 10, "gzip" if gzip else "none"))
    assert isinstance(answer, StateSaved)
    return answer


def load(
    store: CheckpointFiles, worker: str = WORKER, fresh_from: int = 1, generation: int | None = None
) -> StateLoaded:
    answer = store.perform(LoadState(1, worker, fresh_from, generation))
    assert isinstance(answer, StateLoaded)
    return answer


def paths(tmp_path: Path, count: int) -> list[Path]:
    """The files of a worker that has saved so often, oldest first."""
    for number in range(count):
        save(CheckpointFiles(tmp_path), b'{"page":%d}' % number)
    return sorted((tmp_path / "checkpoints" / WORKER).glob("checkpoint-*"))
