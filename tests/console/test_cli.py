"""The command line as a whole: its commands, exit codes, and what goes to which stream."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from scraper_supervisor import __version__
from scraper_supervisor.console.cli import cli, main
from scraper_supervisor.console.commands.run import group_name, simple
from scraper_supervisor.console.context import clean
from scraper_supervisor.core.config.parser import GROUP_NAME

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Call = Callable[..., Result]


def program(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The real thing, as a process."""
    command = [sys.executable, "-m", "scraper_supervisor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def test_every_command_takes_config(project: Path, call: Call) -> None:
    def leaves(command: Any) -> list[Any]:
        found = getattr(command, "commands", None)
        return [command] if found is None else [leaf for one in found.values() for leaf in leaves(one)]

    commands = leaves(cli)
    assert len(commands) > 20
    for command in commands:
        assert "--config" in [option for param in command.params for option in param.opts], command.name
        assert command.get_short_help_str(), command.name


def test_what_is_not_in_this_release_is_not_listed(call: Call) -> None:
    shown = call("--help").output
    for absent in ("upgrade", "logs", "report", "replay", "export", "import"):
        assert f"  {absent} " not in shown


def test_config_before_and_after_the_command(project: Path, call: Call) -> None:
    (project / "other.toml").write_text('[workers.b]\ncommand = ["true"]\n', encoding="utf-8")
    for arguments in (("--config", "other.toml", "check"), ("check", "--config", "other.toml")):
        result = call(*arguments)
        assert (result.exit_code, "other.toml: valid" in result.output) == (0, True)


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("status", "--nonsense"), ("items", "list"), ("run", "x.py")])
def test_wrong_usage_is_2(call: Call, arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",), ("status", "--json"), ("reload",), ("stop",), ("stop", "matches"), ("pause",), ("resume",),
        ("drain",), ("start", "--fresh"), ("restart",), ("recycle",),
    ],
)  # fmt: skip
def test_without_a_daemon_it_is_3_and_names_the_socket(project: Path, call: Call, arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert str(project / "state" / "run" / "control.sock") in result.stderr


def test_a_socket_that_nobody_serves_any_more_is_3(project: Path, call: Call) -> None:
    path = project / "state" / "run" / "control.sock"
    path.parent.mkdir(parents=True)
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    result = call("status")
    assert result.exit_code == 3
    assert f"{path} (connection refused)" in result.stderr


BROKEN = (
    '[supervisor]\nstate_dir = "state"\n[workers.matches]\ncount = 0\ncuont = 3\n',
    '[supervisor]\nstate_dir = "state"\nx = [',
)


@pytest.mark.parametrize("arguments", [("run",), ("check",), ("config",)])
def test_an_invalid_configuration_is_78(project: Path, call: Call, arguments: tuple[str, ...]) -> None:
    (project / "supervisor.toml").write_text(BROKEN[0], encoding="utf-8")
    result = call(*arguments)
    assert result.exit_code == 78
    assert result.stdout == ""
    assert "workers.matches.cuont" in result.stderr
    assert "workers.matches.count" in result.stderr


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("status",), 3), (("abort", "status"), 0), (("abort", "clear"), 0), (("reload",), 3),
        (("items", "list", "matches"), 0), (("items", "add", "matches", "b"), 0), (("items", "export", "matches"), 0),
        (("items", "requeue", "matches", "--failed"), 0), (("results", "matches"), 0),
        (("checkpoint", "list"), 0), (("checkpoint", "verify"), 0), (("events",), 0),
    ],
)  # fmt: skip
def test_a_broken_file_stops_no_command_that_needs_only_its_folders(
    project: Path, ledger: Path, call: Call, arguments: tuple[str, ...], code: int, text: str
) -> None:
    (project / "state" / "events.jsonl").write_bytes(b"")
    assert call("items", "add", "matches", "a").exit_code == 0
    (project / "supervisor.toml").write_text(text, encoding="utf-8")
    result = call(*arguments)
    assert (result.exit_code, "cuont" in result.stderr) == (code, False)


def test_check_config_and_init(project: Path, call: Call) -> None:
    assert json.loads(call("check", "--json").stdout)["ok"] is True
    assert json.loads(call("config", "--json").stdout)["supervisor"]["state_dir"] == str(project / "state")
    assert "[workers.matches]" in call("config").stdout
    assert call("init", "new.toml").exit_code == 0
    again = call("init", "new.toml")
    assert (again.exit_code, again.stdout) == (1, "")
    (project / "supervisor.toml").write_text("x = [", encoding="utf-8")
    bad = call("check", "--json")
    assert (bad.exit_code, json.loads(bad.stdout)["ok"]) == (78, False)


@pytest.mark.slow
def test_as_a_process(project: Path) -> None:
    version = program("--version")
    assert (version.returncode, version.stdout) == (0, f"scraper-supervisor {__version__}\n")
    checked = program("check", "--json")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert json.loads(checked.stdout)["ok"] is True
    refused = program("status", "--json")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_a_reader_that_goes_away_makes_no_noise(project: Path) -> None:
    folder = project / "state"
    folder.mkdir()
    line = b'{"time":"2026-05-01T12:00:00.000000Z","event":"worker_ready","data":null}\n'
    (folder / "events.jsonl").write_bytes(line * 20_000)
    for more in ([], ["--json"]):
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "scraper_supervisor", "events", *more]
        process = subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE)
        os.close(writing)
        assert os.read(reading, 10)
        os.close(reading)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (1, b"")


def test_a_bug_is_told_in_a_sentence(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("oops")

    monkeypatch.setattr("scraper_supervisor.console.commands.config.check", fail)
    monkeypatch.delenv("SCRAPER_SUPERVISOR_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["check"])
    assert ended.value.code == 1
    captured = capsys.readouterr()
    assert "RuntimeError: oops" in captured.err
    assert "Traceback" not in captured.err
    monkeypatch.setenv("SCRAPER_SUPERVISOR_TRACEBACK", "1")
    with pytest.raises(SystemExit):
        main(["check"])
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_quiet(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scraper_supervisor.console.commands.config.check", interrupt)
    with pytest.raises(SystemExit) as ended:
        main(["check"])
    assert ended.value.code == 130
    assert capsys.readouterr().err.strip() == ""


# ---- run MODULE:FUNCTION ---------------------------------------------------------------------------------------------


def test_a_function_is_enough(tmp_path: Path) -> None:
    loaded = simple("shop.prices:Scrape_All", str(tmp_path))
    (group,) = loaded.settings.groups.values()
    assert (group.name, group.entrypoint, group.count) == ("scrape_all", "shop.prices:Scrape_All", 1)
    assert group.directory == str(tmp_path)
    state = str(tmp_path / ".scraper-supervisor")
    assert (loaded.folders.state_dir, loaded.folders.runtime_dir) == (state, f"{state}/run")


def test_the_other_commands_find_it(project: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "supervisor.toml").unlink()
    (project / ".scraper-supervisor").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(project / "elsewhere"))
    expected = simple("m:f", str(project)).folders.control_socket
    assert expected in call("status").stderr


@pytest.mark.parametrize("function", ["scrape", "_scrape", "Größe", "ß", "scrape_1", "x" * 90, "日本"])
def test_any_function_names_a_group(function: str) -> None:
    assert GROUP_NAME.fullmatch(group_name(function))


def test_what_is_no_function_is_refused_with_a_hint(call: Call) -> None:
    result = call("run", "shop/prices.py:scrape")
    assert result.exit_code == 2
    assert "expected MODULE:FUNCTION" in result.stderr
    assert "prices:scrape" in result.stderr


def test_a_function_and_a_configuration_are_too_much(call: Call) -> None:
    result = call("run", "m:f", "--config", "supervisor.toml")
    assert (result.exit_code, "not both" in result.stderr) == (2, True)


def test_clean_disarms_what_would_steer_a_terminal() -> None:
    assert clean("plain ü") == "plain ü"
    assert clean("a\x1b[31m\nb") == "a\\x1b[31m\\nb"
    assert clean("a\nb\r", keep_lines=True) == "a\nb\\r"


def test_help_cuts_no_sentence(call: Call) -> None:
    def groups(command: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
        found = getattr(command, "commands", None)
        return [] if found is None else [(path, command), *(g for n, c in found.items() for g in groups(c, (*path, n)))]

    for path, group in groups(cli):
        shown = " ".join(call(*path, "--help").output.split())
        assert "..." not in shown.replace("[ARGS]...", "")
        for command in group.commands.values():
            assert command.get_short_help_str(10_000) in shown
