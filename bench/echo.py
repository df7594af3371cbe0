"""The bare echo: the wire with nothing behind it. Run by the store's benchmark as `python echo.py SOCKET`.

The same two messages are framed, decoded and answered by the code that the daemon uses (uvloop, msgspec), and
forgotten.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop
from msgspec import Raw

from scraper_worker import jsonrpc, protocol
from scraper_worker.jsonrpc import Framer, Request
from scraper_worker.protocol import DoneAnswer, Granted


class Echo(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._framer = Framer(protocol.MAX_LINE)
        self._count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._write = cast("asyncio.Transport", transport).write

    def data_received(self, data: bytes) -> None:
        """Answer what has come."""
        for line in self._framer.feed(data):
            message = jsonrpc.decode_line(line)
            if not isinstance(message, Request) or not isinstance(message.id, int):
                raise SystemExit(f"not a request: {line!r}")
            jsonrpc.decode_params(protocol.WORKER_METHODS[message.method], message.params)
            self._count += 1
            result: Granted | DoneAnswer = DoneAnswer(self._count, False)
            if message.method == "item.next":
                result = Granted(f"https://example.com/match/{self._count:08d}", self._count, None, Raw(b"null"), 1)
            self._write(jsonrpc.encode_result(message.id, result))


async def serve(path: str) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_unix_server(Echo, path, backlog=512)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
