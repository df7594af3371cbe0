"""What workers and browsers use, compared with `[resources]`: who is recycled, restarted or killed, and why.

Memory is PSS, since RSS counts shared pages many times over. It is never less than PSS, though, so where PSS was not
measured an RSS below the limit proves that all is well, and one above it proves nothing.

A limit is a gauge with hysteresis: broken above the limit, kept again only below 90% of it. Its charge is measured in
seconds, not in samples, so a shorter `sample_interval` changes nothing but how soon a spike is seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from scraper_supervisor.core.config.units import format_duration
from scraper_supervisor.core.formats.worker_payloads import BrowserCause

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scraper_supervisor.core.config.settings import ResourceSettings
    from scraper_supervisor.core.measurements import BrowserSample, Sample

RECOVERED_BELOW: Final = 0.9  # of the limit
HOST_PAUSE: Final = 10.0  # seconds after a browser recycled for the host's sake; doubled each time it was of no use
HOST_PAUSE_MAX: Final = 600.0  # seconds


class RecycleBrowser(Struct, frozen=True):
    """Soft: no further item on this browser; when empty, it is replaced. `reason` is a sentence about `cause`."""

    worker: str
    browser: str
    cause: BrowserCause
    reason: str


class EndBrowser(Struct, frozen=True):
    """Hard: kill this browser now."""

    worker: str
    browser: str
    reason: str


class RestartWorker(Struct, frozen=True):
    """Soft: restart the worker when its hands are empty."""

    worker: str
    reason: str
    soft: bool = True


class EndWorker(Struct, frozen=True):
    """Hard: kill the worker now. It counts as a death."""

    worker: str
    reason: str


class Breach(Struct, frozen=True):
    """A limit is broken. `what` is its key in `[resources]`; `worker` is None for the host."""

    what: str
    limit: float
    value: float
    worker: str | None = None
    browser: str | None = None


class Recovered(Struct, frozen=True):
    """A broken limit is kept again. `value` is None if what broke it is gone, or the limit is."""

    what: str
    limit: float | None
    value: float | None
    worker: str | None = None
    browser: str | None = None


LimitAction: TypeAlias = RecycleBrowser | EndBrowser | RestartWorker | EndWorker | Breach | Recovered


class Gauge(Struct, frozen=True):
    """One limit's state. `charge` is the seconds that speak for a breach, between 0 and `sustained`."""

    broken: bool = False
    charge: float = 0.0
    at: float | None = None


def step(
    gauge: Gauge, value: float | None, now: float, limit: float, sustained: float = 0.0
) -> tuple[Gauge, bool | None]:
    """Fold one measurement (None: unknown) into a gauge; True is a breach, False a recovery, None no news.

    The time since the last one counts for what is measured now: above the limit it charges the gauge, below 90% of it
    it takes charge away, in between and when unknown it does neither. A breach is a full charge of `sustained` seconds
    (0: a single measurement is), and recovery an empty one.
    """
    elapsed = 0.0 if gauge.at is None else max(0.0, now - gauge.at)
    if value is None or RECOVERED_BELOW * limit <= value <= limit:
        return Gauge(gauge.broken, gauge.charge, now), None
    charge = gauge.charge + (elapsed if value > limit else -elapsed)
    charge = min(max(charge, 0.0), sustained)
    if not gauge.broken and value > limit and charge >= sustained:
        return Gauge(True, charge, now), True
    if gauge.broken and value < limit and charge <= 0:
        return Gauge(False, charge, now), False
    return Gauge(gauge.broken, charge, now), None


class _Watched:
    """One worker: its gauges by (limit, browser), and what was already asked for; None stands for the worker itself."""

    __slots__ = ("asked", "cpu_browser", "gauges", "killed")

    def __init__(self) -> None:
        self.gauges: dict[tuple[str, str | None], Gauge] = {}
        self.asked: set[str | None] = set()  # softly
        self.killed: set[str | None] = set()
        self.cpu_browser: str | None = None  # recycled for cpu_percent


class ResourceWatch:
    """All workers' limits. Nothing is asked for twice of a browser, nor of a worker's incarnation."""

    def __init__(self) -> None:
        self._workers: dict[str, _Watched] = {}

    def stood_still(self, since: float, now: float) -> None:
        """Nobody measured from `since` to `now`, in monotonic seconds: that time speaks for no breach."""
        for watched in self._workers.values():
            watched.gauges = {
                key: gauge if gauge.at is None else replace(gauge, at=gauge.at + max(0.0, now - max(since, gauge.at)))
                for key, gauge in watched.gauges.items()
            }

    def forget(self, worker: str) -> None:
        """Drop what is known of a worker: its process ended."""
        self._workers.pop(worker, None)

    def observe(self, sample: Sample, settings: ResourceSettings, now: float) -> list[LimitAction]:
        """What follows from one worker's sample, under its group's settings. `now` is monotonic seconds."""
        watched = self._workers.setdefault(sample.worker, _Watched())
        actions = _gone(watched, sample, settings)
        for browser in sample.browsers:
            actions += _browser(watched, sample.worker, browser, settings, now)
        actions += _worker(watched, sample, settings, now)
        actions += _cpu(watched, sample, settings, now)
        return actions


def _gone(watched: _Watched, sample: Sample, settings: ResourceSettings) -> list[LimitAction]:
    """Browsers that are no more take their gauges along; recovery is told of those that were broken."""
    alive = {browser.id for browser in sample.browsers} | {None}
    gone = [key for key in watched.gauges if key[1] not in alive]
    if watched.cpu_browser not in alive:
        # The load may have gone with its browser: the time that it must last begins again.
        watched.cpu_browser = None
        gone.append(("cpu_percent", None))
    watched.asked &= alive
    watched.killed &= alive
    return [
        Recovered(what, getattr(settings, what), None, sample.worker, browser)
        for what, browser in gone
        if watched.gauges.pop((what, browser), Gauge()).broken
    ]


def _measure(
    watched: _Watched,
    key: tuple[str, str | None],
    worker: str,
    value: float | None,
    limit: float | None,
    now: float,
    sustained: float = 0.0,
) -> Breach | Recovered | None:
    """Step one gauge; a limit that was switched off is recovered from."""
    what, browser = key
    gauge = watched.gauges.pop(key, Gauge())
    if limit is None:
        return Recovered(what, None, value, worker, browser) if gauge.broken else None
    watched.gauges[key], news = step(gauge, value, now, limit, sustained)
    if news is None or value is None:
        return None
    return (Breach if news else Recovered)(what, limit, value, worker, browser)


def _browser(
    watched: _Watched, worker: str, browser: BrowserSample, settings: ResourceSettings, now: float
) -> list[LimitAction]:
    id_, reason = browser.id, ""
    hard = _measure(watched, ("browser_memory_max", id_), worker, browser.memory, settings.browser_memory_max, now)
    soft = _measure(watched, ("browser_memory", id_), worker, browser.memory, settings.browser_memory, now)
    actions: list[LimitAction] = [news for news in (soft, hard) if news is not None]
    if isinstance(hard, Breach) and id_ not in watched.killed:
        watched.killed.add(id_)
        actions.append(EndBrowser(worker, id_, f"browser {id_} {_uses(hard)}"))
    cause: BrowserCause = "browser_memory"
    if isinstance(soft, Breach):
        reason = _uses(soft)
    elif settings.browser_lifetime is not None and browser.age >= settings.browser_lifetime:
        cause = "browser_lifetime"
        reason = f"has run for {browser.age:.0f} s, browser_lifetime is {format_duration(settings.browser_lifetime)}"
    elif settings.browser_pages is not None and browser.pages is not None and browser.pages >= settings.browser_pages:
        cause = "browser_pages"
        reason = f"has opened {browser.pages} pages, browser_pages is {settings.browser_pages}"
    if reason and id_ not in watched.asked | watched.killed:
        watched.asked.add(id_)
        actions.append(RecycleBrowser(worker, id_, cause, f"browser {id_} {reason}"))
    return actions


def _worker(watched: _Watched, sample: Sample, settings: ResourceSettings, now: float) -> list[LimitAction]:
    actions: list[LimitAction] = []
    for what, limit in (("worker_memory_max", settings.worker_memory_max), ("worker_memory", settings.worker_memory)):
        value = sample.worker_memory
        if value is None and limit is not None and sample.rss is not None and sample.rss <= limit:
            value = sample.rss
        news = _measure(watched, (what, None), sample.worker, value, limit, now)
        if news is not None:
            actions.append(news)
        if not isinstance(news, Breach) or None in watched.killed:
            continue
        reason = f"worker {sample.worker} without its browsers {_uses(news)}"
        if what == "worker_memory_max":
            watched.killed.add(None)
            actions.append(EndWorker(sample.worker, reason))
        elif None not in watched.asked:
            watched.asked.add(None)
            actions.append(RestartWorker(sample.worker, reason))
    return actions


def _cpu(watched: _Watched, sample: Sample, settings: ResourceSettings, now: float) -> list[LimitAction]:
    """A worker's load is most likely its largest browser's: that one is recycled, or the worker if it has none."""
    key, lasting = ("cpu_percent", None), settings.cpu_sustained
    news = _measure(watched, key, sample.worker, sample.cpu_percent, settings.cpu_percent, now, lasting)
    if not isinstance(news, Breach):
        return [] if news is None else [news]
    who = f"worker {sample.worker} and its browsers use {news.value:.0f}% CPU"
    reason = f"{who}, over cpu_percent {news.limit:g} for cpu_sustained {format_duration(lasting)}"
    largest = max(sample.browsers, key=lambda browser: browser.memory or 0, default=None)
    watched.cpu_browser = subject = largest.id if largest is not None else None
    if subject in watched.asked | watched.killed:
        return [news]
    watched.asked.add(subject)
    if subject is None:
        return [news, RestartWorker(sample.worker, reason)]
    return [news, RecycleBrowser(sample.worker, subject, "cpu_percent", reason)]


class HostGauge:
    """The machine's memory: while it is short, the largest browsers are recycled, one at a time.

    The memory may be someone else's. So each recycle that did not help is followed by a longer pause than the one
    before, and a host that stays full costs a browser every ten minutes at most.
    """

    def __init__(self) -> None:
        self._gauge = Gauge()
        self._asked: tuple[str, str] | None = None
        self._pause = HOST_PAUSE
        self._not_before: float | None = None

    def observe(
        self,
        memory_percent: float | None,
        browsers: Iterable[tuple[str, BrowserSample]],
        settings: ResourceSettings,
        now: float,
    ) -> list[LimitAction]:
        """What follows from `memory_percent`, the share of the host's memory in use (None: unknown).

        `browsers` are all the living ones with their workers' names, whether they are being recycled or not; `settings`
        are the machine-wide ones and `now` is monotonic seconds.
        """
        what: Final = "host_memory_percent"
        limit = settings.host_memory_percent
        living = {(worker, browser.id): browser for worker, browser in browsers}
        if self._asked is not None and self._asked not in living:
            self._asked, self._not_before = None, now + self._pause
            self._pause = min(2 * self._pause, HOST_PAUSE_MAX)
        actions: list[LimitAction] = []
        if limit is None:
            if self._gauge.broken:
                actions.append(Recovered(what, None, memory_percent))
            self._gauge = Gauge()
        else:
            self._gauge, news = step(self._gauge, memory_percent, now, limit)
            if news is not None and memory_percent is not None:
                actions.append((Breach if news else Recovered)(what, limit, memory_percent))
        if not self._gauge.broken:
            self._pause, self._not_before = HOST_PAUSE, None
            return actions
        known = [(browser.memory, key) for key, browser in living.items() if browser.memory is not None]
        due = self._asked is None and (self._not_before is None or now >= self._not_before)
        if due and known and limit is not None and memory_percent is not None and memory_percent > limit:
            memory, self._asked = max(known)
            name, id_ = self._asked
            reason = (
                f"{memory_percent:.0f}% of the host's memory is in use, {what} is {limit:g}; "
                f"browser {id_} of {name} is the largest with {_size(memory)}"
            )
            actions.append(RecycleBrowser(name, id_, what, reason))
        return actions


class RecycleSlots:
    """Who may recycle now: first come, first served, at most `limit` at a time over all workers."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queue: dict[tuple[str, str], RecycleBrowser] = {}
        self._granted: dict[tuple[str, str], RecycleBrowser] = {}

    @property
    def wanted(self) -> bool:
        """True if a recycle waits for its turn."""
        return bool(self._queue)

    def resize(self, limit: int) -> None:
        """Allow `limit` at a time from now on; those granted already stay."""
        self._limit = limit

    def want(self, recycle: RecycleBrowser) -> bool:
        """Queue a recycle; False if this browser's is queued or granted already."""
        key = (recycle.worker, recycle.browser)
        if key in self._granted or key in self._queue:
            return False
        self._queue[key] = recycle
        return True

    def grants(self) -> list[RecycleBrowser]:
        """Those whose turn it is now; each keeps its slot until it is released."""
        keys = list(self._queue)[: max(0, self._limit - len(self._granted))]
        for key in keys:
            self._granted[key] = self._queue.pop(key)
        return [self._granted[key] for key in keys]

    def release(self, worker: str, browser: str) -> None:
        """The browser is replaced or gone: its slot, or its place in the queue, is free. Unknown ones do no harm."""
        for known in (self._queue, self._granted):
            known.pop((worker, browser), None)

    def forget(self, worker: str) -> None:
        """The worker's process ended, and its browsers with it."""
        for key in (*self._queue, *self._granted):
            if key[0] == worker:
                self.release(*key)


def lowest_memory_limits(settings: ResourceSettings) -> tuple[int | None, int | None]:
    """The bytes at which memory first matters: of a browser, and of a worker without its browsers; None for never."""
    browser = [limit for limit in (settings.browser_memory, settings.browser_memory_max) if limit is not None]
    own = [limit for limit in (settings.worker_memory, settings.worker_memory_max) if limit is not None]
    return min(browser, default=None), min(own, default=None)


def recycle_limit(settings: ResourceSettings, workers: int) -> int:
    """How many browsers may be recycled at once: max_concurrent_recycles, else 1 per 4 workers, at least 1."""
    return settings.max_concurrent_recycles or max(1, workers // 4)


def _uses(breach: Breach) -> str:
    return f"uses {_size(breach.value)}, over {breach.what} {_size(breach.limit)}"


def _size(size: float) -> str:
    """Bytes for people: "1.3 GiB"."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size >= factor:
            return f"{size / factor:.2f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{size:.0f} B"
