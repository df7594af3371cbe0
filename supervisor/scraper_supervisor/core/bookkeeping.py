"""What is learned from attempts and deaths: figures, votes, and the events of the log."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

from scraper_supervisor.core.formats.event_payloads import (
    ItemFinished,
    PermanentFailure,
    RetryAttempted,
    RetryExhausted,
    RetrySucceeded,
    StorageDegraded,
)
from scraper_supervisor.core.queue.completion import CANCELLED

if TYPE_CHECKING:
    from scraper_supervisor.core.facts import Claimed, ItemEnded, ProcessEnded, RunRead
    from scraper_supervisor.core.fleet_state import FleetState, Worker
    from scraper_supervisor.core.formats.event_names import Severity
    from scraper_supervisor.core.formats.event_payloads import EventPayload
    from scraper_supervisor.core.policy.abort import AbortWindow
    from scraper_supervisor.core.policy.slo import Slo
    from scraper_supervisor.core.workers.lifecycle import Lifecycle


class Bookkeeping:
    """Counts and tells what became of items and workers."""

    def __init__(self, state: FleetState, lifecycle: Lifecycle, abort: AbortWindow, slo: Slo) -> None:
        self._state = state
        self._lifecycle = lifecycle
        self._abort = abort
        self._slo = slo

    def claimed(self, claimed: Claimed, now: float) -> None:
        """A worker was handed an item."""
        worker = self._state.workers[claimed.worker]
        self._lifecycle.progressed(worker, now)

    def process_ended(self, ended: ProcessEnded, now: float) -> None:
        """A worker's process is gone; one that died speaks against its group."""
        if ended.died:
            self._abort.crash(now, ended.group, ended.charged)

    def run_read(self, read: RunRead) -> None:
        """What was acknowledged as done must be in the ledger; anything else is told at once and loudly."""
        self._slo.items(read.missing)
        if read.missing:
            reason = f"{read.missing} done items are missing"
            self._state.publish(StorageDegraded(reason), group=read.group)

    def ended(self, ended: ItemEnded, now: float) -> None:
        """An attempt was recorded. Its worker may be gone by now; the event is written all the same."""
        worker = self._state.workers.get(ended.worker)
        failure, outcome = ended.failure, ended.outcome
        if worker is not None:
            worker.last_failure = failure or worker.last_failure
            if outcome == "done":
                worker.done += 1
                self._lifecycle.progressed(worker, now)
            elif outcome == "failed":
                worker.failed += 1
        group = self._state.groups.get(ended.group)
        if outcome == "done" and group is not None:  # a failure is an end, and no progress
            group.done_at.append(now)
        self._state.retries += outcome == "retry"
        self._state.concluded = self._state.concluded or outcome != "retry"
        self._vote(ended, now)
        finished = ItemFinished(ended.key, ended.attempt, outcome, ended.target, ended.seconds, failure)
        self._publish(ended, worker, finished, "debug" if outcome == "done" else None)
        if outcome == "done" and not ended.first:
            self._publish(ended, worker, RetrySucceeded(ended.key, ended.attempt))
        elif ended.action is not None and failure is not None:
            verdict = (ended.key, ended.action.delay, ended.action.reason)
            if outcome == "retry":
                self._publish(ended, worker, RetryAttempted(*verdict))
            elif failure.kind == "permanent":
                self._publish(ended, worker, PermanentFailure(*verdict))
            else:
                self._publish(ended, worker, RetryExhausted(*verdict))

    def _vote(self, ended: ItemEnded, now: float) -> None:
        """What we, the browser or an operator did is no vote on the site."""
        failure = ended.failure
        if failure == CANCELLED:
            return
        if failure is None or failure.kind != "infrastructure":
            self._abort.vote(
                now,
                ended.group,
                ended.key,
                failed=ended.outcome != "done",
                target=ended.target,
                signature=failure.signature if failure is not None else None,
            )

    def _publish(
        self, ended: ItemEnded, worker: Worker | None, data: EventPayload, severity: Severity | None = None
    ) -> None:
        incident = item_incident(ended.run_id, ended.key)
        told = ended.worker if worker is not None else None
        self._state.outbox.publish(data, severity, incident=incident, worker=told, group=ended.group)


def item_incident(run_id: int, key: str) -> str:
    """The correlation id of an item's attempts.

    Made from what names it, so that it stays the same over restarts, and nothing has to be remembered of a million.
    """
    return f"item-{blake2b(f'{run_id} {key}'.encode(errors='surrogatepass'), digest_size=8).hexdigest()}"
