"""The checkpoint files, looked at without moving anything: beside a daemon or without one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from scraper_supervisor.core.formats import checkpoint_file as sealed
from scraper_supervisor.core.formats.checkpoint_file import Damaged, FileName, Sealed, TooNew
from scraper_supervisor.core.ops.state_ops import state_of_whom
from scraper_supervisor.store.files import Files, NotAFile
from scraper_supervisor.store.states.generation_mark import MARK, GenerationMark, read_mark
from scraper_worker.protocol import is_slot

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER: Final = "checkpoints"
CORRUPT: Final = "corrupt"

_NUMBERED: Final = re.compile(r"(.*)\.[0-9]+", re.ASCII)  # a name in corrupt/ that was taken before


class CheckpointInfo(Struct, frozen=True):
    """A file as `checkpoint list` shows it; one with a problem tells neither schema nor time."""

    worker: str
    generation: int
    schema: str | None
    saved_at: str | None
    bytes: int
    path: str
    problem: str | None = None
    slot: str | None = None


class CheckpointCheck(Struct, frozen=True):
    """A file as `checkpoint verify` shows it; `reason` is None for a sound one.

    A folder that cannot be read has no generation, and that of all workers no worker.
    """

    path: str
    worker: str | None
    generation: int | None
    ok: bool
    reason: str | None
    slot: str | None = None


class NoSuchGeneration(LookupError):
    """A worker has no file of this generation."""


class _Look(Struct, frozen=True):
    """What is found at a checkpoint's name, or in place of a folder of them."""

    path: Path
    worker: str | None
    file: FileName | None
    bytes: int
    found: Sealed | str  # a sound checkpoint, or why it is none
    slot: str | None = None


class CheckpointReader:
    """The checkpoint files under a state folder, as they are.

    A worker's main state lies in its folder, that of a slot in a folder of its name inside it, by the same rules.

    Args:
        state_dir: The state folder.
        files: How files are reached.
    """

    def __init__(self, state_dir: Path, files: Files | None = None) -> None:
        self._root = state_dir / FOLDER
        self._files = files or Files()

    # ---- folders -----------------------------------------------------------------------------------------------------

    def _folder(self, worker: str, slot: str | None = None) -> Path:
        if not worker or worker.startswith(".") or "/" in worker or "\0" in worker:
            raise ValueError(f"not a worker's name: {worker!r}")
        if slot is None:
            return self._root / worker
        if not is_slot(slot):
            raise ValueError(f"not a slot's name: {slot!r}")
        return self._root / worker / slot

    def _slots(self, worker: str) -> list[str]:
        """The slots that a worker has, by their folders."""
        return [name for name in self._files.folders(self._root / worker) if is_slot(name)]

    def _set_aside_before(self, folder: Path) -> set[int]:
        """The generations of the files in corrupt/."""
        names = self._names_aside(folder)
        names += [found[1] for name in names if (found := _NUMBERED.fullmatch(name))]
        return {file.generation for file in sealed.newest_first(names)}

    def _names_aside(self, folder: Path) -> list[str]:
        return self._files.names(folder / CORRUPT)

    def _generations(self, folder: Path, without: int) -> tuple[int, ...]:
        """The generations of the files in a folder, newest first."""
        there = {file.generation for file in sealed.newest_first(self._files.names(folder))}
        return tuple(sorted(there - {without}, reverse=True))

    def _unseal(self, worker: str, folder: Path, file: FileName) -> Sealed:
        try:
            return sealed.unseal_file(file, worker, self._files.read(folder / file.name))
        except NotAFile as error:
            raise Damaged(f"it is {error.kind}, expected a file") from error

    # ---- looking -----------------------------------------------------------------------------------------------------

    def list(self, worker: str | None = None, slot: str | None = None) -> list[CheckpointInfo]:
        """All files of one worker or of all, newest first for each; those set aside are not among them.

        Args:
            worker: of whom; of all if None.
            slot: only what is in this slot; the main states and those of all slots if None.

        Raises:
            OSError: A folder cannot be read.
        """
        infos = []
        for look in self._look(worker, slot):
            if look.file is None or look.worker is None:
                continue
            schema = saved_at = problem = None
            if isinstance(look.found, str):
                problem = look.found
            else:
                schema, saved_at = look.found.header.schema, look.found.header.saved_at
            generation, path = look.file.generation, str(look.path)
            infos.append(
                CheckpointInfo(look.worker, generation, schema, saved_at, look.bytes, path, problem, look.slot)
            )
        return infos

    def verify(self, worker: str | None = None, slot: str | None = None) -> Iterator[CheckpointCheck]:
        """Read every file, of one worker or one slot if given; what is damaged or unreadable is told, and stays."""
        for look in self._look(worker, slot):
            reason = look.found if isinstance(look.found, str) else None
            generation = None if look.file is None else look.file.generation
            yield CheckpointCheck(str(look.path), look.worker, generation, reason is None, reason, look.slot)

    def newest(self, worker: str, fresh_from: int) -> Sealed | None:
        """The state that LoadState would give, with nothing moved; None if the worker has none of these runs.

        Raises:
            Damaged: It has files of these runs, and none of them is sound.
            TooNew: A later version wrote the newest one.
            OSError: One cannot be read.
        """
        folder = self._folder(worker)
        mark = read_mark(self._files, folder) or GenerationMark(damaged=bool(self._names_aside(folder)))
        asked = mark.fresh_from >= fresh_from  # else what is here is of earlier runs, if it tells no run itself
        damage = Damaged("its files are damaged and were set aside") if asked and mark.damaged else None
        for file in sealed.newest_first(self._files.names(folder)):
            earlier = not asked or file.generation <= mark.before
            try:
                found = self._unseal(worker, folder, file)
            except FileNotFoundError:
                continue  # retention of a running daemon removed it meanwhile
            except Damaged as error:
                damage = damage if earlier else error
                continue
            except TooNew:
                if earlier:
                    break
                raise
            if found.header.run < fresh_from:
                break
            return found
        if damage is not None:
            raise damage
        return None

    def show(self, worker: str, generation: int | None = None, slot: str | None = None) -> Sealed:
        """One checkpoint, the newest file unless `generation` is given; of the main state unless `slot` is.

        Raises:
            NoSuchGeneration: There is no such file.
            Damaged: It is damaged; it stays in place.
            TooNew: A later version wrote it.
            OSError: It cannot be read.
        """
        folder = self._folder(worker, slot)
        for file in sealed.newest_first(self._files.names(folder)):
            if generation in (None, file.generation):
                return self._unseal(worker, folder, file)
        which = "" if generation is None else f" {generation}"
        raise NoSuchGeneration(f"{state_of_whom(worker, slot)}: it has no checkpoint{which}")

    def _look(self, worker: str | None, slot: str | None) -> Iterator[_Look]:
        try:
            owners = self._files.folders(self._root) if worker is None else [worker]
        except OSError as error:
            yield _Look(self._root, None, None, 0, _unreadable(error))
            return
        for owner in owners:
            if slot is None:
                yield from self._look_into(owner, None)
            try:
                slots = self._slots(owner)
            except OSError:
                continue  # told already, or nothing of this slot
            for name in slots:
                if slot in (None, name):
                    yield from self._look_into(owner, name)

    def _look_into(self, owner: str, slot: str | None) -> Iterator[_Look]:
        folder = self._folder(owner, slot)
        try:
            names = self._files.names(folder)
        except OSError as error:
            yield _Look(folder, owner, None, 0, _unreadable(error), slot)
            return
        for file in sealed.newest_first(names):
            yield from self._look_at(owner, slot, folder, file)
        try:
            read_mark(self._files, folder)
        except Damaged as error:
            yield _Look(folder / MARK, owner, None, 0, error.reason, slot)
        except OSError as error:
            yield _Look(folder / MARK, owner, None, 0, _unreadable(error), slot)

    def _look_at(self, owner: str, slot: str | None, folder: Path, file: FileName) -> Iterator[_Look]:
        path, size = folder / file.name, 0
        found: Sealed | str
        try:
            data = self._files.read(path)
            size = len(data)
            found = sealed.unseal_file(file, owner, data)
        except FileNotFoundError:
            return  # the running daemon removed it meanwhile, or moved it
        except NotAFile as error:
            found = f"it is {error.kind}, expected a file"
        except (Damaged, TooNew) as error:
            found = error.reason
        except OSError as error:
            found = _unreadable(error)
        yield _Look(path, owner, file, size, found, slot)


def _unreadable(error: OSError) -> str:
    return f"it cannot be read: {error.strerror or error}"
