"""A worker's session: restored at its start, made by the scraper's login, saved in a slot of its own."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw

from scraper_worker.errors import CallError, InfrastructureError, LoginFailed, WorkerError
from scraper_worker.failures.classify import classify, failure_of
from scraper_worker.item import contained, trace
from scraper_worker.items.tasks import SDK, Owner, owned_by
from scraper_worker.login.policy import GIVE_UP_AFTER, LoginPolicy
from scraper_worker.protocol import (
    NO_CHECKPOINT,
    SESSION_SLOT,
    CheckpointSave,
    Failure,
    FailureReport,
    RestartDelays,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from playwright.async_api import Page

    from scraper_worker.browsers.browser import SupervisedBrowser
    from scraper_worker.connection.link import Link
    from scraper_worker.item import Attempt

    Login = Callable[[Page], Awaitable[Any]]

log = logging.getLogger("scraper_worker")

SCHEMA: Final = "session/1"
SAVE_EVERY: Final = 60.0  # seconds between two saves, where cookies changed
LAST_SAVE_TIMEOUT: Final = 10.0  # seconds that the end of a worker waits for its session to be saved
LOGIN_TIMEOUT: Final = 120.0  # seconds for a login


class Session:
    """The session that all pages of a worker share.

    Args:
        login: the scraper's function, given a page; None where there is nothing but cookies to keep.
        browser: whose cookies they are.
        link: who keeps them.
        delays: the waits between logins that fail.
    """

    def __init__(
        self, login: Login | None, browser: SupervisedBrowser, link: Link, delays: Callable[[], RestartDelays]
    ) -> None:
        self._login = login
        self._browser = browser
        self._link = link
        self._delays = delays
        self._policy = LoginPolicy(has_session=login is None)
        self._under_way: asyncio.Task[str | None] | None = None
        self._saving = asyncio.Lock()
        self._saved_revision = 0

    # ---- kept --------------------------------------------------------------------------------------------------------

    async def restore(self) -> None:
        """Take up the session that was saved, if there is one that can be read."""
        try:
            found = await self._link.load(slot=SESSION_SLOT)
        except CallError as error:
            if error.code != NO_CHECKPOINT:
                raise
            log.warning("the session that was kept is lost: %s", error)
            return
        if found is None:
            return
        try:
            if found.schema != SCHEMA:
                raise ValueError(f"its schema is {found.schema}, this version reads {SCHEMA}")
            self._browser.kept.load(msgspec.json.decode(found.state, type=dict[str, Any]))
        except ValueError as error:
            log.warning("the session that was kept is not used: %s", error)
            return
        self._saved_revision = self._browser.kept.revision
        self._policy.has_session = True

    async def keep(self) -> None:
        """Save the session at most each minute, when it changed; for ever."""
        while True:
            await asyncio.sleep(SAVE_EVERY)
            await self.save_changes()

    async def save_changes(self) -> None:
        """Save what is known of the session, if it changed since it was saved."""
        if self._browser.kept.revision != self._saved_revision and self._policy.has_session:
            await self._save(self._browser.kept.contents())

    async def save(self) -> None:
        """Look what the session is now, and save it."""
        await self._save(await self._browser.capture())

    async def _save_last(self) -> None:
        """The worker ends: save the session if it is a good one; gives up quietly."""
        if not self._policy.has_session:
            return
        try:
            async with asyncio.timeout(LAST_SAVE_TIMEOUT):
                await self._browser.capture()
                await self.save_changes()
        except (TimeoutError, WorkerError) as error:
            log.warning("the session was not saved at the end: %r", error)

    async def _save(self, contents: dict[str, Any]) -> None:
        async with self._saving:
            revision = self._browser.kept.revision
            try:
                await self._link.save(CheckpointSave(SCHEMA, Raw(msgspec.json.encode(contents)), SESSION_SLOT))
            except CallError as error:  # too large, say: scraping goes on without
                log.warning("the session is not saved: %s", error)
            self._saved_revision = revision

    # ---- logins ------------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The present one, for a try to remember."""
        return self._policy.epoch

    def expired(self, epoch: int, before: int) -> bool:
        """A try of that epoch raised SessionExpired; whether its item is tried again in the same claim."""
        return self._policy.expired(epoch, before) == "again"

    def done(self, epoch: int) -> None:
        """An item was done, by a try that began in that epoch."""
        self._policy.done(epoch)

    @property
    def pause(self) -> float:
        """Seconds until there may be a login again, or 0."""
        if self._policy.has_session:
            return 0.0
        return max(0.0, self._policy.not_before - asyncio.get_running_loop().time())

    async def ready(self, attempt: Attempt) -> str | None:
        """Have a session before a try, by a login if need be; one for all who wait.

        Returns:
            Why there is none now, and the item is to be given back; None if there is one, or the attempt was ended.

        Raises:
            LoginFailed: for the last time.
            BrowserUnavailable: no browser can be started.
        """
        if self._policy.has_session:
            return None
        if attempt.granted.held:
            return "its target is held, and no login is tried there"
        if self._under_way is None:
            with owned_by(SDK):
                self._under_way = asyncio.get_running_loop().create_task(self._ready(), name="login")
            self._under_way.add_done_callback(self._over)
        login = self._under_way
        ended = asyncio.get_running_loop().create_task(attempt.ended.wait(), name="end of a wait for a login")
        try:
            await asyncio.wait((login, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        return login.result() if login.done() else None

    def _over(self, login: asyncio.Task[str | None]) -> None:
        self._under_way = None
        if not login.cancelled():
            login.exception()  # noqa: LOG004 - a task's: whoever waited is told, and nobody may be left

    async def close(self) -> None:
        """The worker ends: no login any more; a session that is good is saved."""
        if self._under_way is not None:
            self._under_way.cancel()
            await asyncio.wait([self._under_way], timeout=LAST_SAVE_TIMEOUT)
        await self._save_last()

    async def _ready(self) -> str | None:
        if self.pause:
            return "no login before its delay is over"
        if self._policy.in_vain:
            message = "it came to its end, but no item was done before the session had expired again"
            return await self._failed(Failure("transient", "application", "login-in-vain", message), None)
        try:
            failure, host = await self._log_in()
        except InfrastructureError as error:
            failure, host = classify(error), None
        if failure is not None:
            return await self._failed(failure, host)
        self._policy.succeeded()
        await self.save()
        return None

    async def _log_in(self) -> tuple[Failure | None, str | None]:
        """Run the scraper's login on a page of its own; how it failed, and the host that it was at."""
        assert self._login is not None
        login = self._login
        log.info("logging in")
        async with self._browser.tab(_lost) as tab:

            async def work() -> Any:
                with tab.belongings.owned():
                    async with asyncio.timeout(LOGIN_TIMEOUT):
                        return await login(tab.page)

            with owned_by(Owner("login")):
                task = asyncio.get_running_loop().create_task(contained(work), name="login function")
            try:
                await asyncio.wait([task])
            finally:
                task.cancel()
            _, error = (None, asyncio.CancelledError()) if task.cancelled() else task.result()
            if error is None:
                return None, tab.host
            failure = failure_of(error, status=tab.status, retry_after=tab.retry_after)
            return msgspec.structs.replace(failure, traceback=trace(error)), tab.host

    async def _failed(self, failure: Failure, host: str | None) -> str:
        failure = msgspec.structs.replace(failure, message=f"login: {failure.message}")
        final = self._policy.failed(asyncio.get_running_loop().time(), self._delays())
        log.warning("%s (%d in a row)", failure.message, self._policy.failures)
        await self._link.report(FailureReport(failure, host))
        if final:
            message = f"{GIVE_UP_AFTER} logins in a row failed, the last with: {failure.message}"
            raise LoginFailed(message.splitlines()[0], permanent=failure.kind == "permanent")
        return f"the login failed, and is tried again in {self.pause:.1f} s"


def _lost(signature: str, message: str) -> None:
    log.debug("under a login: %s (%s)", message, signature)  # the login's next call on its page raises by itself
