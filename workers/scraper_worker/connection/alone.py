"""The queue in memory, for a worker that runs without a supervisor: the same semantics, nothing kept."""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
import random
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw, Struct

from scraper_worker import protocol
from scraper_worker.connection.link import Link
from scraper_worker.errors import CallError
from scraper_worker.jsonrpc import BadParams, check_key, check_slot
from scraper_worker.protocol import (
    MAX_REFUSED,
    BadEntry,
    CheckpointState,
    DoneAnswer,
    End,
    FailedAnswer,
    Failure,
    Granted,
    ItemCounts,
    ItemDone,
    ItemFailed,
    Nothing,
    Offer,
    Offered,
    Refused,
    Saved,
    Welcome,
)
from scraper_worker.retry import RetryPolicy

if TYPE_CHECKING:
    from scraper_worker.connection.link import Listener
    from scraper_worker.protocol import BrowserStarted, BrowserStopped, FromWorker, ItemProgress, WireEntry

FREE_BLOCKED: Final = 20  # times an item that cost no attempt; the supervisor's figures
FREE_INFRASTRUCTURE: Final = 3
SHOWN_FAILURES: Final = 10
KEPT_STATES: Final = 10


class _Item(Struct):
    """One item of the run."""

    key: str
    target: str | None
    data: Raw
    priority: int
    order: int
    attempts: int = 0
    free: dict[str, int] = {}
    failure: Failure | None = None
    state: str = "pending"


class Alone(Link):
    """A queue of one worker, in memory.

    Args:
        name: the worker's name, as it will see it.
        policy: how its items are retried.
        quiet: write nothing to stdout and stderr.
        only: the one item that is taken, with all that can be told of its failure; everything else offered is left out.
    """

    def __init__(
        self, name: str = "alone", policy: RetryPolicy | None = None, *, quiet: bool = False, only: str | None = None
    ) -> None:
        self._only = only
        self._left_out: dict[str, None] = {}  # keys, in order
        self._name = name
        self._policy = policy or RetryPolicy()
        self._quiet = quiet
        self._items: dict[str, _Item] = {}
        self._ready: list[tuple[int, int, str]] = []
        self._later: list[tuple[float, int, str]] = []
        self._claims: dict[int, str] = {}
        self._numbers = itertools.count(1)
        self._changed = asyncio.Condition()
        self._more = False
        self._counts = {"done": 0, "failed": 0}
        self._states: dict[str | None, dict[int, CheckpointState]] = {}  # by slot

    async def open(self, listener: Listener, tasks: asyncio.TaskGroup) -> Welcome:  # noqa: ARG002 - no background here
        """Say that nothing is kept, and begin."""
        what = "running alone" if self._only is None else f"running {self._only!r:.200} by hand, once"
        self._say(f"no supervisor: {what}, in memory; what is done is not kept")
        welcome = Welcome(protocol.PROTOCOL, f"{self._name}-0", self._name, 0, 1, 1, 1, 3.0, None, ItemCounts(), [])
        listener.introduced(welcome, again=False)
        return welcome

    async def close(self) -> None:
        """Say how it went."""
        left = len(self._items) - sum(self._counts.values())
        self._say(f"{self._counts['done']} done, {self._counts['failed']} failed, {left} left")
        failed = [item for item in self._items.values() if item.state == "failed" and item.failure is not None]
        for item in failed[:SHOWN_FAILURES]:
            assert item.failure is not None
            self._say(f"  failed after {item.attempts} attempts: {item.key}: {item.failure.message.splitlines()[0]}")
        if len(failed) > SHOWN_FAILURES:
            self._say(f"  … and {len(failed) - SHOWN_FAILURES} more")
        if self._only is not None:
            for item in failed:
                self._say((item.failure and item.failure.traceback) or "no traceback")
            shown = ", ".join(f"{key:.80}" for key in list(self._left_out)[:SHOWN_FAILURES])
            if shown:
                self._say(f"offered on the way, {len(self._left_out)} in all: {shown}")

    @property
    def all_done(self) -> bool:
        """Whether there was something to do, and all of it was done."""
        return self._counts["done"] == len(self._items) > 0

    async def not_through(self) -> None:
        """Nothing: nobody starts another."""

    async def give_back(self, reason: str) -> None:
        """Nothing: the queue ends with the process."""

    def notify(self, message: BrowserStarted | BrowserStopped | ItemProgress) -> None:
        """Nobody to tell."""

    async def call(self, message: FromWorker) -> Any:
        """Answer a request as the supervisor would."""
        if isinstance(message, protocol.ItemNext):
            return await self._next(message.wait)
        async with self._changed:
            self._changed.notify_all()
            match message:
                case protocol.ItemsOffer():
                    self._more = message.more
                    return self._offer(message.items)
                case ItemDone():
                    return self._done(message)
                case ItemFailed():
                    return self._failed(message)
                case protocol.ItemRelease():
                    item = self._take(message.key, message.claim)
                    self._make_ready(item)
                    return Nothing()
                case protocol.CheckpointSave():
                    return self._save(message)
                case protocol.CheckpointLoad():
                    return self._load(message)
                case protocol.FailureReport():
                    self._say(f"{message.failure.signature}: {message.failure.message}")
                    return Nothing()
                case _:
                    return Nothing()

    def _say(self, text: str) -> None:
        if not self._quiet:
            sys.stderr.write(f"scraper_worker: {text}\n")

    # ---- the queue -------------------------------------------------------------------------------------------------

    def _offer(self, entries: list[WireEntry]) -> Offered:
        added, refused = 0, []
        for index, entry in enumerate(entries):
            try:
                if isinstance(entry, BadEntry):
                    raise BadParams("key", entry.reason)
                offer = Offer(entry) if isinstance(entry, str) else entry
                check_key(offer.key, "key")
            except BadParams as error:
                refused.append(Refused(index, str(error)))
                continue
            if self._only not in (None, offer.key):
                self._left_out[offer.key] = None
                continue
            if offer.key in self._items:
                continue
            item = _Item(offer.key, offer.target, offer.data, offer.priority, next(self._numbers), free={})
            self._items[item.key] = item
            self._make_ready(item)
            added += 1
        return Offered(added, len(entries) - added - len(refused), refused[:MAX_REFUSED])

    def _make_ready(self, item: _Item) -> None:
        item.state = "pending"
        heapq.heappush(self._ready, (-item.priority, item.order, item.key))

    async def _next(self, wait: float | None) -> Granted | End:
        loop = asyncio.get_running_loop()
        deadline = None if wait is None else loop.time() + wait
        async with self._changed:
            while True:
                now = loop.time()
                while self._later and self._later[0][0] <= now:
                    self._make_ready(self._items[heapq.heappop(self._later)[2]])
                if self._ready:
                    return self._grant(heapq.heappop(self._ready)[2])
                if not self._later and not self._claims and not self._more:
                    return End("complete")
                if deadline is not None and now >= deadline:
                    return End("empty")
                times = [time for time in (deadline, self._later[0][0] if self._later else None) if time is not None]
                try:
                    async with asyncio.timeout_at(min(times) if times else None):
                        await self._changed.wait()
                except TimeoutError:  # a retry is due, or the wait is over: the loop looks again
                    continue

    def _grant(self, key: str) -> Granted:
        item = self._items[key]
        claim = next(self._numbers)
        self._claims[claim] = key
        item.state = "in flight"
        return Granted(key, claim, item.target, item.data, item.attempts + 1)

    def _take(self, key: str, claim: int | None) -> _Item:
        number = claim or next((number for number, held in self._claims.items() if held == key), 0)
        if self._claims.pop(number, None) != key:
            raise CallError(protocol.NOT_CLAIMED, f"{key} is not claimed")
        return self._items[key]

    def _done(self, message: ItemDone) -> DoneAnswer:
        item = self._take(message.key, message.claim)
        item.attempts += 1
        item.state = "done"
        self._counts["done"] += 1
        offered = self._offer(message.offers)
        self._print(item, message.result)
        return DoneAnswer(self._counts["done"], duplicate=False, refused=offered.refused)

    def _print(self, item: _Item, result: Raw) -> None:
        if self._quiet:
            return
        finished = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {
            "seq": self._counts["done"],
            "key": item.key,
            "result": result,
            "attempts": item.attempts,
            "finished_at": finished,
        }
        sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
        sys.stdout.flush()

    def _failed(self, message: ItemFailed) -> FailedAnswer:
        item = self._take(message.key, message.claim)
        failure = item.failure = message.failure
        charged = not self._is_free(item, failure)
        item.attempts += charged
        attempt = item.attempts if charged else item.attempts + 1
        verdict = self._policy.decide(failure, attempt, random.random(), charged=charged)
        if verdict.action == "final":
            item.state = "failed"
            self._counts["failed"] += 1
            return FailedAnswer("final", attempt, None, verdict.reason)
        item.state = "waiting"
        heapq.heappush(self._later, (asyncio.get_running_loop().time() + verdict.delay, item.order, item.key))
        self._say(f"{item.key}: {verdict.reason}")
        return FailedAnswer("retry", attempt, verdict.delay, verdict.reason)

    @staticmethod
    def _is_free(item: _Item, failure: Failure) -> bool:
        limit = {"infrastructure": FREE_INFRASTRUCTURE, "blocked": FREE_BLOCKED}.get(failure.kind, 0)
        if failure.kind == "blocked" and failure.retry_after is None:  # alone there is no hold-off to wait behind
            limit = 0
        spent = item.free.get(failure.kind, 0)
        if spent >= limit:
            return False
        item.free = {**item.free, failure.kind: spent + 1}
        return True

    # ---- the state -------------------------------------------------------------------------------------------------

    def _save(self, message: protocol.CheckpointSave) -> Saved:
        check_slot(message.slot)
        states = self._states.setdefault(message.slot, {})
        if len(self._states) > protocol.MAX_SLOTS + 1:
            del self._states[message.slot]
            raise CallError(protocol.BAD_PARAMS, f"a worker has at most {protocol.MAX_SLOTS} slots")
        generation = max(states, default=0) + 1
        saved_at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        states[generation] = CheckpointState(generation, message.schema, saved_at, message.state)
        if len(states) > KEPT_STATES:
            del states[min(states)]
        return Saved(generation, hashlib.sha256(bytes(message.state)).hexdigest())

    def _load(self, message: protocol.CheckpointLoad) -> CheckpointState | None:
        check_slot(message.slot)
        states = self._states.get(message.slot, {})
        if message.generation is None:
            return states[max(states)] if states else None
        if message.generation not in states:
            raise CallError(protocol.NO_CHECKPOINT, f"there is no generation {message.generation}")
        return states[message.generation]
