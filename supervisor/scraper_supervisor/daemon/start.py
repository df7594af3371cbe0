"""The way in: the folders locked, the log set up, and the loop run until the daemon leaves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import structlog
import uvloop
from msgspec import Struct

from scraper_supervisor.daemon.app import DaemonApp
from scraper_supervisor.daemon.progress import Ended
from scraper_supervisor.daemon.refusal import CannotStart, start_refused
from scraper_supervisor.daemon.signals import Signals
from scraper_supervisor.daemon.telling.log import configure_logging
from scraper_supervisor.daemon.upkeep.surroundings import take_over
from scraper_supervisor.store.errors import Locked
from scraper_supervisor.store.folders import note_runtime_dir, tighten
from scraper_supervisor.store.locks import FolderLock

if TYPE_CHECKING:
    from scraper_supervisor.core.fleet_state import Mode
    from scraper_supervisor.store.config_file import Loaded

__all__ = ["CannotStart", "Ended", "Screen", "run"]
_log = structlog.get_logger()


class Screen(Struct, frozen=True):
    """Where the log goes; and who is given the groups, each second, to show how far the work is."""

    stream: TextIO
    shown: Callable[[list[dict[str, Any]]], None] | None = None


def run(loaded: Loaded, *, once: bool = False, fresh: bool = False, screen: Screen | None = None) -> Ended:
    """Run the daemon until it leaves.

    Args:
        loaded: the configuration and its folders.
        once: end when nothing is left to do.
        fresh: begin a new run of every group.
        screen: where it shows itself; None: the log goes to stderr.

    Returns:
        How it ended.

    Raises:
        CannotStart: before anything was started.
    """
    signals = Signals()
    try:
        return _run(loaded, signals, screen or Screen(sys.stderr), once=once, fresh=fresh)
    finally:
        signals.ignore()


def _run(loaded: Loaded, signals: Signals, screen: Screen, *, once: bool, fresh: bool) -> Ended:
    mode: Mode = "fresh" if fresh else ("next" if once else "continue")
    given = take_over()
    locks: list[FolderLock] = []
    state_dir, runtime_dir = Path(loaded.folders.state_dir), Path(loaded.folders.runtime_dir)
    try:
        for folder in dict.fromkeys((state_dir, runtime_dir)):
            folder.mkdir(parents=True, exist_ok=True)
            locks.append(FolderLock(folder))
        loose = tighten(state_dir)
    except Locked as error:
        if error.command is not None:
            raise CannotStart(f"{error}; start when it is done") from None
        hint = "" if error.folder == state_dir else "; a second project needs a runtime_dir of its own in [supervisor]"
        raise CannotStart(f"another supervisor is running: {error}{hint}") from None
    except OSError as error:
        raise CannotStart(f"{error.filename}: {error.strerror}") from None
    supervisor = loaded.settings.supervisor
    with start_refused():
        log = configure_logging(supervisor.log_level, supervisor.log_format, screen.stream)
    for told in loose:
        _log.warning(told)
    try:
        note_runtime_dir(state_dir, loaded.folders.runtime_dir)
    except OSError as error:  # a full disk: whoever shares our environment finds the sockets all the same
        _log.warning(f"the runtime folder can't be noted for commands: {error.strerror}", path=str(state_dir))

    async def serve() -> Ended:
        app = DaemonApp(loaded, log, signals, locks[-1], given, once=once, mode=mode, shown=screen.shown)
        return await app.main()

    try:
        return uvloop.run(serve())
    finally:
        log.close()
        for lock in locks:
            lock.close()
