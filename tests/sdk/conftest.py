"""A supervisor made of a real socket and a script: it says what a test tells it to, and nothing by itself."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest

from scraper_worker import jsonrpc
from scraper_worker.jsonrpc import Framer, Request, Response, RpcError

PATIENCE = 60.0  # seconds; a test that waits this long has failed


class Peer:
    """One connection, from the supervisor's side."""

    def __init__(self, reader, writer):
        self._writer = writer
        self._reader = reader
        self._framer = Framer(1 << 30)
        self._lines = []
        self._later = []
        self.heartbeats = 0

    async def _read(self):
        while not self._lines:
            data = await self._reader.read(1 << 16)
            if not data:
                raise EOFError
            self._lines = [jsonrpc.decode_line(line) for line in self._framer.feed(data)]
        return self._lines.pop(0)

    async def expect(self, method):
        """The next request or notification of that method; others are kept for later, heartbeats counted."""
        for message in self._later:
            if message.method == method:
                self._later.remove(message)
                return Said(message)
        async with asyncio.timeout(PATIENCE):
            while True:
                message = await self._read()
                if isinstance(message, Request) and message.method == method:
                    return Said(message)
                if isinstance(message, Request) and message.method == "heartbeat":
                    self.heartbeats += 1
                elif isinstance(message, Request):
                    self._later.append(message)

    async def expect_answer(self, number):
        async with asyncio.timeout(PATIENCE):
            while True:
                message = await self._read()
                if isinstance(message, Response) and message.id == number:
                    return message
                if isinstance(message, Request) and message.method != "heartbeat":
                    self._later.append(message)

    async def expect_end(self):
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(EOFError, ConnectionError):
                while True:
                    await self._read()

    def answer(self, said, result):
        self._writer.write(jsonrpc.encode_result(said.id, result))

    def refuse(self, said, code, message="no", data=None):
        self._writer.write(jsonrpc.encode_error(said.id if said else None, RpcError(code, message, data)))

    def ask(self, method, params, number=1000):
        self._writer.write(jsonrpc.encode_request(method, params, number))

    def tell(self, method, params):
        self._writer.write(jsonrpc.encode_notification(method, params))

    def close(self):
        self._writer.close()

    async def welcome(self, in_flight=(), **changes):
        """Answer a hello well, and return it."""
        hello = await self.expect("hello")
        self.answer(hello, {**WELCOME, "in_flight": list(in_flight), **changes})
        return hello


WELCOME = {
    "protocol": 1,
    "worker": "g-0",
    "group": "g",
    "index": 0,
    "count": 2,
    "incarnation": 1,
    "run": 3,
    "heartbeat_interval": 0.04,
    "checkpoint": None,
    "items": {"pending": 0, "done": 0, "failed": 0},
    "in_flight": [],
}


class Said:
    """A message of the worker, decoded."""

    def __init__(self, request):
        self.id = request.id
        self.method = request.method
        self.params = msgspec.json.decode(request.params)

    def __getitem__(self, name):
        return self.params[name]


class FakeSupervisor:
    """Listens; each connection is one `Peer`."""

    def __init__(self, path):
        self.path = path
        self._peers = asyncio.Queue()
        self._all = []

    async def _connected(self, reader, writer):
        peer = Peer(reader, writer)
        self._all.append(writer)
        self._peers.put_nowait(peer)

    async def listen(self):
        self._server = await asyncio.start_unix_server(self._connected, self.path)

    async def accept(self):
        async with asyncio.timeout(PATIENCE):
            return await self._peers.get()

    async def stop(self):
        self._server.close()
        for writer in self._all:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@pytest.fixture
async def fake(tmp_path):
    supervisor = FakeSupervisor(str(tmp_path / "worker.sock"))
    await supervisor.listen()
    yield supervisor
    await supervisor.stop()


@pytest.fixture
def alone_link():
    """A queue in memory that says nothing and retries at once."""
    from scraper_worker.connection.alone import Alone
    from scraper_worker.retry import RetryPolicy

    class Recording(Alone):
        def __init__(self):
            super().__init__("g", RetryPolicy(max_attempts=3, base_delay=0.0), quiet=True)
            self.said = []
            self.told = asyncio.Event()
            self.keyed = {}

        async def call(self, message):
            self.said.append(message)
            answer = await super().call(message)
            self.keyed.setdefault(type(message).__name__, []).append((message, answer))
            return answer

        def notify(self, message):
            self.said.append(message)
            self.told.set()

        def of(self, kind):
            return [message for message in self.said if isinstance(message, kind)]

    return Recording()
