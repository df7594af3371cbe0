"""What the demo measured: the ledger held against the site's own access log, and the supervisor's figures."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct, field
from rich.text import Text

from scraper_supervisor.console import views
from scraper_supervisor.store.opening import LedgerLocation, open_for_reading

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from scraper_supervisor.console.demo.site import DemoSite
    from scraper_supervisor.store.event_log import EventRecord

_NAMED: Final = 3  # examples of what went wrong


class DemoOutcome(Struct, frozen=True):
    """How the items ended, as the ledger and the site together show it. `lost` and `repeated` are keys."""

    expected: int
    done: int
    failed: dict[str, int]  # by the failure's signature
    left: int  # not ended, when the daemon ended early
    unexpected: tuple[str, ...]  # keys failed for good, though their pages are there
    lost: tuple[str, ...]
    repeated: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if every item ended as it should, and once."""
        ended = self.done + sum(self.failed.values())
        return not (self.lost or self.repeated or self.unexpected) and ended == self.expected


def compare(site: DemoSite, where: LedgerLocation, group: str) -> DemoOutcome:
    """Hold the ledger's latest run against what the site served.

    An item is lost if the ledger has a result that is not true, or does not know it though the list that leads to it is
    done; an item is repeated if it has two results, or if its page was fetched again after its result was durable.

    Raises:
        StoreError, FileNotFoundError, LookupError: there is no run to be read.
    """
    with open_for_reading(where) as reader:
        results = [(row.key, row.finished_at, msgspec.json.decode(row.result)) for row in reader.results(group)]
        failures = {row.key: row.last_failure for row in reader.items(group, state="failed")}
        known = {row.key for row in reader.items(group)}
    expected = paths(site)
    gone = {f"{site.url}/match/{number}" for number in site.missing()}
    finished = {key: time for key, time, _ in results}
    true = {key for key, _, result in results if _is_true(site, key, result)}
    twice = {key for key, count in Counter(key for key, _, _ in results).items() if count > 1}
    again = {
        key
        for access in site.accesses()
        if (key := f"{site.url}{access.path}") in finished and access.time > finished[key]
    }
    signatures = Counter(_signature(failure) for failure in failures.values())
    spoilt = finished.keys() - true
    vanished = {key for key in expected - known if _list_of(site, key) in finished}
    return DemoOutcome(
        expected=len(expected),
        done=len(finished),
        failed=dict(signatures.most_common()),
        left=len(expected - finished.keys() - failures.keys() - vanished),
        unexpected=tuple(sorted(failures.keys() - gone)),
        lost=tuple(sorted(spoilt | vanished)),
        repeated=tuple(sorted(twice | again)),
    )


def paths(site: DemoSite) -> set[str]:
    """The addresses of all pages that there are to scrape."""
    lists = -(-site.knobs.matches // site.knobs.per_page)
    found = {f"{site.url}/fixtures?page={page}" for page in range(1, lists + 1)}
    return found | {f"{site.url}/match/{number}" for number in range(1, site.knobs.matches + 1)}


def _list_of(site: DemoSite, key: str) -> str:
    """The list that leads to a page; to each list leads the first."""
    match = re.search(r"/match/(\d+)$", key)
    page = 1 if match is None else (int(match[1]) - 1) // site.knobs.per_page + 1
    return f"{site.url}/fixtures?page={page}"


def _is_true(site: DemoSite, key: str, result: Any) -> bool:
    match = re.search(r"/match/(\d+)$", key)
    if match is None:
        return isinstance(result, dict) and result.get("links", 0) > 0
    truth = site.match(int(match[1]))
    return bool(result == {"home": truth.home, "away": truth.away, "score": truth.score})


def _signature(failure: bytes | None) -> str:
    return "unknown" if failure is None else str(msgspec.json.decode(failure).get("signature", "unknown"))


class Incidents(Struct):
    """What the events told while the demo ran; times are seconds."""

    retries: int = 0
    deaths: int = 0
    crashed: int = 0  # browsers
    recycles: list[float] = field(default_factory=list)

    def note(self, event: EventRecord) -> None:
        """Take one event up."""
        data = event.data if isinstance(event.data, dict) else {}
        match event.event:
            case "retry_attempted":
                self.retries += 1
            case "worker_exited" if event.severity != "info":
                self.deaths += 1
            case "browser_restarted" if data.get("cause") == "crash":
                self.crashed += 1
            case "browser_restarted" if data.get("seconds") is not None:
                self.recycles.append(data["seconds"])


def summary(outcome: DemoOutcome, incidents: Incidents, slo: dict[str, Any], duration: float) -> Table:
    """The figures, for people."""
    failed = ", ".join(f"{count} {signature}" for signature, count in outcome.failed.items())
    recoveries = f"{slo.get('recoveries') or 0}"
    if slo.get("recoveries"):
        longest = f"p90 {views.seconds(slo['recovery_p90_seconds'])}, max {views.seconds(slo['recovery_max_seconds'])}"
        recoveries += f", {longest}, from its detection to the next item"
    recycles = str(len(incidents.recycles))
    if incidents.recycles:
        recycles += f", replaced in {', '.join(views.seconds(one) for one in sorted(incidents.recycles))}"
    return views.facts(
        [
            ("items done", f"{outcome.done} of {outcome.expected}{f', {outcome.left} left' if outcome.left else ''}"),
            ("failed for good", f"{sum(outcome.failed.values())}{f': {failed}' if failed else ''}"),
            ("attempts repeated", f"{incidents.retries} after failures"),
            ("lost", _count(outcome.lost)),
            ("done twice", _count(outcome.repeated)),
            ("availability", views.share(slo.get("availability"))),
            ("worker deaths", str(incidents.deaths)),
            ("recoveries", recoveries),
            ("browsers recycled", recycles),
            ("checkpoint p99", views.seconds(slo.get("checkpoint_p99_seconds"))),
            ("duration", views.seconds(duration)),
        ]
    )


def _count(keys: Iterable[str]) -> Text:
    found = list(keys)
    if not found:
        return Text("0", style="green")
    return Text(f"{len(found)}: {', '.join(found[:_NAMED])}{', …' if len(found) > _NAMED else ''}", style="red")
