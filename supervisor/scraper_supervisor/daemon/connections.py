"""Unix sockets that we listen on, and their peers: lines framed, limited and answered.

A peer that does not read its answers is not read from.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

from scraper_worker import jsonrpc, protocol
from scraper_worker.jsonrpc import Framer, LineTooLong, RpcError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scraper_worker.protocol import CallId

_PEERCRED: Final = struct.Struct("3i")


def peer_of(transport: asyncio.BaseTransport) -> tuple[int, int]:
    """The PID and the user number of the process at the other end of a Unix socket, as the kernel noted them."""
    sock: socket.socket = transport.get_extra_info("socket")
    pid, uid, _ = _PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return pid, uid


# Of one connection: nothing that it sends holds the others up. Without the pause, a peer that sends without end would
# keep the loop busy, and the threads of the store waiting for the interpreter.
LINES_A_TURN: Final = 32
TURN_PAUSE: Final = 0.002  # seconds
MOST_IDLE: Final = 256  # connections that may be open and ask for nothing


class Connection(asyncio.Protocol):
    """One peer: lines in, lines out."""

    def __init__(self, number: int, limit: int) -> None:
        self.number = number
        self.framer = Framer(limit)
        self.transport: asyncio.Transport | None = None
        self.calls: dict[int, CallId] = {}
        self._lines: deque[bytes | bytearray] = deque()  # framed, and not handled yet
        self._held_by: set[str] = set()  # why nothing is read from the peer
        self._hung_up = False

    @property
    def idle(self) -> bool:
        """True if the peer waits for no answer."""
        return not self.calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's transports are none of asyncio's classes

    def data_received(self, data: bytes) -> None:
        """Take bytes; a line over the limit ends the connection."""
        try:
            self._lines.extend(self.framer.feed(data))
        except LineTooLong:
            self._take(len(self._lines))
            self.send(
                jsonrpc.encode_error(None, RpcError(protocol.TOO_LARGE, f"a line over {self.framer.limit} bytes"))
            )
            self.hang_up()
            return
        if "turn" not in self._held_by:  # else it is this connection's turn soon
            self._take_turn()

    def _take_turn(self) -> None:
        """Handle some lines; the rest after a moment."""
        self._take(LINES_A_TURN)
        if self._lines:
            self.hold_reading("turn")
            asyncio.get_running_loop().call_later(TURN_PAUSE, self._take_turn)
        else:
            self.go_on_reading("turn")

    def _take(self, most: int) -> None:
        for _ in range(min(most, len(self._lines))):
            if self._hung_up:
                self._lines.clear()
                return
            self.line_received(self._lines.popleft())

    def take_rest(self) -> None:
        """The peer is gone: what it said before counts all the same."""
        self._take(len(self._lines))

    def line_received(self, line: bytes | bytearray) -> None:
        """Take one line."""
        raise NotImplementedError

    def hold_reading(self, why: str) -> None:
        """Read nothing more from the peer for this reason."""
        self._held_by.add(why)
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def go_on_reading(self, why: str) -> None:
        """This reason is over; read again if it was the last one."""
        if why not in self._held_by:
            return
        self._held_by.discard(why)
        if not self._held_by and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """The peer does not read: do not read from it either."""
        self.hold_reading("unread")

    def resume_writing(self) -> None:
        """The peer reads again."""
        self.go_on_reading("unread")

    def send(self, line: bytes) -> None:
        """Send a line, if there still is a peer."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(line)

    def hang_up(self) -> None:
        """Close, after what was sent."""
        self._hung_up = True
        if self.transport is not None:
            self.transport.close()

    def answer(self, call: int, result: Any) -> None:
        """Answer an open call."""
        if call in self.calls:
            self.send(jsonrpc.encode_result(self.calls.pop(call), result))

    def refuse(self, call: int, error: RpcError) -> None:
        """Answer an open call with an error."""
        if call in self.calls:
            self.send(jsonrpc.encode_error(self.calls.pop(call), error))


class Crowd:
    """Connections that nobody needs yet: over a number, the one that has been idle for longest gives way.

    Each costs a descriptor; who opens hundreds and says nothing must leave some for those who have something to say.
    """

    def __init__(self, most: int = MOST_IDLE) -> None:
        self._most = min(most, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._members: dict[int, Connection] = {}

    def add(self, connection: Connection) -> None:
        """It is new; another one may have to give way."""
        self._members[connection.number] = connection
        if len(self._members) > self._most:
            oldest = next((one for one in self._members.values() if one.idle and one is not connection), None)
            if oldest is not None:
                self.remove(oldest)
                oldest.hang_up()

    def remove(self, connection: Connection) -> None:
        """It is known by now, or gone."""
        self._members.pop(connection.number, None)


class Listener:
    """A listening Unix socket in a folder that is ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server: asyncio.Server | None = None
        self._identity: tuple[int, int] | None = None  # device and inode of the socket while we listen
        self._numbers = 0

    async def open(self, make: Callable[[], asyncio.Protocol], mode: int) -> None:
        """Listen; the folder is locked by us, so what lies at the path is a dead daemon's."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(self.path))  # for us alone, by our umask
            os.chmod(self.path, mode)
            server = await asyncio.get_running_loop().create_unix_server(make, sock=sock, backlog=512)
        except BaseException:
            sock.close()
            raise
        if self._server is not None:
            self._server.close()  # nobody can reach it any more; its connections stay
        self._server, self._identity = server, _identity(self.path)

    def in_place(self) -> bool:
        """True if who follows the path comes to us."""
        return self._identity is None or _identity(self.path) == self._identity

    def number(self) -> int:
        """A new connection's number."""
        self._numbers += 1
        return self._numbers

    async def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        with contextlib.suppress(OSError):
            if self.in_place():
                os.unlink(self.path)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
