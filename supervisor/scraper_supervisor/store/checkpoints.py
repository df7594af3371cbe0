"""The checkpoint files: a folder of generations for each worker, the newest sound one of which counts."""

from __future__ import annotations

import math
import re
import time
from typing import TYPE_CHECKING, Final, assert_never

import msgspec
from msgspec import Struct

from scraper_supervisor.core import sealed
from scraper_supervisor.core.records import Damage, LoadState, ProbeFolder, SaveState, StateLoaded, StateOp, StateSaved
from scraper_supervisor.core.sealed import Damaged, FileName, Sealed
from scraper_supervisor.core.wall import timestamp
from scraper_supervisor.store.files import TEMPORARY, Files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FOLDER: Final = "checkpoints"
CORRUPT: Final = "corrupt"

# Beside corrupt/: the last run for which what was moved there counts. Without it, a worker whose only files are damaged
# would start from nothing after a restart; with it, it stays failed until a state is restored or `start --fresh`.
_MARK: Final = "damaged"
_CORRUPT_NAME: Final = re.compile(r"(checkpoint-[0-9]{12}\.json(?:\.gz)?)(?:\.[0-9]+)?", re.ASCII)


class _Mark(Struct, frozen=True):
    run: int


class CheckpointInfo(Struct, frozen=True):
    """A file as `checkpoint list` shows it; a damaged one tells neither schema nor time."""

    worker: str
    generation: int
    schema: str | None
    saved_at: str | None
    bytes: int
    path: str


class FileCheck(Struct, frozen=True):
    """A file as `checkpoint verify` shows it; `reason` is None for a sound one."""

    path: str
    worker: str
    generation: int
    ok: bool
    reason: str | None


class NoSuchGeneration(LookupError):
    """A worker has no file of this generation."""


class _Memory(Struct):
    """What is known of a worker's folder without reading it again."""

    newest: int  # generation; the next one is above it
    digests: dict[str, bytes | None]  # of the states by file name; None: damaged, stays for LoadState to find


class Checkpoints:
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
                return self._save(op)
            case LoadState():
                return self._load(op)
            case ProbeFolder():
                folder = self._folder(op.worker)
                self._files.make_folder(folder)
                self._files.probe(folder, op.room)
                return None
            case _:
                assert_never(op)

    # ---- saving ------------------------------------------------------------------------------------------------------

    def _save(self, op: SaveState) -> StateSaved:
        started = time.monotonic()
        folder = self._folder(op.worker)
        memory = self._memory(op.worker, folder)
        # Also a generation whose writing fails is used up: the file may have got its name before the disk refused.
        memory.newest += 1
        generation = memory.newest
        name = sealed.file_name(generation, gzip=op.gzip)
        saved_at = timestamp(self._clock())
        counts = sealed.Counts(op.pending, op.done, op.failed)
        header = sealed.Header(op.worker, op.run, generation, op.schema, saved_at, counts)
        parts: tuple[bytes, ...] | list[bytes] = sealed.seal_parts(header, op.state)
        digest, checksum = sealed.state_digest(parts[1]), sealed.checksum(parts[-1])
        if op.gzip:
            parts = sealed.compress(parts)
        self._files.make_folder(folder)
        self._files.write(folder / name, parts)
        seconds = time.monotonic() - started
        memory.digests[name] = digest
        removed = self._retire(op.worker, folder, memory, op.retention)
        return StateSaved(generation, checksum, saved_at, seconds, sum(map(len, parts)), removed)

    def _retire(self, worker: str, folder: Path, memory: _Memory, keep: int) -> tuple[int, ...]:
        """Remove what retention removes. The state is safe by now: what fails here is left for the next save."""
        files = sealed.newest_first(self._files.names(folder))
        states = [(file, digest) for file in files if (digest := self._digest(worker, folder, file, memory))]
        removed = []
        for file in sealed.retention_plan(states, keep):
            try:
                # Read once more, since damage that came after it was written must be found and not be deleted.
                sealed.unseal_file(file, worker, self._files.read(folder / file.name))
                self._files.remove(folder / file.name)
            except Damaged:
                memory.digests[file.name] = None
                continue
            except OSError:
                continue
            memory.digests.pop(file.name, None)
            removed.append(file.generation)
        return tuple(removed)

    def _digest(self, worker: str, folder: Path, file: FileName, memory: _Memory) -> bytes | None:
        if file.name not in memory.digests:
            try:
                state = sealed.unseal_file(file, worker, self._files.read(folder / file.name)).state
                memory.digests[file.name] = sealed.state_digest(state)
            except Damaged:
                memory.digests[file.name] = None
            except OSError:
                return None  # unreadable today: it stays, and is looked at again at the next save
        return memory.digests[file.name]

    # ---- loading -----------------------------------------------------------------------------------------------------

    def _load(self, op: LoadState) -> StateLoaded:
        folder = self._folder(op.worker)
        self._memory(op.worker, folder)
        damage: list[Damage] = []
        for file in sealed.newest_first(self._files.names(folder)):
            if op.generation is not None and file.generation != op.generation:
                continue
            data = self._files.read(folder / file.name)
            try:
                found = sealed.unseal_file(file, op.worker, data)
            except Damaged as error:
                last_run = min(op.fresh_from, sealed.presumed_run(file, data) or op.fresh_from)
                damage.append(self._set_aside(folder, file, last_run, error.reason))
                continue
            if op.generation is None and found.header.run < op.fresh_from:
                break  # the older ones are of older runs still
            header = found.header
            return StateLoaded(
                "sound", file.generation, header.run, header.schema, header.saved_at, found.state, tuple(damage)
            )
        if op.generation is None:
            damaged = self._damaged_until(folder) >= op.fresh_from
            return StateLoaded("damaged" if damaged else "none", damage=tuple(damage))
        damaged = op.generation in self._set_aside_before(folder)
        return StateLoaded("damaged" if damaged else "unknown", damage=tuple(damage))

    def _set_aside(self, folder: Path, file: FileName, last_run: int, reason: str) -> Damage:
        corrupt = folder / CORRUPT
        self._files.make_folder(corrupt)
        if last_run > self._damaged_until(folder):
            self._files.write(folder / _MARK, [msgspec.json.encode(_Mark(last_run))])
        taken, name, number = set(self._files.names(corrupt)), file.name, 1
        while name in taken:
            number += 1
            name = f"{file.name}.{number}"
        self._files.move(folder / file.name, corrupt / name)
        return Damage(str(corrupt / name), reason)

    def _damaged_until(self, folder: Path) -> float:
        """The last run for which the files set aside count as damage; 0 if there are none."""
        try:
            return msgspec.json.decode(self._files.read(folder / _MARK), type=_Mark).run
        except FileNotFoundError:
            return 0
        except msgspec.DecodeError:
            return math.inf  # rather a worker that waits for `restore` than one that forgets its state

    def _set_aside_before(self, folder: Path) -> set[int]:
        """The generations of the files in corrupt/."""
        matches = map(_CORRUPT_NAME.fullmatch, self._files.names(folder / CORRUPT))
        files = [sealed.parse_file_name(match[1]) for match in matches if match]
        return {file.generation for file in files if file is not None}

    # ---- looking, without moving anything ----------------------------------------------------------------------------

    def list(self, worker: str | None = None) -> list[CheckpointInfo]:
        """All files of one worker or of all, newest first for each; those set aside are not among them.

        Raises:
            OSError: A file cannot be read.
        """
        infos = []
        for owner, file, path, data in self._walk(worker):
            try:
                header = sealed.unseal_file(file, owner, data).header
            except Damaged:
                infos.append(CheckpointInfo(owner, file.generation, None, None, len(data), str(path)))
            else:
                infos.append(
                    CheckpointInfo(owner, file.generation, header.schema, header.saved_at, len(data), str(path))
                )
        return infos

    def verify(self, worker: str | None = None) -> Iterator[FileCheck]:
        """Read every file of one worker or of all; damage is reported and stays in place.

        Raises:
            OSError: A folder cannot be read.
        """
        for owner, file, path, data in self._walk(worker):
            try:
                sealed.unseal_file(file, owner, data)
            except Damaged as error:
                yield FileCheck(str(path), owner, file.generation, False, error.reason)
            else:
                yield FileCheck(str(path), owner, file.generation, True, None)

    def show(self, worker: str, generation: int | None = None) -> Sealed:
        """One checkpoint, the newest file unless `generation` is given.

        Raises:
            NoSuchGeneration: There is no such file.
            Damaged: It is damaged; it stays in place.
            OSError: It cannot be read.
        """
        folder = self._folder(worker)
        for file in sealed.newest_first(self._files.names(folder)):
            if generation in (None, file.generation):
                return sealed.unseal_file(file, worker, self._files.read(folder / file.name))
        raise NoSuchGeneration(f"{worker}: it has no checkpoint{'' if generation is None else f' {generation}'}")

    def _walk(self, worker: str | None) -> Iterator[tuple[str, FileName, Path, bytes]]:
        for owner in self._files.folders(self._root) if worker is None else [worker]:
            folder = self._folder(owner)
            for file in sealed.newest_first(self._files.names(folder)):
                path = folder / file.name
                try:
                    data = self._files.read(path)
                except FileNotFoundError:
                    continue  # retention of a running daemon removed it meanwhile
                yield owner, file, path, data

    # ---- folders -----------------------------------------------------------------------------------------------------

    def _folder(self, worker: str) -> Path:
        if not worker or worker.startswith(".") or "/" in worker or "\0" in worker:
            raise ValueError(f"not a worker's name: {worker!r}")
        return self._root / worker

    def _memory(self, worker: str, folder: Path) -> _Memory:
        """What is known of a worker; at first use its folder is looked at, and unfinished files are removed."""
        if worker not in self._known:
            names = self._files.names(folder)
            generations = [file.generation for file in sealed.newest_first(names)]
            generations += self._set_aside_before(folder)
            for name in names:
                if name.startswith(".checkpoint-") and name.endswith(TEMPORARY):
                    self._files.remove(folder / name)
            self._known[worker] = _Memory(max(generations, default=0), {})
        return self._known[worker]
