"""Browsers replaced at item boundaries, and everything else that follows from what was measured.

Soft limits: the worker is handed no further item; when its hands are empty it is told, and from then on it has
`recycle_deadline` before its browser is killed. Hard limits: killed at once. The gauges and slots are `limits`'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, assert_never

from msgspec.structs import replace

from scraper_supervisor.core.events import KillBrowser
from scraper_supervisor.core.fleet_state import LostBrowser, Recycle, Worker
from scraper_supervisor.core.formats.worker_payloads import (
    BrowserRestarted,
    CleanupInitiated,
    ThresholdBreached,
    ThresholdRecovered,
)
from scraper_supervisor.core.policy.limits import (
    Breach,
    EndBrowser,
    EndWorker,
    HostGauge,
    Recovered,
    RecycleBrowser,
    RecycleSlots,
    ResourceWatch,
    RestartWorker,
    recycle_limit,
)
from scraper_supervisor.core.states.worker_life import Phase
from scraper_worker.protocol import BrowserRecycle

if TYPE_CHECKING:
    from scraper_supervisor.core.events import Replied, Sampled
    from scraper_supervisor.core.fleet_state import FleetState
    from scraper_supervisor.core.formats.worker_payloads import BrowserCause
    from scraper_supervisor.core.measurements import Sample
    from scraper_supervisor.core.policy.limits import LimitAction
    from scraper_supervisor.core.workers.lifecycle import Lifecycle


class Recycling:
    """Every worker's browsers, from a limit that is crossed to the new browser."""

    def __init__(self, state: FleetState, lifecycle: Lifecycle) -> None:
        self._state = state
        self._lifecycle = lifecycle
        self._watch = ResourceWatch()
        self._host = HostGauge()
        self._slots = RecycleSlots(1)
        self._host_incident: str | None = None  # the correlation id while the host's memory is short
        self._pending: dict[str, None] = {}  # workers with a recycle or a limit, and some that had one; in order

    # ---- measured

    def sampled(self, event: Sampled, now: float) -> None:
        """Take one pass of the sampler."""
        state = self._state
        state.memory_percent, state.disk_free = event.memory_percent, event.disk_free
        for sample in event.samples:
            worker = state.workers.get(sample.worker)
            if worker is None or not worker.life.alive:
                continue
            worker.current.sample = self._with_pages(worker, sample)
            limits = state.groups[worker.group].settings.resources
            self._act(self._watch.observe(worker.current.sample, limits, now), now)
            _forget_incidents(worker, worker.current.sample)
        browsers = [
            (worker.name, browser)
            for worker in state.workers.values()
            if worker.current.sample is not None and worker.life.alive
            for browser in worker.current.sample.browsers
        ]
        self._act(self._host.observe(event.memory_percent, browsers, state.settings.resources, now), now)

    def stood_still(self, since: float, now: float) -> None:
        """We did not run from `since` to `now`: no limit is over for that time."""
        self._watch.stood_still(since, now)

    def _with_pages(self, worker: Worker, sample: Sample) -> Sample:
        """The sampler sees processes; how many pages they opened only the worker knows."""
        browsers = tuple(
            replace(browser, pages=worker.current.browsers[browser.id].pages)
            if browser.id in worker.current.browsers
            else browser
            for browser in sample.browsers
        )
        return replace(sample, browsers=browsers)

    def _act(self, actions: list[LimitAction], now: float) -> None:
        for action in actions:
            worker = self._state.workers.get(action.worker) if action.worker is not None else None
            match action:
                case Breach() | Recovered():
                    self._tell_limit(action, worker)
                case RecycleBrowser(browser=browser, cause=cause):
                    if (
                        worker is not None
                    ):  # what was measured of the worker, or of the host, is the browser's matter now
                        why = self._host_incident if cause == "host_memory_percent" else None
                        why = worker.current.incidents.get(None) if cause == "cpu_percent" else why
                        self._incident(worker, browser, why)
                    self._slots.want(action)
                case EndBrowser(browser=browser, reason=reason):
                    if worker is not None:
                        self._kill(worker, browser, "browser_memory_max", reason, now)
                case RestartWorker(reason=reason):
                    if worker is not None and worker.current.limit is None:
                        worker.current.limit = reason
                        self._lifecycle.incident(worker, worker.current.incidents.get(None))
                        self._pending[worker.name] = None
                case EndWorker(reason=reason):
                    if worker is not None:
                        self._lifecycle.incident(worker, worker.current.incidents.get(None))
                        self._lifecycle.kill(worker, reason, "worker-memory", now)
                case _:
                    assert_never(action)

    def _tell_limit(self, action: Breach | Recovered, worker: Worker | None) -> None:
        if worker is not None:
            incident = self._incident(worker, action.browser)
        else:
            incident = self._host_incident = self._host_incident or self._state.outbox.incident_id()
        if isinstance(action, Breach):
            breached = ThresholdBreached(action.what, action.limit, action.value, action.browser)
            self._state.publish(breached, worker=worker, incident=incident)
        else:
            recovered = ThresholdRecovered(action.what, action.limit, action.value, action.browser)
            self._state.publish(recovered, worker=worker, incident=incident)
            if worker is None:
                self._host_incident = None
            elif action.browser is None:
                worker.current.incidents.pop(None, None)

    def _incident(self, worker: Worker, browser: str | None, why: str | None = None) -> str:
        """The correlation id of what is the matter with a browser, or with None of the worker's own limits.

        Where nothing was: `why`, or a new one.
        """
        known = worker.current.incidents
        if browser not in known:
            known[browser] = why or self._state.outbox.incident_id()
        return known[browser]

    # ---- wished and carried out

    def request(self, worker: Worker) -> None:
        """An operator wants all browsers of the worker replaced at the next item boundary."""
        for browser in worker.current.browsers:
            self._slots.want(RecycleBrowser(worker.name, browser, "operator", "an operator ordered it"))

    def kill_for_item(self, worker: Worker, before: float, reason: str, now: float) -> None:
        """Kill the browsers in which an item may be stuck: those that the worker told of before that time."""
        for name, browser in list(worker.current.browsers.items()):
            if browser.started <= before and name not in worker.current.killed_browsers:
                self._kill(worker, name, "hang", reason, now)

    def step(self, now: float) -> None:
        """Begin the recycles whose turn it is, tell workers whose hands are empty, kill what is overdue."""
        if self._slots.wanted:
            self._grant()
        for name in list(self._pending):
            worker = self._state.workers.get(name)
            if worker is None or (worker.current.recycle is None and worker.current.limit is None):
                del self._pending[name]
            else:
                self._advance(worker, now)

    def _grant(self) -> None:
        state = self._state
        self._slots.resize(recycle_limit(state.settings.resources, len(state.workers)))
        for wanted in self._slots.grants():
            worker = state.workers.get(wanted.worker)
            if worker is None or worker.current.recycle is not None or wanted.browser not in worker.current.browsers:
                self._slots.release(wanted.worker, wanted.browser)
            else:
                incident = self._incident(worker, wanted.browser)
                worker.current.recycle = Recycle(wanted.browser, wanted.reason, wanted.cause, incident)
                self._pending[worker.name] = None
                cleanup = CleanupInitiated(wanted.browser, wanted.reason)
                state.publish(cleanup, "info", worker=worker, incident=incident)

    def _advance(self, worker: Worker, now: float) -> None:
        current = worker.current
        empty = not self._state.groups[worker.group].queue.held_by(worker.name)
        if current.recycle is not None and empty:
            self._ask(worker, current.recycle, now)
        elif current.limit is not None and empty and worker.life.phase is Phase.RUNNING:
            self._lifecycle.drain(worker, current.limit, "restart", now)
        deadline = self._deadline(worker)
        if current.recycle is not None and deadline is not None and now >= deadline:
            self._overdue(worker, current.recycle, now)

    def _deadline(self, worker: Worker) -> float | None:
        """When the worker's recycle, if any, must be over."""
        recycle = worker.current.recycle
        if recycle is None or recycle.since is None:
            return None
        return recycle.since + self._state.groups[worker.group].settings.resources.recycle_deadline

    def _ask(self, worker: Worker, recycle: Recycle, now: float) -> None:
        if recycle.since is None:
            recycle.since = now
        if recycle.asked is None and worker.current.conn is not None and not recycle.killed:
            recycle.asked, recycle.call = now, self._state.outbox.ticket()
            left = max(0.0, (self._deadline(worker) or now) - now)
            self._state.tell(worker, BrowserRecycle(recycle.browser, recycle.reason, left), recycle.call)

    def _overdue(self, worker: Worker, recycle: Recycle, now: float) -> None:
        if recycle.killed:  # it was killed, and nothing was heard of a new one
            self._over(worker, now)
            return
        limits = self._state.groups[worker.group].settings.resources
        recycle.killed, recycle.since = True, now
        reason = f"{recycle.reason}; it was not replaced within recycle_deadline of {limits.recycle_deadline:g} s"
        self._kill(worker, recycle.browser, recycle.cause, reason, now)

    def _kill(self, worker: Worker, name: str, cause: BrowserCause, reason: str, now: float) -> None:
        browser = worker.current.browsers.get(name)
        if browser is None:
            return
        incident = self._incident(worker, name)
        worker.browser_kills += 1
        self._lifecycle.lost_browser(worker, incident, now)
        self._state.outbox.commands.append(KillBrowser(worker.name, worker.life.incarnation, browser.pid))
        worker.current.killed_browsers[name] = LostBrowser(name, cause, True, now, incident)
        recycle = worker.current.recycle
        if recycle is not None and recycle.browser == name:
            recycle.cause, recycle.how = cause, "killed"
        self._state.publish(CleanupInitiated(name, reason, killed=1), "warning", worker=worker, incident=incident)

    def replied(self, event: Replied, now: float) -> None:
        """The worker answered browser.recycle."""
        known = self._state.conns.get(event.conn)
        worker = self._state.workers.get(known[0]) if known is not None else None
        if worker is None or worker.current.recycle is None or worker.current.recycle.call != event.call:
            return
        if event.error is None:
            self._over(worker, now)
        else:
            self._overdue(worker, worker.current.recycle, now)

    def _over(self, worker: Worker, now: float) -> None:
        recycle = worker.current.recycle
        if recycle is None:
            return
        worker.current.recycle = None
        if recycle.how == "asked":
            worker.recycles += 1
        self._slots.release(worker.name, recycle.browser)
        restarted = BrowserRestarted(
            recycle.browser,
            recycle.cause,
            recycle.how,
            seconds=now - recycle.asked if recycle.asked is not None else None,
        )
        self._state.publish(restarted, worker=worker, incident=recycle.incident)

    # ---- what workers report

    def started(self, worker: Worker, browser: str, now: float) -> None:
        """A browser is up; after a kill or a loss, that is the replacement."""
        if (
            worker.current.recycle is not None
            and worker.current.recycle.killed
            and worker.current.recycle.browser != browser
        ):
            self._over(worker, now)
        elif worker.current.recycle is None and worker.current.lost_browser is not None:
            lost = worker.current.lost_browser
            how: Literal["killed"] | None = "killed" if lost.killed else None
            restarted = BrowserRestarted(lost.browser, lost.cause, how, seconds=now - lost.since)
            self._state.publish(restarted, worker=worker, incident=lost.incident)
        worker.current.lost_browser = None

    def stopped(self, worker: Worker, browser: str, reason: str, now: float) -> None:
        """A browser is gone."""
        if reason == "crash":
            incident = self._incident(worker, browser)
            self._lifecycle.lost_browser(worker, incident, now)
            killed = worker.current.killed_browsers.pop(browser, None)
            worker.browser_crashes += killed is None
            worker.current.lost_browser = killed or LostBrowser(browser, "crash", False, now, incident)
        if worker.current.recycle is not None and worker.current.recycle.browser == browser and reason == "close":
            self._slots.release(worker.name, browser)
            worker.current.recycle = None

    def reconnected(self, worker: Worker) -> None:
        """The worker came back: what it was asked on the old connection is asked again."""
        if worker.current.recycle is not None:
            worker.current.recycle.asked = worker.current.recycle.call = None

    def forget(self, worker: str) -> None:
        """The worker's process ended, and its browsers with it."""
        self._watch.forget(worker)
        self._slots.forget(worker)

    def next_deadline(self) -> float | None:
        """When `step` has something to do by itself."""
        workers = (self._state.workers.get(name) for name in self._pending)
        deadlines = (self._deadline(worker) for worker in workers if worker is not None)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)


def _forget_incidents(worker: Worker, sample: Sample) -> None:
    """Drop the correlation ids of browsers that are gone, replaced, and no longer measured: nothing more is told."""
    current = worker.current
    told = {browser.id for browser in sample.browsers} | current.browsers.keys() | current.killed_browsers.keys()
    told |= {one.browser for one in (current.recycle, current.lost_browser) if one is not None}
    for browser in [one for one in current.incidents if one is not None and one not in told]:
        del current.incidents[browser]
