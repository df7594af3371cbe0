from __future__ import annotations

from types import NoneType
from typing import TYPE_CHECKING, get_args, get_type_hints

import pytest
from msgspec.structs import fields

from scraper_supervisor.core.config.keys import Choice
from scraper_supervisor.core.config.settings import (
    NAMED_TABLES,
    ORDERS,
    TABLES,
    GroupSettings,
    ResourceSettings,
    Settings,
    effective,
    keys_of,
)
from scraper_supervisor.core.policy.limits import recycle_limit

if TYPE_CHECKING:
    from msgspec import Struct

EVERY_TABLE = [*TABLES.values(), *NAMED_TABLES.values()]


def test_the_documented_defaults() -> None:
    document = effective(
        Settings(groups={"matches": GroupSettings(name="matches", directory="/srv", entrypoint="a:b")})
    )
    resources = {
        "sample_interval": "1s",
        "browser_memory": "1GiB",
        "browser_memory_max": "2GiB",
        "worker_memory": "1GiB",
        "worker_memory_max": "2GiB",
        "cpu_percent": "off",
        "cpu_sustained": "1m",
        "browser_lifetime": "2h",
        "browser_pages": "off",
        "host_memory_percent": 80,
        "disk_free": "500MiB",
        "recycle_deadline": "20s",
        "leak_forecast": True,
    }
    restart_policy = {
        "base_delay": "1s",
        "max_delay": "1m",
        "multiplier": 2,
        "stable_after": "1m",
        "max_restarts": 5,
        "within": "5m",
        "max_unstable": 10,
    }
    abort = {
        "enabled": True,
        "rule": "evidence",
        "window": "5m",
        "min_items": 20,
        "failure_limit": 0.5,
        "normal_rate": 0.1,
        "probe_interval": "2s",
        "probe_max": "5s",
        "confirm_after": "1m",
        "parked": "keep",
        "consecutive_crashes": 5,
        "crash_window": "5m",
    }
    assert document == {
        "supervisor": {"lease": "1m", "log_level": "info", "log_format": "auto", "on_abort": "exit"},
        "workers": {
            "matches": {
                "directory": "/srv",
                "entrypoint": "a:b",
                "count": 1,
                "env": {},
                "start_timeout": "30s",
                "heartbeat_interval": "3s",
                "heartbeat_timeout": "15s",
                "progress_timeout": "5m",
                "item_timeout": "off",
                "stop_timeout": "30s",
                "restart": "on-failure",
                "on_complete": "stop",
                "repeat_delay": "1m",
                "keep_runs": 5,
                "retry": "default",
                "resources": resources,
                "restart_policy": restart_policy,
                "abort": abort,
            }
        },
        "restart_policy": restart_policy,
        "resources": resources,
        "retry": {
            "default": {
                "max_attempts": 5,
                "base_delay": "1s",
                "multiplier": 2,
                "max_delay": "1m",
                "jitter": "full",
                "transient_patterns": [],
                "permanent_patterns": [],
                "retryable_status": [],
                "permanent_status": [],
            }
        },
        "targets": {},
        "checkpoint": {"retention": 10, "compression": "none", "max_state": "64MiB", "interval": "5m"},
        "abort": abort,
        "evidence": {"enabled": True, "trace": False, "max_size": "1GiB"},
        "logs": {"max_size": "16MiB", "keep": 3, "lines_per_second": 1000},
        "notify": {"urls": []},
    }


@pytest.mark.parametrize("table", EVERY_TABLE)
def test_each_key_explains_itself_and_has_a_default_or_an_example(table: type[Struct]) -> None:
    defaults = {item.name: item.default for item in fields(table)}
    hints = get_type_hints(table)
    for name, key in keys_of(table).items():
        assert key.help.endswith("."), name
        optional = NoneType in get_args(hints[name])
        assert optional or not key.off, f"{name}: off is None"
        if not key.off and (optional or name == "directory"):
            assert key.example, f"{name}: a key that is unset by default needs an example"
        if isinstance(key, Choice):
            assert defaults[name] in key.among, name


@pytest.mark.parametrize("table", EVERY_TABLE)
def test_only_known_keys_are_put_in_order(table: type[Struct]) -> None:
    for lower, higher, _ in ORDERS.get(table, ()):
        assert {lower, higher} <= keys_of(table).keys()


@pytest.mark.parametrize(("workers", "at_once"), [(0, 1), (1, 1), (4, 1), (8, 2), (11, 2)])
def test_one_browser_in_four_is_recycled_at_once(workers: int, at_once: int) -> None:
    assert recycle_limit(ResourceSettings(), workers) == at_once


def test_the_number_of_recycles_can_be_set() -> None:
    assert recycle_limit(ResourceSettings(max_concurrent_recycles=3), 1) == 3
