"""What is learned from an attempt that ended: figures, votes, and the events of the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scraper_supervisor.core.conclusions import CANCELLED

if TYPE_CHECKING:
    from scraper_supervisor.core.abort import AbortWindow
    from scraper_supervisor.core.claims import Claimed, ItemEnded
    from scraper_supervisor.core.lifecycle import Lifecycle
    from scraper_supervisor.core.state import FleetState, Severity, Worker


class Outcomes:
    """Counts and tells what became of items."""

    def __init__(self, state: FleetState, lifecycle: Lifecycle, abort: AbortWindow) -> None:
        self._state = state
        self._lifecycle = lifecycle
        self._abort = abort

    def claimed(self, claimed: Claimed, now: float) -> None:
        """A worker was handed an item."""
        worker = self._state.workers[claimed.worker]
        if claimed.idle:
            worker.progress = now
        self._lifecycle.progressed(worker, now)

    def ended(self, ended: ItemEnded, now: float) -> None:
        """An attempt was recorded. Its worker may be gone by now; the event is written all the same."""
        worker = self._state.workers.get(ended.worker)
        failure, outcome = ended.failure, ended.outcome
        if worker is not None:
            worker.progress = now
            worker.last_failure = failure or worker.last_failure
            if outcome == "done":
                worker.done += 1
                self._lifecycle.progressed(worker, now)
            elif outcome == "failed":
                worker.failed += 1
        if outcome != "retry":
            self._state.groups[ended.group].ended.append(now)
        self._vote(ended, now)
        finished = {
            "key": ended.key,
            "attempt": ended.attempt,
            "outcome": outcome,
            "target": ended.target,
            "seconds": ended.seconds,
            "failure": failure,
        }
        self._publish(ended, worker, "item_finished", "debug" if outcome == "done" else "info", finished)
        if outcome == "done" and not ended.first:
            self._publish(ended, worker, "retry_succeeded", "info", {"key": ended.key, "attempt": ended.attempt})
        elif ended.action is not None and failure is not None:
            verdict = {"key": ended.key, "delay": ended.action.delay, "reason": ended.action.reason}
            if outcome == "retry":
                self._publish(ended, worker, "retry_attempted", "info", verdict)
            else:
                name = "permanent_failure" if failure.kind == "permanent" else "retry_exhausted"
                self._publish(ended, worker, name, "warning", verdict)

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
        if ended.outcome == "failed":
            self._abort.failed_final(now, ended.group)

    def _publish(self, ended: ItemEnded, worker: Worker | None, name: str, severity: Severity, data: Any) -> None:
        incident = worker.incident if worker is not None else None
        self._state.put_event(name, severity, "queue", incident, data, ended.worker if worker else None, ended.group)
