"""When the ledger is backed up: on a thread of its own that pauses between its steps.

Not one of lower priority: beside busy browsers it would be put off while it holds the interpreter, and the loop too.
"""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from typing import TYPE_CHECKING, Final

import structlog

from scraper_supervisor.store import maintenance
from scraper_supervisor.store.errors import BackupStopped, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scraper_supervisor.store.opening import LedgerLocation

SOON: Final = (10.0, 60.0, 300.0)  # seconds to wait for each of the first ones; the first two are for small ledgers
EVERY: Final = 3600.0  # seconds
_EARLY: Final = 2
_log = structlog.get_logger()


class Backups:
    """Backs the ledger up, if something changed and the disk has room for it. A failure is logged, and harms nothing.

    Args:
        where: The location, at which this process has the ledger open for writing.
        reserve: Bytes that must stay free on the disk.
        soon: Seconds to wait for each of the first backups; after them there is one every `EVERY`.
    """

    def __init__(self, where: LedgerLocation, reserve: Callable[[], int | None], soon: Iterable[float] = SOON) -> None:
        self._where = where
        self._reserve = reserve
        self._waits = itertools.chain(soon, itertools.repeat(EVERY))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="backups", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Give up what is being made, and end; blocks meanwhile. To be called before the ledger is closed."""
        self._stopping.set()
        self._thread.join()

    def make_last(self) -> None:
        """Back a small ledger up once more after it was closed; blocks meanwhile."""
        self._stopping.clear()
        self._make(only_small=True)

    def _work(self) -> None:
        for number, wait in enumerate(self._waits):
            if self._stopping.wait(wait):
                return
            self._make(only_small=number < _EARLY)

    def _make(self, *, only_small: bool) -> None:
        began = time.monotonic()
        try:
            if only_small and not maintenance.is_small(self._where):
                return
            maintenance.remove_unfinished(self._where)
            if not maintenance.backup_is_due(self._where) or not self._has_room():
                return
            made = maintenance.back_up(self._where, self._stopping)
            damaged = maintenance.prune_backups(self._where)
        except BackupStopped as stopped:
            _log.info(str(stopped))
        except (StoreError, OSError) as error:
            _log.error("the ledger was not backed up", reason=str(error))
        except Exception:  # noqa: BLE001 - else there would be no backup any more, or the end of the daemon be cut off
            _log.exception("the ledger was not backed up")
        else:
            seconds = round(time.monotonic() - began, 1)
            _log.info("the ledger was backed up", path=str(made), seconds=seconds)
            for path in damaged:
                _log.error("a backup of the ledger was damaged, and put aside", path=str(path))

    def _has_room(self) -> bool:
        free, size = shutil.disk_usage(self._where.state_dir).free, maintenance.ledger_size(self._where)
        reserve = self._reserve() or 0
        if free - size >= reserve and free >= 2 * size:
            return True
        reason = f"{free} bytes are free, it has {size} and {reserve} stay free"
        _log.warning("the ledger was not backed up", reason=reason)
        return False
