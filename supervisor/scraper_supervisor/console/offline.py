"""Changes the queue without a daemon: the same requests, carried out on the ledger under the state folder's lock."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self

from msgspec import Raw

from scraper_supervisor.console.context import Refused, clean
from scraper_supervisor.core.formats.run_export import Joiner
from scraper_supervisor.core.ops.import_ops import (
    DropState,
    ImportBegin,
    ImportDrop,
    Imported,
    ImportFinish,
    ImportLines,
    StateTaken,
    TakeState,
)
from scraper_supervisor.core.ops.item_ops import Added, AddItems, Cancel, Changed, NewItem, Requeue
from scraper_supervisor.core.ops.run_ops import OpenRun, RunImage, SetRunState
from scraper_supervisor.core.ops.state_ops import LoadState, SaveState
from scraper_supervisor.core.queue.item_calls import target_of
from scraper_supervisor.store.errors import StoreFault
from scraper_supervisor.store.locks import FolderLock
from scraper_supervisor.store.opening import location, open_for_writing
from scraper_supervisor.store.states.checkpoints import CheckpointFiles

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from scraper_supervisor.core.ops.all_ops import Answer, LedgerOp
    from scraper_supervisor.store.config_file import Loaded


def locked(state_dir: Path, command: str) -> FolderLock:
    """The state folder, made if there is none, and for us alone.

    Args:
        state_dir: the folder.
        command: what is being done, for those who find it locked.

    Raises:
        Locked: another process uses it.
        OSError: it can't be used.
    """
    os.umask(0o077)  # the folder and what is in it is for its owner alone
    state_dir.mkdir(parents=True, exist_ok=True)
    return FolderLock(state_dir, command=command)


class OfflineQueue:
    """A group's queue in the ledger, while no daemon runs; a context manager.

    Args:
        loaded: the configuration.
        group: the group's name.
        command: what is being done, for those who find the folder locked.

    Raises:
        Refused: the group is not configured.
        Locked: another process uses the state folder.
        LedgerUnusable: the ledger does not open.
        OSError: the state folder can't be used.
    """

    def __init__(self, loaded: Loaded, group: str, command: str) -> None:
        settings = loaded.settings.groups.get(group)
        if settings is None:
            known = ", ".join(loaded.settings.groups) or "none"
            raise Refused(f"no group is named {clean(group)!r}; known are: {known}")
        where = location(loaded)
        self._lock = locked(where.state_dir, command)
        try:
            self._ledger = open_for_writing(where)
        except BaseException:
            self._lock.close()
            raise
        self._group = group
        self._keep_runs = settings.keep_runs
        self._checkpoint = loaded.settings.checkpoint
        self._state_dir = where.state_dir
        self._image: RunImage | None = None
        self._import = 0  # the run that is being imported
        self._lines = Joiner()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ledger.close()
        self._lock.close()

    def call(self, method: str, **params: Any) -> Any:
        """What the daemon would answer to that request.

        Raises:
            Refused: the disk does not take the change; nothing of it was made.
        """
        if method == "claims":
            return []
        if method.startswith("items.import."):
            return self._import_step(method, params.get("text", ""))
        run = self._run()
        keys: list[str] = params["keys"]
        op: LedgerOp
        match method:
            case "items.add":
                items = tuple(NewItem(key, target_of(key, None), Raw(b"null"), 0) for key in keys)
                op = AddItems(0, self._group, run.run_id, items)
            case "items.requeue":
                failed, parked = params.get("failed", False), params.get("parked", False)
                op = Requeue(0, self._group, run.run_id, tuple(keys), failed, parked)
            case "items.cancel":
                op = Cancel(0, self._group, run.run_id, tuple(keys))
            case _:
                raise ValueError(f"not a request on the queue: {method}")
        answer = self._perform(op)
        if isinstance(answer, Added):
            self._reopen(run, bool(answer.added))
            return {"added": len(answer.added), "known": answer.known}
        if not isinstance(answer, Changed):
            raise TypeError(f"not an answer to {method}: {answer!r}")
        self._reopen(run, isinstance(op, Requeue) and answer.changed > 0)
        return {"changed": answer.changed, "untouched": list(answer.untouched)}

    def _run(self) -> RunImage:
        """The group's newest run; a first one is begun."""
        if self._image is None:
            answer = self._perform(OpenRun(0, self._group, "continue", self._keep_runs))
            if not isinstance(answer, RunImage):
                raise TypeError(f"not a run: {answer!r}")
            self._image = answer
        return self._image

    def _import_step(self, method: str, text: str) -> dict[str, Any]:
        match method:
            case "items.import.begin":
                self._import = self._imported(ImportBegin(0, self._group)).run_id
                return {"token": self._import}
            case "items.import.lines":
                lines = self._lines.take(text)
                if lines:
                    self._imported(ImportLines(0, self._group, self._import, lines))
            case "items.import.finish":
                run = self._imported(ImportFinish(0, self._group, self._import)).run
                self._install_states()
                return {"run": run, "state": None}
            case _:
                self._imported(ImportDrop(0, self._group, self._import))
        return {}

    def _imported(self, op: LedgerOp) -> Imported:
        answer = self._perform(op)
        if not isinstance(answer, Imported):
            raise TypeError(f"not an answer to {type(op).__name__}: {answer!r}")
        if answer.problem is not None:
            raise Refused(f"{self._group}: {answer.problem}")
        return answer

    def _install_states(self) -> None:
        """Make the imported states checkpoints; what the disk does not take now, the daemon does at its start."""
        self._image = None
        run = self._run()
        store = CheckpointFiles(self._state_dir)
        counts = (sum(lane.open for lane in run.lanes) + run.waiting, run.done, run.failed)
        keep, gzip = self._checkpoint.retention, self._checkpoint.compression == "gzip"
        for worker in run.owed:
            taken = self._perform(TakeState(0, self._group, run.run_id, worker))
            if isinstance(taken, StateTaken):
                try:
                    store.perform(LoadState(0, worker, run.fresh_from))  # what was there before is not this run's
                    store.perform(SaveState(0, worker, taken.run, taken.schema, taken.state, *counts, keep, gzip))
                except OSError as error:
                    later = "the run is imported, and the daemon tries again when it starts"
                    raise Refused(f"{worker}: its state can't be saved: {error.strerror or error}; {later}") from None
            self._perform(DropState(0, self._group, run.run_id, worker))

    def _reopen(self, run: RunImage, has_work: bool) -> None:
        """A completed run that got work again goes on when the daemon starts."""
        if has_work and run.state != "running":
            self._perform(SetRunState(0, self._group, run.run_id, "running"))

    def _perform(self, op: LedgerOp) -> Answer:
        (answer,) = self._ledger.perform([op])
        if isinstance(answer, StoreFault):
            raise Refused(f"{self._group}: the ledger does not take it: {answer.message}")
        return answer
