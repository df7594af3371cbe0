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

from scraper_supervisor.core.config.keys import (
    Codes,
    CommandLine,
    Database,
    Duration,
    FilePath,
    Key,
    Patterns,
    Urls,
    Variables,
    WorkerCount,
)
from scraper_supervisor.core.config.settings import (
    GROUP_TABLES,
    NAMED_TABLES,
    ORDERS,
    TABLES,
    GroupSettings,
    RetrySettings,
    Settings,
    TargetSettings,
    keys_of,
    written,
)
from scraper_supervisor.core.config.units import (
    parse_count,
    parse_database,
    parse_environment,
    show,
)
from scraper_supervisor.core.config.values import read_code, read_pattern, read_scalar, read_string, read_url, words_of

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
            groups[name] = self.group(name, path, table, tables)
            if groups[name].retry not in retry:
                expected = f"expected the name of a [retry.NAME] table: {words_of(retry)}"
                self.wrong(f"{path}.retry", f"{expected}; got {show(groups[name].retry)}")
        if tables["supervisor"].ledger is not None:  # else a queue that is shared would silently be this host's own
            self.wrong("supervisor.ledger", "this version keeps its ledger in the state folder: leave this key out")
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

    def group(self, name: str, path: str, table: Mapping[str, object], tables: Mapping[str, Struct]) -> GroupSettings:
        """One group; `tables` are those for all groups, by name."""
        if not GROUP_NAME.fullmatch(name) or _NUMBERED.fullmatch(name):
            self.wrong(path, "expected a group name: a-z, 0-9, - and _, at most 48, not ending in - and digits")
        given = {"name": name, "directory": self.base}
        group = self.table(GroupSettings, table, path, given, GROUP_TABLES)
        starts = [key for key in ("entrypoint", "command") if key in table]
        if len(starts) != 1:
            got = "both" if starts else "neither"
            self.wrong(path, f'expected either entrypoint = "module:function" or command = ["program"], got {got}')
        changes: dict[str, Any] = {
            override: self.override(tables[override], table, override, path) for override in GROUP_TABLES
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
            elif isinstance(key, WorkerCount):
                values[name], values[key.upper] = value
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
            words = ("off",) if key.off else key.words if isinstance(key, Duration) else ()
            allowed = f" ({' and '.join(map(show, words))} {'is' if len(words) == 1 else 'are'} allowed too)"
            self.wrong(path, f"{error}{allowed if words else ''}")
            return UNSET
        return value if len(self.problems) == before else UNSET

    def read_value(self, key: Key, raw: object, path: str) -> Any:
        match key:
            case Patterns():
                return self.items(raw, path, read_pattern, "a list of regular expressions")
            case Codes():
                return self.items(raw, path, read_code, "a list of HTTP status codes")
            case Urls():
                return self.items(raw, path, read_url, "a list of URLs")
            case WorkerCount():
                return parse_count(raw, key.most)
            case Database():
                return parse_database(raw)
            case CommandLine():
                return self.command(raw, path)
            case Variables():
                return self.variables(raw, path)
            case FilePath():
                return self.path(raw, program=key.program)
            case _:
                return read_scalar(key, raw)

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
        words = self.items(raw, path, read_string, expected)
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
        text = read_string(raw)
        if not text:
            raise ValueError("expected a path, got an empty string")
        if text == "~" or text.startswith("~/"):
            raise ValueError(f"expected a path, absolute or relative to this file: ~ is not expanded, got {show(raw)}")
        if program and "/" not in text:
            return text
        return posixpath.normpath(posixpath.join(self.base, text))


_EXAMPLE_NAMES: Final = {"workers": "matches", "retry": "default", "targets": '"example.com"'}


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
