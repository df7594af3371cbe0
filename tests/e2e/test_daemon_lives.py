"""Nothing that one request, reload, signal or spawn does ends the daemon."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from harness import SUPERVISOR, Line, alive, wait_for

SLEEP = ["sleep", "1000"]
PIDS = Path("/sys/fs/cgroup/pids")


def quiet(**groups):
    return {"workers": groups or {"p": {"command": SLEEP, "stop_timeout": "2s"}}, "abort": {"enabled": False}}


def running(daemon):
    """Worker to PID, once all have one."""
    return daemon.wait(lambda: (pids := daemon.pids()) and all(pids.values()) and pids, "all run")


def blocks(pid, signum):
    """Whether the process has that signal wait, or handles it."""
    with contextlib.suppress(FileNotFoundError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigBlk", "SigCgt", "SigIgn"))]
        return any(mask >> (signum - 1) & 1 for mask in masks)
    return False


def test_a_hangup_harms_nothing_from_the_first_line_on(daemons):
    """Once it ended the daemon with 129 while it loaded, and with an AttributeError while it ended predecessors."""
    daemon = daemons(quiet(p={"command": SLEEP, "count": 15, "stop_timeout": "2s"})).start()
    running(daemon)
    daemon.kill()
    daemon.launch()
    wait_for(lambda: blocks(daemon.pid, signal.SIGHUP), "the first line was run", every=0.001)

    def serves():
        daemon.send(signal.SIGHUP)
        assert daemon.process.poll() is None, daemon.log()
        return daemon._serves()

    wait_for(serves, "it serves")
    daemon.wait_event("config_reloaded")
    assert daemon.stop() == 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_that_are_repeated_until_it_is_gone_end_it_with_0(daemons, signum):
    """In the last phase the default actions were in force again: 130, 143, 129, and no seal."""
    daemon = daemons(quiet()).start()
    daemon.send(signal.SIGTERM)
    deadline = time.monotonic() + 60
    while daemon.process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(ProcessLookupError):
            daemon.send(signum)
        time.sleep(0.002)
    assert daemon.exit_code() == 0, daemon.log()
    assert (daemon.state / "ledger.db.sha256").exists()
    assert daemon.none_left()


def test_an_env_file_that_is_a_fifo_is_refused_however_often_it_is_read(daemons):
    """Eleven SIGHUPs while nobody writes to it: `status` was dead, and a stop never ended."""
    daemon = daemons(quiet()).start()
    os.mkfifo(daemon.folder / "env")
    daemon.configure(quiet(p={"command": SLEEP, "env_file": "env"}))
    for _ in range(11):
        daemon.send(signal.SIGHUP)
        time.sleep(0.01)
    error = daemon.wait(lambda: daemon.status()["supervisor"]["config"]["error"], "it is rejected")
    assert "env" in error
    assert "expected a regular file" in error
    assert daemon.stop() == 0


def test_a_number_of_5000_digits_is_rejected(daemons):
    daemon = daemons(quiet()).start()
    before = running(daemon)
    daemon.config_path.write_text(f"[supervisor]\nlease = {'7' * 5000}\n")
    daemon.send(signal.SIGHUP)
    error = daemon.wait(lambda: daemon.status()["supervisor"]["config"]["error"], "it is rejected")
    assert "is not TOML" in error
    assert daemon.pids() == before


def test_reloads_that_are_asked_for_together_are_all_answered(daemons):
    daemon = daemons(quiet()).start()
    lines = [Line.to(daemon.runtime / "control.sock") for _ in range(5)]
    numbers = [[line.post("reload") for _ in range(20)] for line in lines]
    for line, posted in zip(lines, numbers, strict=True):
        assert all("summary" in line.wait(number) for number in posted)
        line.close()


def test_a_path_that_is_not_utf8_is_refused_at_once(tmp_path):
    """`check` called it valid, and `status` ended the daemon."""
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    (tmp_path / os.fsdecode(folder) / "supervisor.toml").write_text('[workers.p]\ncommand = ["true"]\n')
    for command in (["check"], ["check", "--json"], ["run", "--once"]):
        done = subprocess.run([*SUPERVISOR, *command], cwd=folder, capture_output=True, timeout=60, check=False)
        assert done.returncode == 78, done
        assert b"UTF-8" in done.stdout + done.stderr
        assert b"Traceback" not in done.stderr


def test_a_host_without_room_for_another_thread_or_process_is_waited_for(daemons):
    """`pids.max` at today's count: `status`, a hang or a kill raised "can't start new thread" and ended the daemon."""
    box = PIDS / f"e2e-{os.getpid()}"
    try:
        box.mkdir()
    except OSError as error:
        pytest.skip(f"no pids cgroup can be made here: {error}")
    daemon = daemons(quiet(p={"command": SLEEP, "count": 3, "stop_timeout": "2s"}))
    daemon.prefix = ["sh", "-c", f'echo $$ > {box}/cgroup.procs && exec "$@"', "sh"]
    try:
        daemon.start()
        before = running(daemon)
        (box / "pids.max").write_text((box / "pids.current").read_text())
        for _ in range(20):
            daemon.status()
        os.kill(before["p-0"], signal.SIGKILL)
        daemon.wait_event("worker_exited", worker="p-0")
        daemon.wait_worker("p-0", state="running")  # one went, one came
        (box / "pids.max").write_text("1")
        os.kill(before["p-1"], signal.SIGKILL)
        backoff = daemon.wait_event("worker_backoff", worker="p-1")
        assert "until the host" in backoff["data"]["reason"], backoff
        time.sleep(2.0)  # of tries, of which none is charged
        assert daemon.worker("p-1")["state"] in ("backoff", "starting")
        assert daemon.worker("p-1")["restarts"] <= 1
        (box / "pids.max").write_text("max")
        daemon.wait_worker("p-1", state="running")
        assert daemon.worker("p-2")["pid"] == before["p-2"]
        assert alive(daemon.pid)
        assert daemon.stop() == 0
    finally:
        daemon.close()
        wait_for(lambda: not (box / "cgroup.procs").read_text(), "the cgroup is empty")
        box.rmdir()
