from __future__ import annotations

from typing import Any

import pytest

from scraper_supervisor.core.config.parser import Problem, parse
from scraper_supervisor.core.config.reload_plan import Plan, plan
from scraper_supervisor.core.config.settings import Settings, SupervisorSettings


def between(old: dict[str, Any], new: dict[str, Any], files: tuple[str, str] = ("", "")) -> Plan:
    return plan(parse(old, "/etc", lambda _: files[0]), parse(new, "/etc", lambda _: files[1]))


def group(**keys: object) -> dict[str, object]:
    return {"workers": {"matches": {"entrypoint": "m:f", **keys}}}


def test_nothing_differs() -> None:
    found = between(group(), group(count=1, start_timeout=30))
    assert found.empty
    assert found.summary == "nothing differs"


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("entrypoint", {"entrypoint": "m:f"}, {"entrypoint": "m:g"}),
        ("command", {"command": ["x"]}, {"command": ["y"]}),
        ("python", {}, {"python": "python3.12"}),
        ("directory", {}, {"directory": "src"}),
        ("env", {}, {"env": {"A": "1"}}),
        ("env_file", {"env_file": "a"}, {"env_file": "b"}),
    ],
)
def test_what_a_worker_is_started_with_restarts_it(key: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    base = {} if "command" in old else {"entrypoint": "m:f"}
    found = between({"workers": {"a": {**base, **old}}}, {"workers": {"a": {**base, **new}}})
    assert found == Plan(restart=("a",), causes={"a": (key,)})


def test_another_content_of_the_same_env_file_restarts() -> None:
    found = between(group(env_file="a"), group(env_file="a"), ("A=1", "A=2"))
    assert found == Plan(restart=("matches",), causes={"matches": ("env_file",)})


def test_an_entrypoint_that_becomes_a_command_restarts() -> None:
    found = between(group(), {"workers": {"matches": {"command": ["x"]}}})
    assert found.causes == {"matches": ("entrypoint", "command")}


def test_groups_come_and_go_and_change_size() -> None:
    old = {"workers": {name: {"entrypoint": "m:f"} for name in ("gone", "stays", "sized")}}
    new = {
        "workers": {
            "stays": {"entrypoint": "m:f"},
            "sized": {"entrypoint": "m:f", "count": 4},
            "new": {"command": ["x"]},
        }
    }
    found = between(old, new)
    assert found == Plan(added=("new",), removed=("gone",), resized={"sized": (1, 4)})
    assert found.summary == "starts new; drains gone; resizes sized from 1 to 4"


def test_everything_else_takes_effect_in_place() -> None:
    old: dict[str, Any] = {
        "retry": {"slow": {}, "gone": {}},
        "targets": {"a.b": {"delay": 1}},
        **group(),
    }
    new: dict[str, Any] = {
        "supervisor": {"log_level": "debug"},
        "retry": {"slow": {"max_attempts": 9}, "new": {}},
        "targets": {"a.b": {"delay": 2}},
        "abort": {"window": "1m"},
        **group(retry="slow", stop_timeout=5, resources={"browser_pages": 9}),
    }
    found = between(old, new)
    assert found == Plan(
        in_place=(
            "abort.window",
            "retry.gone",
            "retry.new",
            "retry.slow.max_attempts",
            "supervisor.log_level",
            'targets."a.b".delay',
            "workers.matches.resources.browser_pages",
            "workers.matches.retry",
            "workers.matches.stop_timeout",
        )
    )
    assert found.summary.startswith("changes abort.window, retry.gone, ")


def test_a_group_that_only_follows_the_table_for_all_is_not_listed_again() -> None:
    old = {"resources": {"browser_pages": 5}, **group()}
    new = {"resources": {"browser_pages": 6}, **group()}
    assert between(old, new) == Plan(in_place=("resources.browser_pages",))


def test_a_group_that_starts_to_override_is_listed() -> None:
    old = {"resources": {"browser_pages": 5}, **group()}
    new = {"resources": {"browser_pages": 6}, **group(resources={"browser_pages": 7})}
    expected = ("resources.browser_pages", "workers.matches.resources.browser_pages")
    assert between(old, new) == Plan(in_place=expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("state_dir", "/elsewhere"),
        ("runtime_dir", "/elsewhere"),
        ("ledger", "service=scrapers"),
        ("instance", "host-2"),
        ("lease", 90.0),
    ],
)
def test_who_the_daemon_is_needs_a_daemon_restart(key: str, value: object) -> None:
    found = plan(Settings(), Settings(supervisor=SupervisorSettings(**{key: value})))  # type: ignore[arg-type]  # of any key
    assert found == Plan(refused=(Problem(f"supervisor.{key}", "needs a daemon restart"),))
    assert found.summary == f"refused: supervisor.{key}: needs a daemon restart"


def test_a_change_that_nothing_reads_is_told_as_such() -> None:
    old = group(count="2-4")
    new = {
        "evidence": {"trace": True},
        **group(count="2-8", abort={"window": "1m"}, resources={"disk_free": 1}),
    }
    found = between(old, new)
    changed = (
        "evidence.trace",
        "the upper end of workers.matches.count",
        "workers.matches.abort.window",
        "workers.matches.resources.disk_free",
    )
    assert found == Plan(without_effect=changed)
    assert found.summary == f"{', '.join(changed)} changed without effect: see check"


def test_the_least_of_a_range_is_what_resizes() -> None:
    found = between(group(count=3), group(count="2-3"))
    assert found == Plan(resized={"matches": (3, 2)}, without_effect=("the upper end of workers.matches.count",))


def test_the_summary_says_why_a_group_restarts() -> None:
    assert between(group(), group(env={"A": "1"})).summary == "restarts matches (env)"
