"""The signals that steer the daemon."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """Passes SIGTERM, SIGINT and SIGHUP to `on_signal` on the loop; nothing is done in the handlers themselves."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_signal: Callable[[signal.Signals], None]) -> None:
        self._loop = loop
        for number in SIGNALS:
            loop.add_signal_handler(number, on_signal, number)

    def close(self) -> None:
        """Restore the default actions."""
        for number in SIGNALS:
            self._loop.remove_signal_handler(number)
