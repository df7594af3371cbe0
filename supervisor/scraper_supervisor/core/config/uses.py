"""Who reads each setting, and what a reload does with a changed one.

Every key of `settings.py` has one entry in `USES`; a test closes the table, and another looks for each reader.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from msgspec import Struct

from scraper_supervisor.core.config.keys import WorkerCount
from scraper_supervisor.core.config.settings import GROUP_TABLES, GroupSettings, keys_of

Effect: TypeAlias = Literal["in place", "rolling restart", "resize", "refused", "not used yet", "not for a group"]


class Change(Struct, frozen=True):
    """What a reload does with a key that differs; `how` ends a sentence that begins with the key."""

    effect: Effect
    how: str


def in_place(how: str) -> Change:
    """It takes effect with no process restarted; `how` says from when on."""
    return Change("in place", how)


ROLLING: Final = Change("rolling restart", "restarts the group's workers one by one, at item boundaries")
RESIZE: Final = Change("resize", "starts further workers, or drains those of the highest indexes")
REFUSED: Final = Change("refused", "needs a daemon restart")
NOT_YET: Final = Change("not used yet", "not used by this version yet")
NOT_FOR_A_GROUP: Final = Change("not for a group", "counts for the whole host, and has no effect in a group's table")


class Use(Struct, frozen=True):
    """What becomes of a key.

    Args:
        reader: the file below `scraper_supervisor/` that reads it; None where nothing does, which `check` warns of.
        change: what a reload does with it.
        host: whether it counts for the whole host, so that a group cannot override it.
    """

    reader: str | None
    change: Change
    host: bool = False

    @property
    def doubt(self) -> str | None:
        """What `check` warns of where the file sets the key."""
        return None if self.reader is not None else (NOT_YET if self.change is REFUSED else self.change).how


_UNUSED: Final = Use(None, NOT_YET)
_REPLAYED: Final = _UNUSED  # of the hold policy, which the daemon does not ask yet: `abort replay` alone does
_PROGRAM: Final = Use("daemon/processes/spawning.py", ROLLING)
_RESTART: Final = Use("core/policy/restart.py", in_place("from the next end of a worker on"))
_DELAY: Final = Use("core/policy/restart.py", in_place("at once, for a worker that waits too"))
_LIMIT: Final = Use("core/policy/limits.py", in_place("from the next sample on"))
_RETRY: Final = Use("core/queue/retry_decision.py", in_place("from the next failure on"))
_TARGET: Final = Use("core/queue/targets.py", in_place("at once, what is in flight counted"))
_STATE: Final = Use("core/checkpoints.py", in_place("from the next state that is written on"))
_ABORT: Final = Use("core/policy/abort.py", in_place("at once, on what was counted so far"))

_USES: Final[dict[str, dict[str, Use]]] = {
    "supervisor": {
        "state_dir": Use("core/config/paths.py", REFUSED),
        "runtime_dir": Use("core/config/paths.py", REFUSED),
        "ledger": Use(None, REFUSED),
        "instance": Use(None, REFUSED),
        "lease": Use(None, REFUSED),
        "log_level": Use("daemon/telling/log.py", in_place("from the next line on")),
        "log_format": Use("daemon/telling/log.py", in_place("from the next line on")),
        "control_group": Use("daemon/reload.py", in_place("at once, for new connections")),
        "metrics_listen": _UNUSED,
        "on_abort": Use("core/runs/shutdown.py", in_place("from the next abort on")),
    },
    "workers": {
        "directory": _PROGRAM,
        "entrypoint": _PROGRAM,
        "command": _PROGRAM,
        "python": _PROGRAM,
        "count": Use("core/runs/groups.py", RESIZE),
        "count_max": _UNUSED,
        "env": _PROGRAM,
        "env_file": Use("core/config/parser.py", ROLLING),
        "start_timeout": Use("core/states/worker_life.py", in_place("at once, for a worker that is starting too")),
        "heartbeat_interval": Use("core/sessions/handshake.py", in_place("from a worker's next hello on")),
        "heartbeat_timeout": Use(
            "core/workers/watchdog.py",
            in_place("at once; with another heartbeat_interval, the longer one until the next hello"),
        ),
        "progress_timeout": Use("core/policy/ladder.py", in_place("at once, for items in hand too")),
        "item_timeout": Use("core/policy/ladder.py", in_place("at once, for items in hand too")),
        "stop_timeout": Use("core/states/worker_life.py", in_place("at once, for a drain under way too")),
        "restart": Use("core/workers/lifecycle.py", in_place("from the next end of a worker on")),
        "on_complete": Use("core/runs/groups.py", in_place("when the run completes")),
        "repeat_delay": Use("core/fleet_state.py", in_place("at once, for the pause under way too")),
        "keep_runs": Use("core/runs/groups.py", in_place("when the next run begins")),
        "retry": Use("core/fleet_state.py", in_place("from the next failure on")),
    },
    "restart_policy": {
        "base_delay": _DELAY,
        "max_delay": _DELAY,
        "multiplier": _DELAY,
        "stable_after": _RESTART,
        "max_restarts": _RESTART,
        "within": _RESTART,
        "max_unstable": _RESTART,
    },
    "resources": {
        "sample_interval": Use("daemon/reload.py", in_place("at once"), host=True),
        "browser_memory": _LIMIT,
        "browser_memory_max": _LIMIT,
        "worker_memory": _LIMIT,
        "worker_memory_max": _LIMIT,
        "cpu_percent": _LIMIT,
        "cpu_sustained": _LIMIT,
        "browser_lifetime": _LIMIT,
        "browser_pages": _LIMIT,
        "host_memory_percent": Use("core/policy/limits.py", in_place("from the next sample on"), host=True),
        "disk_free": Use("core/storage_health.py", in_place("from the next sample on"), host=True),
        "recycle_deadline": Use("core/workers/recycling.py", in_place("at once, for a recycle under way too")),
        "max_concurrent_recycles": Use("core/policy/limits.py", in_place("from the next recycle on"), host=True),
        "max_concurrent_launches": Use(None, NOT_YET, host=True),
        "leak_forecast": _UNUSED,
    },
    "retry": {
        "max_attempts": _RETRY,
        "base_delay": _RETRY,
        "multiplier": _RETRY,
        "max_delay": _RETRY,
        "jitter": _RETRY,
        "transient_patterns": _RETRY,
        "permanent_patterns": _RETRY,
        "retryable_status": _RETRY,
        "permanent_status": _RETRY,
    },
    "targets": {"max_in_flight": _TARGET, "delay": _TARGET},
    "checkpoint": {
        "retention": _STATE,
        "compression": _STATE,
        "max_state": Use("core/checkpoints.py", in_place("from the next state on, on open connections too")),
        "interval": Use("core/checkpoints.py", in_place("at once")),
    },
    "abort": {
        "enabled": _ABORT,
        "rule": _ABORT,
        "window": _ABORT,
        "min_items": _ABORT,
        "failure_limit": _ABORT,
        "normal_rate": _ABORT,
        "probe_interval": _REPLAYED,
        "probe_max": _REPLAYED,
        "confirm_after": _ABORT,
        "parked": _REPLAYED,
        "consecutive_crashes": _ABORT,
        "crash_window": _ABORT,
    },
    "evidence": {"enabled": _UNUSED, "trace": _UNUSED, "max_size": _UNUSED},
    "logs": {"max_size": _UNUSED, "keep": _UNUSED, "lines_per_second": Use("daemon/reload.py", in_place("at once"))},
    "notify": {
        "urls": _UNUSED,
        "command": Use("daemon/telling/notify.py", in_place("from the next notice on")),
    },
}

_GROUPS_USE: Final = ("resources", "restart_policy")  # of GROUP_TABLES, those whose overriding by a group counts


def _for_a_group(table: str, use: Use) -> Use:
    if table not in _GROUPS_USE:
        return _UNUSED
    return Use(None, NOT_FOR_A_GROUP) if use.host and use.reader is not None else use


USES: Final[dict[str, dict[str, Use]]] = _USES | {
    f"workers.{table}": {key: _for_a_group(table, use) for key, use in _USES[table].items()} for table in GROUP_TABLES
}
"""By table, every key that the table may hold, and `count_max` for the upper end of a count's range.

`workers.TABLE` is a group's own table that overrides TABLE.
"""


def told_as(path: str, name: str) -> str:
    """How a field of the table at `path` is told of: by its path in the file."""
    upper = next((key for key, kind in _RANGES.items() if kind.upper == name), None)
    return f"{path}.{name}" if upper is None else f"the upper end of {path}.{upper}"


_RANGES: Final = {name: kind for name, kind in keys_of(GroupSettings).items() if isinstance(kind, WorkerCount)}


def fields_of(table: type[Struct]) -> list[str]:
    """What a table holds: its keys, each followed by the field of a range's upper end if it has one."""
    found = []
    for name, key in keys_of(table).items():
        found += [name, key.upper] if isinstance(key, WorkerCount) else [name]
    return found
