"""Changes the queue without a daemon: the same requests, carried out on the ledger under the state folder's lock."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self, cast

from msgspec import Raw

from scraper_supervisor.console.context import Refused, clean
from scraper_supervisor.core.checkpoints import counts_of, save_op
from scraper_supervisor.core.formats.run_export import Joiner
from scraper_supervisor.core.ops.import_ops import (
    DropState,
    ImportBegin,
    ImportDrop,
    ImportFinish,
    ImportLines,
    TakeState,
)
from scraper_supervisor.core.ops.item_ops import AddItems, Cancel, NewItem, Requeue
from scraper_supervisor.core.ops.run_ops import OpenRun, SetRunState
from scraper_supervisor.core.ops.state_ops import LoadState
from scraper_supervisor.core.queue.item_calls import target_of
from scraper_supervisor.store.errors import StoreFault
from scraper_supervisor.store.locks import FolderLock
from scraper_supervisor.store.opening import location, open_for_writing
from scraper_supervisor.store.states.checkpoints import CheckpointFiles

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from scraper_supervisor.core.ops.import_ops import Imported
    from scraper_supervisor.core.ops.operation import AnswerT, Operation
    from scraper_supervisor.core.ops.run_ops import RunImage
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
        match method:
            case "items.add":
                items = tuple(NewItem(key, target_of(key, None), Raw(b"null"), 0) for key in keys)
                added = self._perform(AddItems(0, self._group, run.run_id, items))
                self._reopen(run, bool(added.added))
                return {"added": len(added.added), "known": added.known}
            case "items.requeue":
                failed, parked = params.get("failed", False), params.get("parked", False)
                changed = self._perform(Requeue(0, self._group, run.run_id, tuple(keys), failed, parked))
                self._reopen(run, changed.changed > 0)
            case "items.cancel":
                changed = self._perform(Cancel(0, self._group, run.run_id, tuple(keys)))
            case _:
                raise ValueError(f"not a request on the queue: {method}")
        return {"changed": changed.changed, "untouched": list(changed.untouched)}

    def _run(self) -> RunImage:
        """The group's newest run; a first one is begun."""
        if self._image is None:
            self._image = self._perform(OpenRun(0, self._group, "continue", self._keep_runs))
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

    def _imported(self, op: Operation[Imported]) -> Imported:
        answer = self._perform(op)
        if answer.problem is not None:
            raise Refused(f"{self._group}: {answer.problem}")
        return answer

    def _install_states(self) -> None:
        """Make the imported states checkpoints; what the disk does not take now, the daemon does at its start."""
        self._image = None
        run = self._run()
        store = CheckpointFiles(self._state_dir)
        counts = counts_of(run)
        for worker in run.owed:
            taken = self._perform(TakeState(0, self._group, run.run_id, worker))
            if taken is not None:
                op = save_op(0, worker, taken.run, taken.schema, taken.state, counts, self._checkpoint)
                try:
                    store.load(LoadState(0, worker, run.fresh_from))  # what was there before is not this run's
                    store.save(op)
                except OSError as error:
                    later = "the run is imported, and the daemon tries again when it starts"
                    raise Refused(f"{worker}: its state can't be saved: {error.strerror or error}; {later}") from None
            self._perform(DropState(0, self._group, run.run_id, worker))

    def _reopen(self, run: RunImage, has_work: bool) -> None:
        """A completed run that got work again goes on when the daemon starts."""
        if has_work and run.state != "running":
            self._perform(SetRunState(0, self._group, run.run_id, "running"))

    def _perform(self, op: Operation[AnswerT]) -> AnswerT:
        question: Any = op  # each Operation of the queue is a member of the closed union that the ledger takes
        (answer,) = self._ledger.perform([question])
        if isinstance(answer, StoreFault):
            raise Refused(f"{self._group}: the ledger does not take it: {answer.message}")
        return cast("AnswerT", answer)
