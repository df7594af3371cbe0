"""A run carried from one daemon to another by `items export` and `items import`, with the daemons up."""

import json
import subprocess

import pytest
from harness import SUPERVISOR

pytestmark = pytest.mark.slow


def command(daemon, *arguments, **options):
    """Run a command as an operator does; (exit code, stdout, stderr)."""
    whole = [*SUPERVISOR, *arguments, "--config", str(daemon.config_path)]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=60, check=False, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def hello(puppet_of):
    """A function that has a worker's puppet say hello: (line, welcome)."""
    used = []

    def say(daemon, name):
        used.append(puppet_of(daemon, name))
        return used[-1].hello()

    yield say
    for puppet in used:
        puppet.close()


def test_a_run_goes_on_where_it_is_imported(daemons, hello, puppet_command):
    group = {"command": puppet_command, "count": 2, "on_complete": "wait", "stop_timeout": "0.2s"}
    source = daemons({"workers": {"g": group}}).start()
    line, _ = hello(source, "g-0")
    line.call("items.offer", items=["a", "b", {"key": "c", "priority": 5, "data": {"n": 1}}, "d", "e"], more=True)
    state = {"page": 7, "text": "ä" * 300_000}  # longer than what one request carries
    line.call("checkpoint.save", schema="cursor/2", state=state)
    failure = {"kind": "permanent", "category": "external", "signature": "gone", "message": "it is gone"}
    line.call("item.done", key=line.call("item.next")["key"], result={"score": 1})
    line.call("item.failed", key=line.call("item.next")["key"], failure=failure)
    claim = line.call("item.next")
    assert claim["key"] == "b"
    code, exported, _ = command(source, "items", "export", "g")
    assert code == 0
    items = [json.loads(one)["item"] for one in exported.splitlines() if '"item"' in one[:8]]
    assert [(one["key"], one["state"]) for one in items] == [
        ("a", "failed"), ("b", "pending"), ("c", "done"), ("d", "pending"), ("e", "pending"),
    ]  # fmt: skip

    target = daemons({"workers": {"other": {**group, "count": 1}}}).start()
    line, welcome = hello(target, "other-0")
    assert welcome["checkpoint"] is None
    line.call("items.offer", items=["z"])
    code, _, told = command(target, "items", "import", "other", "-", input=exported)
    assert (code, "stop it first: stop other" in told) == (1, True)
    assert command(target, "stop", "other")[0] == 0
    code, _, told = command(target, "items", "import", "other", "-", input=exported[:-100])
    assert (code, "nothing was imported" in told) == (1, True)
    assert target.group("other")["run"] == 1
    code, told, hint = command(target, "items", "import", "other", "-", input=exported)
    assert (code, told) == (0, "other: imported as run 2: 5 items, 1 of them done, 1 worker states\n")
    assert "start other" in hint
    counts = {"pending": 3, "in_flight": 0, "waiting": 0, "parked": 0, "done": 1, "failed": 1, "total": 5}
    told = target.group("other")
    assert (told["run"], told["state"], told["items"]) == (2, "stopped", counts)

    target.kill()  # and what was imported is still there
    target.start()
    assert target.group("other")["state"] == "stopped"
    assert command(target, "start", "other")[0] == 0
    line, welcome = hello(target, "other-0")
    assert (welcome["run"], welcome["items"]) == (2, {"pending": 3, "done": 1, "failed": 1})
    assert (welcome["checkpoint"]["schema"], welcome["checkpoint"]["state"]) == ("cursor/2", state)
    assert [line.call("item.next")["key"] for _ in range(3)] == ["b", "d", "e"]
    assert line.call("item.done", key="b", result={})["seq"] == 2
    assert line.call("item.done", key="c", result={}) == {"seq": 1, "duplicate": True}


def test_an_import_that_is_cut_off_leaves_the_group_as_it_was(daemons, puppet_command):
    daemon = daemons({"workers": {"g": {"command": puppet_command}}}).start()
    assert command(daemon, "stop", "g")[0] == 0
    daemon.control("items.add", names=["g"], keys=["old"])
    token = daemon.control("items.import.begin", names=["g"])["token"]
    item = {"key": "new", "target": None, "data": None, "priority": 0, "order": 1, "state": "pending", "attempts": 0}
    daemon.control("items.import.lines", names=["g"], token=token, text=json.dumps({"item": item}) + "\n")
    daemon.kill()
    daemon.start()
    assert (daemon.group("g")["run"], daemon.group("g")["items"]["total"]) == (1, 1)
    assert list(daemon.items("g")) == ["old"]


def test_an_import_whose_folder_refuses_waits_until_it_is_well(daemons, hello, puppet_command):
    group = {"command": puppet_command, "count": 2, "on_complete": "wait", "stop_timeout": "0.2s"}
    source = daemons({"workers": {"g": group}}).start()
    line, _ = hello(source, "g-1")
    line.call("items.offer", items=["a"])
    line.call("checkpoint.save", schema="cursor/2", state={"page": 7})
    _, exported, _ = command(source, "items", "export", "g")

    target = daemons({"workers": {"g": {**group, "count": 1}}}).start()
    assert command(target, "stop", "g")[0] == 0
    folder = target.state / "checkpoints" / "g-1"  # of a worker that is not hired
    folder.parent.mkdir(exist_ok=True)
    folder.write_bytes(b"")  # nobody can write a file into a file
    importing = subprocess.Popen(
        [*SUPERVISOR, "items", "import", "g", "-", "--config", str(target.config_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with importing:
        try:
            importing.stdin.write(exported)
            importing.stdin.close()
            assert "the checkpoints of g-1" in target.wait_event("storage_degraded")["data"]["reason"]
        finally:
            target.kill()
    target.launch()
    target.wait(lambda: len(target.events("storage_degraded")) == 2, "it is told once in each life")
    folder.unlink()
    target.wait(target._serves, "it serves")
    target.wait(lambda: target.group("g")["state"] == "stopped", "the run is opened")
    assert len(target.events("storage_degraded")) == 2
    assert (folder / "checkpoint-000000000001.json").exists()
