"""What a crash can leave of the checkpoint files, by brute force.

A recording file layer notes every step that the store takes. `crash_states` plays the steps on a model of a disk and
yields each state in which the power may have gone: after every step, with what was not synced kept, lost or torn.

The model promises no more than POSIX and journaling file systems do:
- a file's bytes are durable once the file is synced; before, any part of them may be there, or zeros in its place;
- a name made, changed or taken away in a folder is durable once that folder is synced; before, each such change may be
  there or not, whatever became of the earlier ones. A file's own sync does not make its name durable;
- a rename is there or not; between two folders the new name may also be there before the old one is gone;
- a folder that lost its name lost everything in it.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Raw, Struct

from scraper_supervisor.core.ops.state_ops import LoadState, SaveState, StateLoaded, StateOp, StateSaved
from scraper_supervisor.store.files import Files
from scraper_supervisor.store.states.checkpoints import CheckpointFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_UNSYNCED = 12  # changes of names; more would be too many states, and the scenario is to be made smaller

# ---- the steps -------------------------------------------------------------------------------------------------------


class Create(Struct, frozen=True):
    handle: int
    path: str


class OpenFolder(Struct, frozen=True):
    handle: int
    path: str


class Append(Struct, frozen=True):
    handle: int
    data: bytes


class Sync(Struct, frozen=True):
    handle: int


class Rename(Struct, frozen=True):
    path: str
    target: str


class Unlink(Struct, frozen=True):
    path: str


class Mkdir(Struct, frozen=True):
    path: str


class Begun(Struct, frozen=True):
    """The store was asked for something."""

    op: StateOp


class Acknowledged(Struct, frozen=True):
    """It answered."""

    op: StateOp
    answer: StateSaved | StateLoaded


class Restarted(Struct, frozen=True):
    """The process was killed, the machine was not; another one goes on."""


class Spoiled(Struct, frozen=True):
    """A file of the disk went bad, durably."""

    path: str
    data: bytes
    generation: int


Step: TypeAlias = (
    Create | OpenFolder | Append | Sync | Rename | Unlink | Mkdir | Begun | Acknowledged | Restarted | Spoiled
)


class Killed(BaseException):
    """The process ends here, as by kill -9."""


class Recorder(Files):
    """A file layer that notes its steps, and can be killed before one of them.

    Args:
        root: What the paths in the trace are relative to.
        kill_at: The number of the step before which the process is killed; none if None.
    """

    def __init__(self, root: Path, kill_at: int | None = None) -> None:
        self.root = root
        self.kill_at = kill_at
        self.trace: list[Step] = []
        self.steps = 0
        self._handles: dict[int, int] = {}  # descriptor → number in the trace
        self._numbers = itertools.count()

    def create(self, path: Path) -> int:
        self._step()
        fd = super().create(path)
        self._handles[fd] = next(self._numbers)
        self.trace.append(Create(self._handles[fd], self._name(path)))
        return fd

    def open_folder(self, folder: Path) -> int:
        fd = super().open_folder(folder)
        self._handles[fd] = next(self._numbers)
        self.trace.append(OpenFolder(self._handles[fd], self._name(folder)))
        return fd

    def append(self, fd: int, data: memoryview) -> int:
        self._step()
        count = super().append(fd, data[:100])  # a system call may write less than it was given
        self.trace.append(Append(self._handles[fd], bytes(data[:count])))
        return count

    def sync(self, fd: int) -> None:
        self._step()
        self.trace.append(Sync(self._handles[fd]))

    def rename(self, path: Path, target: Path) -> None:
        self._step()
        super().rename(path, target)
        self.trace.append(Rename(self._name(path), self._name(target)))

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)
        self.trace.append(Unlink(self._name(path)))

    def mkdir(self, folder: Path) -> None:
        self._step()
        super().mkdir(folder)
        self.trace.append(Mkdir(self._name(folder)))

    def revive(self) -> None:
        """Another process goes on with the same disk."""
        if self.kill_at is not None and self.steps >= self.kill_at:
            self.kill_at = None
        self.trace.append(Restarted())

    def _step(self) -> None:
        if self.kill_at is not None and self.steps >= self.kill_at:
            raise Killed
        self.steps += 1

    def _name(self, path: Path) -> str:
        return os.path.relpath(path, self.root)


class Quick(Files):
    """A file layer for looking at a state that is thrown away afterwards: nothing need be durable."""

    def sync(self, fd: int) -> None:
        pass


# ---- the disk --------------------------------------------------------------------------------------------------------

Tree: TypeAlias = dict[str, bytes | None]  # path → content; None for a folder


class Node:
    """A file or folder, whatever its names; `durable` is what is sure to be there."""

    def __init__(self, *, folder: bool) -> None:
        self.folder = folder
        self.durable = b""
        self.content = b""
        self.entries: dict[str, Node] = {}  # durable ones
        self.names: dict[str, Node] = {}  # as processes see them

    def variants(self) -> list[bytes]:
        """What may be found in the file after a crash."""
        full = self.content
        if full == self.durable:
            return [full]
        size = len(full)
        cuts = [full[:at] for at in (*range(1, size, 16), size - 79, size - 78, size - 1)]
        tails = [full[:at] + bytes(size - at) for at in range(0, size, 32)]
        blocks = [full[:at] + bytes(len(full[at : at + 32])) + full[at + 32 :] for at in range(0, size, 32)]
        return list(dict.fromkeys([full, self.durable, *cuts, *tails, *blocks]))


class Change(Struct):
    """Changes of names that come together; a later part may still be missing when an earlier one is there."""

    parts: list[list[tuple[Node, str, Node | None]]]

    def done(self, folder: Node) -> None:
        """A folder was synced: what is in it is durable, and so is all that must be there before."""
        while any(place is folder for part in self.parts for place, _, _ in part):
            for place, name, node in self.parts.pop(0):
                _put(place.entries, name, node)


def _put(entries: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        entries.pop(name, None)
    else:
        entries[name] = node


class Disk:
    """What the steps make of an empty folder."""

    def __init__(self) -> None:
        self.root = Node(folder=True)
        self.unsynced: list[Change] = []
        self._open: dict[int, Node] = {}

    def play(self, step: Step) -> None:
        match step:
            case Create(handle=handle, path=path):
                folder, name = self._place(path)
                node = folder.names.get(name)
                if node is None:
                    node = Node(folder=False)
                    self._change([[(folder, name, node)]])
                node.content = b""
                self._open[handle] = node
            case OpenFolder(handle=handle, path=path):
                self._open[handle] = self._find(path)
            case Append(handle=handle, data=data):
                self._open[handle].content += data
            case Sync(handle=handle):
                node = self._open[handle]
                node.durable = node.content
                if node.folder:
                    for change in self.unsynced:
                        change.done(node)
                    self.unsynced = [change for change in self.unsynced if change.parts]
            case Rename(path=path, target=target):
                source, old = self._place(path)
                folder, name = self._place(target)
                away, there = (source, old, None), (folder, name, source.names[old])
                self._change([[there, away]] if source is folder else [[there], [away]])
            case Unlink(path=path):
                folder, name = self._place(path)
                self._change([[(folder, name, None)]])
            case Mkdir(path=path):
                folder, name = self._place(path)
                self._change([[(folder, name, Node(folder=True))]])
            case Spoiled(path=path, data=data):
                node = self._find(path)
                node.content = node.durable = data
            case _:
                pass

    def states(self) -> Iterator[Tree]:
        """Every state in which the disk may be found if the power goes now."""
        assert len(self.unsynced) <= MOST_UNSYNCED, f"{len(self.unsynced)} changes of names are not synced"
        for choice in itertools.product(*(range(len(change.parts) + 1) for change in self.unsynced)):
            entries: dict[Node, dict[str, Node]] = {}
            for change, count in zip(self.unsynced, choice, strict=True):
                for place, name, node in itertools.chain(*change.parts[:count]):
                    _put(entries.setdefault(place, dict(place.entries)), name, node)
            tree: dict[str, Node] = {}
            _collect(self.root, "", entries, tree)
            torn = {path: node.variants() for path, node in tree.items() if not node.folder}
            for contents in itertools.product(*torn.values()):
                yield {path: None for path, node in tree.items() if node.folder} | dict(
                    zip(torn, contents, strict=True)
                )

    def _change(self, parts: list[list[tuple[Node, str, Node | None]]]) -> None:
        for folder, name, node in itertools.chain(*parts):
            _put(folder.names, name, node)
        self.unsynced.append(Change(parts))

    def _find(self, path: str) -> Node:
        node = self.root
        for name in Path(path).parts:
            node = node.names[name]
        return node

    def _place(self, path: str) -> tuple[Node, str]:
        return self._find(str(Path(path).parent)), Path(path).name


def _collect(folder: Node, prefix: str, entries: dict[Node, dict[str, Node]], tree: dict[str, Node]) -> None:
    for name, node in entries.get(folder, folder.entries).items():
        tree[prefix + name] = node
        if node.folder:
            _collect(node, f"{prefix}{name}/", entries, tree)


def crash_states(trace: list[Step]) -> Iterator[tuple[int, Tree]]:
    """All distinct states that a crash can leave: how many steps of the trace were taken, and what is then found."""
    disk = Disk()
    marks = 0  # what was asked or answered makes the same files another state
    seen: set[tuple[int, frozenset[tuple[str, bytes | None]]]] = set()
    for taken in range(len(trace) + 1):
        if taken:
            disk.play(trace[taken - 1])
            marks += isinstance(trace[taken - 1], Begun | Acknowledged | Spoiled)
        for tree in disk.states():
            state = (marks, frozenset(tree.items()))
            if state not in seen:
                seen.add(state)
                yield taken, tree


def build(tree: Tree, root: Path) -> None:
    """Make a state real, in a folder that exists."""
    for path in sorted(tree):
        content = tree[path]
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


# ---- scenarios -------------------------------------------------------------------------------------------------------

WORKER = "matches-0"


class Scenario:
    """A store at work on a recorded disk.

    Args:
        root: An empty folder, the state folder.
        files: The recorder.
    """

    def __init__(self, root: Path, files: Recorder) -> None:
        self.root = root
        self.files = files
        self.store = CheckpointFiles(root, files, clock=lambda: 1_777_636_800.0)

    def save(self, state: str, *, run: int = 1, retention: int = 3, gzip: bool = False) -> StateSaved:
        answer = self._perform(
            SaveState(0, WORKER, run, "x/1", Raw(state.encode()), 0, 0, 0, retention, "gzip" if gzip else "none")
        )
        assert isinstance(answer, StateSaved)
        return answer

    def load(self, fresh_from: int = 1, generation: int | None = None) -> StateLoaded:
        answer = self._perform(LoadState(0, WORKER, fresh_from, generation))
        assert isinstance(answer, StateLoaded)
        return answer

    def restore(self, generation: int) -> None:
        """What `checkpoint restore` has the store do."""
        found = self.load(generation=generation)
        assert found.found == "sound"
        self.save(bytes(found.state).decode(), run=found.run)

    def spoil(self, generation: int) -> None:
        """Flip a bit of a file, on the disk itself."""
        (path,) = (self.root / "checkpoints" / WORKER).glob(f"checkpoint-{generation:012d}.json*")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        self.files.trace.append(Spoiled(os.path.relpath(path, self.root), bytes(data), generation))

    def restart(self) -> None:
        """Another process takes over."""
        self.files.revive()
        self.store = CheckpointFiles(self.root, self.files, clock=lambda: 1_777_636_800.0)

    def _perform(self, op: StateOp) -> StateSaved | StateLoaded:
        self.files.trace.append(Begun(op))
        answer = self.store.perform(op)
        self.files.trace.append(Acknowledged(op, answer))
        return answer
