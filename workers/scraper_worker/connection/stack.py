"""Where the main thread stands, written down when the supervisor asks for it, before it kills a hung worker.

A worker whose event loop is blocked can answer no call. Its supervisor sends a real-time signal, whose handler is in C
and needs neither the loop nor the interpreter's lock, and reads what that wrote.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
from typing import TYPE_CHECKING, Final

from scraper_worker.protocol import ENV_SOCKET, STACK_FILE, STACK_SIGNAL

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger("scraper_worker")

_NEVER_CLOSED: Final[list[int]] = []


def tell_on_signal(environment: Mapping[str, str] = os.environ) -> None:
    """From now on, write down where the main thread stands at each signal. Without a supervisor nothing is done.

    Args:
        environment: names the supervisor's socket and this incarnation's TMPDIR, where the supervisor looks.
    """
    folder = environment.get("TMPDIR")
    if not environment.get(ENV_SOCKET) or folder is None or _NEVER_CLOSED:
        return
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        handle = os.open(os.path.join(folder, STACK_FILE), flags, 0o600)
        faulthandler.register(signal.SIGRTMIN + STACK_SIGNAL, handle, all_threads=False, chain=False)
    except (OSError, ValueError, RuntimeError) as error:  # a full disk, say: a hang is told without its stack then
        log.debug("where this worker hangs can't be told: %r", error)
        return
    _NEVER_CLOSED.append(handle)
