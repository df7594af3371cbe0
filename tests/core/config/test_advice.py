from __future__ import annotations

from typing import Any

import pytest

from scraper_supervisor.core.config.advice import warnings
from scraper_supervisor.core.config.parser import Problem, parse


def group(**keys: object) -> dict[str, object]:
    return {"workers": {"matches": {"entrypoint": "scraper:scrape", **keys}}}


def doubts(document: dict[str, Any]) -> list[Problem]:
    return warnings(parse(document, "/"), document)


@pytest.mark.parametrize(
    ("document", "path", "message"),
    [
        ({}, "workers", "nothing would run"),
        ({"abort": {"rule": "rate"}, **group()}, "abort.rule", "54% of healthy days"),
        ({"retry": {"slow": {}}, **group()}, "retry.slow", "no group uses it"),
        (group(item_timeout="10m"), "workers.matches.item_timeout", "progress_timeout (5m)"),
        (group(heartbeat_timeout="4s"), "workers.matches.heartbeat_timeout", "two heartbeat_intervals"),
        (
            group(restart_policy={"max_restarts": 0, "max_unstable": 0}),
            "workers.matches.restart_policy",
            "never given up",
        ),
        ({"evidence": {"trace": False}, **group()}, "evidence.trace", "not used by this version yet"),
        ({"supervisor": {"lease": 90}, **group()}, "supervisor.lease", "not used by this version yet"),
        (group(abort={"window": "1m"}), "workers.matches.abort.window", "not used by this version yet"),
        (group(resources={"leak_forecast": True}), "workers.matches.resources.leak_forecast", "not used by this"),
        (group(resources={"disk_free": 1}), "workers.matches.resources.disk_free", "counts for the whole host"),
        (
            group(count="2-8"),
            "workers.matches.count",
            "2 run: the upper end of a range is not used",
        ),
    ],
)
def test_what_is_valid_and_yet_doubtful(document: dict[str, Any], path: str, message: str) -> None:
    (found,) = doubts(document)
    assert found.path == path
    assert message in found.message


def test_an_ordinary_configuration_raises_no_doubt() -> None:
    ordinary = {
        "resources": {"disk_free": "1GiB"},
        "targets": {"example.com": {"delay": 1}},
        **group(count=2, resources={"browser_memory": "900MiB"}, restart_policy={"within": "1m"}),
    }
    assert doubts(ordinary) == []


@pytest.mark.parametrize(
    ("address", "open_"),
    [
        ("127.0.0.1:9177", False),
        ("127.0.0.2:9177", False),
        ("[::1]:9177", False),
        ("localhost:9177", False),
        ("0.0.0.0:9177", True),
        ("[::]:9177", True),
        ("scraper.example.com:9177", True),
    ],
)
def test_an_address_for_metrics_that_the_network_reaches_is_told(address: str, open_: bool) -> None:
    found = doubts({"supervisor": {"metrics_listen": address}, **group()})
    assert {problem.path for problem in found} == {"supervisor.metrics_listen"}
    assert ("open to the network" in str(found)) == open_
    assert "not used by this version yet" in found[-1].message
