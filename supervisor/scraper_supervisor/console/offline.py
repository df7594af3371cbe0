"""Changes the queue without a daemon: the same requests, carried out on the ledger under the state folder's lock."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final, Self, cast

from msgspec import Raw

from scraper_supervisor.console.context import Refused, clean
from scraper_supervisor.console.offline_events import acted
from scraper_supervisor.core.checkpoints import counts_of, save_op
from scraper_supervisor.core.formats.redaction import hidden_in
from scraper_supervisor.core.formats.run_export import Joiner
from scraper_supervisor.core.ops.import_ops import (
    DropState,
    ImportBegin,
    ImportDrop,
    ImportFinish,
    ImportLines,
    TakeState,
)
from scraper_supervisor.core.ops.item_ops import AddItems, Cancel, FindKeys, NewItem, Requeue, Unpark
from scraper_supervisor.core.ops.run_ops import OpenRun, SetRunState
from scraper_supervisor.core.ops.state_ops import LoadState
from scraper_supervisor.core.queue.item_calls import target_of
from scraper_supervisor.store.errors import StoreFault
from scraper_supervisor.store.locks import FolderLock
from scraper_supervisor.store.opening import is_there, location, open_for_reading, open_for_writing
from scraper_supervisor.store.states.checkpoints import CheckpointFiles

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from scraper_supervisor.core.config.settings import Settings
    from scraper_supervisor.core.ops.import_ops import Imported
    from scraper_supervisor.core.ops.operation import AnswerT, Operation
    from scraper_supervisor.core.ops.run_ops import RunImage
    from scraper_supervisor.store.config_file import Place
    from scraper_supervisor.store.opening import LedgerLocation
    from scraper_supervisor.store.ports import LedgerPort

SWEEP: Final = 50_000  # items in one transaction; nobody else waits for it
_KEEP_ALL: Final = sys.maxsize  # runs of a group that is not configured here: nobody said how many are too many


def locked(state_dir: Path, command: str) -> FolderLock:
    """The state folder, which is there, for us alone.

    Args:
        state_dir: the folder.
        command: what is being done, for those who find it locked.

    Raises:
        Locked: another process uses it.
        OSError: it can't be used.
    """
    os.umask(0o077)  # what is in the folder is for its owner alone
    return FolderLock(state_dir, command=command)


def no_ledger(place: Place) -> str:
    """What is said where a ledger would have to be made: where it was looked for, and by which configuration."""
    by = place.path or f"no configuration file in {place.base}"
    return (
        f"{location(place)}: there is no ledger ({by}), and only `run` makes one; "
        "name the configuration that the daemon runs with: --config FILE"
    )


def _groups(where: LedgerLocation) -> set[str]:
    """The groups that have a run."""
    try:
        with open_for_reading(where) as ledger:
            return set(ledger.groups())
    except FileNotFoundError:
        return set()  # opening it for writing says what is left of it


class OfflineQueue:
    """A group's queue in the ledger, while no daemon runs; a context manager.

    Args:
        place: where the ledger is.
        settings: the configuration; the defaults, if it is not valid.
        group: the group's name; it is configured, or has a run.
        command: what is being done, for those who find the folder locked.

    Raises:
        Refused: nobody knows the group, or there is no ledger: none is made here, where nobody may ever look.
        Locked: another process uses the state folder.
        LedgerUnusable: the ledger does not open.
        OSError: the state folder can't be used.
    """

    def __init__(self, place: Place, settings: Settings, group: str, command: str) -> None:
        where = location(place)
        if not is_there(where):
            raise Refused(no_ledger(place))
        self._lock = locked(where.state_dir, command)
        try:
            known = settings.groups.keys() | _groups(where)
            if group not in known:
                raise Refused(f"no group is named {clean(group)!r}; known are: {', '.join(sorted(known)) or 'none'}")
            self._ledger = open_for_writing(where)
        except BaseException:
            self._lock.close()
            raise
        self._group = group
        configured = settings.groups.get(group)
        self._keep_runs = configured.keep_runs if configured is not None else _KEEP_ALL
        self._settings = settings
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
        answer = self._answer(method, params)
        given = {name: params[name] for name in ("keys", "failed", "parked") if name in params}
        acted(self._state_dir, self._settings, method, (self._group,), **given)
        return answer

    def _answer(self, method: str, params: dict[str, Any]) -> Any:
        if method == "claims":
            return []
        if method.startswith("items.import."):
            return self._import_step(method, params.get("text", ""))
        run = self._run()
        keys: list[str] = params["keys"]
        if method != "items.add" and any(hidden_in(key) for key in keys):
            keys = list(self._perform(FindKeys(0, self._group, run.run_id, tuple(keys))).keys)
        match method:
            case "items.add":
                items = tuple(NewItem(key, target_of(key, None), Raw(b"null"), 0) for key in keys)
                added = self._perform(AddItems(0, self._group, run.run_id, items))
                self._reopen(run, bool(added.added))
                return {"added": len(added.added), "known": added.known}
            case "items.requeue":
                failed, parked = params.get("failed", False), params.get("parked", False)
                changed = self._perform(Requeue(0, self._group, run.run_id, tuple(keys), failed, parked))
                if changed.parked:
                    goes_on(self._ledger, self._group, run.run_id)
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
                op = save_op(0, worker, taken.run, taken.schema, taken.state, counts, self._settings.checkpoint)
                try:
                    store.load(LoadState(0, worker, run.fresh_from))  # what was there before is not this run's
                    store.save(op)
                except OSError as error:
                    later = "the run is imported, and the daemon tries again when it starts"
                    raise Refused(f"{worker}: its state can't be saved: {error.strerror or error}; {later}") from None
            self._perform(DropState(0, self._group, run.run_id, worker))

    def _reopen(self, run: RunImage, has_work: bool) -> None:
        """A completed run that got work again goes on when the daemon starts."""
        if has_work and run.state == "completed":
            self._perform(SetRunState(0, self._group, run.run_id, "running"))

    def _perform(self, op: Operation[AnswerT]) -> AnswerT:
        return _performed(self._ledger, self._group, op)


def goes_on(ledger: LedgerPort, group: str, run_id: int) -> None:
    """Let a run go on that was aborted: its parked items are open again, where they were.

    Raises:
        Refused: the disk does not take it.
    """
    while _performed(ledger, group, Unpark(0, group, run_id, SWEEP)).changed == SWEEP:
        pass
    _performed(ledger, group, SetRunState(0, group, run_id, "running"))


def _performed(ledger: LedgerPort, group: str, op: Operation[AnswerT]) -> AnswerT:
    question: Any = op  # each Operation of the queue is a member of the closed union that the ledger takes
    (answer,) = ledger.perform([question])
    if isinstance(answer, StoreFault):
        raise Refused(f"{group}: the ledger does not take it: {answer.message}")
    return cast("AnswerT", answer)
