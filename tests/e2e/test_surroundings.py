"""What a shell, a service manager or an editor leaves around the daemon."""

import itertools
import os
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from harness import SUPERVISOR, Line

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
    add = f"printf '\\357\\273\\277one\\r\\ntwo\\n' | {supervisor} items add w"
    done = shell(f"{RUN} && {add} && {supervisor} items list w", tmp_path)
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
    for parent in itertools.takewhile(lambda one: one != Path(tempfile.gettempdir()), tmp_path.parents):
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


def test_workers_have_the_umask_and_the_limits_that_the_daemon_was_given(tmp_path):
    """The daemon's own 077 reached them, and with a soft limit of 100 a fleet of 40 had no descriptors."""
    (tmp_path / "supervisor.toml").write_text(
        ONCE.format("umask > umask; sleep 0.3; ulimit -n > soft; ulimit -Hn > hard")
    )
    done = shell(f"umask 022; ulimit -Sn 100; {RUN}", tmp_path)
    assert done.returncode == 0, done
    assert (tmp_path / "umask").read_text().strip() == "0022"
    assert (tmp_path / "soft").read_text().strip() == "100"
    assert (tmp_path / "hard").read_text().strip() == shell("ulimit -Hn", tmp_path).stdout.decode().strip()
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


def test_a_low_soft_limit_of_descriptors_is_raised(daemons):
    daemon = daemons({"workers": {"p": {"command": ["sleep", "1000"], "count": 40, "stop_timeout": "2s"}}})
    daemon.prefix = ["sh", "-c", 'ulimit -Sn 100 && exec "$@"', "sh"]
    daemon.start()
    daemon.wait(lambda: all(daemon.pids().values()), "all 40 run")
    assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)[0] > 100
    assert not daemon.events("worker_failed")


def test_connections_that_say_nothing_leave_room_for_commands(daemons):
    """300 of them left no descriptor for `status`."""
    daemon = daemons({"workers": {"p": {"command": ["sleep", "1000"], "stop_timeout": "2s"}}})
    daemon.prefix = ["sh", "-c", 'ulimit -n 200 && exec "$@"', "sh"]
    daemon.start()
    lines = [Line.to(daemon.runtime / "worker.sock") for _ in range(300)]
    lines += [Line.to(daemon.runtime / "control.sock") for _ in range(100)]
    try:
        assert daemon.status()["supervisor"]["state"] == "running"
        assert lines[0].at_end(), "the oldest gave way"
        lines[-1].call("status")
    finally:
        for line in lines:
            line.close()


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (["sleep 5"], 'command = ["sleep", "5"]'),
        (["./crlf"], "CR LF"),
        (["./gone"], "'/no/such/interpreter' is not"),
        (["./plain"], "#!/bin/sh"),
    ],
)
def test_a_program_that_is_not_found_is_told_with_the_reason(daemons, command, hint):
    daemon = daemons({"workers": {"p": {"command": command, "restart": "never"}}})
    scripts = {"crlf": "#!/bin/sh\r\ntrue\r\n", "gone": "#!/no/such/interpreter\n", "plain": "true\n"}
    for name, text in scripts.items():
        path = daemon.folder / name
        path.write_bytes(text.encode())
        path.chmod(0o755)
    daemon.launch()
    reason = daemon.wait_event("worker_failed")["data"]["reason"]
    assert hint in reason, reason


def test_projects_that_share_a_runtime_folder_are_told_apart(daemons):
    """With XDG_RUNTIME_DIR set, `status` and `stop` in the folder of B acted on A."""
    sleep = {"workers": {"p": {"command": ["sleep", "1000"], "stop_timeout": "2s"}}}
    ours, theirs = daemons(sleep), daemons(sleep)
    shared = ours.folder / "shared"
    for daemon in (ours, theirs):
        daemon.runtime = shared
        daemon.configure(sleep)
    ours.start()
    for command in ("status", "stop", "pause"):
        done = shell(f"{shlex.join(SUPERVISOR)} {command} --config {theirs.config_path}", theirs.folder)
        assert done.returncode == 3, done
        assert b"runtime_dir" in done.stderr
        assert str(ours.state).encode() in done.stderr
    done = shell(f"{shlex.join(SUPERVISOR)} run --config {theirs.config_path}", theirs.folder)
    assert done.returncode == 1
    assert b"runtime_dir" in done.stderr
    done = shell(f"{shlex.join(SUPERVISOR)} status --config {ours.config_path}", ours.folder)
    assert done.returncode == 0, done
    assert ours.worker("p-0")["state"] == "running"
