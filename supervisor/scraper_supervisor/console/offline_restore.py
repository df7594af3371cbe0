"""`checkpoint restore` without a daemon: the same two operations, under the state folder's lock."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from scraper_supervisor.console.context import Refused
from scraper_supervisor.console.offline import locked
from scraper_supervisor.console.offline_events import acted
from scraper_supervisor.core.checkpoints import save_op, why_not_given
from scraper_supervisor.core.ops.state_ops import LoadState
from scraper_supervisor.store.opening import LedgerLocation, location, open_for_reading
from scraper_supervisor.store.states.checkpoints import CheckpointFiles
from scraper_supervisor.store.states.reading import FOLDER
from scraper_worker.protocol import SESSION_SLOT, ItemCounts

if TYPE_CHECKING:
    from scraper_supervisor.core.config.settings import Settings
    from scraper_supervisor.store.config_file import Place
    from scraper_supervisor.store.ports import RunInfo


def restore_offline(
    place: Place, settings: Settings, worker: str, generation: int, slot: str | None = None
) -> dict[str, Any]:
    """Write an older state of a worker as its new newest one, of the newest run that its group has.

    Args:
        place: where the state folder is.
        settings: how states are kept, and what is secret.
        worker: its name.
        generation: which state.
        slot: of which slot; None for the main state.

    Returns:
        What the daemon would answer.

    Raises:
        Refused: there is no such worker or state.
        Locked: another process uses the state folder.
        LedgerUnusable: the ledger, which knows the run, does not open.
        OSError: the disk does not take it; nothing was changed.
    """
    where = location(place)
    state_dir = where.state_dir
    group = worker.rpartition("-")[0]
    known = sorted(path.name for path in (state_dir / FOLDER).glob("*") if path.is_dir())
    if worker not in known:
        raise Refused(f"no worker named {worker!r} has checkpoints; those that have: {', '.join(known) or 'none'}")
    with contextlib.closing(locked(state_dir, "checkpoint restore")):
        run = _newest_run(where, group)
        store = CheckpointFiles(state_dir)
        fresh_from = 0 if slot == SESSION_SLOT else 1 if run is None else run.fresh_from
        found = store.load(LoadState(0, worker, fresh_from, generation, slot))
        refusal = why_not_given(worker, generation, found, slot)
        if refusal is not None:
            raise Refused(refusal)
        counts = ItemCounts(0, 0, 0) if run is None else ItemCounts(run.pending + run.waiting, run.done, run.failed)
        number = found.run if run is None else run.run
        saved = store.save(save_op(0, worker, number, found.schema, found.state, counts, settings.checkpoint, slot))
        acted(state_dir, settings, "checkpoint.restore", (worker,), generation=generation, slot=slot)
    return {"worker": worker, "restored": generation, "generation": saved.generation, "state": None}


def _newest_run(where: LedgerLocation, group: str) -> RunInfo | None:
    try:
        with open_for_reading(where) as reader:
            return next(iter(reader.runs(group)), None)
    except FileNotFoundError:
        return None
