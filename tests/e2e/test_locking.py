"""Who may write to a state folder: one daemon, or with none running one command."""

import subprocess

import pytest
from harness import SUPERVISOR

from scraper_supervisor.store.locks import FolderLock

pytestmark = pytest.mark.slow


def command(daemon, *arguments):
    """A command as an operator runs it; not waited for."""
    whole = [*SUPERVISOR, *arguments, "--config", str(daemon.config_path)]
    return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def config(puppet_command):
    return {"workers": {"g": {"command": puppet_command, "on_complete": "wait"}}}


def test_a_second_daemon_is_refused_naming_the_first(daemons, puppet_command):
    daemon = daemons(config(puppet_command)).start()
    second = command(daemon, "run")
    _, told = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"another supervisor is running: {daemon.state}: process {daemon.pid} is using it" in told
    assert daemon.status()["supervisor"]["pid"] == daemon.pid


def test_a_daemon_that_finds_a_command_at_work_names_it(daemons, puppet_command):
    daemon = daemons(config(puppet_command))
    daemon.state.mkdir()
    with FolderLock(daemon.state, command="items import"):
        assert daemon.launch().exit_code() == 1
    assert "(items import) is using it; start when it is done" in daemon.log()
    daemon.start()


def test_what_commands_add_while_a_daemon_starts_is_all_there(daemons, puppet_command):
    daemon = daemons(config(puppet_command))
    for round_ in range(3):
        daemon.launch()
        daemon.wait(lambda: _pid(daemon) == daemon.pid, "the daemon holds the folder")
        adding = [command(daemon, "items", "add", "g", f"{round_}-{number}") for number in range(4)]
        told = [one.communicate(timeout=60) for one in adding]
        assert [one.returncode for one in adding] == [0] * 4, told
        assert [out for out, _ in told] == ["g: 1 added, 0 known already\n"] * 4
        daemon.kill()
        alone = command(daemon, "items", "add", "g", f"{round_}-alone")
        assert alone.communicate(timeout=60)[0] == "g: 1 added, 0 known already\n"
    assert len(daemon.items("g")) == 15
    verify = command(daemon, "checkpoint", "verify")
    verify.communicate(timeout=60)
    assert verify.returncode == 0


def _pid(daemon):
    """Who holds the state folder, as it says itself."""
    lock = daemon.state / "lock"
    words = lock.read_text().split() if lock.exists() else []
    return int(words[0]) if words else None
