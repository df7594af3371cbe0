"""What a shell, a service manager or an editor leaves around the daemon."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from harness import SUPERVISOR

ONCE = '[workers.w]\ncommand = ["sh", "-c", "{}"]\n[supervisor]\nstate_dir = "state"\nruntime_dir = "run"\n'
RUN = shlex.join([*SUPERVISOR, "run", "--once"])


def shell(words, folder, **env):
    return subprocess.run(
        ["sh", "-c", words], cwd=folder, capture_output=True, timeout=60, check=False, env={**os.environ, **env}
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_nothing_to_it(tmp_path, closed):
    """`2>&-` ended it with 1 and no word; with `<&-` the lock was descriptor 0 of its children."""
    (tmp_path / "supervisor.toml").write_text(ONCE.format("ls -l /proc/self/fd > fds"))
    done = shell(f"{RUN} {closed}", tmp_path)
    assert done.returncode == 0, done
    assert "lock" not in (tmp_path / "fds").read_text()


@pytest.mark.parametrize("command", ["check", "config", "items list w"])
def test_a_byte_order_mark_is_none_of_the_configuration(tmp_path, command):
    text = ONCE.format("true").replace("[supervisor]", 'env_file = "env"\n[supervisor]')
    (tmp_path / "supervisor.toml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    (tmp_path / "env").write_bytes(b"\xef\xbb\xbfNAME=value\r\n")
    done = shell(f"{shlex.join(SUPERVISOR)} {command}", tmp_path)
    assert done.returncode == 0, done


def test_a_byte_order_mark_is_none_of_the_first_key(tmp_path):
    (tmp_path / "supervisor.toml").write_text(ONCE.format("true"))
    supervisor = shlex.join(SUPERVISOR)
    done = shell(
        f"printf '\\357\\273\\277one\\r\\ntwo\\n' | {supervisor} items add w && {supervisor} items list w", tmp_path
    )
    assert done.returncode == 0, done
    assert "\ufeff" not in done.stdout.decode()
    assert {"one", "two"} <= set(done.stdout.decode().split())


def test_without_a_home_folder_nothing_is_put_into_a_folder_of_that_name(tmp_path):
    (tmp_path / "supervisor.toml").write_text('[workers.w]\ncommand = ["true"]\n')
    words = [
        sys.executable,
        "-c",
        "import os, sys; os.setgid(64321); os.setuid(64321); os.execv(sys.argv[1], sys.argv[1:])",
    ]
    if os.geteuid() != 0:
        pytest.skip("only root can be a user without an entry")
    env = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_STATE_HOME")}
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:
        parent.chmod(parent.stat().st_mode | 0o111)
    done = subprocess.run(
        [*words, *SUPERVISOR, "check"], cwd=tmp_path, capture_output=True, timeout=60, check=False, env=env
    )
    if b"Permission denied" in done.stderr or b"No module" in done.stderr:
        pytest.skip("that user may not read this interpreter")
    assert done.returncode == 78, done
    assert b"state_dir" in done.stdout + done.stderr
    assert not (tmp_path / "~").exists()


def test_a_working_folder_that_was_removed(tmp_path):
    (tmp_path / "supervisor.toml").write_text(ONCE.format("true"))
    (tmp_path / "gone").mkdir()
    supervisor, config = shlex.join(SUPERVISOR), tmp_path / "supervisor.toml"
    gone = f"cd gone && rmdir {tmp_path}/gone && {supervisor}"
    done = shell(f"{gone} run --once --config {config}", tmp_path)
    assert done.returncode == 0, done
    (tmp_path / "gone").mkdir()
    done = shell(f"{gone} run --once", tmp_path)
    assert done.returncode == 78, done
    assert b"working folder was removed" in done.stderr
    assert b"Traceback" not in done.stderr
    assert not Path("~").exists()
