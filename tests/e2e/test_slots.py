"""States in slots: over the wire, in files, and in the commands of `checkpoint`."""

import hashlib
import json
import subprocess

import pytest
from harness import SUPERVISOR, Puppet, Refused

pytestmark = pytest.mark.slow


def command(daemon, *words):
    """What a command on the daemon's configuration prints, which ended well."""
    command = [*SUPERVISOR, *words, "--config", daemon.config_path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_slots_over_the_wire_in_files_and_in_commands(daemons, puppet_of, puppet_command):
    group = {"command": puppet_command, "retry": "default"}
    daemon = daemons({"workers": {"p": group}, "restart_policy": {"base_delay": 0}}).start()
    puppet = puppet_of(daemon, "p-0")
    line, _ = puppet.hello()
    assert line.call("checkpoint.load", slot="session") is None
    for number in (1, 2):
        saved = line.call("checkpoint.save", schema="s/1", state={"n": number}, slot="session")
        assert saved["generation"] == number
    for number in range(15):
        line.call("checkpoint.save", schema="s/1", state={}, slot=f"s{number}")
    for slot in ("one-more", "corrupt", "Session"):
        with pytest.raises(Refused) as refused:
            line.call("checkpoint.save", schema="s/1", state={}, slot=slot)
        assert (refused.value.code, refused.value.data) == (-32005, {"path": "slot"})
    line, welcome = puppet.hello()
    assert welcome["checkpoint"] is None

    folder = daemon.state / "checkpoints" / "p-0" / "session"
    data = max(folder.glob("checkpoint-*")).read_bytes()
    assert data.endswith(b',"sha256":"%b"}\n' % hashlib.sha256(data[:-78]).hexdigest().encode())
    listed = json.loads(command(daemon, "checkpoint", "list", "p-0", "--slot", "session", "--json"))["checkpoints"]
    assert [(one["slot"], one["generation"]) for one in listed] == [("session", 2), ("session", 1)]
    restore = [*SUPERVISOR, "checkpoint", "restore", "p-0", "--slot", "session", "--generation", "1", "--json"]
    with subprocess.Popen([*restore, "--config", daemon.config_path], stdout=-1, text=True) as restoring:
        line.expect("drain")
        line.call("goodbye", reason="drained")
        puppet.close()
        puppet.exit()
        puppet = Puppet(daemon, "p-0").wait(not_pid=puppet.pid)
        line, _ = puppet.hello()
        told = json.loads(restoring.communicate(timeout=60)[0])
    assert (told["restored"], told["generation"]) == (1, 3)
    shown = json.loads(command(daemon, "checkpoint", "show", "p-0", "--slot", "session", "--json"))
    assert (shown["generation"], shown["state"]) == (3, {"n": 1})

    for path in folder.glob("checkpoint-*"):
        path.write_bytes(path.read_bytes().replace(b'"n":', b'"m":'))
    verified = subprocess.run(
        [*SUPERVISOR, "checkpoint", "verify", "--slot", "session", "--config", daemon.config_path],
        check=False,
        capture_output=True,
        text=True,
    )
    assert verified.returncode == 4
    with pytest.raises(Refused) as refused:
        line.call("checkpoint.load", slot="session")
    assert refused.value.code == -32006
    assert line.call("checkpoint.load", slot="session") is None
    assert daemon.worker("p-0")["state"] == "running"
    puppet.close()
