"""The workers' socket: what only the transport can know."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from scraper_supervisor.core.events import Disconnected, Event, Heard, Said
from scraper_supervisor.daemon.worker_socket import WorkerSocket
from scraper_worker.protocol import (
    BAD_PARAMS,
    INVALID_REQUEST,
    MAX_LINE_BEFORE_HELLO,
    METHOD_NOT_FOUND,
    NOT_INTRODUCED,
    PARSE_ERROR,
    TOO_LARGE,
)

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


async def test_what_says_nothing_is_answered_and_told_as_a_sign_of_life(tmp_path: Path) -> None:
    peer = Peer(tmp_path / "worker.sock", 4_000_000)
    await peer.connect()
    peer.writer.write(b"nonsense\n")
    assert json.loads(await peer.reader.readline())["error"]["code"] == PARSE_ERROR
    assert peer.heard.empty(), "nobody knows yet whose sign of life it is"
    conn = await peer.welcome()
    for line, code in (
        (b"nonsense", PARSE_ERROR),
        (b"[" * 1_100 + b"]" * 1_100, PARSE_ERROR),
        (b'{"jsonrpc":"2.0","id":2,"method":"item.done","params":{"key":%s}}' % (b"[" * 900 + b"]" * 900), PARSE_ERROR),
        (b"\xff\xfe", PARSE_ERROR),
        (b"[]", INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":2,"method":"no.such"}', METHOD_NOT_FOUND),
        (b'{"jsonrpc":"2.0","id":2,"method":"goodbye"}', BAD_PARAMS),
    ):
        peer.writer.write(line + b"\n")
        answer = json.loads(await peer.reader.readline())
        assert answer["error"]["code"] == code, line[:40]
        assert await peer.heard.get() == Heard(conn)
    for line in (b'{"jsonrpc":"2.0","method":"no.such"}', b'{"jsonrpc":"2.0","id":"odd","result":1}'):
        peer.writer.write(line + b"\n")
        assert await peer.heard.get() == Heard(conn)
    await peer.close()


async def test_after_goodbye_every_request_is_told_so(tmp_path: Path) -> None:
    peer = Peer(tmp_path / "worker.sock", 200_000)
    await peer.connect()
    await peer.welcome()
    peer.call("goodbye", reason="complete")
    assert isinstance(await peer.heard.get(), Said)
    for method in ("item.next", "no.such", "hello", "goodbye"):
        peer.call(method)
        assert json.loads(await peer.reader.readline())["error"]["code"] == NOT_INTRODUCED
    await peer.close()


async def test_a_connection_that_sends_without_end_leaves_others_their_turn(tmp_path: Path) -> None:
    peer = Peer(tmp_path / "worker.sock", 200_000)
    await peer.connect()
    flood = await peer.welcome()
    _, writer = await asyncio.open_unix_connection(peer.hub.path)
    count = 2000
    peer.writer.write(b'{"jsonrpc":"2.0","method":"heartbeat","params":{}}\n' * count)
    writer.write(
        b'{"jsonrpc":"2.0","id":7,"method":"hello","params":{"protocol":1,"worker":"w-1","token":"t","client":"x"}}\n'
    )
    heard = [await peer.heard.get() for _ in range(count + 1)]
    others = [index for index, event in enumerate(heard) if event.conn != flood]  # type: ignore[union-attr]
    assert len(others) == 1
    assert others[0] < count / 2, "it did not have to wait for the flood's end"
    writer.close()
    await peer.close()


async def test_what_a_peer_sent_before_it_left_counts(tmp_path: Path) -> None:
    peer = Peer(tmp_path / "worker.sock", 200_000)
    await peer.connect()
    conn = await peer.welcome()
    peer.writer.write(b'{"jsonrpc":"2.0","method":"heartbeat","params":{}}\n' * 300)
    peer.writer.close()
    heard = [await peer.heard.get() for _ in range(301)]
    assert all(isinstance(event, Said) for event in heard[:-1])
    assert heard[-1] == Disconnected(conn)
    await peer.hub.close()
