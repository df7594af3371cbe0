"""The `status --json` document, contract section 6: unknown is None, never 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from scraper_supervisor.core.formats.timestamps import timestamp
from scraper_supervisor.core.runs.groups import RATE_WINDOW
from scraper_supervisor.core.states.group import ENDED, GroupState
from scraper_supervisor.core.workers.readiness import idle_reason, why_closed

if TYPE_CHECKING:
    from collections.abc import Collection

    from scraper_supervisor.core.fleet import Fleet
    from scraper_supervisor.core.fleet_state import Group, Worker
    from scraper_supervisor.core.queue.in_flight import InHand


MOST_IN_HAND: Final = 5  # items of a worker that are told of, where it was not asked for by name
LONGEST_TEXT: Final = 200  # characters of what a worker says of an item


class Daemon(Struct, frozen=True):
    """What only the daemon knows of itself. `wall` - `now` turns monotonic times into wall-clock times."""

    pid: int
    version: str
    started_at: str
    config_path: str | None
    config_loaded_at: str
    config_error: str | None
    now: float
    wall: float
    uptime: float = 0.0  # seconds, by a clock that nobody sets
    lines_dropped: dict[str, int] = {}  # by worker, of what it printed


def snapshot(fleet: Fleet, daemon: Daemon, whole: Collection[str] = ()) -> dict[str, Any]:
    """The whole status document; of the workers in `whole` everything that is in their hands."""
    state = fleet.state
    return {
        "supervisor": {
            "pid": daemon.pid,
            "version": daemon.version,
            "state": supervisor_state(fleet),
            "reason": _disk_reason(fleet),
            "started_at": daemon.started_at,
            "uptime_seconds": daemon.uptime,
            "config": {
                "path": daemon.config_path,
                "loaded_at": daemon.config_loaded_at,
                "error": daemon.config_error,
            },
            "host": {"memory_percent": state.memory_percent, "disk_free": state.disk_free},
        },
        "groups": groups_view(fleet, daemon.now),
        "workers": [
            _worker(fleet, worker, group, daemon, None if worker.name in whole else MOST_IN_HAND)
            for group in state.groups.values()
            for worker in state.members(group)
        ],
        "abort": abort_view(fleet, daemon.now, daemon.wall),
        "slo": slo_view(fleet, daemon.now),
    }


def supervisor_state(fleet: Fleet) -> str:
    """starting, running, degraded, draining, aborting or aborted."""
    phase = fleet.state.phase
    storage = fleet.state.storage
    if phase in ("starting", "running") and (storage.ledger is not None or storage.folders):
        return "degraded"
    return "degraded" if phase == "running" and storage.low else phase


def _disk_reason(fleet: Fleet) -> str | None:
    """What is wrong with the disk, and whom that holds."""
    storage = fleet.state.storage
    if storage.folders and storage.ledger is None:
        return "; ".join(f"{one.reason}: {worker} is handed no item" for worker, one in storage.folders.items())
    return why_closed(fleet.state)


def slo_view(fleet: Fleet, now: float) -> dict[str, Any]:
    """The service-level figures."""
    view: dict[str, Any] = msgspec.to_builtins(fleet.slo.view(now))
    return view


def abort_view(fleet: Fleet, now: float, wall: float) -> dict[str, Any]:
    """The abort window: every scope that is not normal, and the largest of those that are.

    A scope under suspicion is not held yet: it counts as normal, and its reason says what speaks against it.
    """
    scopes = [msgspec.to_builtins(scope) for scope in fleet.abort.scopes(now)]
    for scope in scopes:
        since = fleet.aborts.since((scope["scope"], scope["key"])) if scope["state"] == "aborted" else None
        if scope["state"] == "suspected":
            scope["state"] = "normal"
        scope["group"] = scope["key"] if scope["scope"] == "group" else None
        scope["since"] = None if since is None else timestamp(since + wall - now)
        scope["next_probe_at"] = None
    return {
        "state": "aborted" if any(scope["state"] == "aborted" for scope in scopes) else "normal",
        "window_seconds": fleet.state.settings.abort.window,
        "scopes": scopes,
    }


def groups_view(fleet: Fleet, now: float) -> list[dict[str, Any]]:
    """The groups with their items, rates and what is left."""
    return [_group(fleet, group, now) for group in fleet.state.groups.values()]


def at_rest(fleet: Fleet) -> list[str]:
    """The groups that a daemon found with nothing to do, each with how it goes on."""
    told = []
    for group in fleet.state.groups.values():
        image = group.queue.image
        if image is not None and group.state is GroupState.COMPLETED and group.repeat_at is None:
            remedy = f"a new run begins with: scraper-supervisor start {group.name}"
            told.append(f"{group.name}: run {image.run} is completed, so nothing is to be done; {remedy}")
        elif group.state is GroupState.STOPPED and group.intent in ("drained", "stopped"):
            told.append(f"{group.name}: an operator stopped it; it goes on with: scraper-supervisor start {group.name}")
        elif group.state is GroupState.PAUSED:
            told.append(f"{group.name}: an operator paused it; it goes on with: scraper-supervisor resume {group.name}")
    return told


def _group(fleet: Fleet, group: Group, now: float) -> dict[str, Any]:
    queue = group.queue
    known = queue.image is not None
    counts = queue.counts(now)
    items: dict[str, Any] = asdict(counts)
    items["total"] = sum(items.values())
    rate = _rate(group, now)
    left = counts.pending + counts.in_flight + counts.waiting
    return {
        "name": group.name,
        "run": queue.image.run if queue.image is not None else None,
        "state": group.state.public,
        "reason": group.failed_reason,
        "items": items if known else dict.fromkeys(items),
        "rate_per_minute": rate,
        "eta_seconds": left / rate * 60.0 if rate and _progresses(fleet, group) else None,
    }


def _progresses(fleet: Fleet, group: Group) -> bool:
    """True if the group's items are being worked on: of one that stands still, nobody knows when it will be done."""
    team = fleet.state.members(group)
    at_work = any(worker.life.up and not worker.paused for worker in team)
    return group.state is GroupState.RUNNING and at_work and why_closed(fleet.state) is None


def _rate(group: Group, now: float) -> float | None:
    """Items done a minute, over the last minute or since the first of them."""
    recent = [time for time in group.done_at if time > now - RATE_WINDOW]
    if group.state in ENDED or len(recent) < 2:
        return None
    return len(recent) / max(1.0, min(RATE_WINDOW, now - recent[0])) * 60.0


def _worker(fleet: Fleet, worker: Worker, group: Group, daemon: Daemon, most: int | None) -> dict[str, Any]:
    offset = daemon.wall - daemon.now
    sample, life = worker.current.sample, worker.life
    alive = life.alive
    memories = {} if sample is None else {browser.id: browser.memory for browser in sample.browsers}
    return {
        "name": worker.name,
        "group": worker.group,
        "index": worker.index,
        "state": fleet.lifecycle.public(worker),
        "pid": life.pid if alive else None,
        "incarnation": life.incarnation,
        "restarts": worker.restarts,
        "started_at": timestamp(life.started + offset) if alive and life.started is not None else None,
        "memory": {
            "rss": sample.rss if sample is not None and alive else None,
            "pss": sample.worker_memory if sample is not None and alive else None,
        },
        "cpu_percent": sample.cpu_percent if sample is not None and alive else None,
        "processes": sample.processes if sample is not None and alive else None,
        "lines_dropped": daemon.lines_dropped.get(worker.name, 0),
        "browsers": [
            {
                "id": browser.id,
                "pid": browser.pid,
                "memory": memories.get(browser.id),
                "age_seconds": daemon.now - browser.started,
                "pages": browser.pages,
            }
            for browser in worker.current.browsers.values()
        ],
        "doing": [_in_hand(one) for one in group.queue.in_hand(worker.name, daemon.now)[:most]],
        "idle_reason": idle_reason(fleet.state, worker, daemon.now, daemon.wall),
        "recycles": worker.recycles,
        "browser_kills": worker.browser_kills,
        "browser_crashes": worker.browser_crashes,
        "items": {"done": worker.done, "failed": worker.failed, "in_flight": group.queue.held_by(worker.name)},
        "checkpoint": None
        if worker.saved is None
        else dict(zip(("generation", "saved_at"), worker.saved, strict=True)),
        "last_failure": worker.last_failure,
    }


def _in_hand(one: InHand) -> dict[str, Any]:
    told = one.told
    view = {name: value for name, value in asdict(one).items() if name != "told"}
    view |= {"message": told and told.message, "done": told and told.done, "total": told and told.total}
    return {name: value[:LONGEST_TEXT] if isinstance(value, str) else value for name, value in view.items()}
