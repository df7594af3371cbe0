"""`check`, `config` and `init`: what they answer, without printing it."""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import tomli_w

from scraper_supervisor.console.probe import problems
from scraper_supervisor.core.config.advice import warnings
from scraper_supervisor.core.config.parser import InvalidSettings, Problem
from scraper_supervisor.core.config.paths import LOCAL_FILE, LOCAL_FOLDER, MAX_SOCKET_PATH, control_socket
from scraper_supervisor.core.config.settings import effective
from scraper_supervisor.store.config_file import Loaded, load_or_default, working_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

OK: Final = 0
FAILED: Final = 1
INVALID: Final = 78


class CommandOutcome(NamedTuple):
    """A command's exit code, its document for --json and its text for people, which goes to stderr unless code is 0."""

    code: int
    document: dict[str, Any]
    text: str


def check(option: str | None, environ: Mapping[str, str] | None = None, cwd: str | None = None) -> CommandOutcome:
    """Validates the configuration that `option` (--config), the environment and the working folder lead to.

    Each group's interpreter is run to see whether it finds the SDK, the module and the function.
    """
    try:
        loaded = _load(option, environ, cwd)
        wrong = problems(loaded.settings, os.environ if environ is None else environ)
        if wrong:
            raise InvalidSettings(wrong, loaded.path)
    except InvalidSettings as error:
        return invalid(error)
    doubts = warnings(loaded.settings, loaded.document)
    groups = loaded.settings.groups.values()
    found = f"{_counted(len(groups), 'group')}, {_counted(sum(group.count for group in groups), 'worker')}"
    text = "\n".join([f"{_name(loaded)}: valid, {found}", *_lines(doubts, "warning: ")])
    return CommandOutcome(OK, _checked(loaded.path, (), doubts), text)


def config(option: str | None, environ: Mapping[str, str] | None = None, cwd: str | None = None) -> CommandOutcome:
    """The configuration in effect, defaults filled in; the text is TOML that means the same again.

    The document for --json is that same TOML document, or the one of `check` if the configuration is invalid. What an
    env_file holds is in neither.
    """
    try:
        loaded = _load(option, environ, cwd)
    except InvalidSettings as error:
        return invalid(error)
    document = effective(loaded.settings)
    found = {"state_dir": loaded.folders.state_dir, "runtime_dir": loaded.folders.runtime_dir}
    supervisor = document["supervisor"]
    document["supervisor"] = found | supervisor if isinstance(supervisor, dict) else found
    return CommandOutcome(OK, document, f"# {_name(loaded)}\n{tomli_w.dumps(document)}".rstrip())


def init(path: str | None = None, *, force: bool = False) -> CommandOutcome:
    """Writes the commented starter configuration to `path`, ./supervisor.toml if None; overwrites only with `force`."""
    target = Path(path or LOCAL_FILE)
    try:
        with target.open("w" if force else "x", encoding="utf-8") as file:
            file.write(_placed(target.absolute().parent))
    except FileExistsError:
        hint = f"move it away, name another file, or check it with: scraper-supervisor check --config {target}"
        return _not_written(target, f"exists already and is left as it is; {hint}")
    except OSError as error:
        return _not_written(target, f"can't be written: {(error.strerror or str(error)).lower()}")
    text = f"{target}: written; name your scraper in it, then: scraper-supervisor check --config {target}"
    return CommandOutcome(OK, {"ok": True, "path": str(target.absolute()), "error": None}, text)


def _placed(folder: Path) -> str:
    """The starter for that folder: its state lies beside it, so that two projects never share one.

    Below /etc it is the host's, whose folders are systemd's. The sockets are beside it where their paths are not too
    long for the system.
    """
    text, state = starter(), LOCAL_FOLDER
    if folder.as_posix().startswith("/etc/"):
        return text
    text = re.sub(r"(?m)^# example: state_dir = .*$", f'state_dir = "{state}"', text)
    if len(os.fsencode(control_socket(f"{folder}/{state}/run"))) <= MAX_SOCKET_PATH:
        text = re.sub(r"(?m)^# example: runtime_dir = .*$", f'runtime_dir = "{state}/run"', text)
    return text


def invalid(error: InvalidSettings) -> CommandOutcome:
    """What any command says of a configuration that can't be used."""
    name = error.file or "configuration"
    if len(error.problems) == 1:
        text = f"{name}: {error.problems[0]}"
    else:
        text = "\n".join([f"{name}: {len(error.problems)} errors", *_lines(error.problems)])
    return CommandOutcome(INVALID, _checked(error.file, error.problems, ()), text)


def starter() -> str:
    """The starter configuration as it ships."""
    packaged = resources.files("scraper_supervisor.console") / "starter.toml"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    # An editable install has no copy in the package: the file is where it is kept.
    return (Path(__file__).parents[4] / "config" / "supervisor.toml").read_text(encoding="utf-8")


def _load(option: str | None, environ: Mapping[str, str] | None, cwd: str | None) -> Loaded:
    environ = os.environ if environ is None else environ
    return load_or_default(option, environ, cwd or working_folder(option, environ))


def _name(loaded: Loaded) -> str:
    return loaded.path or f"{loaded.folders.state_dir} (no file, all defaults)"


def _checked(path: str | None, errors: Iterable[Problem], doubts: Iterable[Problem]) -> dict[str, Any]:
    listed = {"errors": [_entry(problem) for problem in errors], "warnings": [_entry(problem) for problem in doubts]}
    return {"ok": not listed["errors"], "path": path, **listed}


def _entry(problem: Problem) -> dict[str, str]:
    return {"path": problem.path, "message": problem.message}


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _lines(problems: Iterable[Problem], before: str = "") -> list[str]:
    return [f"  {before}{problem}" for problem in problems]


def _not_written(target: Path, reason: str) -> CommandOutcome:
    return CommandOutcome(FAILED, {"ok": False, "path": str(target.absolute()), "error": reason}, f"{target}: {reason}")
