"""The workers' socket: what only the transport can know."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from scraper_supervisor.core.events import Disconnected, Event, Said
from scraper_supervisor.daemon.worker_socket import WorkerSocket
from scraper_worker.protocol import MAX_LINE_BEFORE_HELLO, TOO_LARGE

if TYPE_CHECKING:
    from pathlib import Path


class Peer:
    """A client of the socket, and the hub's other side: what the hub heard is in `heard`."""

    def __init__(self, path: Path, limit: int) -> None:
        self.heard: asyncio.Queue[Event] = asyncio.Queue()
        self.hub = WorkerSocket(path, self.heard.put_nowait, limit)

    async def connect(self) -> None:
        await self.hub.listen()
        self.reader, self.writer = await asyncio.open_unix_connection(self.hub.path)

    def call(self, method: str, size: int = 0, **params: Any) -> None:
        line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        self.writer.write(line.ljust(size).encode() + b"\n")

    async def welcome(self) -> int:
        """Say hello and have it found good; the connection's number."""
        self.call("hello", protocol=1, worker="g-0", token="t", client="x/1")
        said = await self.heard.get()
        assert isinstance(said, Said)
        assert said.call is not None
        self.hub.introduce(said.conn)
        self.hub.reply(said.conn, said.call, {})
        await self.reader.readline()
        return said.conn

    async def close(self) -> None:
        self.writer.close()
        await self.hub.close()


async def test_a_changed_limit_of_lines_holds_on_open_connections(tmp_path: Path) -> None:
    peer = Peer(tmp_path / "worker.sock", 200_000)
    await peer.connect()
    conn = await peer.welcome()
    peer.hub.limit_lines(400_000)
    peer.call("item.next", size=300_000)
    said = await peer.heard.get()
    assert isinstance(said, Said)
    peer.hub.limit_lines(100_000)
    peer.call("item.next", size=150_000)
    assert json.loads(await peer.reader.readline())["error"]["code"] == TOO_LARGE
    assert await peer.heard.get() == Disconnected(conn)
    await peer.close()


async def test_before_hello_the_limit_stays_small(tmp_path: Path) -> None:
    peer = Peer(tmp_path / "worker.sock", 200_000)
    await peer.connect()
    peer.call("no.such")  # answered: the connection is open when the limit changes
    await peer.reader.readline()
    peer.hub.limit_lines(400_000)
    peer.call("hello", size=MAX_LINE_BEFORE_HELLO + 1)
    assert json.loads(await peer.reader.readline())["error"]["code"] == TOO_LARGE
    await peer.close()
