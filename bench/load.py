"""The load: one process that drives any number of connections, each of which asks for an item and concludes it.

It is the same for the daemon and for the bare echo, so that what it costs itself cancels out of their ratio. The
messages are assembled from prepared pieces and the answers decoded by msgspec: a client as light as Python allows.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from pathlib import Path

RESULT = b'{"title":"' + b"x" * 86 + b'"}'  # 98 bytes and a little: the result of one item
PATIENCE = 60.0  # seconds


class Answer(Struct):
    """Whatever an answer may hold that the load looks at."""

    id: int
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class _Grant(Struct, frozen=True):
    key: str = ""
    claim: int = 0
    end: str = ""
    seq: int = 0


class _Step(Struct):
    id: int
    result: _Grant = _Grant()
    error: dict[str, Any] | None = None


class Client(asyncio.Protocol):
    """One connection. `call` for single requests, `go` for the loop of item.next and item.done."""

    def __init__(self, load: Load, name: str = "", token: str = "") -> None:
        self.name = name
        self.token = token
        self._load = load
        self._rest = b""
        self._numbers = 0
        self._waiting: asyncio.Future[Answer] | None = None
        self._going = False
        self._asked = 0.0
        self._decode = msgspec.json.Decoder(_Step).decode
        self._done = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._write = cast("asyncio.Transport", transport).write
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer is gone."""
        if self._going and not self._load.over:
            self._load.failed = f"{self.name}: the connection was closed: {exc}"

    def data_received(self, data: bytes) -> None:
        """Take what was answered."""
        if self._rest or data[-1] != 10 or data.count(b"\n") != 1:
            *lines, self._rest = (self._rest + data).split(b"\n")
        else:
            lines = [data]
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        if not self._going:
            if self._waiting is not None and not self._waiting.done() and b'"method"' not in line:
                self._waiting.set_result(msgspec.json.decode(line, type=Answer))
            return
        if b'"method"' in line:
            return
        step = self._decode(line)
        if step.error is not None:
            self._load.failed = f"{self.name}: {step.error}"
            return
        now = time.perf_counter()
        if self._done:
            self._load.finished(self._asked, now)
            self._next()
        elif step.result.end:
            self._going = False
            self._load.ran_out += 1
        else:
            grant = step.result
            self._numbers += 1
            self._done = True
            self._asked = now
            self._write(
                b'{"jsonrpc":"2.0","id":%d,"method":"item.done","params":{"key":"%b","claim":%d,"result":%b}}\n'
                % (self._numbers, grant.key.encode(), grant.claim, RESULT)
            )

    def _next(self) -> None:
        if not self._load.may_ask():
            self._going = False
            return
        self._numbers += 1
        self._done = False
        self._write(b'{"jsonrpc":"2.0","id":%d,"method":"item.next"}\n' % self._numbers)

    def go(self) -> None:
        """Ask for items and conclude them until the load is over."""
        self._going = True
        self._next()

    async def timed(self, method: str, params: Any) -> float:
        """Seconds from a request to its answer.

        Raises:
            SystemExit: it was answered with an error.
        """
        request = {"jsonrpc": "2.0", "id": self._numbers + 1, "method": method, "params": params}
        line = msgspec.json.encode(request) + b"\n"
        begin = time.perf_counter()
        await self._ask(method, line)
        return time.perf_counter() - begin

    async def call(self, method: str, params: Any) -> Any:
        """One request and its answer's result.

        Raises:
            SystemExit: it was answered with an error.
        """
        request = {"jsonrpc": "2.0", "id": self._numbers + 1, "method": method, "params": params}
        return await self._ask(method, msgspec.json.encode(request) + b"\n")

    async def _ask(self, method: str, line: bytes) -> Any:
        self._numbers += 1
        self._waiting = asyncio.get_running_loop().create_future()
        self._write(line)
        answer = await asyncio.wait_for(self._waiting, PATIENCE)
        if answer.error is not None:
            raise SystemExit(f"{method}: {answer.error}")
        return answer.result

    async def hello(self) -> Any:
        """Introduce this worker."""
        return await self.call(
            "hello", {"protocol": 1, "worker": self.name, "token": self.token, "client": "bench/1", "in_flight": []}
        )


class Apart:
    """A connection that blocks, for a thread of its own: what it sends must not hold up the others' measuring."""

    def __init__(self, connection: socket.socket, name: str, token: str) -> None:
        connection.settimeout(PATIENCE)
        self._socket = connection
        self._numbers = 0
        self.call("hello", msgspec.json.encode({"protocol": 1, "worker": name, "token": token, "client": "bench/1"}))

    def call(self, method: str, params: bytes) -> float:
        """Seconds from a request to its answer.

        Raises:
            SystemExit: it was answered with an error.
        """
        self._numbers += 1
        line = b'{"jsonrpc":"2.0","id":%d,"method":"%b","params":%b}\n' % (self._numbers, method.encode(), params)
        begin = time.perf_counter()
        self._socket.sendall(line)
        answer = b""
        while not answer.endswith(b"\n"):
            answer += self._socket.recv(1 << 20)
        seconds = time.perf_counter() - begin
        if b'"error"' in answer:
            raise SystemExit(f"{method}: {answer.decode()}")
        return seconds

    def close(self) -> None:
        """Close it."""
        self._socket.close()


class Figures(Struct):
    """What a run of the load gave; latencies are of item.done, in seconds and sorted."""

    items: int
    seconds: float
    latencies: list[float]

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.items / self.seconds

    def quantile(self, share: float) -> float:
        """The latency within which that share of the calls was answered."""
        return self.latencies[min(len(self.latencies) - 1, int(len(self.latencies) * share))]


class Load:
    """All connections, and what they measured."""

    def __init__(self) -> None:
        self.clients: list[Client] = []
        self.apart: list[Apart] = []
        self.over = False
        self.failed: str | None = None
        self.ran_out = 0
        self._spans: list[tuple[float, float]] = []
        self._left: int | None = None  # items that may still be asked for

    def may_ask(self) -> bool:
        """Whether a connection should ask for a further item."""
        if self.over or self._left == 0:
            return False
        if self._left is not None:
            self._left -= 1
        return True

    def finished(self, asked: float, now: float) -> None:
        """An item.done was answered."""
        self._spans.append((asked, now))

    async def receive(self, listener: socket.socket, count: int, apart: int = 0) -> None:
        """Take over the connections of `count` workers, `apart` of which become `Apart` instead of clients."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        for _ in range(count):
            peer, _ = await asyncio.wait_for(loop.sock_accept(listener), PATIENCE)
            peer.setblocking(True)
            with peer:
                message, fds, _, _ = socket.recv_fds(peer, 4096, 1)
                name, token = message.decode().split()
                connection = socket.socket(fileno=fds[0])
                peer.sendall(b"\0")
                if len(self.apart) < apart:
                    self.apart.append(Apart(connection, name, token))
                    continue
                connection.setblocking(False)
                client = Client(self, name, token)
                await loop.create_unix_connection(lambda client=client: client, sock=connection)
                self.clients.append(client)

    async def connect(self, path: Path, count: int) -> None:
        """Open `count` connections of our own (to the echo)."""
        for number in range(count):
            client = Client(self, f"echo-{number}")
            await asyncio.get_running_loop().create_unix_connection(lambda client=client: client, str(path))
            self.clients.append(client)

    async def offer(self, keys: int, prefix: str, chunk: int = 10_000) -> None:
        """Offer so many items over the first connection."""
        for start in range(0, keys, chunk):
            items = [f"{prefix}{number:08d}" for number in range(start, min(start + chunk, keys))]
            await self.clients[0].call("items.offer", {"items": items, "more": start + chunk < keys})

    async def measure(self, seconds: float, warm_up: float = 0.5) -> Figures:
        """Drive all connections for a while.

        Raises:
            SystemExit: a call failed, or the items ran out.
        """
        for client in self.clients:
            client.go()
        await asyncio.sleep(warm_up)
        self._check()
        begin, self._spans = time.perf_counter(), []
        while time.perf_counter() < begin + seconds:
            await asyncio.sleep(0.01)
            self._check()
        spans, end = self._spans, time.perf_counter()
        self.over = True
        return Figures(len(spans), end - begin, sorted(now - asked for asked, now in spans))

    async def run(self, items: int) -> Figures:
        """Drive all connections until so many items are done, and no further one is in anybody's hands.

        Raises:
            SystemExit: a call failed, or the items ran out.
        """
        begin, self._spans, self._left = time.perf_counter(), [], items
        for client in self.clients:
            client.go()
        while len(self._spans) < items:
            await asyncio.sleep(0.002)
            self._check()
        spans = self._spans
        return Figures(len(spans), time.perf_counter() - begin, sorted(now - asked for asked, now in spans))

    def _check(self) -> None:
        if self.failed is not None:
            raise SystemExit(f"the load failed: {self.failed}")
        if self.ran_out:
            raise SystemExit("the load ran out of items: offer more")

    def close(self) -> None:
        """Close all connections."""
        self.over = True
        for client in self.clients:
            client.transport.close()
        for one in self.apart:
            one.close()


def listener_at(path: Path) -> socket.socket:
    """A socket at which workers hand over their connections."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(512)
    return listener
