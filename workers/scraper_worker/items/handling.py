"""A handler at work on an item, and the outcome that its end means, whatever that end is."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from scraper_worker.errors import BrowserUnavailable, InfrastructureError, LoginFailed, SessionExpired
from scraper_worker.failures.challenges import challenged, may_be_challenge
from scraper_worker.failures.classify import classify, failure_of, leaves
from scraper_worker.item import Attempt, BaseItem, Item, ThreadItem, trace
from scraper_worker.items.evidence import Attachments, EvidenceFolder
from scraper_worker.items.progress import Progress
from scraper_worker.items.threads import in_thread, is_plain
from scraper_worker.portable import NotPortable, encodable, to_json
from scraper_worker.protocol import Failure, Granted, ItemDone, ItemFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from scraper_worker.browsers.browser import SupervisedBrowser
    from scraper_worker.browsers.tab import Tab
    from scraper_worker.connection.link import Link
    from scraper_worker.login.session import Session
    from scraper_worker.protocol import WireEntry

    Handler = Callable[[Item], Awaitable[Any]] | Callable[[ThreadItem], Any]

CHALLENGE_TIMEOUT: Final = 2.0  # seconds to read the page on which an item failed
SETTLE_TIMEOUT: Final = 5.0  # seconds for page or browser to say whether it is lost, after an unclear failure
_UNCLEAR: Final = frozenset({"net::ERR_ABORTED", "TargetClosedError", "driver-died"})


class Handling:
    """Has a handler work on items, one attempt after the other; several may be at it at a time.

    Args:
        handler: the scraper's function.
        browser: gives each attempt a page; None where none is wanted.
        link: who keeps the queue.
        evidence: where attached files go.
        session: logs in where a handler finds its session expired; None where nobody logs in.
    """

    def __init__(
        self,
        handler: Handler,
        browser: SupervisedBrowser | None,
        link: Link,
        evidence: EvidenceFolder,
        session: Session | None = None,
    ) -> None:
        self._handler: Callable[[Any], Any] = handler
        self._in_thread = is_plain(handler)
        self._browser = browser
        self._link = link
        self._evidence = evidence
        self._session = session

    async def attempt(self, attempt: Attempt) -> ItemDone | ItemFailed | None:
        """Work on an item to its end; its outcome, or None if it was given back or taken.

        Raises:
            BrowserUnavailable: no browser can be started; the item was given back.
            LoginFailed: for the last time; the item was given back.
        """
        try:
            if self._session is None:
                return _outcome(attempt, await self._try(attempt))
            return await self._attempt_with(self._session, attempt)
        except (BrowserUnavailable, LoginFailed) as error:
            what = "no browser can be started" if isinstance(error, BrowserUnavailable) else "the login failed"
            await self._link.release(attempt.granted.key, attempt.granted.claim, what)
            raise

    async def _attempt_with(self, session: Session, attempt: Attempt) -> ItemDone | ItemFailed | None:
        """Tries in one claim: another after a login, where the first finds the session expired."""
        expirations = 0
        while True:
            refusal = await session.ready(attempt)
            if refusal is not None and not attempt.stopped:
                await self._link.release(attempt.granted.key, attempt.granted.claim, refusal)
                return None
            epoch = session.epoch
            end = await self._try(attempt)
            if isinstance(end, Expired) and session.expired(epoch, expirations):
                await end.attachments.discard()
                expirations += 1
                continue
            if isinstance(end, ItemDone):
                session.done(epoch)
            return _outcome(attempt, end)

    async def _try(self, attempt: Attempt) -> ItemDone | ItemFailed | Expired | None:
        if self._browser is None:
            return await self._handle(attempt, None)

        def lost(signature: str, message: str) -> None:
            attempt.cut(Failure("infrastructure", "browser", signature, message))

        granted = attempt.granted
        try:
            host = granted.target or urlsplit(granted.key).hostname
            async with self._browser.tab(lost, host) as tab:
                return await self._handle(attempt, tab)
        except InfrastructureError as error:
            return _failed(attempt, classify(error), None)

    async def _handle(self, attempt: Attempt, tab: Tab | None) -> ItemDone | ItemFailed | Expired | None:
        """The one place where a handler's end becomes its item's outcome."""
        attachments = Attachments(self._evidence, attempt.granted.claim)
        item, call = self._prepare(attempt, attachments, tab)
        result, error = await attempt.run(call)
        failure = None
        if error is not None and not attempt.stopped:
            failure = await self._explain(error, tab)
        await attachments.settle()
        if failure is not None and not attempt.stopped and self._session is not None and _has_expired(error):
            return Expired(_failed(attempt, failure, tab), attachments)
        attempt.conclude()
        failure = attempt.failure or failure
        if failure is None and not attempt.dropped:
            outcome = _done(attempt, result, item.offers, tab)
            if isinstance(outcome, ItemDone):
                await attachments.discard()
                return outcome
            failure = outcome.failure
        if failure is None:
            await attachments.discard()
            return None
        return _failed(attempt, msgspec.structs.replace(failure, evidence=attachments.names), tab)

    def _prepare(
        self, attempt: Attempt, attachments: Attachments, tab: Tab | None
    ) -> tuple[BaseItem, Callable[[], Awaitable[Any]]]:
        """The item as its handler sees it, and the call of the handler."""
        progress = Progress(attempt.granted, self._link.notify)
        if self._in_thread:
            item = ThreadItem(attempt, progress, attachments)

            async def call() -> Any:
                return await in_thread(lambda: self._handler(item), attempt)

            return item, call
        paged = Item(attempt, progress, attachments, tab.page if tab is not None else None)

        async def call_with_page() -> Any:
            with tab.belongings.owned() if tab is not None else contextlib.nullcontext():
                return await self._handler(paged)

        return paged, call_with_page

    async def _explain(self, error: BaseException, tab: Tab | None) -> Failure:
        status, retry_after = (tab.status, tab.retry_after) if tab is not None else (None, None)
        failure = failure_of(error, status=status, retry_after=retry_after)
        if tab is not None and failure.signature in _UNCLEAR:
            lost = await tab.settle(SETTLE_TIMEOUT)
            if not lost and failure.signature == "TargetClosedError":  # the handler, or the page itself, closed it
                message = f"the page was closed, and used after that: {failure.message}"
                failure = Failure("transient", "application", "page-closed", message)
        elif tab is not None and may_be_challenge(error, failure):
            who = await tab.challenge(CHALLENGE_TIMEOUT)
            if who is not None:
                failure = challenged(failure, who)
        if self._session is None and failure.signature == "session-expired":
            message = f"{failure.message}: process(login=f) would log in again and try the item once more"
            failure = msgspec.structs.replace(failure, message=message)
        return msgspec.structs.replace(failure, traceback=trace(error))


class Expired(NamedTuple):
    """A try that found its session expired; as a failure, for where there is no further try."""

    failed: ItemFailed
    attachments: Attachments


def _has_expired(error: BaseException | None) -> bool:
    return error is not None and any(isinstance(leaf, SessionExpired) for leaf in leaves(error))


def _outcome(attempt: Attempt, end: ItemDone | ItemFailed | Expired | None) -> ItemDone | ItemFailed | None:
    if not isinstance(end, Expired):
        return end
    attempt.conclude()
    if attempt.dropped:
        return None
    message = f"the session had expired again, also after a login: {end.failed.failure.message}"
    failure = attempt.failure or Failure("transient", "application", "session-expired", message)
    told = end.failed.failure
    failure = msgspec.structs.replace(failure, traceback=told.traceback, evidence=end.attachments.names)
    return msgspec.structs.replace(end.failed, failure=failure)


def _done(attempt: Attempt, result: Any, offers: list[WireEntry], tab: Tab | None) -> ItemDone | ItemFailed:
    try:
        encoded = to_json(result)
    except NotPortable as error:
        return _failed(attempt, Failure("permanent", "application", error.signature, str(error)), tab)
    granted = attempt.granted
    return ItemDone(granted.key, granted.claim, attempt.seconds, _target(granted, tab), encoded, offers)


def _failed(attempt: Attempt, failure: Failure, tab: Tab | None) -> ItemFailed:
    granted = attempt.granted
    return ItemFailed(granted.key, failure, granted.claim, attempt.seconds, _target(granted, tab))


def _target(granted: Granted, tab: Tab | None) -> str | None:
    """The host that the attempt talked to, where the queue can't know it from the item itself."""
    if granted.target is not None or tab is None or urlsplit(granted.key).hostname:
        return None
    return encodable(tab.host) if tab.host is not None else None
