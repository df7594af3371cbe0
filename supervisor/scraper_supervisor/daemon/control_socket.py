"""The operators' Unix socket: requests that are ours to serve, or the fleet's."""

from __future__ import annotations

import grp
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw, Struct

from scraper_supervisor.core.events import Asked, Withdrawn
from scraper_supervisor.core.formats.event_line import encode
from scraper_supervisor.daemon.connections import Connection, Crowd, Listener, peer_of
from scraper_worker import jsonrpc, protocol
from scraper_worker.jsonrpc import BadParams, Malformed, Request, RpcError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from scraper_supervisor.core.events import Event
    from scraper_supervisor.daemon.upkeep.tasks import Tasks

CONTROL_FAILED: Final = -32000


class ControlParams(Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator's request may carry."""

    names: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    fresh: bool = False
    failed: bool = False
    parked: bool = False
    wait: bool = True
    generation: int | None = None
    slot: str | None = None
    text: str = ""
    token: int | None = None


class ControlConnection(Connection):
    """An operator's command."""

    def __init__(self, number: int, hub: ControlSocket) -> None:
        super().__init__(number, protocol.MAX_LINE)
        self._hub = hub
        self.uid = -1  # of the operator

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Learn who the operator is."""
        super().connection_made(transport)
        _, self.uid = peer_of(transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The command is gone."""
        self.take_rest()
        self._hub.lost(self)

    def line_received(self, line: bytes | bytearray) -> None:
        """Serve a request."""
        message = jsonrpc.decode_line(line)
        if isinstance(message, Malformed):
            self.send(jsonrpc.encode_error(None, message.error))
        elif isinstance(message, Request) and not isinstance(message.id, msgspec.UnsetType):
            if len(self.calls) >= protocol.MAX_OPEN_CALLS:
                error = RpcError(protocol.TOO_MANY_CALLS, f"over {protocol.MAX_OPEN_CALLS} calls are open")
                self.send(jsonrpc.encode_error(message.id, error))
                return
            try:
                params = jsonrpc.decode_params(ControlParams, message.params)
            except BadParams as bad:
                self.send(jsonrpc.encode_error(message.id, RpcError(protocol.BAD_PARAMS, str(bad), bad.data)))
                return
            call = self._hub.number()
            self.calls[call] = message.id
            self._hub.serve(self, call, message.method, params)


class ControlSocket(Listener):
    """control.sock: some requests are served by `actions`, everything else is the fleet's.

    Args:
        path: of the socket.
        feed: takes an event.
        actions: method → a coroutine function giving (ok, document), for requests without names; what it raises is an
            error answer.
        named: the same, given the names, for requests with and without.
        tasks: holds what is under way.
        acted: told of a request that is served by `actions`, and of the operator's user number.
    """

    def __init__(
        self,
        path: Path,
        feed: Callable[[Event], None],
        actions: Mapping[str, Callable[[], Awaitable[tuple[bool, Any]]]],
        named: Mapping[str, Callable[[tuple[str, ...]], Awaitable[tuple[bool, Any]]]],
        tasks: Tasks,
        acted: Callable[[str, int], None],
    ) -> None:
        super().__init__(path)
        self._feed = feed
        self._actions = actions
        self._named = named
        self._tasks = tasks
        self._acted = acted
        self._connections: set[ControlConnection] = set()
        self._requests: dict[int, ControlConnection] = {}
        self._crowd = Crowd()

    async def listen(self, group: str | None) -> None:
        """Accept operators."""
        await self.open(self._accept, 0o600)
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
        self._crowd.add(connection)
        return connection

    def serve(self, connection: ControlConnection, call: int, method: str, params: ControlParams) -> None:
        """Serve one request."""
        self._requests[call] = connection
        own = self._action(method, params.names)
        if own is not None:
            if method in self._actions:
                self._acted(method, connection.uid)
            acting = self._act(call, own)
            if self._tasks.start(acting, f"control {method}", partial(self.failed, call)) is None:
                self.answer(call, False, "the daemon is ending")
        else:
            self._feed(
                Asked(
                    call,
                    method,
                    params.names,
                    params.keys,
                    params.fresh,
                    params.failed,
                    params.parked,
                    params.wait,
                    params.generation,
                    params.slot,
                    params.text,
                    params.token,
                    connection.uid,
                )
            )

    def _action(self, method: str, names: tuple[str, ...]) -> Callable[[], Awaitable[tuple[bool, Any]]] | None:
        """What serves the request here; None if the fleet does."""
        if method in self._named:
            return partial(self._named[method], names)
        return None if names else self._actions.get(method)

    async def _act(self, call: int, action: Callable[[], Awaitable[tuple[bool, Any]]]) -> None:
        self.answer(call, *await action())

    def failed(self, request: int, error: Exception) -> None:
        """Answer a request that failed in a way that nobody foresaw, and that was logged."""
        self.answer(request, False, f"the daemon failed on it: {type(error).__name__}: {error}; its log tells more")

    def answer(self, request: int, ok: bool, document: Any) -> None:
        """Answer a request: a document, or an error's message, or (message, data). Every text can be answered with."""
        connection = self._requests.pop(request, None)
        if connection is None:
            return
        if ok:
            connection.answer(request, Raw(encode(document)))
            return
        message, data = document if isinstance(document, tuple) else (str(document), None)
        readable = message.encode(errors="backslashreplace").decode()
        connection.refuse(request, RpcError(CONTROL_FAILED, readable, None if data is None else Raw(encode(data))))

    def lost(self, connection: ControlConnection) -> None:
        """A command is gone; what it waited for goes on."""
        self._connections.discard(connection)
        self._crowd.remove(connection)
        for call in connection.calls:
            if self._requests.pop(call, None) is not None:
                self._feed(Withdrawn(call))

    async def close(self) -> None:
        """Close everything."""
        for connection in list(self._connections):
            connection.hang_up()
        await super().close()
