"""The checkpoint files: a folder of generations for each worker, the newest sound one of which counts."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, assert_never

from msgspec import Struct

from scraper_supervisor.core.formats import checkpoint_file as sealed
from scraper_supervisor.core.formats.checkpoint_file import Damaged, FileName, Sealed, TooNew
from scraper_supervisor.core.formats.timestamps import timestamp
from scraper_supervisor.core.ops.state_ops import (
    Damage,
    LoadState,
    ProbeFolder,
    SaveState,
    StateLoaded,
    StateOp,
    StateSaved,
)
from scraper_supervisor.store.files import TEMPORARY, Files, NotAFile
from scraper_supervisor.store.states.generation_mark import MARK, GenerationMark, read_mark, write_mark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOLDER: Final = "checkpoints"
CORRUPT: Final = "corrupt"

_REMOVED_AT_ONCE: Final = 16  # files that one save removes at most, when retention was lowered
_READ_AT_ONCE: Final = 32  # files that one save reads at most, when it does not know their states yet
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


class CheckpointCheck(Struct, frozen=True):
    """A file as `checkpoint verify` shows it; `reason` is None for a sound one.

    A folder that cannot be read has no generation, and that of all workers no worker.
    """

    path: str
    worker: str | None
    generation: int | None
    ok: bool
    reason: str | None


class NoSuchGeneration(LookupError):
    """A worker has no file of this generation."""


class _Memory(Struct):
    """What is known of a worker's folder without reading it again."""

    newest: int  # generation; the next one is above it
    digests: dict[str, bytes | None]  # of the states by file name; None: not sound, stays for LoadState to find


class _Look(Struct, frozen=True):
    """What is found at a checkpoint's name, or in place of a folder of them."""

    path: Path
    worker: str | None
    file: FileName | None
    bytes: int
    found: Sealed | str  # a sound checkpoint, or why it is none


class CheckpointFiles:
    """The checkpoint files under a state folder. One thread at a time may use it.

    Args:
        state_dir: The state folder.
        files: How files are reached.
        clock: Wall-clock seconds.
    """

    def __init__(self, state_dir: Path, files: Files | None = None, clock: Callable[[], float] = time.time) -> None:
        self._root = state_dir / FOLDER
        self._files = files or Files()
        self._clock = clock
        self._known: dict[str, _Memory] = {}

    def perform(self, op: StateOp) -> StateSaved | StateLoaded | None:
        """Carry out one operation.

        Raises:
            OSError: The disk refused; nothing is promised of a state that was to be saved.
            ValueError: The worker's name is none.
        """
        match op:
            case SaveState():
                return self.save(op)
            case LoadState():
                return self.load(op)
            case ProbeFolder():
                folder = self._folder(op.worker)
                self._files.make_folder(folder)
                self._files.probe(folder, op.room)
                return None
            case _:
                assert_never(op)

    # ---- saving ------------------------------------------------------------------------------------------------------

    def save(self, op: SaveState) -> StateSaved:
        """Write a state as the worker's next generation.

        Raises:
            OSError: The disk refused; nothing is promised of the state.
            ValueError: The worker's name is none.
        """
        started = time.monotonic()
        folder = self._folder(op.worker)
        memory = self._memory(op.worker, folder)
        # Also a generation whose writing fails is used up: the file may have got its name before the disk refused.
        memory.newest += 1
        generation = memory.newest
        name = sealed.file_name(generation, op.compression)
        saved_at = timestamp(self._clock())
        counts = sealed.Counts(op.pending, op.done, op.failed)
        header = sealed.CheckpointHeader(op.worker, op.run, generation, op.schema, saved_at, counts)
        sealing = sealed.seal_parts(header, op.state)
        self._files.make_folder(folder)
        written = self._files.write(folder / name, sealed.compress(sealing.parts, op.compression))
        seconds = time.monotonic() - started
        memory.digests[name] = sealing.digest
        removed = self._retire(op.worker, folder, memory, op.retention)
        return StateSaved(generation, sealing.sha256, saved_at, seconds, written, removed)

    def _retire(self, worker: str, folder: Path, memory: _Memory, keep: int) -> tuple[int, ...]:
        """Remove what retention removes. The state is safe by now: what fails here is left for the next save."""
        try:
            files = sealed.newest_first(self._files.names(folder))
        except OSError:
            return ()
        digests = self._digests(worker, folder, files, memory)
        states = [(file, digest) for file in files if (digest := digests.get(file.name)) is not None]
        removed = []
        for file in sealed.retention_plan(states, keep)[-_REMOVED_AT_ONCE:]:
            try:
                # Read once more, since damage that came after it was written must be found and not be deleted.
                sealed.check_file(file, self._files.read(folder / file.name))
                self._files.remove(folder / file.name)
            except (Damaged, NotAFile):
                digests[file.name] = None
                continue
            except OSError:
                continue
            del digests[file.name]
            removed.append(file.generation)
        return tuple(removed)

    def _digests(self, worker: str, folder: Path, files: list[FileName], memory: _Memory) -> dict[str, bytes | None]:
        """What tells the states of these files apart, as far as it is known or quickly found out."""
        unknown = [file for file in files if file.name not in memory.digests][:_READ_AT_ONCE]
        memory.digests = {file.name: memory.digests[file.name] for file in files if file.name in memory.digests}
        for file in unknown:
            try:
                memory.digests[file.name] = sealed.state_digest(self._unseal(worker, folder, file).state)
            except (Damaged, TooNew):
                memory.digests[file.name] = None
            except OSError:
                continue  # unreadable today: it stays, and is looked at again at the next save
        return memory.digests

    # ---- loading -----------------------------------------------------------------------------------------------------

    def load(self, op: LoadState) -> StateLoaded:
        """Read the newest sound state of a worker, or a certain one. What is found damaged is moved aside.

        Raises:
            OSError: The disk refused.
            ValueError: The worker's name is none.
        """
        folder = self._folder(op.worker)
        memory = self._memory(op.worker, folder)
        damage: list[Damage] = []
        mark = self._mark(folder, memory, op.fresh_from, damage)
        for file in sealed.newest_first(self._files.names(folder)):
            if op.generation is not None and file.generation != op.generation:
                continue
            earlier = mark.fresh_from == op.fresh_from and file.generation <= mark.before
            try:
                found = self._unseal(op.worker, folder, file)
            except FileNotFoundError:
                continue  # an operator removed it meanwhile
            except Damaged as error:
                mark = self._remember(
                    folder,
                    mark,
                    GenerationMark(mark.fresh_from, mark.before, mark.damaged or not earlier, memory.newest),
                )
                damage.append(self._set_aside(folder, file.name, error.reason))
                continue
            except TooNew as error:
                if op.generation is None and earlier:
                    break
                there = self._generations(folder, file.generation)
                return StateLoaded("newer", file.generation, reason=error.reason, damage=tuple(damage), there=there)
            if op.generation is None and found.header.run < op.fresh_from:
                break  # the older ones are of older runs still
            header = found.header
            return StateLoaded(
                "sound", file.generation, header.run, header.schema, header.saved_at, found.state, tuple(damage)
            )
        if op.generation is None:
            return StateLoaded("damaged" if mark.damaged else "none", damage=tuple(damage))
        known = op.generation in self._set_aside_before(folder)
        there = self._generations(folder, op.generation)
        return StateLoaded("damaged" if known else "unknown", damage=tuple(damage), there=there)

    def _mark(self, folder: Path, memory: _Memory, fresh_from: int, damage: list[Damage]) -> GenerationMark:
        """What the folder remembers, brought up to the run that is asked for; it is durable."""
        try:
            mark = read_mark(self._files, folder)
        except Damaged as error:
            damage.append(self._set_aside(folder, MARK, error.reason))
            mark = None
        if mark is None and self._names_aside(folder):
            # It is lost. Rather a worker that waits for an operator than one that forgets its state.
            return self._remember(folder, None, GenerationMark(fresh_from, damaged=True, newest=memory.newest))
        mark = mark or GenerationMark()
        if mark.fresh_from < fresh_from:
            # The first time that this run asks: what is here, sound or not, is not its own.
            return self._remember(folder, mark, GenerationMark(fresh_from, before=memory.newest, newest=memory.newest))
        return mark

    def _remember(self, folder: Path, old: GenerationMark | None, new: GenerationMark) -> GenerationMark:
        if new != old:
            write_mark(self._files, folder, new)
        return new

    def _set_aside(self, folder: Path, name: str, reason: str) -> Damage:
        corrupt = folder / CORRUPT
        self._files.make_folder(corrupt)
        taken, free, number = set(self._files.names(corrupt)), name, 1
        while free in taken:
            number += 1
            free = f"{name}.{number}"
        self._files.move(folder / name, corrupt / free)
        return Damage(str(corrupt / free), reason)

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

    # ---- looking, without moving anything ----------------------------------------------------------------------------

    def list(self, worker: str | None = None) -> list[CheckpointInfo]:
        """All files of one worker or of all, newest first for each; those set aside are not among them.

        Raises:
            OSError: A folder cannot be read.
        """
        infos = []
        for look in self._look(worker):
            if look.file is None or look.worker is None:
                continue
            schema = saved_at = problem = None
            if isinstance(look.found, str):
                problem = look.found
            else:
                schema, saved_at = look.found.header.schema, look.found.header.saved_at
            infos.append(
                CheckpointInfo(look.worker, look.file.generation, schema, saved_at, look.bytes, str(look.path), problem)
            )
        return infos

    def verify(self, worker: str | None = None) -> Iterator[CheckpointCheck]:
        """Read every file of one worker or of all; what is damaged or unreadable is reported and stays in place."""
        for look in self._look(worker):
            reason = look.found if isinstance(look.found, str) else None
            generation = None if look.file is None else look.file.generation
            yield CheckpointCheck(str(look.path), look.worker, generation, reason is None, reason)

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

    def show(self, worker: str, generation: int | None = None) -> Sealed:
        """One checkpoint, the newest file unless `generation` is given.

        Raises:
            NoSuchGeneration: There is no such file.
            Damaged: It is damaged; it stays in place.
            TooNew: A later version wrote it.
            OSError: It cannot be read.
        """
        folder = self._folder(worker)
        for file in sealed.newest_first(self._files.names(folder)):
            if generation in (None, file.generation):
                return self._unseal(worker, folder, file)
        raise NoSuchGeneration(f"{worker}: it has no checkpoint{'' if generation is None else f' {generation}'}")

    def _look(self, worker: str | None) -> Iterator[_Look]:
        try:
            owners = self._files.folders(self._root) if worker is None else [worker]
        except OSError as error:
            yield _Look(self._root, None, None, 0, _unreadable(error))
            return
        for owner in owners:
            folder = self._folder(owner)
            try:
                names = self._files.names(folder)
            except OSError as error:
                yield _Look(folder, owner, None, 0, _unreadable(error))
                continue
            for file in sealed.newest_first(names):
                yield from self._look_at(owner, folder, file)
            try:
                read_mark(self._files, folder)
            except Damaged as error:
                yield _Look(folder / MARK, owner, None, 0, error.reason)
            except OSError as error:
                yield _Look(folder / MARK, owner, None, 0, _unreadable(error))

    def _look_at(self, owner: str, folder: Path, file: FileName) -> Iterator[_Look]:
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
        yield _Look(path, owner, file, size, found)

    # ---- folders -----------------------------------------------------------------------------------------------------

    def _folder(self, worker: str) -> Path:
        if not worker or worker.startswith(".") or "/" in worker or "\0" in worker:
            raise ValueError(f"not a worker's name: {worker!r}")
        return self._root / worker

    def _memory(self, worker: str, folder: Path) -> _Memory:
        """What is known of a worker; at first use its folder is looked at and put in order."""
        if worker not in self._known:
            # A predecessor that was killed may have made a name and not synced it: what we build on must stay.
            for place in (folder,) if self._known else (folder, self._root, self._root.parent):
                with contextlib.suppress(FileNotFoundError):
                    self._files.sync_folder(place)
            names = self._files.names(folder)
            generations = [file.generation for file in sealed.newest_first(names)]
            generations += self._set_aside_before(folder)
            try:
                mark = read_mark(self._files, folder)
            except Damaged:
                mark = None  # for LoadState to find
            for name in names:
                if _is_unfinished(name):
                    with contextlib.suppress(OSError):  # a disk that takes no changes can still be read
                        self._files.remove(folder / name)
            newest = max(generations, default=0)
            self._known[worker] = _Memory(newest if mark is None else max(newest, mark.newest), {})
        return self._known[worker]


def _is_unfinished(name: str) -> bool:
    """True if it is what a save or a mark leaves behind that did not come to its end."""
    if not (name.startswith(".") and name.endswith(TEMPORARY)):
        return False
    inner = name[1 : -len(TEMPORARY)]
    return inner == MARK or sealed.parse_file_name(inner) is not None


def _unreadable(error: OSError) -> str:
    return f"it cannot be read: {error.strerror or error}"
