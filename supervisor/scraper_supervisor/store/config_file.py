"""Reads the configuration: the TOML file, the env files it names and the environment around it."""

from __future__ import annotations

import os
import re
import tomllib
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from scraper_supervisor.core.config.parser import InvalidSettings, Problem, parse
from scraper_supervisor.core.config.paths import ENV_CONFIG, LOCAL_FILE, LOCAL_FOLDER, Folders, config_file, folders
from scraper_supervisor.core.config.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

_AT_LINE: Final = re.compile(r"^(.*) \(at (line \d+, column \d+|end of document)\)$", re.DOTALL)


class Loaded(Struct, frozen=True):
    """A configuration and where it and its folders are.

    `path` is None if there is no file; `base` is the folder that relative paths are relative to. `document` is what the
    file sets, as it stands there.
    """

    settings: Settings
    path: str | None
    folders: Folders
    base: str
    document: dict[str, object] = {}


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
    location = config_file(option, environ, os.path.exists, cwd)
    if location.kind == "system" and location.path is not None and not os.path.exists(location.path):
        looked = f"--config, ${ENV_CONFIG}, ./{LOCAL_FILE}, ./{LOCAL_FOLDER}/ and {location.path}"
        hint = f"`scraper-supervisor init` writes ./{LOCAL_FILE}"
        raise InvalidSettings([Problem("", f"there is no configuration file; looked for {looked}; {hint}")])
    settings, document = (Settings(), {}) if location.path is None else _read(location.path)
    supervisor = settings.supervisor
    if location.state_dir is not None:
        # All of it in one folder: two such folders of one user must not meet in $XDG_RUNTIME_DIR.
        runtime_dir = os.path.join(location.state_dir, "run")
        supervisor = replace(supervisor, state_dir=location.state_dir, runtime_dir=runtime_dir)
        settings = replace(settings, supervisor=supervisor)
    home = environ.get("HOME") or os.path.expanduser("~")
    try:
        found = folders(supervisor, environ, home, location.base)
    except InvalidSettings as error:
        raise InvalidSettings(error.problems, location.path) from None
    return Loaded(settings, location.path, found, location.base, document)


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
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        problem = f"can't be read: {_reason(error)}"
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8: byte {error.start}"
    except RecursionError:
        problem = "is nested too deeply"
    except tomllib.TOMLDecodeError as error:
        match = _AT_LINE.match(str(error))
        problem = f"is not TOML: {match[2]}: {match[1]}" if match else f"is not TOML: {error}"
    raise InvalidSettings([Problem("", problem)])


def _env_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {_reason(error)}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start}") from None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
