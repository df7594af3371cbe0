"""What events bear in the event log: their names, severities and components, and how a payload says which it is."""

from __future__ import annotations

from typing import ClassVar, Final, Literal, TypeAlias, get_args

from msgspec import Struct

EventName: TypeAlias = Literal[
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
    "leak_forecast",
    "operator_acted",
    "supervisor_started",
    "supervisor_stopped",
]
Severity: TypeAlias = Literal["debug", "info", "warning", "error", "critical"]
Component: TypeAlias = Literal[
    "abort", "checkpoints", "config", "operators", "queue", "resources", "sessions", "storage", "supervisor", "workers"
]

SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)  # least first


class Payload(Struct, frozen=True):
    """What all payloads have: the event's name, the part of the supervisor that it is about, its usual severity."""

    EVENT: ClassVar[EventName]
    COMPONENT: ClassVar[Component]
    SEVERITY: ClassVar[Severity] = "info"
