"""How systemd is told how we are, where it asks."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping


class Notifier:
    """Tells systemd how we are, if it asked (`NOTIFY_SOCKET`). A message that cannot be sent at once is dropped.

    Each method returns whether the message was sent.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._socket: socket.socket | None = None
        if self._address[:1] in ("\0", "/"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._watchdog = _watchdog_seconds(environ) if self._socket is not None else None
        self._beat: asyncio.TimerHandle | None = None

    @property
    def is_heard(self) -> bool:
        """True if systemd asked to be told."""
        return self._socket is not None

    def ready(self, status: str = "") -> bool:
        """We serve; also the end of a reload."""
        return self._send("READY=1", *_status(status))

    def reloading(self) -> bool:
        """A reload begins; `ready` ends it."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "") -> bool:
        """We drain or stop."""
        return self._send("STOPPING=1", *_status(status))

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self._send(*_status(text))

    def start_watchdog(self, loop: asyncio.AbstractEventLoop) -> None:
        """Feed the watchdog from the loop at half its time, if there is one: a loop that hangs lets it bite."""
        if self._watchdog is not None:
            self._send("WATCHDOG=1")
            self._beat = loop.call_later(self._watchdog / 2, self.start_watchdog, loop)

    def close(self) -> None:
        """Fall silent."""
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> bool:
        if self._socket is None or not lines:
            return False
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError:  # nobody listens, or the receiver is slow: a notification is worth no delay
            return False
        return True


def _status(text: str) -> tuple[str, ...]:
    return (f"STATUS={' '.join(text.split())}",) if text else ()


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """The watchdog's time; None if there is none, or it is meant for another process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        seconds = int(environ.get("WATCHDOG_USEC", "0")) / 1e6
    except ValueError:
        return None
    return seconds if seconds > 0 else None
