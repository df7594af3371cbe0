"""What a worker's folder has to remember beside its checkpoints: what is set aside, and what a fresh run left behind.

Without it, a worker whose only files were damaged would start from nothing once these are moved or deleted; and after
`start --fresh` a damaged file could not be told from one that the fresh run wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from scraper_supervisor.core.formats import checkpoint_file as sealed
from scraper_supervisor.core.formats.checkpoint_file import Damaged
from scraper_supervisor.store.files import Files, NotAFile

if TYPE_CHECKING:
    from pathlib import Path

MARK: Final = "mark.json"  # sealed like a checkpoint


class GenerationMark(Struct, frozen=True):
    """What is remembered; a folder without one has only known its first run, and no damage."""

    fresh_from: int = 1  # the run from which on states count, when the worker last asked for its own
    before: int = 0  # files up to this generation were there when it first asked so: they are of earlier runs
    damaged: bool = False  # a later one was set aside: without a sound file the worker must not start from nothing
    newest: int = 0  # no generation up to this one is given again, whatever becomes of what was set aside


def read_mark(files: Files, folder: Path) -> GenerationMark | None:
    """The folder's mark; None if it has none.

    Raises:
        Damaged: It is not sound.
        OSError: It cannot be read.
    """
    try:
        text, _ = sealed.content(files.read(folder / MARK))
        return msgspec.json.decode(bytes(text) + b"}", type=GenerationMark)
    except FileNotFoundError:
        return None
    except NotAFile as error:
        raise Damaged(f"it is {error.kind}, expected a file") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"the checksum fits, but the content is no mark: {error}") from error


def write_mark(files: Files, folder: Path, mark: GenerationMark) -> None:
    """Write the folder's mark durably.

    Raises:
        OSError: The disk refused.
    """
    files.make_folder(folder)
    files.write(folder / MARK, [sealed.seal_object(mark)])
