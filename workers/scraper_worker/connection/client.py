"""The asyncio connection to the supervisor: hello, heartbeats, calls, and coming back after a break.

A closed connection ends no claim. The client reconnects by itself and sends every unanswered call again with the same
parameters, which the protocol makes safe; so a caller sees a supervisor's restart only as a slow answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UnsetType

from scraper_worker import jsonrpc, protocol
from scraper_worker.connection.calls import METHODS, OpenCalls
from scraper_worker.connection.link import Link
from scraper_worker.errors import CallError, Refused, SupervisorLost, UsageError, WorkerError
from scraper_worker.jsonrpc import Framer, LineTooLong, Request, Response, RpcError
from scraper_worker.protocol import BrowserRecycle, BrowserStopped, Claim, Drain, Heartbeat, ItemCancel, Welcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scraper_worker.connection.link import Listener
    from scraper_worker.protocol import BrowserStarted, CallId, ItemProgress

log = logging.getLogger("scraper_worker")

FIRST_PAUSE: Final = 0.05  # seconds before the first attempt to reconnect, doubling
LONGEST_PAUSE: Final = 2.0  # seconds
HELLO_TIMEOUT: Final = 15.0  # seconds for connecting and being welcomed; a supervisor that reads its ledger is slow
GIVE_BACK_TIMEOUT: Final = 5.0  # seconds
LONGEST_ANSWER: Final = 1024 * 1024 * 1024  # bytes; a state may be as large as the supervisor's max_state allows
HEARTBEAT_BACKLOG: Final = 1024 * 1024  # bytes unsent; a peer that reads nothing needs no heartbeats on top
LAG_PROBES: Final = 4  # measurements of the event loop's lag per heartbeat
PENDING_NOTICES: Final = 64
HELLO_ID: Final = "hello"

_HELLO_IS_FINAL: Final = frozenset({protocol.REFUSED, protocol.BAD_PARAMS, protocol.NO_CHECKPOINT})
_SERVER_ERROR: Final = -32000


class Client(Link):
    """The supervisor at the other end of a Unix socket.

    Args:
        path: the socket.
        name: this worker's name.
        token: what proves it to be that worker's current incarnation.
        lost_after: seconds without a supervisor after which the worker must end.
    """

    def __init__(self, path: str, name: str, token: str, *, lost_after: float = protocol.SUPERVISOR_LOST_AFTER) -> None:
        self._path = path
        self._name = name
        self._token = token
        self._lost_after = lost_after
        self._calls = OpenCalls(self._transmit)
        self._notices: deque[bytes] = deque(maxlen=PENDING_NOTICES)
        self._writer: asyncio.StreamWriter | None = None
        self._welcome: Welcome | None = None
        self._welcomed = asyncio.Event()
        self._background: list[asyncio.Task[None]] = []
        self._alone_since = 0.0  # the loop's clock

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Client | None:
        """The client for the supervisor that spawned this process, or None if none did.

        Raises:
            UsageError: the environment names a socket but not the worker.
        """
        path = environment.get(protocol.ENV_SOCKET)
        if not path:
            return None
        name, token = environment.get(protocol.ENV_NAME), environment.get(protocol.ENV_TOKEN)
        if not name or not token:
            missing = protocol.ENV_TOKEN if name else protocol.ENV_NAME
            raise UsageError(
                f"{protocol.ENV_SOCKET} is set, but {missing} is not: unset it to run without a supervisor"
            )
        return cls(path, name, token)

    # ---- the Link ----------------------------------------------------------------------------------------------------

    async def open(self, listener: Listener, tasks: asyncio.TaskGroup) -> Welcome:
        """Connect and say hello.

        The tasks raise `Refused` or `SupervisorLost` when there is no supervisor left to work for.
        """
        self._listener = listener
        self._tasks = tasks
        self._background.append(tasks.create_task(self._keep_connected(), name="supervisor connection"))
        await self._welcomed.wait()
        assert self._welcome is not None
        self._background.append(tasks.create_task(self._heartbeats(), name="heartbeats"))
        self._background.append(tasks.create_task(self._return_unwanted(), name="unwanted claims"))
        return self._welcome

    async def close(self) -> None:
        """End the connection."""
        self._calls.ended = True
        for task in self._background:
            task.cancel()
        if self._writer is not None:
            self._writer.close()

    async def call(self, message: protocol.FromWorker) -> Any:
        """Send a request and return its answer; waits out reconnections and storage that is not available.

        Raises:
            CallError: the supervisor answered with an error that repeating the call can't mend.
            UsageError: the worker has said goodbye already.
        """
        while True:
            if self._calls.ended:
                raise UsageError("the worker has said goodbye: nothing can be called any more")
            try:
                return await self._calls.ask(message)
            except CallError as error:
                if error.code not in (protocol.STORAGE_UNAVAILABLE, protocol.TOO_MANY_CALLS):
                    raise
                pause = _retry_after(error.data)
                log.warning("%s: %s; again in %.1f s", METHODS[type(message)], error, pause)
            await asyncio.sleep(pause)

    def notify(self, message: BrowserStarted | BrowserStopped | ItemProgress) -> None:
        """Send a notification. While disconnected, ends are kept for later; starts are announced by the listener."""
        line = jsonrpc.encode_notification(METHODS[type(message)], message)
        if not self._transmit(line) and isinstance(message, BrowserStopped):
            self._notices.append(line)

    async def not_through(self) -> None:
        """Say that this worker ends by a failure of its own: its source counts as not offered to the end."""
        try:
            async with asyncio.timeout(GIVE_BACK_TIMEOUT):
                await self.offer([], more=True)
        except (TimeoutError, WorkerError) as error:
            log.debug("nobody was told of the failure: %r", error)

    async def give_back(self, reason: str) -> None:
        """Release what is held; without a supervisor it goes back by itself."""
        try:
            async with asyncio.timeout(GIVE_BACK_TIMEOUT):
                for claim, key in list(self._calls.held.items()):
                    await self.release(key, claim, reason)
        except (TimeoutError, WorkerError) as error:
            log.warning("%d items could not be given back: %r", len(self._calls.held), error)

    async def _return_unwanted(self) -> None:
        while True:
            granted = await self._calls.unwanted.get()
            try:
                await self.release(granted.key, granted.claim, "granted to a call that nobody waits for any more")
            except CallError as error:  # the supervisor took it back first: either way it is not ours
                log.debug("%s was not released: %s", granted.key, error)

    # ---- the connection ----------------------------------------------------------------------------------------------

    def _transmit(self, line: bytes) -> bool:
        if self._writer is None:
            return False
        self._writer.write(line)
        return True

    async def _keep_connected(self) -> None:
        clock = asyncio.get_running_loop().time
        pause, self._alone_since = FIRST_PAUSE, clock()
        while True:
            if await self._converse():
                pause, self._alone_since = FIRST_PAUSE, clock()
            if self._calls.ended:
                return
            left = self._alone_since + self._lost_after - clock()
            if left <= 0:
                raise SupervisorLost(f"no supervisor at {self._path} for {self._lost_after:.0f} s")
            await asyncio.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _converse(self) -> bool:
        """One connection from hello to its end; whether hello was answered well."""
        writer: asyncio.StreamWriter | None = None
        welcomed = False
        try:
            async with asyncio.timeout(HELLO_TIMEOUT) as patience:
                reader, writer = await asyncio.open_unix_connection(self._path)
                writer.write(self._hello())
                framer = Framer(LONGEST_ANSWER)
                while data := await reader.read(256 * 1024):
                    for line in framer.feed(data):
                        message = jsonrpc.decode_line(line)
                        if isinstance(message, Response) and message.id == HELLO_ID:
                            welcomed = self._greeted(message, writer)
                            patience.reschedule(None if welcomed else 0)
                        else:
                            self._received(message, writer)
        except (OSError, LineTooLong) as error:  # TimeoutError is an OSError
            log.debug("connection to the supervisor: %r", error)
        finally:
            self._writer = None
            if writer is not None:
                writer.close()
        return welcomed

    def _hello(self) -> bytes:
        client = f"scraper-worker/{metadata.version('scraper-supervisor')}"
        params = msgspec.to_builtins(protocol.Hello(protocol.PROTOCOL, self._name, self._token, client))
        if self._welcome is not None:  # an incarnation's very first hello has none
            params["in_flight"] = [Claim(key, claim) for claim, key in self._calls.held.items()]
        return jsonrpc.encode_request("hello", params, HELLO_ID)

    def _greeted(self, response: Response, writer: asyncio.StreamWriter) -> bool:
        if response.error is not None:
            if response.error.code in _HELLO_IS_FINAL:
                raise Refused(f"the supervisor refused {self._name}: {response.error.message} ({response.error.code})")
            if response.error.code == protocol.STORAGE_UNAVAILABLE:  # there is a supervisor, which waits for its disk
                self._alone_since = asyncio.get_running_loop().time()
            log.warning("hello was answered with an error: %s (%d)", response.error.message, response.error.code)
            return False
        assert response.result is not None
        try:
            welcome: Welcome = jsonrpc.decode_params(Welcome, response.result)
        except jsonrpc.BadParams as error:
            raise Refused(f"the supervisor's welcome is not understood: {error} (at {error.path})") from None
        again = self._welcome is not None
        self._welcome = welcome
        self._writer = writer
        for claim in self._calls.settle(welcome):
            self._listener.dropped(claim)
        while self._notices:
            writer.write(self._notices.popleft())
        self._listener.introduced(welcome, again=again)
        self._beat(0.0)
        self._calls.send_again()
        self._welcomed.set()
        return True

    # ---- what the supervisor asks ------------------------------------------------------------------------------------

    def _received(self, message: Request | Response | jsonrpc.Malformed, writer: asyncio.StreamWriter) -> None:
        if isinstance(message, Response):
            self._calls.answered(message)
        elif isinstance(message, jsonrpc.Malformed):
            writer.write(jsonrpc.encode_error(None, message.error))
        else:
            self._asked(message, writer)

    def _asked(self, request: Request, writer: asyncio.StreamWriter) -> None:
        fault: RpcError | None = None
        order: protocol.ToWorker | None = None
        kind = protocol.SUPERVISOR_METHODS.get(request.method)
        if kind is None:
            fault = RpcError(protocol.METHOD_NOT_FOUND, f"no method {request.method}")
        else:
            try:
                order = jsonrpc.decode_params(kind, request.params)
            except jsonrpc.BadParams as bad:
                fault = RpcError(protocol.BAD_PARAMS, str(bad), bad.data)
        if isinstance(order, BrowserRecycle):
            self._tasks.create_task(self._recycle(order, request.id, writer), name=f"recycle {order.browser}")
            return
        if isinstance(order, Drain):
            self._listener.drain(order)
        elif isinstance(order, ItemCancel):
            self._listener.cancel(order)
        self._answer(request.id, fault, writer)

    async def _recycle(self, order: BrowserRecycle, call: CallId | UnsetType, writer: asyncio.StreamWriter) -> None:
        fault: RpcError | None = None
        try:
            await self._listener.recycle(order)
        except WorkerError as error:
            fault = RpcError(_SERVER_ERROR, f"the browser was not replaced: {error}")
        if writer is self._writer:  # a supervisor that came anew has not asked
            self._answer(call, fault, writer)

    @staticmethod
    def _answer(call: CallId | UnsetType, fault: RpcError | None, writer: asyncio.StreamWriter) -> None:
        if isinstance(call, UnsetType):  # a notification is never answered
            return
        writer.write(jsonrpc.encode_error(call, fault) if fault else jsonrpc.encode_result(call, {}))

    # ---- heartbeats --------------------------------------------------------------------------------------------------

    async def _heartbeats(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            lag = 0.0
            assert self._welcome is not None
            interval = self._welcome.heartbeat_interval / LAG_PROBES
            for _ in range(LAG_PROBES):
                due = loop.time() + interval
                await asyncio.sleep(interval)
                lag = max(lag, loop.time() - due)
            self._beat(lag)

    def _beat(self, lag: float) -> None:
        if self._writer is None or self._writer.transport.get_write_buffer_size() > HEARTBEAT_BACKLOG:
            return
        self._transmit(
            jsonrpc.encode_notification("heartbeat", Heartbeat(round(1000 * lag, 1), self._listener.pages()))
        )


def _retry_after(data: object) -> float:
    """Seconds to wait according to an error's data; the supervisor's word within reason."""
    asked = data.get("retry_after") if isinstance(data, dict) else None
    return min(max(float(asked), 0.01), 60.0) if isinstance(asked, int | float) else 1.0
