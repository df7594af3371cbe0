"""What is learned from an attempt that ended: figures, votes, and the events of the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from scraper_supervisor.core.conclusions import CANCELLED

if TYPE_CHECKING:
    from scraper_supervisor.core.abort import AbortWindow
    from scraper_supervisor.core.claims import Claimed, ItemEnded
    from scraper_supervisor.core.lifecycle import Lifecycle
    from scraper_supervisor.core.state import FleetState, Severity, Worker

RATE_KEPT: Final = 5000  # ends of items that are remembered for the rate


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
        group = self._state.groups[ended.group]
        failure = ended.failure
        if worker is not None:
            worker.progress = now
            worker.done += ended.outcome == "done"
            worker.failed += ended.outcome == "failed"
            worker.last_failure = failure or worker.last_failure
            if ended.outcome == "done":
                self._lifecycle.progressed(worker, now)
        if ended.outcome != "retry":
            group.ended.append(now)
            del group.ended[:-RATE_KEPT]
        self._vote(ended, now)
        self._publish(
            ended,
            worker,
            "item_finished",
            attempt=ended.attempt,
            outcome=ended.outcome,
            target=ended.target,
            seconds=ended.seconds,
            failure=failure,
        )
        if ended.outcome == "done" and not ended.first:
            self._publish(ended, worker, "retry_succeeded", attempt=ended.attempt)
        elif ended.action is not None and failure is not None:
            if ended.outcome == "retry":
                name = "retry_attempted"
            else:
                name = "permanent_failure" if failure.kind == "permanent" else "retry_exhausted"
            self._publish(ended, worker, name, delay=ended.action.delay, reason=ended.action.reason)

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

    def _publish(self, ended: ItemEnded, worker: Worker | None, name: str, **data: Any) -> None:
        final = name in ("permanent_failure", "retry_exhausted")
        quiet = name == "item_finished" and ended.outcome == "done"
        severity: Severity = "warning" if final else "debug" if quiet else "info"
        incident = worker.incident if worker is not None else None
        self._state.publish(
            name, severity, "queue", worker=worker, group=ended.group, incident=incident, key=ended.key, **data
        )
