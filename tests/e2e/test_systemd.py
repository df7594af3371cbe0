"""The shipped unit under a real systemd, booted in namespaces of its own; skipped where that is not possible."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import wait_for

ROOT = Path(__file__).parents[2]
BOX = Path(__file__).with_name("sdbox.sh")
NAME = "scraper-supervisor"
PROBE = "mount --make-rprivate / && mount -t cgroup2 cgroup2 /mnt"
CONFIG = """
[workers.idle]
command = ["sleep", "1000"]
count = 2
"""


def why_not() -> str | None:
    """What is missing here for a systemd of our own."""
    if os.geteuid() != 0:
        return "needs root"
    if not shutil.which("systemctl") or not Path("/lib/systemd/systemd").exists():
        return "needs systemd"
    if not any(line.split()[2] == "cgroup2" for line in Path("/proc/mounts").read_text().splitlines()):
        return "needs a mounted cgroup2"
    probe = ["unshare", "-m", "-p", "-f", "-C", "-u", "-i", "sh", "-c", PROBE]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return "needs the right to make namespaces"
    return None


class Box:
    """A running systemd."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        hidden = " ".join(path for path in {str(ROOT), sys.prefix} if path.startswith("/tmp/"))
        subprocess.run([BOX, "start", folder], check=True, timeout=60, env={**os.environ, "SDBOX_BIND": hidden})

    def run(self, *command: str, stdin: str = "", check: bool = True) -> str:
        done = subprocess.run(
            [BOX, "exec", self.folder, *command], input=stdin, text=True, capture_output=True, check=False, timeout=60
        )
        if check and done.returncode:
            raise AssertionError(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.journal()}")
        return done.stdout

    def journal(self) -> str:
        return self.run("journalctl", "-u", NAME, "-o", "cat", "--no-pager", check=False)

    def write(self, path: str, text: str) -> None:
        self.run("sh", "-c", f"mkdir -p $(dirname {path}) && cat > {path}", stdin=text)

    def show(self, name: str) -> str:
        return self.run("systemctl", "show", NAME, "-P", name).strip()

    def sleepers(self) -> set[str]:
        return set(self.run("pgrep", "-fx", "sleep 1000", check=False).split())

    def stop(self) -> None:
        subprocess.run([BOX, "stop", self.folder], check=True, timeout=60)


@pytest.fixture
def box(tmp_path_factory):
    reason = why_not()
    if reason is not None:
        pytest.skip(f"a real systemd {reason}")
    box = Box(tmp_path_factory.mktemp("sdbox"))
    try:
        box.write(f"/etc/systemd/system/{NAME}.service", (ROOT / "systemd" / f"{NAME}.service").read_text())
        # The environment under test may lie where only root can look, so root it is here.
        program = f"{sys.executable} -m scraper_supervisor run --config /etc/{NAME}/supervisor.toml"
        box.write(
            f"/etc/systemd/system/{NAME}.service.d/test.conf",
            f"[Service]\nUser=\nPrivateTmp=no\nExecStart=\nExecStart={program}\n",
        )
        box.write(f"/etc/{NAME}/supervisor.toml", CONFIG)
        box.run("systemctl", "daemon-reload")
        yield box
    finally:
        box.stop()


@pytest.mark.slow
def test_starts_reloads_restarts_and_stops_under_systemd(box: Box) -> None:
    box.run("systemctl", "start", NAME)  # returns when READY=1 was sent
    assert box.show("ActiveState") == "active"
    wait_for(lambda: len(box.sleepers()) == 2, "two workers")
    before = box.sleepers()
    pid = box.show("MainPID")

    box.write(f"/etc/{NAME}/supervisor.toml", CONFIG.replace("count = 2", "count = 3"))
    box.run("systemctl", "reload", NAME)
    wait_for(lambda: len(box.sleepers()) == 3, "a third worker after the reload")
    assert before < box.sleepers()
    assert box.show("MainPID") == pid
    wait_for(lambda: "items done" in box.show("StatusText"), "a status line")

    box.run("kill", "-9", pid)
    wait_for(lambda: box.show("MainPID") not in (pid, "0") and len(box.sleepers()) == 3, "a restart by systemd")
    assert not before & box.sleepers()  # what the predecessor left was ended, and nothing runs twice

    box.run("systemctl", "stop", NAME)
    assert box.show("Result") == "success"
    assert box.sleepers() == set()


@pytest.mark.slow
def test_a_shell_beside_the_service_finds_it(box: Box) -> None:
    box.run("systemctl", "start", NAME)
    command = f"{sys.executable} -m scraper_supervisor"
    for environ in ("HOME=/root", "HOME=/root XDG_RUNTIME_DIR=/run/user/0 XDG_STATE_HOME=/root/state"):
        shown = box.run("sh", "-c", f"cd /; env -i PATH=/usr/bin:/bin {environ} {command} status --json")
        assert '"name": "idle"' in shown
        added = box.run(
            "sh", "-c", f"cd /; env -i PATH=/usr/bin:/bin {environ} {command} items add idle {environ[-4:]}"
        )
        assert "1 added" in added
    box.run("systemctl", "stop", NAME)
    again = box.run("sh", "-c", f"cd /; env -i PATH=/usr/bin:/bin HOME=/root {command} items list idle --json")
    assert again.count('"key"') == 2, "with the daemon down it is the same ledger"
    assert box.run("sh", "-c", "ls -d /root/.local/state/scraper-supervisor /root/state 2>/dev/null", check=False) == ""
    assert box.run("stat", "-c", "%a", f"/var/lib/{NAME}").strip() == "700"


@pytest.mark.slow
def test_an_invalid_configuration_is_not_tried_again(box: Box) -> None:
    box.write(f"/etc/{NAME}/supervisor.toml", "[workers.idle]\ncount = 0\n")
    box.run("systemctl", "start", NAME, check=False)
    wait_for(lambda: box.show("ActiveState") == "failed", "the unit to fail")
    assert box.show("ExecMainStatus") == "78"
    assert box.show("NRestarts") == "0"
    assert "workers.idle.count" in box.journal()
