"""Why the daemon cannot start, told so that somebody can do something about it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from scraper_supervisor.store.errors import LedgerTooNew, NetworkFileSystem, StoreError

if TYPE_CHECKING:
    from collections.abc import Generator

EX_DATA: Final = 65  # the ledger does not open
EX_CONFIG: Final = 78  # the configuration can't be used


class CannotStart(Exception):
    """The daemon can't start; the message says why and what to do. `code` is the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def start_refused() -> Generator[None]:
    """Turns what the store and the folders refuse into why the daemon cannot start.

    Raises:
        CannotStart: the ledger does not open, or a folder can't be made.
    """
    try:
        yield
    except StoreError as error:
        hint = "; 'scraper-supervisor checkpoint restore --ledger' brings back the newest sound backup"
        in_place = isinstance(error, LedgerTooNew | NetworkFileSystem)  # nothing is damaged
        raise CannotStart(f"{error}{'' if in_place else hint}", EX_DATA) from None
    except OSError as error:
        raise CannotStart(f"{error.filename}: {error.strerror}") from None
    except RuntimeError as error:  # the interpreter's word for a thread that the host refuses
        raise CannotStart(
            f"{error}: the host's limit of processes and threads is reached (pids.max, ulimit -u)"
        ) from None
