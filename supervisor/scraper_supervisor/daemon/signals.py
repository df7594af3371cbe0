"""The signals that steer the daemon: ours from the first line on, and to the process's last."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """Keeps SIGTERM, SIGINT and SIGHUP until somebody can act upon them; nothing is done in the handlers themselves.

    Not loop.add_signal_handler: uvloop restores the default actions when it closes, and a signal that is repeated while
    we end would kill us. To be made in the main thread; `__main__` has blocked the signals before, with `run`.
    """

    def __init__(self) -> None:
        self._waiting: dict[signal.Signals, None] = {}  # before anybody acts upon them: each once, in order
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_signal: Callable[[signal.Signals], None] | None = None
        for number in SIGNALS:
            signal.signal(number, self._came)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def pass_on(self, loop: asyncio.AbstractEventLoop, on_signal: Callable[[signal.Signals], None]) -> None:
        """Call `on_signal` on the loop for each from now on, and for those that came before."""
        self._loop, self._on_signal = loop, on_signal
        while self._waiting:
            number = next(iter(self._waiting))
            del self._waiting[number]
            loop.call_soon(on_signal, number)

    def stop(self) -> None:
        """Act upon none any more: we are on the way out."""
        self._loop = self._on_signal = None

    def ignore(self) -> None:
        """Have the system drop them, for the interpreter restores the default actions before the process is gone."""
        self.stop()
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _came(self, signum: int, _frame: object) -> None:
        number = signal.Signals(signum)
        if self._loop is None or self._on_signal is None:
            self._waiting[number] = None
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed, which is what they would have led to
            self._loop.call_soon_threadsafe(self._on_signal, number)
