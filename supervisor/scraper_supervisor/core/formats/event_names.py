"""The names that events bear in the event log: part of the public contract."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

Severity: TypeAlias = Literal["debug", "info", "warning", "error", "critical"]

SEVERITIES: Final[tuple[Severity, ...]] = ("debug", "info", "warning", "error", "critical")  # least first

EVENTS: Final = frozenset(
    {
        "checkpoint_created",
        "checkpoint_loaded",
        "checkpoint_corrupted",
        "checkpoint_deleted",
        "item_finished",
        "retry_attempted",
        "retry_succeeded",
        "retry_exhausted",
        "permanent_failure",
        "threshold_breached",
        "threshold_recovered",
        "cleanup_initiated",
        "browser_restarted",
        "hold_started",
        "hold_ended",
        "abort_evaluated",
        "abort_triggered",
        "abort_executed",
        "failure_pattern_detected",
        "worker_started",
        "worker_ready",
        "worker_exited",
        "worker_backoff",
        "worker_failed",
        "worker_completed",
        "worker_hung",
        "worker_adopted",
        "config_reloaded",
        "config_rejected",
        "storage_degraded",
        "storage_recovered",
        "supervisor_started",
        "supervisor_stopped",
    }
)
