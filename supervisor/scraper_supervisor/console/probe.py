"""What `check` tries beyond the file: whether each group's interpreter finds its SDK, module and function."""

from __future__ import annotations

import grp
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

from scraper_supervisor.core.config.parser import Problem
from scraper_supervisor.core.workers.set_up import without_prefix, wrong_interpreter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scraper_supervisor.core.config.settings import GroupSettings, Settings

PROBE_TIMEOUT: Final = 20.0  # seconds that one interpreter may take to import a scraper
AT_ONCE: Final = 4  # interpreters
_LONGEST: Final = 500  # characters of what one says


def problems(settings: Settings, environ: Mapping[str, str]) -> list[Problem]:
    """What would keep workers from beginning, by key path; blocks while the interpreters run."""
    found = []
    group = settings.supervisor.control_group
    if group is not None and not _is_group(group):
        found.append(Problem("supervisor.control_group", f"there is no system group {group!r}"))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        told = pool.map(partial(_group_problem, environ=environ), settings.groups.values())
        found += [problem for problem in told if problem is not None]
    return found


def _is_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _group_problem(group: GroupSettings, environ: Mapping[str, str]) -> Problem | None:
    path = f"workers.{group.name}"
    if not os.path.isdir(group.directory):
        return Problem(f"{path}.directory", f"{group.directory}: there is no such folder")
    env = {**environ, **group.file_env, **group.env}
    if group.entrypoint is None:
        return _command_problem(group, env)
    python = group.python or sys.executable
    command = [python, "-P", "-m", "scraper_worker.check", group.entrypoint]
    try:
        done = subprocess.run(
            command, cwd=group.directory, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, timeout=PROBE_TIMEOUT, check=False, start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Problem(f"{path}.entrypoint", f"{group.entrypoint} was not imported within {PROBE_TIMEOUT:g} s")
    except OSError as error:
        return Problem(f"{path}.python", f"{python}: {(error.strerror or str(error)).lower()}, expected an interpreter")
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else None
    wrong = wrong_interpreter(python, done.returncode, last)
    if wrong is not None:
        return Problem(f"{path}.python", wrong)
    said = without_prefix(last)[:_LONGEST] if last is not None else f"it exited with code {done.returncode}"
    return Problem(f"{path}.entrypoint", said)


def _command_problem(group: GroupSettings, env: Mapping[str, str]) -> Problem | None:
    program = (group.command or ("",))[0]
    # As the worker's process will: a path is relative to its folder, a name is looked up in our PATH.
    where = os.path.join(group.directory, program) if "/" in program else program
    if shutil.which(where, path=env.get("PATH")) is not None:
        return None
    return Problem(f"workers.{group.name}.command", f"{program}: there is no such program, or it may not be executed")
