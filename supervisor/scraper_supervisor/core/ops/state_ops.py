"""What is asked of the checkpoint files of the workers, and what they answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from msgspec import Raw, Struct

from scraper_supervisor.core.ops.operation import Operation

if TYPE_CHECKING:
    from scraper_supervisor.core.config.settings import Compression


class StateSaved(Struct, frozen=True):
    """`seconds` is how long it took; `removed` are the generations that retention removed."""

    generation: int
    sha256: str
    saved_at: str
    seconds: float
    bytes: int
    removed: tuple[int, ...]


class SlotsFull(Struct, frozen=True):
    """Nothing was saved: the slot is a new one, and the worker has as many as it may have."""

    slots: tuple[str, ...]


class SaveState(Operation[StateSaved | SlotsFull], frozen=True):
    """Write a worker's state as its next generation: the main one, or that of a slot."""

    worker: str
    run: int
    schema: str
    state: Raw
    pending: int
    done: int
    failed: int
    retention: int
    compression: Compression
    slot: str | None = None


class Damage(Struct, frozen=True):
    """A file that was moved to corrupt/, and why."""

    path: str
    reason: str


class StateLoaded(Struct, frozen=True):
    """`found` tells a worker without any file ("none") from one whose files are all damaged ("damaged").

    "unknown" is the answer for a `generation` that does not exist; "newer" for a file that a later version wrote, which
    stays where it is: `reason` says what to do. For these, and a damaged `generation`, `there` are the other ones.
    """

    found: Literal["sound", "none", "damaged", "unknown", "newer"]
    generation: int = 0
    run: int = 0
    schema: str = ""
    saved_at: str = ""
    state: Raw = Raw(b"null")
    damage: tuple[Damage, ...] = ()
    reason: str = ""
    there: tuple[int, ...] = ()


class LoadState(Operation[StateLoaded], frozen=True):
    """The newest sound state of a run from `fresh_from` on, or the one of `generation`."""

    worker: str
    fresh_from: int
    generation: int | None = None
    slot: str | None = None


class ProbeFolder(Operation[None], frozen=True):
    """Learn whether a worker's folder, or a slot's, takes a file of `room` bytes again."""

    worker: str
    room: int
    slot: str | None = None


StateOp: TypeAlias = SaveState | LoadState | ProbeFolder


def state_of_whom(worker: str, slot: str | None) -> str:
    """How a worker's state is called to people: the main one by the worker's name."""
    return worker if slot is None else f"{worker} (slot {slot})"
