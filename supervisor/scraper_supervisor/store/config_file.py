"""Reads the configuration: the TOML file, the env files it names and the environment around it."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tomllib
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from scraper_supervisor.core.config.parser import InvalidSettings, Problem, parse
from scraper_supervisor.core.config.paths import (
    ENV_CONFIG,
    LOCAL_FILE,
    LOCAL_FOLDER,
    NOT_UTF8,
    Folders,
    Location,
    config_file,
    folders,
    is_utf8,
)
from scraper_supervisor.core.config.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scraper_supervisor.core.config.settings import SupervisorSettings

MOST_BYTES: Final = 16 * 1024 * 1024  # of a file that is read whole
_FOLDER_LINE: Final = re.compile(r"\s*(state|runtime)_dir\s*=")
_AT_LINE: Final = re.compile(r"^(.*) \(at (line \d+, column \d+|end of document)\)$", re.DOTALL)


class Place(Struct, frozen=True):
    """Where a configuration and its folders are.

    `path` is None if there is no file; `base` is the folder that relative paths are relative to.
    """

    path: str | None
    folders: Folders
    base: str


class Loaded(Place, frozen=True, kw_only=True):
    """A configuration and where it and its folders are; `document` is what the file sets, as it stands there."""

    settings: Settings
    document: dict[str, object] = {}


def home_folder(environ: Mapping[str, str]) -> str | None:
    """The user's absolute home folder; None where neither $HOME nor the system's list of users tells one."""
    home = environ.get("HOME") or os.path.expanduser("~")
    return home if os.path.isabs(home) else None


def working_folder(option: str | None, environ: Mapping[str, str]) -> str:
    """The absolute working folder; where it was removed, / will do for a configuration file that is named in full.

    Raises:
        InvalidSettings: it was removed, and is needed.
    """
    try:
        return os.getcwd()
    except OSError:
        if os.path.isabs(option or environ.get(ENV_CONFIG, "")):
            return "/"
        hint = "go to one that exists, or name the configuration file by its absolute path with --config"
        raise InvalidSettings([Problem("", f"the working folder was removed: {hint}")]) from None


def load(path: str) -> Settings:
    """The settings in the file at `path`, with the content of the env files they name.

    Raises:
        InvalidSettings: with every problem: a file that can't be read, no TOML, or keys that do not fit.
    """
    return _read(path)[0]


def load_or_default(option: str | None, environ: Mapping[str, str], cwd: str) -> Loaded:
    """The configuration that --config, the environment and the working folder lead to.

    Args:
        option: the value of --config.
        environ: the environment.
        cwd: the absolute working folder.

    Raises:
        InvalidSettings: with every problem; its `file` is the file they are in.
    """
    location = _location(option, environ, cwd)
    settings, document = (Settings(), {}) if location.path is None else _read(location.path)
    found = _folders(settings.supervisor, environ, location)
    if location.state_dir is not None:
        placed = replace(settings.supervisor, state_dir=found.state_dir, runtime_dir=found.runtime_dir)
        settings = replace(settings, supervisor=placed)
    return Loaded(location.path, found, location.base, settings=settings, document=document)


def find_place(option: str | None, environ: Mapping[str, str], cwd: str) -> Place:
    """Where the folders are, whatever else is in the file: of that, only what says so is read.

    Args:
        option: the value of --config.
        environ: the environment.
        cwd: the absolute working folder.

    Raises:
        InvalidSettings: there is no file, it can't be read, or its state_dir or runtime_dir does not fit.
    """
    location = _location(option, environ, cwd)
    supervisor = Settings().supervisor
    if location.path is not None:
        try:
            supervisor = parse({"supervisor": _named_folders(location.path)}, location.base).supervisor
        except InvalidSettings as error:
            raise InvalidSettings(error.problems, location.path) from None
    return Place(location.path, _folders(supervisor, environ, location), location.base)


def _location(option: str | None, environ: Mapping[str, str], cwd: str) -> Location:
    location = config_file(option, environ, os.path.exists, cwd)
    path = location.path or location.base
    if not is_utf8(path):
        raise InvalidSettings([Problem("", NOT_UTF8)], path.encode(errors="backslashreplace").decode())
    if location.kind == "system" and location.path is not None and not os.path.exists(location.path):
        looked = f"--config, ${ENV_CONFIG}, ./{LOCAL_FILE}, ./{LOCAL_FOLDER}/ and {location.path}"
        hint = f"`scraper-supervisor init` writes ./{LOCAL_FILE}"
        raise InvalidSettings([Problem("", f"there is no configuration file; looked for {looked}; {hint}")])
    return location


def _folders(supervisor: SupervisorSettings, environ: Mapping[str, str], location: Location) -> Folders:
    try:
        return folders(supervisor, environ, home_folder(environ), location)
    except InvalidSettings as error:
        raise InvalidSettings(error.problems, location.path) from None


def _named_folders(path: str) -> dict[str, object]:
    """state_dir and runtime_dir as a file has them, also one that is not TOML as a whole."""
    try:
        text = read_text(path, errors="replace")
    except OSError as error:
        raise InvalidSettings([Problem("", f"can't be read: {_reason(error)}")]) from None
    try:
        table = tomllib.loads(text).get("supervisor")
        found = table if isinstance(table, dict) else {}
    except (ValueError, RecursionError):
        found = {}
        for line in text.splitlines():  # a key of these names stands nowhere else
            if _FOLDER_LINE.match(line):
                with contextlib.suppress(ValueError):
                    found |= tomllib.loads(line)
    return {name: value for name, value in found.items() if name in ("state_dir", "runtime_dir")}


def _read(path: str) -> tuple[Settings, dict[str, object]]:
    """The settings in a file, and the file's content."""
    path = os.path.abspath(path)
    try:
        document = _document(path)
        return parse(document, os.path.dirname(path), _env_file), document
    except InvalidSettings as error:
        raise InvalidSettings(error.problems, path) from None


def _document(path: str) -> dict[str, object]:
    try:
        return tomllib.loads(read_text(path))
    except OSError as error:
        problem = f"can't be read: {_reason(error)}"
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8: byte {error.start}"
    except RecursionError:
        problem = "is nested too deeply"
    except ValueError as error:  # tomllib's own, and Python's of a number of thousands of digits
        match = _AT_LINE.match(str(error))
        problem = f"is not TOML: {match[2]}: {match[1]}" if match else f"is not TOML: {error}"
    raise InvalidSettings([Problem("", problem)])


def read_text(path: str, errors: str = "strict") -> str:
    """A whole regular file, without the mark that some editors put before its first character.

    A FIFO or a device would let a reload wait for ever, so it is refused; opening one does not block.

    Raises:
        OSError: it can't be read, is no regular file, or holds over `MOST_BYTES`.
        UnicodeDecodeError: it is not UTF-8, and `errors` is "strict".
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("expected a regular file")
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise OSError(f"expected at most {MOST_BYTES} bytes")
    return data.decode("utf-8-sig", errors).replace("\r\n", "\n")


def _env_file(path: str) -> str:
    try:
        return read_text(path)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {_reason(error)}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start}") from None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
