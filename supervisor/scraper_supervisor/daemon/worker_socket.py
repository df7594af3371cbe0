"""The workers' Unix socket: calls decoded, bounded and answered.

Nothing is decided here but what the transport alone can know: limits of lines and open calls, the peer's credentials,
and who may speak before hello.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET, Raw, Struct

from scraper_supervisor.core.events import Disconnected, Heard, Replied, Said
from scraper_supervisor.daemon.connections import Connection, Crowd, Listener, peer_of
from scraper_supervisor.daemon.processes import procfs
from scraper_worker import jsonrpc, protocol
from scraper_worker.jsonrpc import BadParams, Malformed, Request, RpcError
from scraper_worker.protocol import BrowserStarted, CallId, Goodbye, Hello

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scraper_supervisor.core.events import Event
    from scraper_worker.protocol import ToWorker

MOST_HELD_LINES: Final = 256  # lines that may follow a hello before it is answered
# Calls without an id get no answer, so these would have no effect but a lost item.
POINTLESS: Final = frozenset({"hello", "item.next", "checkpoint.load"})
_NAMES: Final = {kind: name for name, kind in protocol.SUPERVISOR_METHODS.items()}


class WorkerConnection(Connection):
    """A worker, or somebody who says so."""

    def __init__(self, number: int, hub: WorkerSocket) -> None:
        super().__init__(number, protocol.MAX_LINE_BEFORE_HELLO)
        self._hub = hub
        self._pid = 0
        self.introduced = False
        self._said_goodbye = False
        self._hello: int | None = None  # the call that is being looked into; what follows it waits
        self._held: deque[bytes | bytearray] = deque()
        self._unsent: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Learn who the peer is."""
        super().connection_made(transport)
        self._pid, _ = peer_of(transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The peer is gone."""
        self.take_rest()
        self._hub.lost(self)

    def send(self, line: bytes) -> None:
        """Send a line with all others of this turn of the loop.

        What is sent back to back wakes a peer once; with work in between, each line would find it asleep again.
        """
        if not self._unsent:
            self._hub.has_unsent(self)
        self._unsent.append(line)

    def flush(self) -> None:
        """Write what is to be sent."""
        lines, self._unsent = self._unsent, []
        if lines:
            super().send(lines[0] if len(lines) == 1 else b"".join(lines))

    def hang_up(self) -> None:
        """Close, after what was sent."""
        self.flush()
        super().hang_up()

    def line_received(self, line: bytes | bytearray) -> None:
        """Decode a line and hand it on, or answer what is wrong with it."""
        if self._hello is not None or self._held:  # what is held comes first
            self._hold(line)
        else:
            self._handle(line)

    def _handle(self, line: bytes | bytearray) -> None:
        message = jsonrpc.decode_line(line)
        match message:
            case Request():
                self._requested(message)
            case Malformed(error=error):
                self.send(jsonrpc.encode_error(None, error))
                self._heard()
            case _:
                if isinstance(message.id, int):
                    self._hub.feed(Replied(self.number, message.id, message.error))
                else:
                    self._heard()

    def _heard(self) -> None:
        """A line came that means nothing; from a worker it is a sign of life all the same."""
        if self.introduced:
            self._hub.feed(Heard(self.number))

    def _hold(self, line: bytes | bytearray) -> None:
        self._held.append(line)
        if len(self._held) >= MOST_HELD_LINES:
            self.hold_reading("hello")

    def _requested(self, request: Request) -> None:
        kind = protocol.WORKER_METHODS.get(request.method)
        call_id = request.id
        error: RpcError | None = None
        if self._said_goodbye:
            error = RpcError(protocol.NOT_INTRODUCED, "you said goodbye")
        elif not self.introduced and kind is not Hello:
            error = RpcError(protocol.NOT_INTRODUCED, "say hello first")
        elif kind is None:
            error = RpcError(protocol.METHOD_NOT_FOUND, f"there is no method {request.method!r}")
        elif len(self.calls) >= protocol.MAX_OPEN_CALLS and call_id is not UNSET:  # a heartbeat opens none
            error = RpcError(protocol.TOO_MANY_CALLS, f"over {protocol.MAX_OPEN_CALLS} calls are open")
        if error is None and kind is not None:
            try:
                params = jsonrpc.decode_params(kind, request.params)
            except BadParams as bad:
                error = _bad_params(kind, request, bad)
            else:
                self._hand_on(request, call_id, params)
                return
        if call_id is not UNSET and error is not None:
            self.send(jsonrpc.encode_error(call_id, error))
        self._heard()

    def _hand_on(self, request: Request, call_id: CallId | msgspec.UnsetType, params: Any) -> None:
        call: int | None = None
        if call_id is not UNSET:
            call = self._hub.next_call()
            self.calls[call] = call_id
        elif request.method in POINTLESS:
            self._heard()
            return
        self._said_goodbye = isinstance(params, Goodbye)
        ancestry: tuple[int, ...] = ()
        if isinstance(params, Hello):
            ancestry = procfs.ancestry(self._pid)
            if not self.introduced:
                self._hello = call
        elif isinstance(params, BrowserStarted):
            ancestry = procfs.ancestry(params.pid)
        self._hub.feed(Said(self.number, call, params, ancestry))

    def introduce(self, limit: int) -> None:
        """The hello was good."""
        self.introduced = True
        self.framer.limit = limit

    def answer(self, call: int, result: Any) -> None:
        """Answer an open call; after hello's, what came behind it is taken."""
        super().answer(call, result)
        if call == self._hello:
            self._go_on()

    def refuse(self, call: int, error: RpcError) -> None:
        """Answer an open call with an error; after hello's, what came behind it is taken."""
        super().refuse(call, error)
        if call == self._hello:
            self._go_on()

    def _go_on(self) -> None:
        self._hello = None
        self._hub.soon(self._release_held)

    def _release_held(self) -> None:
        while self._held and self._hello is None:
            self._handle(self._held.popleft())
        if not self._held:
            self.go_on_reading("hello")


def _bad_params(kind: type[Any], request: Request, bad: BadParams) -> RpcError:
    """What is wrong with a request's params; of a hello, an unknown protocol counts first."""
    if kind is Hello and isinstance(request.params, Raw):
        with contextlib.suppress(msgspec.DecodeError):
            version = msgspec.json.decode(request.params, type=_Version).protocol
            if version != protocol.PROTOCOL:
                data = {"path": "protocol", "supported": [protocol.PROTOCOL]}
                return RpcError(protocol.BAD_PARAMS, f"protocol {version} is not supported", data)
    return RpcError(protocol.BAD_PARAMS, str(bad), bad.data)


class _Version(Struct, frozen=True):
    protocol: int


class WorkerSocket(Listener):
    """worker.sock: `feed` gets every message as an event.

    Args:
        path: of the socket.
        feed: takes an event.
        line_limit: bytes that a line may have after hello; `limit_lines` changes it.
    """

    def __init__(self, path: Path, feed: Callable[[Event], None], line_limit: int) -> None:
        super().__init__(path)
        self.feed = feed
        self._line_limit = line_limit
        self._connections: dict[int, WorkerConnection] = {}
        self._calls = 0
        self._loop = asyncio.get_running_loop()
        self._unsent: list[WorkerConnection] = []
        self._strangers = Crowd()  # who has not said a good hello

    async def listen(self) -> None:
        """Accept workers."""
        await self.open(self._accept, 0o660)

    def _accept(self) -> WorkerConnection:
        connection = WorkerConnection(self.number(), self)
        self._connections[connection.number] = connection
        self._strangers.add(connection)
        return connection

    def soon(self, function: Callable[[], None]) -> None:
        """Call it when the present event is done with."""
        self._loop.call_soon(function)

    def has_unsent(self, connection: WorkerConnection) -> None:
        """A connection has something to send before this turn of the loop ends."""
        if not self._unsent:
            self._loop.call_soon(self.flush)
        self._unsent.append(connection)

    def flush(self) -> None:
        """Write everything that is to be sent."""
        connections, self._unsent = self._unsent, []
        for connection in connections:
            connection.flush()

    def next_call(self) -> int:
        """A number for a call, over all connections."""
        self._calls += 1
        return self._calls

    def lost(self, connection: WorkerConnection) -> None:
        """A connection is closed."""
        self._strangers.remove(connection)
        if self._connections.pop(connection.number, None) is not None:
            self.feed(Disconnected(connection.number))

    def reply(self, conn: int, call: int, result: Any) -> None:
        """Answer a call."""
        connection = self._connections.get(conn)
        if connection is not None:
            connection.answer(call, result)

    def refuse(self, conn: int, call: int, error: RpcError, *, close: bool) -> None:
        """Answer a call with an error, and hang up if told so."""
        connection = self._connections.get(conn)
        if connection is not None:
            connection.refuse(call, error)
            if close:
                connection.hang_up()

    def tell(self, conn: int, message: ToWorker, call: int | None) -> None:
        """Send a notification, or a request if there is a call."""
        connection = self._connections.get(conn)
        if connection is not None:
            name = _NAMES[type(message)]
            encode = jsonrpc.encode_notification(name, message)
            connection.send(encode if call is None else jsonrpc.encode_request(name, message, call))

    def introduce(self, conn: int) -> None:
        """A connection said a good hello: longer lines are welcome."""
        connection = self._connections.get(conn)
        if connection is not None:
            self._strangers.remove(connection)
            connection.introduce(self._line_limit)

    def limit_lines(self, limit: int) -> None:
        """From now on a line may have so many bytes after hello, on open connections too."""
        self._line_limit = limit
        for connection in self._connections.values():
            if connection.introduced:
                connection.framer.limit = limit

    def hang_up(self, conn: int) -> None:
        """Close a connection after what was sent."""
        connection = self._connections.get(conn)
        if connection is not None:
            connection.hang_up()

    async def close(self) -> None:
        """Close everything."""
        for connection in list(self._connections.values()):
            connection.hang_up()
        await super().close()
