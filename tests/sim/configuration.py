"""A world's configuration, by its dice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scraper_supervisor.core.config.settings import (
    AbortSettings,
    GroupSettings,
    ResourceSettings,
    RestartSettings,
    RetrySettings,
    Settings,
    TargetSettings,
)

if TYPE_CHECKING:
    from random import Random

RESTARTS = RestartSettings(max_restarts=0, max_unstable=0, max_delay=5.0)


def some_settings(rng: Random, names: list[str], *, plain: bool) -> Settings:
    """A configuration of these groups; plain workers speak no protocol."""
    limits = TargetSettings(max_in_flight=1, delay=0.5)
    targets = rng.choice(({}, {"a.sim": limits}, {"*": limits, "a.sim": TargetSettings(max_in_flight=2)}))
    return Settings(
        groups={name: _group(rng, name, plain=plain) for name in names},
        retry={
            "default": RetrySettings(max_attempts=3, max_delay=20.0, jitter="none" if rng.random() < 0.5 else "full")
        },
        targets=targets,
        resources=ResourceSettings(),
        restart_policy=RESTARTS,
        abort=AbortSettings(enabled=False, consecutive_crashes=10**6),
    )


def _group(rng: Random, name: str, *, plain: bool) -> GroupSettings:
    fields: dict[str, Any] = {
        "name": name,
        "directory": "/",
        "entrypoint": None if plain else "a:b",
        "command": ("x",) if plain else None,
        "count": rng.choice((1, 2, 3)),
        "item_timeout": rng.choice((None, 8.0)),
        "progress_timeout": rng.choice((7.0, 60.0)),
        "heartbeat_timeout": 10.0,
        "stop_timeout": 15.0,
        "restart_policy": RESTARTS,
        "on_complete": "stop",
    }
    return GroupSettings(**fields)
