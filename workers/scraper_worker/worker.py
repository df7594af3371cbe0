"""What a scraper is given: `Worker.process` and the few things below it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from scraper_worker import protocol
from scraper_worker.browsers.browser import SupervisedBrowser
from scraper_worker.checkpoint import Checkpoint
from scraper_worker.errors import CallError, UsageError, WorkerError
from scraper_worker.failures.classify import classify
from scraper_worker.item import Attempt, trace
from scraper_worker.items.arguments import ByHand, check_arguments, check_session
from scraper_worker.items.evidence import EvidenceFolder
from scraper_worker.items.handling import Handling
from scraper_worker.items.tasks import SDK, owned_by
from scraper_worker.login.session import Session
from scraper_worker.offers import as_entries, offer_all, tell_refused
from scraper_worker.protocol import (
    End,
    Failure,
    FailureReport,
    Granted,
    ItemDone,
    ItemFailed,
    RestartDelays,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from contextlib import AbstractAsyncContextManager

    from playwright.async_api import Browser

    from scraper_worker.connection.link import Link
    from scraper_worker.items.handling import Handler
    from scraper_worker.login.session import Login
    from scraper_worker.offers import Entries, Entry
    from scraper_worker.protocol import BrowserRecycle, Drain, ItemCancel, Welcome, WireEntry

log = logging.getLogger("scraper_worker")

EARLY_ORDERS: Final = 256
LAST_WAIT: Final = 5.0  # seconds that an item may be waited for once the source has failed


class BrowserHandle:
    """`worker.browser()`: awaited, it gives Playwright's browser; as `async with`, it holds it, too."""

    def __init__(self, supervised: SupervisedBrowser) -> None:
        self._supervised = supervised
        self._holding: AbstractAsyncContextManager[Browser] | None = None

    def __await__(self) -> Generator[Any, None, Browser]:
        return self._supervised.get().__await__()

    async def __aenter__(self) -> Browser:
        self._holding = self._supervised.hold()
        return await self._holding.__aenter__()

    async def __aexit__(self, *error: object) -> None:
        assert self._holding is not None
        await self._holding.__aexit__(*error)  # type: ignore[arg-type]  # as the protocol gives them


class Worker:
    """One worker: its place in the group, its queue, its browser and its state.

    Args:
        link: the supervisor, or its stand-in.
        by_hand: the one item to work on, where somebody looks on.
    """

    def __init__(self, link: Link, by_hand: ByHand | None = None) -> None:
        self._link = link
        self._by_hand = by_hand
        self._welcome: Welcome | None = None
        self._browser = SupervisedBrowser(link.notify)
        self._draining = asyncio.Event()
        self._offered = asyncio.Event()
        self._attempts: dict[int, Attempt] = {}
        self._early: dict[int, Failure | None] = {}
        self._waits: set[asyncio.Timeout] = set()
        self._processed = False
        self._source_failure: BaseException | None = None
        self._ended: str | None = None
        self._evidence = EvidenceFolder()
        self._session: Session | None = None
        self.checkpoint = Checkpoint(link)
        """Save and load this worker's state."""

    @property
    def _place(self) -> Welcome:
        if self._welcome is None:
            raise UsageError("the worker has not been introduced yet")
        return self._welcome

    @property
    def name(self) -> str:
        """GROUP-INDEX."""
        return self._place.worker

    @property
    def group(self) -> str:
        """The group it belongs to."""
        return self._place.group

    @property
    def index(self) -> int:
        """Its number in the group, from 0."""
        return self._place.index

    @property
    def count(self) -> int:
        """How many workers the group has."""
        return self._place.count

    @property
    def run(self) -> int:
        """The group's run, from 1."""
        return self._place.run

    def _restart_delays(self) -> RestartDelays:
        return self._place.restart_policy or RestartDelays()

    @property
    def draining(self) -> bool:
        """Whether it is to finish what it has in hand and end; a loop of your own should look at it."""
        return self._draining.is_set()

    @property
    def farewell(self) -> Literal["complete", "drained"]:
        """What to say at the end."""
        return "drained" if self._ended == "draining" or (self.draining and self._ended is None) else "complete"

    # ---- for scrapers ------------------------------------------------------------------------------------------------

    async def process(
        self,
        keys: Entries | Entry | None,
        handler: Handler,
        *,
        concurrency: int = 1,
        browser: bool = True,
        launch: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        offer: Literal["once", "always"] = "once",
        login: Login | None = None,
        keep_session: bool = False,
    ) -> None:
        """Offer the keys, and work on items until the run is complete or the worker is drained.

        Args:
            keys: a list, an iterable or an async iterable of keys (or of mappings with key, target, data, priority);
                None or empty to work only on what is queued already. Keys the run knows are not added again.
            handler: an async function that is given an `Item`, and returns its result (any JSON) or raises. With
                `browser=False` also a plain function, called in a thread with a `ThreadItem`.
            concurrency: items in hand at a time, each with a page of its own in the one browser, or a thread.
            browser: False for handlers that need no page.
            launch: options for Playwright's `chromium.launch`, such as `proxy` or `headless`.
            context: options for its `new_context`, such as `locale` or `user_agent`.
            offer: "once": the keys are not drawn again where a worker of this run has offered its source to the end;
                "always": they are, for a source that grows meanwhile.
            login: an async function that is given a page and logs in, or raises. It runs when there is no session yet,
                and when the handler raises `SessionExpired`; one for all pages of this worker. Cookies and storage are
                kept over restarts and fresh runs.
            keep_session: keep cookies and storage so without a login.

        Raises:
            UsageError: a second call.
            SetupError: arguments that can't be meant, such as a plain function where there is a browser.
            LoginFailed: five logins in a row failed; the items in hand were given back.
            BrowserUnavailable: no browser can be started; the items in hand were given back.
            BrowserUnusable: as above, since the options are wrong or none is installed.
            CallError: the supervisor refused what was offered.
            Exception: what the source of keys raised, after the items that it had offered until then were worked on.
        """
        if self._processed:
            raise UsageError(
                "process() runs once in a worker's life: use one handler that looks at item.data to tell kinds of items"
                " apart, or two groups in the configuration"
            )
        check_arguments(handler, concurrency, browser, offer)
        check_session(login, keep_session, browser)
        self._processed = True
        if self._by_hand is not None and self._by_hand.headed:
            launch = {**(launch or {}), "headless": False}
        await self._browser.configure(launch or {}, context or {}, ahead=concurrency > 1)
        entries = as_entries(keys) if keys is not None else []
        if self._by_hand is not None:
            entries, concurrency = [self._by_hand.entry(entries)], 1
        elif self._place.offered and offer == "once":
            log.info("the keys of this run were offered to the end before, and are not drawn again")
            entries = []
        if login is not None or keep_session:
            self._session = Session(login, self._browser, self._link, self._restart_delays)
            await self._session.restore()
        logging_in = self._session if login is not None else None
        handling = Handling(handler, self._browser if browser else None, self._link, self._evidence, logging_in)
        try:
            with owned_by(SDK):
                async with asyncio.TaskGroup() as tasks:
                    offering = tasks.create_task(self._offer(entries), name="offers")
                    session = self._session
                    keeping = tasks.create_task(session.keep(), name="session") if session is not None else None
                    # A run with nothing in it is complete: so nobody may ask for an item before the first offer counts.
                    await self._offered.wait()
                    pullers = [
                        tasks.create_task(self._pull(handling), name=f"items {number}") for number in range(concurrency)
                    ]
                    await asyncio.wait(pullers)
                    failed = self._source_failure
                    offering.cancel()
                    if keeping is not None:
                        keeping.cancel()
                await self._browser.tidy()
        except BaseExceptionGroup as group:
            raise first_of(group) from None
        if isinstance(failed, Exception):
            raise failed
        if failed is not None:
            raise WorkerError(f"the source of keys ended with {type(failed).__name__}: {failed}") from failed

    def browser(self) -> BrowserHandle:
        """The supervised browser, started when it is first wanted.

        `async with worker.browser() as browser:` keeps it from being replaced meanwhile; `await worker.browser()` gives
        whichever runs now. Close the pages you open.
        """
        return BrowserHandle(self._browser)

    async def report(self, error: Exception, *, target: str | None = None) -> None:
        """Show a failure outside any item, such as a login that did not work.

        Args:
            error: what was raised.
            target: the host it is about.
        """
        failure = msgspec.structs.replace(classify(error), traceback=trace(error))
        await self._link.report(FailureReport(failure, target))

    # ---- offering and pulling ----------------------------------------------------------------------------------------

    async def _offer(self, entries: Any) -> None:
        """Offer the keys. A source that fails ends nothing by itself: what it gave until then is worked on first."""

        async def send(batch: list[WireEntry], more: bool) -> None:
            answer = await self._link.offer(batch, more=more)
            tell_refused(batch, answer.refused)
            self._offered.set()

        try:
            await offer_all(entries, send)
        except BaseException as error:  # noqa: BLE001 - a source may raise anything, as its own order to stop
            self._source_failure = error
            self._wake()
        finally:
            self._offered.set()

    async def _pull(self, handling: Handling) -> None:
        while True:
            granted = await self._next()
            if isinstance(granted, End):
                self._ended = granted.end
                return
            attempt = Attempt(granted)
            self._attempts[granted.claim] = attempt
            if granted.claim in self._early:
                self._stop(granted.claim, self._early.pop(granted.claim))
            try:
                outcome = await handling.attempt(attempt)
            finally:
                del self._attempts[granted.claim]
            if outcome is not None and not attempt.dropped:
                await self._conclude(outcome)

    async def _next(self) -> Granted | End:
        while not self.draining:
            if self._session is not None and self._session.pause:
                # What is handed out now would have to wait for a login that may not be tried yet.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._session.pause):
                        await self._draining.wait()
                continue
            wait = asyncio.timeout(None)
            self._waits.add(wait)
            try:
                async with wait:
                    # A failed source is not at its end, so that the run can't be complete; nobody must wait for that.
                    return await self._link.next(None if self._source_failure is None else LAST_WAIT)
            except TimeoutError:
                continue  # woken while waiting; what is granted after all is released by the link
            finally:
                self._waits.discard(wait)
        return End("draining")

    def _wake(self) -> None:
        """Have those who wait for an item look again at how things stand."""
        for wait in list(self._waits):
            wait.reschedule(asyncio.get_running_loop().time())

    async def _conclude(self, outcome: ItemDone | ItemFailed) -> None:
        try:
            if isinstance(outcome, ItemFailed):
                await self._link.failed(outcome)
            else:
                answer = await self._link.done(outcome)
                tell_refused(outcome.offers, answer.refused)
        except CallError as error:
            if error.code == protocol.NOT_CLAIMED:
                log.warning("%s was taken back meanwhile; its outcome does not count", outcome.key)
            elif error.code in (protocol.TOO_LARGE, protocol.BAD_PARAMS) and isinstance(outcome, ItemDone):
                failure = Failure("permanent", "application", "result-refused", f"the result was refused: {error}")
                await self._conclude(ItemFailed(outcome.key, failure, outcome.claim, outcome.seconds, outcome.target))
            else:
                raise

    # ---- the Listener ------------------------------------------------------------------------------------------------

    def introduced(self, welcome: Welcome, *, again: bool) -> None:
        """The supervisor said hello."""
        self._welcome = welcome
        self._evidence.path = None if welcome.evidence is None else Path(welcome.evidence.dir)
        if again:
            self._browser.announce()

    def dropped(self, claim: int) -> None:
        """A claim is no longer ours."""
        self._stop(claim, None)

    def drain(self, order: Drain | None = None) -> None:
        """Finish what is in hand, take nothing more."""
        if self.draining:
            return
        log.info("draining: %s", order.reason if order is not None else "asked to end")
        self._draining.set()
        self._offered.set()  # whoever waits for the first offer has nothing to wait for any more
        self._wake()

    def cancel(self, order: ItemCancel) -> None:
        """End one item."""
        limit = order.reason.partition("_")[0]  # item_timeout of …, progress_timeout of …, or an operator's
        signature = f"{limit}-timeout" if limit in ("item", "progress") else "cancelled"
        self._stop(order.claim, Failure("transient", "system", signature, order.reason))

    def _stop(self, claim: int, failure: Failure | None) -> None:
        """End the work on a claim: with a failure to report, or in silence where it is no longer ours."""
        attempt = self._attempts.get(claim)
        if attempt is None:
            # An order may come in one packet with the claim, before the claim has reached its puller. Most of these
            # are for items that have ended meanwhile, so only the last few are kept.
            self._early[claim] = failure
            while len(self._early) > EARLY_ORDERS:
                del self._early[next(iter(self._early))]
        elif failure is None:
            log.warning("%s was taken back", attempt.granted.key)
            attempt.drop()
        else:
            attempt.cut(failure)

    async def recycle(self, order: BrowserRecycle) -> None:
        """Replace the browser once nobody holds it."""
        log.info("replacing %s: %s", order.browser, order.reason)
        await self._browser.recycle(order.browser, order.deadline)
        if self._session is not None:
            await self._session.save_changes()

    def pages(self) -> dict[str, int]:
        """Pages opened per browser."""
        return self._browser.pages()

    async def close(self) -> None:
        """Save the session, end the browser."""
        if self._session is not None:
            await self._session.close()
        await self._browser.close()


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first real exception in a group: who called `process` expects what was raised, not a group of it."""
    for error in group.exceptions:
        return first_of(error) if isinstance(error, BaseExceptionGroup) else error
    return group
