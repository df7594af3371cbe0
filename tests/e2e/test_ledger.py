"""A ledger that is damaged while no daemon runs: refused, restored from its backup, and what that lacks is told."""

import json
import subprocess

import pytest
from harness import SUPERVISOR

pytestmark = pytest.mark.slow


def command(daemon, *arguments):
    return subprocess.run(
        [*SUPERVISOR, *arguments, "--config", str(daemon.config_path)], capture_output=True, text=True, check=False
    )


def finish(puppet, count):
    """Pull so many items, end them, and tell their keys and claims."""
    line, _ = puppet.hello()
    line.call("items.offer", items=[f"k{number}" for number in range(20)])
    grants = [line.call("item.next") for _ in range(count)]
    for grant in grants:
        line.call("item.done", key=grant["key"], claim=grant["claim"], result={"of": grant["key"]})
    puppet.close()
    return [(grant["key"], grant["claim"]) for grant in grants]


@pytest.mark.parametrize("end", ["", "-wal"])
def test_a_damaged_ledger_is_restored(daemons, puppet_of, puppet_command, end):
    daemon = daemons({"workers": {"g": {"command": puppet_command, "stop_timeout": 1}}}).start()
    before = finish(puppet_of(daemon, "g-0"), 5)
    assert daemon.stop() == 0
    assert command(daemon, "checkpoint", "verify").returncode == 0
    daemon.start()
    after = finish(puppet_of(daemon, "g-0"), 5)
    daemon.wait_event("item_finished", key=after[-1][0])  # the event log is written behind the answer
    daemon.kill()
    path = daemon.state / f"ledger.db{end}"
    content = bytearray(path.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    path.write_bytes(content)
    daemon.launch()
    assert daemon.exit_code() == 65
    assert "checkpoint restore --ledger" in daemon.log()
    assert path.read_bytes() == content
    assert command(daemon, "checkpoint", "verify").returncode == 4
    told = command(daemon, "checkpoint", "restore", "--ledger", "--json")
    assert told.returncode == 0, told.stderr
    document = json.loads(told.stdout)
    done = {(one["group"], one["run"], one["key"]) for one in document["missing"] if one["outcome"] == "done"}
    assert done == {("g", 1, key) for key, _ in after}
    assert command(daemon, "checkpoint", "verify").returncode == 0
    daemon.start()
    refused = command(daemon, "checkpoint", "restore", "--ledger")
    assert (refused.returncode, str(daemon.pid) in refused.stderr) == (1, True)
    again = finish(puppet_of(daemon, "g-0"), 15)
    assert set(daemon.results("g")) == {f"k{number}" for number in range(20)}
    assert {key for key, _ in again}.isdisjoint(key for key, _ in before)
    assert {claim for _, claim in again}.isdisjoint(claim for _, claim in before + after)
    assert daemon.stop() == 0
