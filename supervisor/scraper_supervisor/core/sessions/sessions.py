"""What workers say, and what they are answered: the worker protocol's rules, apart from the queue's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, assert_never

from scraper_supervisor.core.fleet_state import Browser, Worker
from scraper_supervisor.core.formats.event_payloads import FailurePatternDetected
from scraper_supervisor.core.queue.item_calls import Caller
from scraper_supervisor.core.states.group import ENDED
from scraper_supervisor.core.states.worker_life import Phase
from scraper_worker.jsonrpc import BadParams
from scraper_worker.protocol import (
    BAD_PARAMS,
    INVALID_REQUEST,
    NOT_INTRODUCED,
    REFUSED,
    BrowserStarted,
    BrowserStopped,
    CheckpointLoad,
    CheckpointSave,
    End,
    Failure,
    FailureReport,
    Goodbye,
    Heartbeat,
    Hello,
    ItemDone,
    ItemFailed,
    ItemNext,
    ItemProgress,
    ItemRelease,
    ItemsOffer,
    Nothing,
)

if TYPE_CHECKING:
    from scraper_supervisor.core.checkpoints import Checkpoints
    from scraper_supervisor.core.events import Said
    from scraper_supervisor.core.fleet_state import FleetState, Group
    from scraper_supervisor.core.sessions.handshake import Handshakes
    from scraper_supervisor.core.workers.lifecycle import Lifecycle
    from scraper_supervisor.core.workers.recycling import Recycling


class Sessions:
    """Answers every message of a worker's connection."""

    def __init__(
        self,
        state: FleetState,
        lifecycle: Lifecycle,
        handshakes: Handshakes,
        checkpoints: Checkpoints,
        recycling: Recycling,
    ) -> None:
        self._state = state
        self._lifecycle = lifecycle
        self._handshakes = handshakes
        self._checkpoints = checkpoints
        self._recycling = recycling
        self._goodbyes: dict[str, None] = {}  # workers whose goodbye is not answered yet; in order

    def said(self, event: Said, now: float) -> None:
        """Take a message."""
        message = event.message
        if isinstance(message, Hello):
            self._handshakes.hello(event, message)
            return
        worker = self._speaker(event.conn)
        if worker is None and event.conn in self._state.conns and isinstance(message, CheckpointSave):
            why = "this is no longer the worker's present incarnation: its state is not taken"
            self._state.outbox.refuse(event.conn, event.call, REFUSED, why)
            return
        if worker is None or worker.current.goodbye is not None:
            why = "say hello first" if worker is None else "you said goodbye"
            self._state.outbox.refuse(event.conn, event.call, NOT_INTRODUCED, why)
            return
        worker.current.heard = now
        if not isinstance(message, Heartbeat):
            worker.current.quiet_since = now
        try:
            self._dispatch(event, worker, now)
        except BadParams as error:
            self._state.outbox.refuse(event.conn, event.call, BAD_PARAMS, str(error), error.data)

    def heard(self, conn: int, now: float) -> None:
        """A line came that says nothing to us, or answers us: whoever sends lines lives."""
        worker = self._speaker(conn)
        if worker is not None:
            worker.current.heard = worker.current.quiet_since = now

    def _dispatch(self, event: Said, worker: Worker, now: float) -> None:  # noqa: C901 - one arm a method
        group = self._state.groups[worker.group]
        caller = Caller(worker.name, worker.life.incarnation, event.conn, event.call)
        match event.message:
            case ItemNext(wait=wait):
                if event.call is not None:  # as a notification it could never be told what it was given
                    self._next(worker, group, caller, wait, now)
            case ItemDone() as done:
                group.queue.conclude_done(caller, done)
            case Heartbeat(pages=pages):
                worker.current.beats = True
                for browser, count in pages.items():
                    if browser in worker.current.browsers:
                        worker.current.browsers[browser].pages = count
                self._state.outbox.reply(event.conn, event.call, Nothing())
            case ItemsOffer() as offer:
                group.queue.offer(caller, offer)
                worker.current.more = offer.more
            case ItemFailed() as failed:
                group.queue.conclude_failed(caller, failed)
            case ItemRelease() as release:
                group.queue.release(caller, release)
            case ItemProgress() as progress:
                group.queue.progress(caller, progress, now)
                self._state.outbox.reply(event.conn, event.call, Nothing())
            case FailureReport() as report:
                worker.last_failure = report.failure
                self._state.publish(FailurePatternDetected(report.failure, report.target), worker=worker)
                self._state.outbox.reply(event.conn, event.call, Nothing())
            case CheckpointSave() as save:
                self._checkpoints.save(event, worker, save)
            case CheckpointLoad() as load:
                self._checkpoints.load(event, worker, load)
            case BrowserStarted() as started:
                self._browser_started(event, worker, started, now)
            case BrowserStopped() as stopped:
                self._browser_stopped(event, worker, stopped, now)
            case Goodbye(reason=reason):
                self._goodbye(event, worker, group, reason, now)
            case Hello():
                self._state.outbox.refuse(event.conn, event.call, INVALID_REQUEST, "already introduced")
            case _:
                assert_never(event.message)

    # ---- items

    def _next(self, worker: Worker, group: Group, caller: Caller, wait: float | None, now: float) -> None:
        if worker.life.phase is not Phase.RUNNING:
            self._state.outbox.reply(caller.conn, caller.call, End("draining"))
        elif group.state in ENDED and not group.queue.unfinished:
            self._state.outbox.reply(caller.conn, caller.call, End("complete"))
        else:
            group.queue.ask(caller, wait, now)

    def _goodbye(self, event: Said, worker: Worker, group: Group, reason: str, now: float) -> None:
        worker.current.goodbye = "complete" if reason == "complete" else "drained"
        group.queue.give_back_all(worker.name)
        group.queue.end_waiting(worker.name, "complete" if reason == "complete" else "draining")
        if event.call is not None:
            worker.current.goodbye_call = (event.conn, event.call)
            self._goodbyes[worker.name] = None
        worker.life.said_goodbye(group.settings, now)
        self._lifecycle.note(worker, now)

    def answer_goodbyes(self) -> None:
        """A goodbye is answered last: when nothing of what its connection called waits for the disk any more."""
        for name in list(self._goodbyes):
            worker = self._state.workers.get(name)
            if worker is None or worker.current.goodbye_call is None:
                del self._goodbyes[name]
                continue
            conn, call = worker.current.goodbye_call
            if not self._state.outbox.owes(conn) and not self._state.groups[worker.group].queue.owes(conn):
                worker.current.goodbye_call = None
                self._state.outbox.reply(conn, call, Nothing())

    def disconnected(self, conn: int, now: float) -> None:
        """A connection is closed; that ends no claim."""
        self._handshakes.disconnected(conn)
        known = self._state.conns.pop(conn, None)
        worker = self._state.workers.get(known[0]) if known is not None else None
        if worker is not None and worker.current.conn == conn:
            self._state.groups[worker.group].queue.disconnected(conn)
            worker.current.conn, worker.current.away_since = None, now

    # ---- browsers

    def _browser_started(self, event: Said, worker: Worker, started: BrowserStarted, now: float) -> None:
        if worker.life.pid not in event.ancestry:
            self._not_its_own(worker, started)
        known = worker.current.browsers.get(started.browser)
        if known is None or known.pid != started.pid:  # it is told again after each hello
            worker.current.browsers[started.browser] = Browser(
                started.browser, started.pid, started.driver_pid, started.engine, started.version, now
            )
        self._lifecycle.watch(worker)
        self._recycling.started(worker, started.browser, now)
        self._state.outbox.reply(event.conn, event.call, Nothing())

    def _not_its_own(self, worker: Worker, started: BrowserStarted) -> NoReturn:
        """What is no browser of the worker's own is never measured and never killed.

        Raises:
            BadParams: always.
        """
        message = f"{worker.name} started no process {started.pid}, which it calls its browser {started.browser}"
        failure = Failure("permanent", "browser", "browser-not-its-own", message)
        self._state.publish(FailurePatternDetected(failure, None), worker=worker)
        raise BadParams("pid", message)

    def _browser_stopped(self, event: Said, worker: Worker, stopped: BrowserStopped, now: float) -> None:
        known = worker.current.browsers.pop(stopped.browser, None)
        self._lifecycle.watch(worker)
        if known is not None:
            self._recycling.stopped(worker, stopped.browser, stopped.reason, now)
        self._state.outbox.reply(event.conn, event.call, Nothing())

    # ---- inside

    def _speaker(self, conn: int) -> Worker | None:
        """The worker whose present incarnation is introduced on this connection."""
        known = self._state.conns.get(conn)
        if known is None:
            return None
        worker = self._state.workers.get(known[0])
        return worker if worker is not None and worker.life.incarnation == known[1] else None
