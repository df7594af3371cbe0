"""The two Unix sockets: workers' calls and operators' requests, framed, decoded, bounded and answered.

Nothing is decided here but what the transport alone can know: limits of lines and open calls, the peer's credentials,
and who may speak before hello. A peer that does not read its answers is not read from.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from msgspec import UNSET, Struct

from scraper_supervisor.core.events import Asked, Disconnected, Replied, Said, Withdrawn
from scraper_supervisor.daemon import procfs
from scraper_worker import protocol
from scraper_worker.protocol import BadParams, CallId, Framer, Hello, LineTooLong, Malformed, Request, RpcError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from scraper_supervisor.core.events import Event
    from scraper_worker.protocol import ToWorker

CONTROL_FAILED: Final = -32000
MOST_HELD_LINES: Final = 256  # lines that may follow a hello before it is answered
# Calls without an id get no answer, so these would have no effect but a lost item.
POINTLESS: Final = frozenset({"hello", "item.next", "checkpoint.load"})
_NAMES: Final = {kind: name for name, kind in protocol.SUPERVISOR_METHODS.items()}
_PEERCRED: Final = struct.Struct("3i")


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
                protocol.encode_error(None, RpcError(protocol.TOO_LARGE, f"a line over {self.framer.limit} bytes"))
            )
            self.hang_up()
            return
        for line in lines:
            if self.transport is None or self.transport.is_closing():
                return
            self.line_received(line)

    def line_received(self, line: bytes) -> None:
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
            self.send(protocol.encode_result(self.calls.pop(call), result))

    def refuse(self, call: int, error: RpcError) -> None:
        """Answer an open call with an error."""
        if call in self.calls:
            self.send(protocol.encode_error(self.calls.pop(call), error))


class WorkerConnection(Connection):
    """A worker, or somebody who says so."""

    def __init__(self, number: int, hub: WorkerSocket) -> None:
        super().__init__(number, protocol.MAX_LINE_BEFORE_HELLO)
        self._hub = hub
        self._pid = 0
        self.introduced = False
        self._hello: int | None = None  # the call that is being looked into; what follows it waits
        self._held: deque[bytes] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Learn who the peer is."""
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        self._pid = _PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))[0]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The peer is gone."""
        self._hub.lost(self)

    def line_received(self, line: bytes) -> None:
        """Decode a line and hand it on, or answer what is wrong with it."""
        if self._hello is not None:
            self._hold(line)
            return
        message = protocol.decode_line(line)
        match message:
            case Request():
                self._requested(message)
            case Malformed(error=error):
                self.send(protocol.encode_error(None, error))
            case _:
                if isinstance(message.id, int):
                    self._hub.feed(Replied(self.number, message.id, message.error))

    def _hold(self, line: bytes) -> None:
        self._held.append(line)
        if len(self._held) >= MOST_HELD_LINES and self.transport is not None:
            self.transport.pause_reading()

    def _requested(self, request: Request) -> None:
        kind = protocol.WORKER_METHODS.get(request.method)
        call_id = request.id
        error: RpcError | None = None
        if not self.introduced and kind is not Hello:
            error = RpcError(protocol.NOT_INTRODUCED, "say hello first")
        elif kind is None:
            error = RpcError(protocol.METHOD_NOT_FOUND, f"there is no method {request.method!r}")
        elif len(self.calls) >= protocol.MAX_OPEN_CALLS and call_id is not UNSET:  # a heartbeat opens none
            error = RpcError(protocol.TOO_MANY_CALLS, f"over {protocol.MAX_OPEN_CALLS} calls are open")
        if error is None and kind is not None:
            try:
                params = protocol.decode_params(kind, request.params)
            except BadParams as bad:
                error = _bad_params(kind, request, bad)
            else:
                self._hand_on(request, call_id, params)
                return
        if call_id is not UNSET and error is not None:
            self.send(protocol.encode_error(call_id, error))

    def _hand_on(self, request: Request, call_id: CallId | msgspec.UnsetType, params: Any) -> None:
        call: int | None = None
        if call_id is not UNSET:
            call = self._hub.next_call()
            self.calls[call] = call_id
        elif request.method in POINTLESS:
            return
        ancestry: tuple[int, ...] = ()
        if isinstance(params, Hello):
            ancestry = procfs.ancestry(self._pid)
            if not self.introduced:
                self._hello = call
        self._hub.feed(Said(self.number, call, params, ancestry))

    def introduce(self, limit: int) -> None:
        """The hello was good."""
        self.introduced = True
        self.framer.limit = limit

    def answer(self, call: int, result: Any) -> None:
        """Answer an open call; after hello's, what came behind it is taken."""
        super().answer(call, result)
        self._go_on(call)

    def refuse(self, call: int, error: RpcError) -> None:
        """Answer an open call with an error; after hello's, what came behind it is taken."""
        super().refuse(call, error)
        self._go_on(call)

    def _go_on(self, call: int) -> None:
        if call == self._hello:
            self._hello = None
            self._hub.soon(self._release_held)

    def _release_held(self) -> None:
        while self._held and self._hello is None:
            self.line_received(self._held.popleft())
        if not self._held:
            self.resume_writing()


def _bad_params(kind: type[Any], request: Request, bad: BadParams) -> RpcError:
    """What is wrong with a request's params; of a hello, an unknown protocol counts first."""
    if kind is Hello:
        with contextlib.suppress(msgspec.DecodeError):
            version = msgspec.json.decode(request.params, type=_Version).protocol
            if version != protocol.PROTOCOL:
                data = {"path": "protocol", "supported": [protocol.PROTOCOL]}
                return RpcError(protocol.BAD_PARAMS, f"protocol {version} is not supported", data)
    return RpcError(protocol.BAD_PARAMS, str(bad), bad.data)


class _Version(Struct, frozen=True):
    protocol: int


class _Listener:
    """A listening Unix socket in a folder that is ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server: asyncio.Server | None = None
        self._numbers = 0

    async def _listen(self, make: Callable[[], asyncio.Protocol], mode: int) -> None:
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


class WorkerSocket(_Listener):
    """worker.sock: `feed` gets every message as an event.

    Args:
        path: of the socket.
        feed: takes an event.
        line_limit: bytes that a line may have after hello.
    """

    def __init__(self, path: Path, feed: Callable[[Event], None], line_limit: int) -> None:
        super().__init__(path)
        self.feed = feed
        self.line_limit = line_limit
        self._connections: dict[int, WorkerConnection] = {}
        self._calls = 0
        self._loop = asyncio.get_running_loop()

    async def listen(self) -> None:
        """Accept workers."""
        await self._listen(self._accept, 0o660)

    def _accept(self) -> WorkerConnection:
        connection = WorkerConnection(self.number(), self)
        self._connections[connection.number] = connection
        return connection

    def soon(self, function: Callable[[], None]) -> None:
        """Call it when the present event is done with."""
        self._loop.call_soon(function)

    def next_call(self) -> int:
        """A number for a call, over all connections."""
        self._calls += 1
        return self._calls

    def lost(self, connection: WorkerConnection) -> None:
        """A connection is closed."""
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
            encode = protocol.encode_notification(name, message)
            connection.send(encode if call is None else protocol.encode_request(name, message, call))

    def introduce(self, conn: int) -> None:
        """A connection said a good hello: longer lines are welcome."""
        connection = self._connections.get(conn)
        if connection is not None:
            connection.introduce(self.line_limit)

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


class ControlParams(Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator's request may carry."""

    names: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    fresh: bool = False
    failed: bool = False
    parked: bool = False
    wait: bool = True


class ControlConnection(Connection):
    """An operator's command."""

    def __init__(self, number: int, hub: ControlSocket) -> None:
        super().__init__(number, protocol.MAX_LINE)
        self._hub = hub

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The command is gone."""
        self._hub.lost(self)

    def line_received(self, line: bytes) -> None:
        """Serve a request."""
        message = protocol.decode_line(line)
        if isinstance(message, Malformed):
            self.send(protocol.encode_error(None, message.error))
        elif isinstance(message, Request) and not isinstance(message.id, msgspec.UnsetType):
            if len(self.calls) >= protocol.MAX_OPEN_CALLS:
                error = RpcError(protocol.TOO_MANY_CALLS, f"over {protocol.MAX_OPEN_CALLS} calls are open")
                self.send(protocol.encode_error(message.id, error))
                return
            try:
                params = protocol.decode_params(ControlParams, message.params)
            except BadParams as bad:
                self.send(protocol.encode_error(message.id, RpcError(protocol.BAD_PARAMS, str(bad), bad.data)))
                return
            call = self._hub.number()
            self.calls[call] = message.id
            self._hub.serve(self, call, message.method, params)


class ControlSocket(_Listener):
    """control.sock: reads are served by `readers`, actions by `actions`, everything else is the fleet's.

    Args:
        path: of the socket.
        feed: takes an event.
        readers: method → a function giving its document.
        actions: method → a coroutine function giving (ok, document).
    """

    def __init__(
        self,
        path: Path,
        feed: Callable[[Event], None],
        readers: dict[str, Callable[[], Any]],
        actions: dict[str, Callable[[], Awaitable[tuple[bool, Any]]]],
        tasks: asyncio.TaskGroup,
    ) -> None:
        super().__init__(path)
        self._feed = feed
        self._readers = readers
        self._actions = actions
        self._tasks = tasks
        self._connections: set[ControlConnection] = set()
        self._requests: dict[int, ControlConnection] = {}

    async def listen(self, group: str | None) -> None:
        """Accept operators."""
        await self._listen(self._accept, 0o600)
        self.open_to(group)

    def open_to(self, group: str | None) -> None:
        """Let one system group in too, or nobody else.

        Raises:
            OSError: the system refuses.
            KeyError: there is no such group.
        """
        gid = -1 if group is None else grp.getgrnam(group).gr_gid
        folder = self.path.parent
        if group is not None:
            os.chown(folder, -1, gid)
            os.chown(self.path, -1, gid)
        os.chmod(folder, 0o700 if group is None else 0o710)
        os.chmod(self.path, 0o600 if group is None else 0o660)

    def _accept(self) -> ControlConnection:
        connection = ControlConnection(self.number(), self)
        self._connections.add(connection)
        return connection

    def serve(self, connection: ControlConnection, call: int, method: str, params: ControlParams) -> None:
        """Serve one request."""
        self._requests[call] = connection
        if method in self._readers:
            self.answer(call, True, self._readers[method]())
        elif method in self._actions and not params.names:
            self._tasks.create_task(self._act(call, self._actions[method]), name=f"control {method}")
        else:
            self._feed(
                Asked(call, method, params.names, params.keys, params.fresh, params.failed, params.parked, params.wait)
            )

    async def _act(self, call: int, action: Callable[[], Awaitable[tuple[bool, Any]]]) -> None:
        self.answer(call, *await action())

    def answer(self, request: int, ok: bool, document: Any) -> None:
        """Answer a request: a document, or an error's message, or (message, data)."""
        connection = self._requests.pop(request, None)
        if connection is None:
            return
        if ok:
            connection.answer(request, document)
            return
        message, data = document if isinstance(document, tuple) else (str(document), None)
        connection.refuse(request, RpcError(CONTROL_FAILED, message, data))

    def lost(self, connection: ControlConnection) -> None:
        """A command is gone; what it waited for goes on."""
        self._connections.discard(connection)
        for call in connection.calls:
            if self._requests.pop(call, None) is not None:
                self._feed(Withdrawn(call))

    async def close(self) -> None:
        """Close everything."""
        for connection in list(self._connections):
            connection.hang_up()
        await super().close()
