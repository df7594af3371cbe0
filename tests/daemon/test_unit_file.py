"""The systemd unit as shipped, without a systemd: what it says, and that systemd understands all of it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNIT = SYSTEMD / "scraper-supervisor.service"


def directives() -> dict[str, str]:
    """The unit's directives as "Section.Name". Each is given once, or this fails."""
    found: dict[str, str] = {}
    section = ""
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            assert f"{section}.{name}" not in found
            found[f"{section}.{name}"] = value
    return found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("ExecReload", "/bin/kill -HUP $MAINPID"),
        ("User", "scraper-supervisor"),
        ("Environment", "HOME=%S/scraper-supervisor"),
        ("StateDirectory", "scraper-supervisor"),
        ("StateDirectoryMode", "0700"),
        ("RuntimeDirectory", "scraper-supervisor"),
        ("RuntimeDirectoryMode", "0700"),
        ("RuntimeDirectoryPreserve", "restart"),
        ("Restart", "on-failure"),
        ("RestartPreventExitStatus", "65 69 78"),
        ("KillMode", "mixed"),
        ("OOMPolicy", "continue"),
    ],
)
def test_says(name: str, value: str) -> None:
    assert directives()[f"Service.{name}"] == value


def test_runs_the_command_with_the_configuration_in_etc() -> None:
    program, *arguments = directives()["Service.ExecStart"].split()
    assert program.endswith("/bin/scraper-supervisor")
    assert arguments == ["run", "--config", "/etc/scraper-supervisor/supervisor.toml"]


def test_waits_longer_for_a_stop_than_a_drain_can_take() -> None:
    assert float(directives()["Service.TimeoutStopSec"].removesuffix("s")) > 30 + 5  # stop_timeout, SIGTERM to SIGKILL


def test_leaves_open_what_chromium_needs() -> None:
    closed = {"MemoryDenyWriteExecute", "ProcSubset", "RestrictNamespaces", "SystemCallFilter", "LimitAS"}
    assert not {f"Service.{name}" for name in closed} & directives().keys()


def test_systemd_understands_all_of_it(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / UNIT.name
    program = directives()["Service.ExecStart"].split()[0]
    copy.write_text(UNIT.read_text().replace(f"ExecStart={program}", "ExecStart=/bin/true"))
    environment = {**os.environ, "SYSTEMD_LOG_LEVEL": "info"}
    done = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, env=environment, timeout=60)
    about = [line for line in done.stderr.splitlines() if UNIT.stem in line]
    assert (about, done.returncode) == ([], 0)


def test_the_user_it_runs_as_can_be_made(tmp_path: Path) -> None:
    sysusers = shutil.which("systemd-sysusers")
    if sysusers is None:
        pytest.skip("systemd-sysusers is not installed")
    (tmp_path / "etc").mkdir()
    source = SYSTEMD / "scraper-supervisor.sysusers"
    done = subprocess.run([sysusers, f"--root={tmp_path}", str(source)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    user = next(line for line in (tmp_path / "etc/passwd").read_text().splitlines() if line.startswith("scraper-"))
    assert user.split(":")[0] == directives()["Service.User"]
    assert user.split(":")[5] == "/var/lib/scraper-supervisor"
