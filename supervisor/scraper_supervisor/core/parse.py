"""A configuration document to `Settings`, or to every problem in it at once.

`settings.py` says which keys there are; this file reads them. The text of an env_file comes from the caller's `read`.
"""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Struct

from scraper_supervisor.core.settings import (
    GROUP_TABLES,
    NAMED_TABLES,
    ORDERS,
    TABLES,
    Address,
    Choice,
    Codes,
    Command,
    Duration,
    FilePath,
    Flag,
    GroupSettings,
    Key,
    Patterns,
    Real,
    ResourceSettings,
    RestartSettings,
    RetrySettings,
    Settings,
    Size,
    TargetSettings,
    Text,
    Variables,
    Whole,
    keys_of,
    written,
)
from scraper_supervisor.core.units import (
    format_duration,
    format_size,
    parse_address,
    parse_duration,
    parse_environment,
    parse_size,
    show,
)

T = TypeVar("T", bound=Struct)

GROUP_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}", re.ASCII)
_NUMBERED: Final = re.compile(r".*-[0-9]+", re.ASCII)  # a group "a-0" would read like worker 0 of group "a"
_POLICY_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,47}", re.ASCII)
_HOST: Final = re.compile(r"[^\s/?#@]{1,255}")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_VARIABLE: Final = re.compile(r"[^=\s\0]+")


class Problem(Struct, frozen=True, order=True):
    """One thing wrong, or doubtful, in a configuration: the key's path, "" for the file as a whole, and a sentence."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class InvalidSettings(ValueError):
    """A configuration that can't be used; `problems` are all that is wrong, `file` the file if it came from one."""

    def __init__(self, problems: Iterable[Problem], file: str | None = None) -> None:
        self.problems = tuple(problems)
        self.file = file
        super().__init__("; ".join(map(str, self.problems)))


def _unreadable(path: str) -> str:
    raise ValueError(f"{path} can't be read here")


def parse(document: Mapping[str, object], base: str, read: Callable[[str], str] = _unreadable) -> Settings:
    """A TOML document as settings, checked as a whole.

    Args:
        document: the file's content.
        base: the absolute folder that relative paths are relative to.
        read: gives the text of an env_file by its absolute path; a ValueError from it is that key's problem.

    Raises:
        InvalidSettings: with every problem found.
    """
    return _Parser(base, read).settings(document)


class _Parser:
    """Reads tables, goes on after each problem and keeps them all."""

    def __init__(self, base: str, read: Callable[[str], str]) -> None:
        self.base = base
        self.read = read
        self.problems: list[Problem] = []

    def wrong(self, path: str, message: str) -> None:
        self.problems.append(Problem(path, message))

    # ---- tables ------------------------------------------------------------------------------------------------------

    def settings(self, document: Mapping[str, object]) -> Settings:
        known = [*TABLES, *NAMED_TABLES]
        for name in document:
            if name not in known:
                self.wrong(key_path(name), _unknown(name, known))
        tables: dict[str, Any] = {
            name: self.table(kind, self.mapping(document, name), name, {}) for name, kind in TABLES.items()
        }
        retry: dict[str, RetrySettings] = {"default": RetrySettings()}
        for name, path, table in self.named(document, "retry"):
            if not _POLICY_NAME.fullmatch(name):
                self.wrong(path, "expected a name of letters, digits, - and _, at most 48")
            retry[name] = self.table(RetrySettings, table, path, {})
        targets: dict[str, TargetSettings] = {}
        for name, path, table in self.named(document, "targets"):
            if not _HOST.fullmatch(name):
                self.wrong(path, 'expected a host such as "example.com", without scheme and path')
            targets[name] = self.table(TargetSettings, table, path, {})
        groups: dict[str, GroupSettings] = {}
        for name, path, table in self.named(document, "workers"):
            groups[name] = self.group(name, path, table, tables["resources"], tables["restart_policy"])
            if groups[name].retry not in retry:
                expected = f"expected the name of a [retry.NAME] table: {_words(retry)}"
                self.wrong(f"{path}.retry", f"{expected}; got {show(groups[name].retry)}")
        if self.problems:
            raise InvalidSettings(self.problems)
        return Settings(groups=groups, retry=retry, targets=targets, **tables)

    def mapping(self, parent: Mapping[str, object], name: str, path: str | None = None) -> Mapping[str, object]:
        value = parent.get(name, {})
        if isinstance(value, Mapping):
            return value
        self.wrong(path or key_path(name), f"expected a table, got {show(value)}")
        return {}

    def named(self, document: Mapping[str, object], kind: str) -> list[tuple[str, str, Mapping[str, object]]]:
        parent = self.mapping(document, kind)
        if parent and not any(isinstance(value, Mapping) for value in parent.values()):
            self.wrong(kind, f"expected tables of their own names, such as [{kind}.{_EXAMPLE_NAMES[kind]}]")
            return []
        paths = {name: key_path(kind, name) for name in parent}
        tables = [(name, path, self.mapping(parent, name, path)) for name, path in paths.items()]
        return [entry for entry in tables if isinstance(parent[entry[0]], Mapping)]

    def group(
        self,
        name: str,
        path: str,
        table: Mapping[str, object],
        resources: ResourceSettings,
        restart_policy: RestartSettings,
    ) -> GroupSettings:
        if not GROUP_NAME.fullmatch(name) or _NUMBERED.fullmatch(name):
            self.wrong(path, "expected a group name: a-z, 0-9, - and _, at most 48, not ending in - and digits")
        given = {"name": name, "directory": self.base}
        group = self.table(GroupSettings, table, path, given, GROUP_TABLES)
        starts = [key for key in ("entrypoint", "command") if key in table]
        if len(starts) != 1:
            got = "both" if starts else "neither"
            self.wrong(path, f'expected either entrypoint = "module:function" or command = ["program"], got {got}')
        changes: dict[str, Any] = {
            "resources": self.override(resources, table, "resources", path),
            "restart_policy": self.override(restart_policy, table, "restart_policy", path),
        }
        if group.env_file is not None:
            try:
                changes["file_env"] = parse_environment(self.read(group.env_file))
            except ValueError as error:
                self.wrong(f"{path}.env_file", str(error))
        return msgspec.structs.replace(group, **changes)

    def override(self, inherited: T, parent: Mapping[str, object], name: str, path: str) -> T:
        path = f"{path}.{name}"
        given = {field: getattr(inherited, field) for field in keys_of(type(inherited))}
        return self.table(type(inherited), self.mapping(parent, name, path), path, given)

    def table(
        self,
        kind: type[T],
        table: Mapping[str, object],
        path: str,
        given: Mapping[str, Any],
        nested: Iterable[str] = (),
    ) -> T:
        """`table` as a `kind`, over `given`; a value that is wrong leaves what it would have replaced."""
        keys = keys_of(kind)
        values = dict(given)
        bad = set()
        for name, raw in table.items():
            if name in nested:
                continue
            key = keys.get(name)
            if key is None:
                self.wrong(f"{path}.{key_path(name)}", _unknown(name, [*keys, *nested], kind))
                continue
            value = self.value(key, raw, f"{path}.{name}")
            if value is UNSET:
                bad.add(name)
            else:
                values[name] = value
        result = kind(**values)
        # Only what this table says can be wrong here: an order broken by the table it inherits is reported there.
        for lower, higher, equal in ORDERS.get(kind, ()):
            low, high = getattr(result, lower), getattr(result, higher)
            if bad & {lower, higher} or low is None or high is None or low < high or (equal and low == high):
                continue
            if at := next((name for name in (higher, lower) if name in table), None):
                than = f"at least {lower}" if equal else f"more than {lower}"
                shown = (written(keys[higher], high), written(keys[lower], low))
                self.wrong(f"{path}.{at}", f"expected {higher} to be {than}, got {shown[0]} and {shown[1]}")
        return result

    # ---- values ------------------------------------------------------------------------------------------------------

    def value(self, key: Key, raw: object, path: str) -> Any:
        """One value, or UNSET after its problems have been noted."""
        if key.off and raw == "off":
            return None
        before = len(self.problems)
        try:
            value = self.read_value(key, raw, path)
        except ValueError as error:
            self.wrong(path, f'{error} ("off" is allowed too)' if key.off else str(error))
            return UNSET
        return value if len(self.problems) == before else UNSET

    def read_value(self, key: Key, raw: object, path: str) -> Any:
        match key:
            case Patterns():
                return self.items(raw, path, _pattern, "a list of regular expressions")
            case Codes():
                return self.items(raw, path, _code, "a list of HTTP status codes")
            case Command():
                return self.command(raw, path)
            case Variables():
                return self.variables(raw, path)
            case FilePath():
                return self.path(raw, program=key.program)
            case _:
                return _scalar(key, raw)

    def items(self, raw: object, path: str, one: Callable[[object], Any], expected: str) -> tuple[Any, ...]:
        if not isinstance(raw, list | tuple):
            raise ValueError(f"expected {expected}, got {show(raw)}")
        values = []
        for index, item in enumerate(raw):
            try:
                values.append(one(item))
            except ValueError as error:
                self.wrong(f"{path}[{index}]", str(error))
        return tuple(values)

    def command(self, raw: object, path: str) -> tuple[str, ...]:
        expected = 'a list of strings such as ["node", "scrape.js"]'
        words = self.items(raw, path, _string, expected)
        if not raw or (words and not words[0]):
            raise ValueError(f"expected {expected}, got one without a program")
        return (self.path(words[0], program=True), *words[1:]) if words else ()

    def variables(self, raw: object, path: str) -> dict[str, str]:
        if not isinstance(raw, Mapping):
            raise ValueError(f'expected a table of strings such as {{ LANG = "C" }}, got {show(raw)}')
        values = {}
        for name, value in raw.items():
            if not _VARIABLE.fullmatch(name):
                self.wrong(f"{path}.{key_path(name)}", "expected a variable's name, without = and blanks")
            elif not isinstance(value, str) or "\0" in value:
                shown = "one with a zero byte" if isinstance(value, str) else show(value)
                self.wrong(f"{path}.{key_path(name)}", f"expected a string, got {shown}")
            else:
                values[name] = value
        return values

    def path(self, raw: object, *, program: bool) -> str:
        text = _string(raw)
        if not text:
            raise ValueError("expected a path, got an empty string")
        if text == "~" or text.startswith("~/"):
            raise ValueError(f"expected a path, absolute or relative to this file: ~ is not expanded, got {show(raw)}")
        if program and "/" not in text:
            return text
        return posixpath.normpath(posixpath.join(self.base, text))


_EXAMPLE_NAMES: Final = {"workers": "matches", "retry": "default", "targets": '"example.com"'}


def _scalar(key: Key, raw: object) -> Any:
    match key:
        case Duration():
            return _within(parse_duration(raw), key, format_duration)
        case Size():
            return _within(parse_size(raw), key, format_size)
        case Whole():
            if isinstance(raw, int) and not isinstance(raw, bool):
                return _within(raw, key, str)
            raise ValueError(f"expected a whole number, got {show(raw)}")
        case Real():
            if isinstance(raw, int | float) and not isinstance(raw, bool):
                return _within(float(raw), key, _plain)
            raise ValueError(f"expected a number, got {show(raw)}")
        case Flag():
            if isinstance(raw, bool):
                return raw
            raise ValueError(f"expected true or false, got {show(raw)}")
        case Choice():
            return _one_of(raw, key.among)
        case Address():
            parse_address(raw)
            return raw
        case Text():
            if isinstance(raw, str) and re.fullmatch(key.pattern, raw):
                return raw
            raise ValueError(f"expected {key.expected}, got {show(raw)}")
    raise TypeError(f"no reader for {type(key).__name__}")


N = TypeVar("N", int, float)


def _within(number: N, key: Duration | Size | Whole | Real, form: Callable[[N], str]) -> N:
    if key.least <= number <= key.most:
        return number
    bound = (
        f"at least {form(type(number)(key.least))}" if number < key.least else f"at most {form(type(number)(key.most))}"
    )
    raise ValueError(f"expected {bound}, got {form(number)}")


def _plain(number: float) -> str:
    return f"{number:g}"


def _string(raw: object) -> str:
    if isinstance(raw, str) and "\0" not in raw:
        return raw
    raise ValueError(f"expected a string, got {'one with a zero byte' if isinstance(raw, str) else show(raw)}")


def _one_of(raw: object, among: tuple[str, ...]) -> str:
    if isinstance(raw, str) and raw in among:
        return raw
    close = difflib.get_close_matches(raw, among, 1) if isinstance(raw, str) else []
    hint = f'; did you mean "{close[0]}"?' if close else ""
    raise ValueError(f"expected one of {_words(among)}, got {show(raw)}{hint}")


def _pattern(raw: object) -> str:
    text = _string(raw)
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"expected a regular expression, got {show(raw)}: {error}") from None
    return text


def _code(raw: object) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool) and 100 <= raw <= 599:
        return raw
    raise ValueError(f"expected an HTTP status code from 100 to 599, got {show(raw)}")


def _words(words: Iterable[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)


def key_path(*parts: str) -> str:
    """Keys joined by dots as TOML writes them, quoted where they must be."""
    return ".".join(part if _BARE_KEY.fullmatch(part) else show(part) for part in parts)


def _unknown(name: str, known: list[str], table: type[Struct] | None = None) -> str:
    """What to say of a key that doesn't exist: the nearest one here, else the table where it does exist."""
    if close := difflib.get_close_matches(name.lower(), known, 1):
        return f'unknown key; did you mean "{close[0]}"?'
    homes = (TABLES | {f"{kind}.NAME": table for kind, table in NAMED_TABLES.items()}).items()
    if home := next((home for home, kind in homes if kind is not table and name in keys_of(kind)), None):
        return f"unknown key here; it belongs in [{home}]"
    return f"unknown key; known here are {', '.join(known)}"


# ---- what is valid and yet doubtful ----------------------------------------------------------------------------------


def warnings(settings: Settings) -> list[Problem]:
    """What is allowed but hardly meant, or costs more than it seems."""
    found: list[Problem] = []
    if not settings.groups:
        found.append(Problem("workers", "there is no [workers.NAME] table: nothing would run"))
    if settings.abort.rule == "rate":
        cost = "a plain share of the last 20 outcomes over 50% aborts on 54% of healthy days (10% failures, simulated)"
        found.append(Problem("abort.rule", f'{cost}; "evidence" sees the same outage as fast and did so on none'))
    address = settings.supervisor.metrics_listen
    if address and parse_address(address)[0] not in {"127.0.0.1", "::1", "localhost"}:
        found.append(
            Problem("supervisor.metrics_listen", f"{address} is open to the network: nobody is asked to log in")
        )
    used = {group.retry for group in settings.groups.values()} | {"default"}
    found += [Problem(key_path("retry", name), "no group uses it") for name in settings.retry if name not in used]
    for group in settings.groups.values():
        path = key_path("workers", group.name)
        if group.item_timeout is not None and group.item_timeout >= group.progress_timeout:
            limit = f"not below progress_timeout ({format_duration(group.progress_timeout)})"
            found.append(Problem(f"{path}.item_timeout", f"{limit}: the worker is taken for hung before its item is"))
        if group.heartbeat_timeout < 2 * group.heartbeat_interval:
            found.append(
                Problem(f"{path}.heartbeat_timeout", "below two heartbeat_intervals: one late heartbeat kills")
            )
        if group.restart_policy.max_restarts == 0 and group.restart_policy.max_unstable == 0:
            found.append(
                Problem(f"{path}.restart_policy", "no limit at all: a worker that can't start is never given up")
            )
    return found
