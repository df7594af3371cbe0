from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from scraper_supervisor.core.config.keys import (
    Address,
    Choice,
    Codes,
    CommandLine,
    Database,
    Duration,
    FilePath,
    Flag,
    Key,
    Patterns,
    Real,
    Size,
    Urls,
    Variables,
    Whole,
    Words,
    WorkerCount,
)
from scraper_supervisor.core.config.parser import InvalidSettings, Problem, parse
from scraper_supervisor.core.config.settings import (
    GROUP_TABLES,
    NAMED_TABLES,
    ORDERS,
    TABLES,
    GroupSettings,
    Settings,
    effective,
    keys_of,
)

if TYPE_CHECKING:
    from msgspec import Struct

GROUP = {"entrypoint": "scraper:scrape"}


def group(**keys: object) -> dict[str, object]:
    return {"workers": {"matches": {**GROUP, **keys}}}


def problems(document: dict[str, Any], files: dict[str, str] | None = None) -> dict[str, str]:
    def read(path: str) -> str:
        if files is None or path not in files:
            raise ValueError(f"{path} can't be read: no such file or directory")
        return files[path]

    with pytest.raises(InvalidSettings) as caught:
        parse(document, "/etc/scraper", read)
    return {problem.path: problem.message for problem in caught.value.problems}


# ---- what is valid ---------------------------------------------------------------------------------------------------


def test_an_empty_document_is_all_defaults() -> None:
    assert parse({}, "/etc") == Settings()


def test_a_group_needs_no_more_than_an_entrypoint() -> None:
    expected = GroupSettings(name="matches", directory="/etc/scraper", entrypoint="scraper:scrape")
    assert parse(group(), "/etc/scraper").groups == {"matches": expected}


def test_units_and_off_become_numbers_and_none() -> None:
    settings = parse(
        {
            "resources": {"browser_memory": "512MiB", "browser_lifetime": "off", "sample_interval": 2},
            **group(item_timeout="90s"),
        },
        "/",
    )
    assert settings.resources.browser_memory == 512 * 1024**2
    assert settings.resources.browser_lifetime is None
    assert settings.resources.sample_interval == 2.0
    assert settings.groups["matches"].item_timeout == 90.0


def test_a_star_names_every_other_host() -> None:
    targets = parse({"targets": {"*": {"delay": "2s"}, "a.b": {}}}, "/").targets
    assert (targets["*"].delay, targets["a.b"].delay) == (2.0, 0.0)


def test_paths_are_relative_to_the_file_and_programs_without_a_slash_are_not() -> None:
    document: dict[str, Any] = {
        "supervisor": {"state_dir": "../state", "runtime_dir": "/run/x"},
        "workers": {
            "a": {"entrypoint": "m.n:f", "directory": "src", "python": "venv/bin/python"},
            "b": {"command": ["./scrape", "./argument"], "python": "python3.12"},
            "c": {"command": ["node", "scrape.js"]},
        },
    }
    settings = parse(document, "/etc/scraper")
    assert settings.supervisor.state_dir == "/etc/state"
    assert settings.supervisor.runtime_dir == "/run/x"
    assert settings.groups["a"].directory == "/etc/scraper/src"
    assert settings.groups["a"].python == "/etc/scraper/venv/bin/python"
    assert settings.groups["b"].command == ("/etc/scraper/scrape", "./argument")
    assert settings.groups["b"].python == "python3.12"
    assert settings.groups["c"].command == ("node", "scrape.js")


def test_a_group_overrides_single_keys_of_the_tables_for_all() -> None:
    settings = parse(
        {
            "resources": {"browser_memory": "600MiB", "browser_pages": 50},
            "restart_policy": {"max_restarts": 0},
            **group(resources={"browser_memory": "700MiB"}, restart_policy={"within": "1m"}),
        },
        "/",
    )
    matches = settings.groups["matches"]
    assert (matches.resources.browser_memory, matches.resources.browser_pages) == (700 * 1024**2, 50)
    assert (matches.restart_policy.max_restarts, matches.restart_policy.within) == (0, 60.0)
    assert settings.resources.browser_memory == 600 * 1024**2


@pytest.mark.parametrize(("count", "least", "most"), [(3, 3, None), ("2-8", 2, 8), ("4 - 5", 4, 5), ("3-3", 3, None)])
def test_a_count_may_be_a_range_of_which_the_least_is_run(count: object, least: int, most: int | None) -> None:
    matches = parse(group(count=count), "/").groups["matches"]
    assert (matches.count, matches.count_max) == (least, most)


def test_a_group_overrides_keys_of_the_abort_policy() -> None:
    settings = parse({"abort": {"window": "1m", "parked": "1h"}, **group(abort={"window": "2m"})}, "/")
    own = settings.groups["matches"].abort
    assert (own.window, own.parked, settings.abort.window) == (120.0, 3600.0, 60.0)


@pytest.mark.parametrize(("written", "value"), [("keep", "keep"), ("fail", "fail"), ("30m", 1800.0), (90, 90.0)])
def test_parked_is_a_word_or_a_duration(written: object, value: object) -> None:
    assert parse({"abort": {"parked": written}}, "/").abort.parked == value


def test_hosts_without_a_table_of_their_own_have_one() -> None:
    assert parse({"targets": {"*": {"delay": "1s"}}}, "/").targets["*"].delay == 1.0


def test_the_env_file_is_read_through_the_caller() -> None:
    settings = parse(group(env_file="a.env"), "/etc/scraper", {"/etc/scraper/a.env": "A=1\n"}.__getitem__)
    assert settings.groups["matches"].file_env == {"A": "1"}
    assert settings.groups["matches"].env_file == "/etc/scraper/a.env"


# ---- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "path", "message"),
    [
        ({"wrokers": {}}, "wrokers", 'unknown key; did you mean "workers"?'),
        ({"count": 3}, "count", "unknown key here; it belongs in [workers.NAME]"),
        ({"zzz": 3}, "zzz", "unknown key; known here are supervisor, "),
        (group(heartbeat_timout=1), "workers.matches.heartbeat_timout", 'did you mean "heartbeat_timeout"?'),
        (group(browser_memory=1), "workers.matches.browser_memory", "it belongs in [resources]"),
        (group(resource={}), "workers.matches.resource", 'did you mean "resources"?'),
        ({"supervisor": 3}, "supervisor", "expected a table, got 3"),
        ({"supervisor": {"Log Level": ""}}, 'supervisor."Log Level"', 'did you mean "log_level"?'),
        ({"supervisor": {"log_level": "inof"}}, "supervisor.log_level", 'got "inof"; did you mean "info"?'),
        ({"supervisor": {"log_level": 3}}, "supervisor.log_level", 'expected one of "debug", '),
        ({"supervisor": {"metrics_listen": "9177"}}, "supervisor.metrics_listen", "expected HOST:PORT"),
        ({"supervisor": {"state_dir": "~/state"}}, "supervisor.state_dir", "~ is not expanded"),
        ({"supervisor": {"state_dir": ""}}, "supervisor.state_dir", "got an empty string"),
        ({"supervisor": {"ledger": "postgresql://u@h/d"}}, "supervisor.ledger", "this version keeps its ledger in the"),
        ({"supervisor": {"ledger": "service=scrapers"}}, "supervisor.ledger", "this version keeps its ledger in the"),
        (
            {"supervisor": {"ledger": "/srv/ledger.db"}},
            "supervisor.ledger",
            '"postgresql://USER@HOST/DATABASE" or "service',
        ),
        ({"supervisor": {"ledger": 3}}, "supervisor.ledger", "got 3"),
        ({"supervisor": {"instance": "Host.example"}}, "supervisor.instance", "expected a name of a-z, 0-9 and -"),
        ({"supervisor": {"lease": "100ms"}}, "supervisor.lease", "expected at least 1s, got 100ms"),
        ({"supervisor": {"control_group": "a b"}}, "supervisor.control_group", "expected the name of a system group"),
        ({"workers": {"entrypoint": "a:b"}}, "workers", "[workers.matches]"),
        ({"workers": {"a": GROUP, "b": 3}}, "workers.b", "expected a table, got 3"),
        ({"workers": {"A": GROUP}}, "workers.A", "expected a group name"),
        ({"workers": {"a b": GROUP}}, 'workers."a b"', "expected a group name"),
        ({"workers": {"a-0": GROUP}}, "workers.a-0", "not ending in - and digits"),
        ({"workers": {"x" * 49: GROUP}}, f"workers.{'x' * 49}", "at most 48"),
        ({"workers": {"a": {}}}, "workers.a", "got neither"),
        (group(command=["x"]), "workers.matches", "got both"),
        (group(entrypoint="scraper.py"), "workers.matches.entrypoint", 'expected "module:function", got "scraper.py"'),
        ({"workers": {"a": {"command": "run me"}}}, "workers.a.command", "expected a list of strings"),
        ({"workers": {"a": {"command": []}}}, "workers.a.command", "without a program"),
        ({"workers": {"a": {"command": ["x", 1]}}}, "workers.a.command[1]", "expected a string, got 1"),
        (group(count=0), "workers.matches.count", "expected at least 1, got 0"),
        (group(count=True), "workers.matches.count", "expected a whole number, or a range"),
        (group(count=1.5), "workers.matches.count", "expected a whole number, or a range"),
        (group(count="2-"), "workers.matches.count", 'or a range such as "2-8", got "2-"'),
        (group(count="0-3"), "workers.matches.count", "expected at least 1, got 0"),
        (group(count="8-2"), "workers.matches.count", 'expected a range that rises, got "8-2"'),
        (group(count="1-10001"), "workers.matches.count", "expected at most 10000, got 10001"),
        (group(count_max=3), "workers.matches.count_max", "unknown key"),
        (group(env={"A": 1}), "workers.matches.env.A", "expected a string, got 1"),
        (group(env={"A=": ""}), 'workers.matches.env."A="', "expected a variable's name"),
        (group(env=[]), "workers.matches.env", "expected a table of strings"),
        (group(env_file="a.env"), "workers.matches.env_file", "/etc/scraper/a.env can't be read"),
        (group(env_file="bad.env"), "workers.matches.env_file", "line 1: expected KEY=VALUE"),
        (group(item_timeout="soon"), "workers.matches.item_timeout", 'got "soon" ("off" is allowed too)'),
        (
            group(heartbeat_interval="11d", heartbeat_timeout="10d"),
            "workers.matches.heartbeat_timeout",
            "got 10d and 11d",
        ),
        (group(heartbeat_timeout="3s"), "workers.matches.heartbeat_timeout", "to be more than heartbeat_interval"),
        (group(heartbeat_interval="15s"), "workers.matches.heartbeat_interval", "expected heartbeat_timeout"),
        (
            group(retry="slow"),
            "workers.matches.retry",
            'expected the name of a [retry.NAME] table: "default"; got "slow"',
        ),
        (group(retry=3), "workers.matches.retry", "expected a string"),
        (
            group(resources={"browser_memory_max": "512MiB"}),
            "workers.matches.resources.browser_memory_max",
            "to be at least browser_memory, got 512MiB and 1GiB",
        ),
        ({"resources": {"browser_memory_max": "1MiB"}}, "resources.browser_memory_max", "at least browser_memory"),
        ({"resources": {"browser_memory": True}}, "resources.browser_memory", "expected a size"),
        ({"resources": {"host_memory_percent": 101}}, "resources.host_memory_percent", "expected at most 100, got 101"),
        ({"resources": {"sample_interval": 0}}, "resources.sample_interval", "expected at least 50ms, got 0s"),
        ({"restart_policy": {"max_delay": "100ms"}}, "restart_policy.max_delay", "to be at least base_delay"),
        ({"restart_policy": {"multiplier": "2"}}, "restart_policy.multiplier", 'expected a number, got "2"'),
        ({"restart_policy": {"multiplier": 0.5}}, "restart_policy.multiplier", "expected at least 1, got 0.5"),
        ({"restart_policy": {"multiplier": float("nan")}}, "restart_policy.multiplier", "got nan"),
        ({"retry": {"a b": {}}}, 'retry."a b"', "expected a name of letters"),
        ({"retry": {"x": {"transient_patterns": ["ok", "("]}}}, "retry.x.transient_patterns[1]", "regular expression"),
        ({"retry": {"x": {"transient_patterns": "("}}}, "retry.x.transient_patterns", "expected a list of regular"),
        ({"retry": {"x": {"permanent_status": [404, 99]}}}, "retry.x.permanent_status[1]", "from 100 to 599, got 99"),
        ({"retry": {"x": {"jitter": "some"}}}, "retry.x.jitter", 'expected one of "full", "equal"'),
        ({"retry": {"x": {"jitter": "decorrelated"}}}, "retry.x.jitter", 'expected one of "full", "equal", "none"'),
        ({"retry": {"x": {"budget_percent": 9}}}, "retry.x.budget_percent", "unknown key"),
        ({"targets": {"https://a.b/": {}}}, 'targets."https://a.b/"', "expected a host"),
        ({"targets": {"a.b": {"max_in_flight": 0}}}, 'targets."a.b".max_in_flight', '"off" is allowed too'),
        ({"checkpoint": {"compression": "zip"}}, "checkpoint.compression", 'expected one of "none", "gzip"'),
        ({"abort": {"failure_limit": 1.1}}, "abort.failure_limit", "expected at most 1, got 1.1"),
        ({"abort": {"normal_rate": 0.5}}, "abort.normal_rate", "expected failure_limit to be more than normal_rate"),
        ({"abort": {"enabled": "yes"}}, "abort.enabled", "expected true or false"),
        ({"abort": {"actions": ["report"]}}, "abort.actions", "unknown key"),
        ({"abort": {"failed_items": 3}}, "abort.failed_items", "unknown key"),
        ({"abort": {"parked": "kept"}}, "abort.parked", 'got "kept" ("keep" and "fail" are allowed too)'),
        ({"abort": {"parked": 0}}, "abort.parked", "expected at least 1s, got 0s"),
        (group(abort={"windw": 3}), "workers.matches.abort.windw", 'did you mean "window"?'),
        (group(abort={"normal_rate": 0.6}), "workers.matches.abort.normal_rate", "failure_limit to be more than"),
        ({"evidence": {"trace": "yes"}}, "evidence.trace", "expected true or false"),
        ({"logs": {"keep": -1}}, "logs.keep", "expected at least 0"),
        ({"notify": {"urls": "mailto://a@b"}}, "notify.urls", "expected a list of URLs"),
        ({"notify": {"command": [""]}}, "notify.command", "without a program"),
    ],
)
def test_a_problem_names_its_key_and_what_was_expected(document: dict[str, Any], path: str, message: str) -> None:
    found = problems(document, {"/etc/scraper/bad.env": "nonsense"})
    assert list(found) == [path]
    assert message in found[path]


@pytest.mark.parametrize(
    "ledger",
    [
        "postgresql://scraper:sesame@db.example.com/scraper",
        "postgres://scraper:sesame@db.example.com:5432/scraper?sslmode=require",
        "postgresql://db.example.com/scraper?user=scraper&password=sesame",
        "service=scrapers password = sesame",
        "postgresql://scraper:se:sa@me@db.example.com/sesame",
    ],
)
def test_a_password_in_the_ledgers_address_is_told_where_to_go_and_never_shown(ledger: str) -> None:
    ((path, message),) = problems({"supervisor": {"ledger": ledger}}).items()
    assert path == "supervisor.ledger"
    assert "PGPASSFILE" in message
    assert "sesame" not in message


def test_no_message_repeats_what_may_hold_a_password() -> None:
    found = problems({"supervisor": {"ledger": "user:sesame"}, "notify": {"urls": ["mailto:sesame@x", 3]}})
    assert found.keys() == {"supervisor.ledger", "notify.urls[0]", "notify.urls[1]"}
    assert "sesame" not in str(found)


def test_every_problem_is_reported_at_once() -> None:
    found = problems(
        {
            "supervsor": {},
            "resources": {"browser_memory": "lots"},
            "restart_policy": {"base_delay": "x", "max_delay": 0.1},
            "workers": {
                "a": {"count": 0, "restart_policy": {"max_restarts": -1}},
                "b": {"entrypoint": "m:f", "retry": "no"},
            },
        }
    )
    assert found.keys() == {
        "supervsor",
        "resources.browser_memory",
        "restart_policy.base_delay",
        "workers.a.count",
        "workers.a",
        "workers.a.restart_policy.max_restarts",
        "workers.b.retry",
    }


def test_an_order_broken_for_all_is_not_repeated_for_each_group() -> None:
    assert list(problems({"resources": {"worker_memory": "3GiB"}, **group()})) == ["resources.worker_memory"]


def test_an_error_reads_as_one_line_a_problem() -> None:
    error = InvalidSettings([Problem("a.b", "expected x"), Problem("", "is not TOML")], "/etc/x.toml")
    assert (str(error), error.file) == ("a.b: expected x; is not TOML", "/etc/x.toml")


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)
table_names = st.sampled_from([*TABLES, *NAMED_TABLES, "x"])
key_names = st.sampled_from(
    sorted({name for table in [*TABLES.values(), *NAMED_TABLES.values()] for name in keys_of(table)})
)


@examples(max_examples=examples().max_examples // 2)
@given(
    st.dictionaries(
        table_names, json_like | st.dictionaries(key_names, json_like | st.dictionaries(key_names, json_like))
    )
)
def test_whatever_the_document_it_is_settings_or_problems(document: dict[str, Any]) -> None:
    try:
        settings = parse(document, "/etc")
    except InvalidSettings as error:
        found = error.problems
    else:
        assert parse(effective(settings), "/etc") == settings
        return
    assert found
    assert all(problem.message for problem in found)


# ---- there and back --------------------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=12)
paths = st.from_regex(r"(/[a-z.]{1,6}){1,3}", fullmatch=True).filter(lambda path: "/." not in path)
SAMPLES = {
    "control_group": st.just("scrapers"),
    "instance": st.just("host-1"),
    "retry": st.sampled_from(["default", "slow"]),
    "urls": st.lists(st.sampled_from(["mailto://a@b.example", "json://c.example"])),
}


def value_of(name: str, key: Key) -> st.SearchStrategy[Any]:
    match key:
        case Duration() | Real():
            value: st.SearchStrategy[Any] = st.floats(key.least, key.most)
        case Size() | Whole():
            value = st.integers(key.least, key.most)
        case Flag():
            value = st.booleans()
        case Choice():
            value = st.sampled_from(key.among)
        case FilePath():
            value = paths
        case Address():
            value = st.just("[::1]:9177")
        case CommandLine():
            value = st.tuples(paths, words).map(list)
        case Patterns():
            value = st.lists(st.sampled_from(["timeout", r"\b5\d\d\b"]))
        case Codes():
            value = st.lists(st.integers(100, 599))
        case WorkerCount():
            value = st.integers(1, key.most) | st.sampled_from(["2-8", "3-3", "1 - 2"])
        case Variables():
            value = st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), words, max_size=2)
        case Words() | Urls():
            value = SAMPLES[name]
        case _:
            raise AssertionError(f"no sample for {type(key).__name__}")
    if isinstance(key, Duration) and key.words:
        value |= st.sampled_from(key.words)
    return value | st.just("off") if key.off else value


@st.composite
def tables(draw: st.DrawFn, kind: type[Struct], leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    keys = {
        name: value_of(name, key)
        for name, key in keys_of(kind).items()
        if name not in leave_out and not isinstance(key, Database)  # which this version refuses
    }
    ordered = {name for pair in ORDERS.get(kind, ()) for name in pair[:2]}
    table = draw(st.fixed_dictionaries({}, optional={name: keys[name] for name in keys if name not in ordered}))
    for lower, higher, equal in ORDERS.get(kind, ()):
        low, high = draw(keys[lower]), draw(keys[higher])
        if "off" not in (low, high):
            low, high = min(low, high), max(low, high)
        if equal or low != high:
            table |= {lower: low, higher: high}
    return table


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    document: dict[str, Any] = {name: draw(tables(kind)) for name, kind in TABLES.items()}
    document["retry"] = {"slow": draw(tables(NAMED_TABLES["retry"]))}
    document["targets"] = {"example.com": draw(tables(NAMED_TABLES["targets"]))}
    matches = draw(tables(GroupSettings, ("entrypoint", "command")))
    matches |= draw(st.sampled_from([{"entrypoint": "a.b:c"}, {"command": ["node", "x"]}]))
    matches |= {name: draw(tables(TABLES[name])) for name in GROUP_TABLES}
    document["workers"] = {"matches": matches}
    return document


@examples(max_examples=3 * examples().max_examples // 5)
@given(documents())
def test_the_effective_configuration_means_the_same_again(document: dict[str, Any]) -> None:
    settings = parse(document, "/etc", lambda path: f"FROM={path}")
    again = tomllib.loads(tomli_w.dumps(effective(settings)))
    assert parse(again, "/elsewhere", lambda path: f"FROM={path}") == settings
