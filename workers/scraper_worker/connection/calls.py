"""The open calls of a connection, and the claims that their answers gave: what must outlive the connection itself."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET, Raw, Struct, UnsetType

from scraper_worker import jsonrpc, protocol
from scraper_worker.errors import CallError
from scraper_worker.protocol import End, Goodbye, Granted, ItemDone, ItemFailed, ItemNext, ItemRelease

if TYPE_CHECKING:
    from collections.abc import Callable

    from scraper_worker.jsonrpc import RpcError

log = logging.getLogger("scraper_worker")

SENDS_OF_A_LONG_LINE: Final = 3  # a line over the usual limit that broke this many connections is what breaks them
METHODS: Final = {kind: method for method, kind in protocol.WORKER_METHODS.items()}


class _NextAnswer(Struct, frozen=True):
    """`item.next` answers one of two untagged objects."""

    end: str | UnsetType = UNSET
    key: str = ""
    claim: int = 0
    target: str | None = None
    data: Raw = Raw(b"null")
    attempt: int = 1
    last: bool = False
    held: bool = False


_ANSWERS: Final[dict[type[Any], Any]] = {
    protocol.ItemsOffer: protocol.Offered,
    ItemNext: _NextAnswer,
    ItemDone: protocol.DoneAnswer,
    ItemFailed: protocol.FailedAnswer,
    ItemRelease: protocol.Nothing,
    protocol.FailureReport: protocol.Nothing,
    protocol.CheckpointSave: protocol.Saved,
    protocol.CheckpointLoad: protocol.CheckpointState | None,
    Goodbye: protocol.Nothing,
}
_Conclusion = ItemDone | ItemFailed | ItemRelease


class _Call:
    """One request that is not answered yet."""

    __slots__ = ("answer", "id", "line", "message", "sends")

    def __init__(self, number: int, message: protocol.FromWorker) -> None:
        self.id = number
        self.message = message
        self.line = jsonrpc.encode_request(METHODS[type(message)], message, number)
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.sends = 0


class OpenCalls:
    """Requests waiting for their answers, at most 256 of them; what comes on top waits its turn here.

    Args:
        send: writes a line, or returns False where there is no connection at the moment.
    """

    def __init__(self, send: Callable[[bytes], bool]) -> None:
        self._transmit = send
        self._ids = itertools.count(1)
        self._open: dict[int, _Call] = {}
        self._slots = asyncio.Semaphore(protocol.MAX_OPEN_CALLS)
        # Open waits must leave room: otherwise many pullers would keep the very outcomes back that they wait for.
        self._waits = asyncio.Semaphore(protocol.MAX_OPEN_CALLS // 2)
        self.held: dict[int, str] = {}
        """Claims in our hands, and their keys; a claim leaves when its end is answered."""
        self.unwanted: asyncio.Queue[Granted] = asyncio.Queue()
        """Claims that nobody works on, to be released; bounded by the number of open calls."""
        self.ended = False
        """Goodbye was answered."""

    async def ask(self, message: protocol.FromWorker) -> Any:
        """Send a request and wait for its answer, over any number of connections.

        Raises:
            CallError: the supervisor's error.
        """
        waiting = isinstance(message, ItemNext)
        if waiting:
            await self._waits.acquire()
        try:
            await self._slots.acquire()
        except asyncio.CancelledError:
            if waiting:
                self._waits.release()
            raise
        call = _Call(next(self._ids), message)
        self._open[call.id] = call
        self._send(call)
        try:
            return await call.answer
        except asyncio.CancelledError:
            # The answer may have come in the same turn of the loop; then nobody but us knows of the claim.
            if call.answer.done() and not call.answer.cancelled() and call.answer.exception() is None:
                self._abandon(call.answer.result())
            raise

    def answered(self, response: jsonrpc.Response) -> None:
        """Take the answer to one of our calls."""
        call = self._open.get(response.id) if isinstance(response.id, int) else None
        if call is None:
            if response.error is not None:
                self._blame(response.error)
            return
        if response.error is not None:
            self._fail(call, CallError(response.error.code, response.error.message, response.error.data))
            return
        assert response.result is not None
        try:
            answer = jsonrpc.decode_params(_ANSWERS[type(call.message)], response.result)
        except jsonrpc.BadParams as error:
            self._fail(call, CallError(protocol.PARSE_ERROR, f"the supervisor's answer is not understood: {error}"))
            return
        self._forget(call)
        if isinstance(answer, _NextAnswer):
            answer = self._granted(answer)
        elif isinstance(call.message, _Conclusion):
            self._let_go(call.message)
        elif isinstance(call.message, Goodbye):
            self.ended = True
        if call.answer.done():
            self._abandon(answer)
        else:
            call.answer.set_result(answer)

    def settle(self, welcome: protocol.Welcome) -> list[int]:
        """Bring our claims in line with what the supervisor says is ours; returns the claims that are no longer."""
        ours = {held.claim for held in welcome.in_flight}
        # A conclusion under way is answered even if it was recorded before the break, so it stays and goes again.
        concluding = {call.message.claim for call in self._open.values() if isinstance(call.message, _Conclusion)}
        dropped = [claim for claim in self.held if claim not in ours and claim not in concluding]
        for claim in dropped:
            del self.held[claim]
        for held in welcome.in_flight:
            if held.claim not in self.held:
                self._abandon(Granted(held.key, held.claim, None, Raw(b"null"), held.attempt))
        return dropped

    def send_again(self) -> None:
        """Send every unanswered call over the new connection, in order."""
        for call in list(self._open.values()):
            if call.answer.cancelled() and isinstance(call.message, ItemNext):
                self._forget(call)
            elif len(call.line) > protocol.MAX_LINE and call.sends >= SENDS_OF_A_LONG_LINE:
                message = f"a line of {len(call.line)} bytes broke {call.sends} connections"
                self._fail(call, CallError(protocol.TOO_LARGE, message))
            else:
                self._send(call)

    def _send(self, call: _Call) -> None:
        if self._transmit(call.line):
            call.sends += 1

    def _abandon(self, answer: object) -> None:
        if isinstance(answer, Granted) and not self.ended:
            self.unwanted.put_nowait(answer)

    def _forget(self, call: _Call) -> None:
        del self._open[call.id]
        self._slots.release()
        if isinstance(call.message, ItemNext):
            self._waits.release()

    def _fail(self, call: _Call, error: CallError) -> None:
        self._forget(call)
        if isinstance(call.message, _Conclusion) and error.code == protocol.NOT_CLAIMED:
            self._let_go(call.message)
        if not call.answer.done():
            call.answer.set_exception(error)

    def _let_go(self, message: ItemDone | ItemFailed | ItemRelease) -> None:
        if message.claim is not None:
            self.held.pop(message.claim, None)

    def _granted(self, answer: _NextAnswer) -> Granted | End:
        if answer.end is not UNSET:
            return End("complete" if answer.end == "complete" else "empty" if answer.end == "empty" else "draining")
        # Noted here and not where the answer is awaited: a break in between must not lose the claim.
        self.held[answer.claim] = answer.key
        return Granted(answer.key, answer.claim, answer.target, answer.data, answer.attempt, answer.last, answer.held)

    def _blame(self, error: RpcError) -> None:
        """An error without an id: a line over the limit can't be told by its id, but by its length."""
        if error.code == protocol.TOO_LARGE and self._open:
            longest = max(self._open.values(), key=lambda call: len(call.line))
            self._fail(longest, CallError(error.code, error.message, error.data))
        else:
            log.warning("the supervisor complains: %s (%d)", error.message, error.code)
