"""The console's end of the control socket: one request, one answer, in order."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from scraper_worker.jsonrpc import Framer, LineTooLong, Response, decode_line, encode_request

if TYPE_CHECKING:
    from types import TracebackType

CONNECT_TIMEOUT: Final = 5.0  # seconds to be let in
ANSWER_TIMEOUT: Final = 30.0  # seconds for an answer that waits for nothing
MAX_ANSWER: Final = 1024 * 1024 * 1024  # bytes; the claims of a large fleet are one line
_CHUNK: Final = 1024 * 1024


class NoDaemon(Exception):
    """No daemon answers; the message names the socket."""


class Denied(Exception):
    """The daemon refused a request; the message says why, `data` is what it added."""

    def __init__(self, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.data = data


class Client:
    """A connection to the daemon; a context manager.

    Args:
        path: of the control socket.

    Raises:
        NoDaemon: nobody listens there, or not to us.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._framer = Framer(MAX_ANSWER)
        self._call = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(CONNECT_TIMEOUT)
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise NoDaemon(_reason(path, error)) from None
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", credentials)
        self.pid: Final[int] = pid  # 0 if it is in a namespace that we do not see
        self.uid: Final[int] = uid

    def call(self, method: str, timeout: float | None = ANSWER_TIMEOUT, **params: Any) -> Any:
        """Ask for something and wait for the answer.

        Args:
            method: what to do.
            timeout: seconds that the answer may take, None for as long as it takes.
            params: the request's.

        Raises:
            Denied: the daemon refused.
            NoDaemon: it is gone, or does not answer in time.
        """
        self._call += 1
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(encode_request(method, params, self._call))
            while True:
                for line in self._framer.feed(self._receive(deadline)):
                    answer = decode_line(line)
                    if isinstance(answer, Response) and answer.id in (self._call, None):
                        return _result(answer)
        except TimeoutError:
            raise NoDaemon(f"{self.path}: the daemon did not answer within {timeout:g} s") from None
        except (OSError, LineTooLong) as error:
            raise NoDaemon(f"{self.path}: the connection to the daemon broke: {error}") from None

    def _receive(self, deadline: float | None) -> bytes:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
        data = self._socket.recv(_CHUNK)
        if not data:
            raise NoDaemon(f"{self.path}: the daemon ended before it answered")
        return data

    def serves(self, state_dir: str) -> str | None:
        """The state folder that the daemon serves, if that is another one than `state_dir`; None if it is the same.

        Raises:
            NoDaemon: it does not answer.
        """
        try:
            owner = self.call("owner")
        except Denied:  # an older daemon, which does not tell
            return None
        with contextlib.suppress(OSError):
            ours = os.stat(state_dir)
            if (ours.st_dev, ours.st_ino) == (owner["device"], owner["inode"]):
                return None
        return None if owner["state_dir"] == state_dir else str(owner["state_dir"])

    def stop(self, *, wait: bool) -> None:
        """Have the daemon drain and end, and wait until it is gone unless told otherwise.

        Raises:
            NoDaemon: it does not answer.
        """
        process = _process(self.pid)
        try:
            self.call("stop")
            if wait:
                self._wait_gone(process)
        finally:
            if process is not None:
                os.close(process)

    def _wait_gone(self, process: int | None) -> None:
        self._socket.settimeout(None)
        with contextlib.suppress(ConnectionError):  # that it is closed is what we wait for
            while self._socket.recv(_CHUNK):
                pass
        if process is not None:
            select.select([process], [], [])

    def close(self) -> None:
        """Close the connection; harmless when already done."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _process(pid: int) -> int | None:
    """A descriptor that is readable once the process has ended; None if the process is not to be seen."""
    try:
        return os.pidfd_open(pid) if pid > 0 else None
    except OSError:
        return None


def _result(answer: Response) -> Any:
    if answer.error is not None:
        raise Denied(answer.error.message, answer.error.data)
    return None if answer.result is None else msgspec.json.decode(answer.result)


def _reason(path: str, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"{path}: the daemon's socket is not open to this user; try as its own user, or set control_group"
    if isinstance(error, TimeoutError | BlockingIOError):
        return f"{path}: the daemon does not take the connection"
    detail = "no socket there" if isinstance(error, FileNotFoundError) else (error.strerror or str(error)).lower()
    return f"no daemon answers at {path} ({detail}); start it with: scraper-supervisor run"
