"""Unix sockets that we listen on, and their peers: lines framed, limited and answered.

A peer that does not read its answers is not read from.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any, cast

from scraper_worker import jsonrpc, protocol
from scraper_worker.jsonrpc import Framer, LineTooLong, RpcError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scraper_worker.protocol import CallId


class Connection(asyncio.Protocol):
    """One peer: lines in, lines out."""

    def __init__(self, number: int, limit: int) -> None:
        self.number = number
        self.framer = Framer(limit)
        self.transport: asyncio.Transport | None = None
        self.calls: dict[int, CallId] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's transports are none of asyncio's classes

    def data_received(self, data: bytes) -> None:
        """Take bytes; a line over the limit ends the connection."""
        try:
            lines = self.framer.feed(data)
        except LineTooLong:
            self.send(
                jsonrpc.encode_error(None, RpcError(protocol.TOO_LARGE, f"a line over {self.framer.limit} bytes"))
            )
            self.hang_up()
            return
        for line in lines:
            if self.transport is None or self.transport.is_closing():
                return
            self.line_received(line)

    def line_received(self, line: bytes | bytearray) -> None:
        """Take one line."""
        raise NotImplementedError

    def pause_writing(self) -> None:
        """The peer does not read: do not read from it either."""
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        """The peer reads again."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def send(self, line: bytes) -> None:
        """Send a line, if there still is a peer."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(line)

    def hang_up(self) -> None:
        """Close, after what was sent."""
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


class Listener:
    """A listening Unix socket in a folder that is ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server: asyncio.Server | None = None
        self._numbers = 0

    async def open(self, make: Callable[[], asyncio.Protocol], mode: int) -> None:
        """Listen; the folder is locked by us, so what lies at the path is a dead daemon's."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(str(self.path))
        finally:
            os.umask(before)
        self._server = await asyncio.get_running_loop().create_unix_server(make, sock=sock, backlog=512)

    def number(self) -> int:
        """A new connection's number."""
        self._numbers += 1
        return self._numbers

    async def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
