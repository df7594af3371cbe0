"""The checkpoint files: a folder of generations for each worker, the newest sound one of which counts."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final, assert_never

import msgspec
from msgspec import Struct

from scraper_supervisor.core.formats import checkpoint_file as sealed
from scraper_supervisor.core.formats.checkpoint_file import Damaged, FileName, TooNew
from scraper_supervisor.core.formats.timestamps import timestamp
from scraper_supervisor.core.ops.state_ops import (
    Damage,
    LoadState,
    ProbeFolder,
    SaveState,
    SlotsFull,
    StateLoaded,
    StateOp,
    StateSaved,
)
from scraper_supervisor.store.files import TEMPORARY, Files, NotAFile
from scraper_supervisor.store.states.generation_mark import MARK, GenerationMark, read_mark, write_mark
from scraper_supervisor.store.states.reading import CORRUPT, CheckpointReader
from scraper_worker.protocol import MAX_SLOTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_REMOVED_AT_ONCE: Final = 16  # files that one save removes at most, when retention was lowered
_READ_AT_ONCE: Final = 32  # files that one save reads at most, when it does not know their states yet


class _Memory(Struct):
    """What is known of a worker's folder without reading it again."""

    newest: int  # generation; the next one is above it
    digests: dict[str, bytes | None]  # of the states by file name; None: not sound, stays for LoadState to find


class TooManySlots(Exception):
    """A worker has as many slots as it may have."""

    def __init__(self, slots: list[str]) -> None:
        super().__init__(f"{len(slots)} slots are there already: {', '.join(slots)}")
        self.slots = tuple(slots)


class CheckpointFiles(CheckpointReader):
    """The checkpoint files under a state folder, read and written. One thread at a time may use it.

    Args:
        state_dir: The state folder.
        files: How files are reached.
        clock: Wall-clock seconds.
    """

    def __init__(self, state_dir: Path, files: Files | None = None, clock: Callable[[], float] = time.time) -> None:
        super().__init__(state_dir, files)
        self._clock = clock
        self._known: dict[Path, _Memory] = {}  # by folder

    def perform(self, op: StateOp) -> StateSaved | SlotsFull | StateLoaded | None:
        """Carry out one operation.

        Raises:
            OSError: The disk refused; nothing is promised of a state that was to be saved.
            ValueError: The worker's name is none.
        """
        match op:
            case SaveState():
                try:
                    return self.save(op)
                except TooManySlots as error:
                    return SlotsFull(error.slots)
            case LoadState():
                return self.load(op)
            case ProbeFolder():
                folder = self._folder(op.worker, op.slot)
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
            TooManySlots: It would be one slot too many.
            ValueError: The worker's name, or the slot's, is none.
        """
        started = time.monotonic()
        folder = self._folder(op.worker, op.slot)
        if op.slot is not None and folder not in self._known:
            slots = self._slots(op.worker)
            if op.slot not in slots and len(slots) >= MAX_SLOTS:
                raise TooManySlots(slots)
        memory = self._memory(folder)
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
        folder = self._folder(op.worker, op.slot)
        if op.slot is not None and folder not in self._known and op.slot not in self._slots(op.worker):
            return StateLoaded("none" if op.generation is None else "unknown")  # reading makes no slot
        memory = self._memory(folder)
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
            if mark.damaged and op.slot is not None:
                # Of a slot this is told once: what is kept there can be made anew, and nobody need come for that.
                self._remember(folder, mark, msgspec.structs.replace(mark, damaged=False, newest=memory.newest))
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

    # ---- what is known of a folder -----------------------------------------------------------------------------------

    def _memory(self, folder: Path) -> _Memory:
        """What is known of a worker's folder, or a slot's; at first use it is looked at and put in order."""
        if folder not in self._known:
            # A predecessor that was killed may have made a name and not synced it: what we build on must stay.
            above = (folder.parent,) if folder.parent != self._root else ()
            for place in (folder, *above) if self._known else (folder, *above, self._root, self._root.parent):
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
            self._known[folder] = _Memory(newest if mark is None else max(newest, mark.newest), {})
        return self._known[folder]


def _is_unfinished(name: str) -> bool:
    """True if it is what a save or a mark leaves behind that did not come to its end."""
    if not (name.startswith(".") and name.endswith(TEMPORARY)):
        return False
    inner = name[1 : -len(TEMPORARY)]
    return inner == MARK or sealed.parse_file_name(inner) is not None
