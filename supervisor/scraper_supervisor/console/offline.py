"""Changes the queue without a daemon: the same requests, carried out on the ledger under the state folder's lock."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from msgspec import Raw

from scraper_supervisor.console.context import LEDGER_FILE, NO_DAEMON, Refused, clean
from scraper_supervisor.core.calls import target_of
from scraper_supervisor.core.records import (
    Added,
    AddItems,
    Answer,
    Cancel,
    Changed,
    LedgerOp,
    NewItem,
    OpenRun,
    Requeue,
    RunImage,
    SetRunState,
)
from scraper_supervisor.store.faults import Locked, StoreFault
from scraper_supervisor.store.ledger import Ledger
from scraper_supervisor.store.locks import FolderLock

if TYPE_CHECKING:
    from types import TracebackType

    from scraper_supervisor.console.control import NoDaemon
    from scraper_supervisor.store.config_file import Loaded


def locked(state_dir: Path, nobody: NoDaemon) -> FolderLock:
    """The state folder, made if there is none, and for us alone.

    Raises:
        Refused: a daemon holds it though it does not answer.
        OSError: it can't be used.
    """
    os.umask(0o077)  # the folder and what is in it is for its owner alone
    state_dir.mkdir(parents=True, exist_ok=True)
    try:
        return FolderLock(state_dir)
    except Locked as error:
        raise Refused(f"{error}, but does not answer: {nobody}", NO_DAEMON) from None


class OfflineQueue:
    """A group's queue in the ledger, while no daemon runs; a context manager.

    Args:
        loaded: the configuration.
        group: the group's name.
        nobody: why the daemon was not asked.

    Raises:
        Refused: the group is not configured, or a daemon holds the folder though it does not answer.
        LedgerUnusable: the ledger does not open.
        OSError: the state folder can't be used.
    """

    def __init__(self, loaded: Loaded, group: str, nobody: NoDaemon) -> None:
        settings = loaded.settings.groups.get(group)
        if settings is None:
            known = ", ".join(loaded.settings.groups) or "none"
            raise Refused(f"no group is named {clean(group)!r}; known are: {known}")
        state_dir = Path(loaded.folders.state_dir)
        self._lock = locked(state_dir, nobody)
        try:
            self._ledger = Ledger.open(state_dir / LEDGER_FILE)
        except BaseException:
            self._lock.close()
            raise
        self._group = group
        self._keep_runs = settings.keep_runs
        self._image: RunImage | None = None

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

    def _reopen(self, run: RunImage, has_work: bool) -> None:
        """A completed run that got work again goes on when the daemon starts."""
        if has_work and run.state != "running":
            self._perform(SetRunState(0, self._group, run.run_id, "running"))

    def _perform(self, op: LedgerOp) -> Answer:
        (answer,) = self._ledger.perform([op])
        if isinstance(answer, StoreFault):
            raise Refused(f"{self._group}: the ledger does not take it: {answer.message}")
        return answer
