"""What a worker needs from whoever keeps its queue: the supervisor over a socket, or a stand-in in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

from scraper_worker.protocol import (
    BrowserStarted,
    BrowserStopped,
    CheckpointLoad,
    CheckpointSave,
    CheckpointState,
    DoneAnswer,
    End,
    FailedAnswer,
    FailureReport,
    FromWorker,
    Goodbye,
    Granted,
    ItemDone,
    ItemFailed,
    ItemNext,
    ItemProgress,
    ItemRelease,
    ItemsOffer,
    Offered,
    Saved,
)

if TYPE_CHECKING:
    import asyncio
    from typing import Literal

    from scraper_worker.protocol import BrowserRecycle, Drain, ItemCancel, Welcome, WireEntry


class Listener(Protocol):
    """The worker, as the link sees it."""

    @abstractmethod
    def introduced(self, welcome: Welcome, *, again: bool) -> None:
        """The supervisor said hello; `again` when it is not the first time, and it may know nothing of our browser."""

    @abstractmethod
    def dropped(self, claim: int) -> None:
        """A claim is no longer ours: whatever works on it must stop, and say nothing."""

    @abstractmethod
    def drain(self, order: Drain) -> None:
        """Finish what is in hand and say goodbye."""

    @abstractmethod
    def cancel(self, order: ItemCancel) -> None:
        """End one item and answer `item.failed`."""

    @abstractmethod
    async def recycle(self, order: BrowserRecycle) -> None:
        """Replace the browser; returns when the new one is up."""

    @abstractmethod
    def pages(self) -> dict[str, int]:
        """Pages opened per browser since its start."""


class Link(ABC):
    """The worker's side of the protocol. Calls return when they are answered, however long that takes."""

    @abstractmethod
    async def open(self, listener: Listener, tasks: asyncio.TaskGroup) -> Welcome:
        """Say hello; what runs in the background from now on runs in `tasks`."""

    @abstractmethod
    async def close(self) -> None:
        """End everything that `open` began."""

    @abstractmethod
    async def call(self, message: FromWorker) -> Any:
        """Send a request and return its decoded answer.

        Raises:
            CallError: the supervisor answered with an error that repeating the call can't mend.
        """

    @abstractmethod
    def notify(self, message: BrowserStarted | BrowserStopped | ItemProgress) -> None:
        """Send a notification."""

    @abstractmethod
    async def not_through(self) -> None:
        """Say that this worker ends by a failure of its own, which more work may follow; gives up quietly."""

    @abstractmethod
    async def give_back(self, reason: str) -> None:
        """Release every claim that is still held; gives up quietly where there is nobody to give them to."""

    async def offer(self, items: list[WireEntry], *, more: bool) -> Offered:
        """Add items to the run; durable when this returns."""
        answer: Offered = await self.call(ItemsOffer(items, more))
        return answer

    async def next(self, wait: float | None = None) -> Granted | End:
        """Claim the next item; waits until there is one, or for `wait` seconds."""
        answer: Granted | End = await self.call(ItemNext(wait))
        return answer

    async def done(self, message: ItemDone) -> DoneAnswer:
        """Conclude an item; durable when this returns."""
        answer: DoneAnswer = await self.call(message)
        return answer

    async def failed(self, message: ItemFailed) -> FailedAnswer:
        """Report a failed attempt; durable when this returns."""
        answer: FailedAnswer = await self.call(message)
        return answer

    async def release(self, key: str, claim: int, reason: str) -> None:
        """Give an item back at no cost."""
        await self.call(ItemRelease(key, claim, reason))

    async def report(self, message: FailureReport) -> None:
        """Show a failure outside any item."""
        await self.call(message)

    async def save(self, message: CheckpointSave) -> Saved:
        """Write the worker's state; durable when this returns."""
        answer: Saved = await self.call(message)
        return answer

    async def load(self, generation: int | None = None, slot: str | None = None) -> CheckpointState | None:
        """The newest state, or that of `generation`; of the main ones, or of a slot's. None if there is none."""
        answer: CheckpointState | None = await self.call(CheckpointLoad(generation, slot))
        return answer

    async def goodbye(self, reason: Literal["complete", "drained"]) -> None:
        """The last call."""
        await self.call(Goodbye(reason))
