"""What `check` tries beyond the file: each group's interpreter, SDK, module and function."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from scraper_supervisor.console import probe
from scraper_supervisor.console.commands.config import check
from scraper_supervisor.core.config.parser import parse

if TYPE_CHECKING:
    from pathlib import Path

GOOD = "async def scrape(worker): ...\n"


def found(folder: Path, text: str | None = GOOD, **group: object) -> list[tuple[str, str]]:
    """(key path, message) of each problem of one group."""
    if text is not None:
        (folder / "scraper.py").write_text(text, encoding="utf-8")
    table = {"entrypoint": "scraper:scrape"} | group if "command" not in group else group
    settings = parse({"workers": {"g": table}}, str(folder))
    return [(one.path, one.message) for one in probe.problems(settings, os.environ)]


SLIPS = {
    "a module": (GOOD, "scrapper:scrape", "no module 'scrapper' for scrapper:scrape: looked in {folder}"),
    "a function": (GOOD, "scraper:scrap", "no function 'scrap' in {folder}/scraper.py"),
    "a plain def": ("def scrape(worker): ...\n", "scraper:scrape", "scrape must be an async function"),
    "syntax": (
        "x = 1\nasync def scrape(worker)\n    ...\n",
        "scraper:scrape",
        "scraper:scrape can't be imported: {folder}/scraper.py, line 2: SyntaxError: expected ':'",
    ),
    "a dependency": (
        "import nothing_of_it\n",
        "scraper:scrape",
        "can't be imported: {folder}/scraper.py, line 1: ModuleNotFoundError: No module named 'nothing_of_it'",
    ),
    "a script": ("import sys\nsys.exit(3)\n", "scraper:scrape", "it ends the interpreter"),
    "what may pass": (
        "raise ConnectionRefusedError('no database')\n",
        "scraper:scrape",
        "can't be imported now: ConnectionRefusedError: no database",
    ),
}


@pytest.mark.parametrize(("text", "entrypoint", "said"), SLIPS.values(), ids=SLIPS)
def test_a_slip_is_one_sentence_at_its_key(tmp_path: Path, text: str, entrypoint: str, said: str) -> None:
    ((path, message),) = found(tmp_path, text, entrypoint=entrypoint)
    assert path == "workers.g.entrypoint"
    assert said.format(folder=tmp_path) in message
    assert len(message.splitlines()) == 1


def test_what_is_right_is_silent(tmp_path: Path) -> None:
    assert found(tmp_path, "print('noise')\nasync def scrape(worker): ...\n") == []
    assert found(tmp_path, command=["sleep", "1"]) == []


@pytest.mark.slow
def test_an_interpreter_without_the_sdk_is_named_with_the_remedy(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    ((path, message),) = found(tmp_path, python=python, env={"PYTHONPATH": "."})
    assert path == "workers.g.python"
    assert message.startswith(
        f"{python} has no SDK, the package scraper_worker: install it there ({python} -m pip install"
    )


@pytest.mark.parametrize(
    ("group", "path", "said"),
    [
        ({"python": "nowhere/python"}, "workers.g.python", "no such file or directory, expected an interpreter"),
        ({"python": "./scraper.py"}, "workers.g.python", "permission denied"),
        ({"directory": "nowhere"}, "workers.g.directory", "there is no such folder"),
        ({"command": ["./nothing"]}, "workers.g.command", "nothing: there is no such program"),
        ({"command": ["no-such-program-anywhere"]}, "workers.g.command", "there is no such program"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, group: dict[str, object], path: str, said: str) -> None:
    ((where, message),) = found(tmp_path, **group)
    assert (where, said in message) == (path, True)


def test_an_import_that_does_not_end_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PROBE_TIMEOUT", 0.5)
    begin = time.monotonic()
    ((path, message),) = found(tmp_path, "import time\ntime.sleep(600)\n")
    assert (path, "was not imported within 0.5 s" in message) == ("workers.g.entrypoint", True)
    assert time.monotonic() - begin < 30


def test_check_tells_of_all_groups_at_once_and_of_a_system_group_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "scraper.py").write_text(GOOD, encoding="utf-8")
    path = tmp_path / "supervisor.toml"
    path.write_text(
        '[supervisor]\ncontrol_group = "nosuch-group"\nstate_dir = "s"\nruntime_dir = "r"\n'
        '[workers.a]\nentrypoint = "scraper:one"\n[workers.b]\nentrypoint = "scraper:scrape"\n'
        '[workers.c]\nentrypoint = "other:scrape"\n',
        encoding="utf-8",
    )
    code, document, text = check(str(path))
    errors = {error["path"]: error["message"] for error in document["errors"]}
    assert (code, document["ok"], list(errors)) == (
        78, False, ["supervisor.control_group", "workers.a.entrypoint", "workers.c.entrypoint"],
    )  # fmt: skip
    assert errors["supervisor.control_group"] == "there is no system group 'nosuch-group'"
    assert text.splitlines()[0] == f"{path}: 3 errors"
