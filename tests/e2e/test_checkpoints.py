"""Checkpoint files: what contract section 5 promises of them, checked with the tools that it names."""

import hashlib
import json
import os
import signal
import subprocess

import pytest
from harness import HERE

pytestmark = pytest.mark.slow

WORKER = "g-0"


def config(**checkpoint):
    env = {"E2E_ITEMS": "12"}
    group = {"entrypoint": "scrapers:remember", "directory": str(HERE), "env": env, "on_complete": "wait"}
    return {"workers": {"g": group}, "checkpoint": checkpoint}


@pytest.fixture
def daemon(daemons):
    """A daemon that was stopped after twelve checkpoints, of which ten are kept."""
    daemon = daemons(config()).start()
    daemon.wait(lambda: daemon.group("g")["items"]["done"] == 12, "all are done")
    daemon.kill()
    return daemon


def files(daemon):
    """The checkpoint files, oldest first."""
    return sorted((daemon.state / "checkpoints" / WORKER).glob("checkpoint-*"))


def loaded(daemon):
    """What the worker's last incarnation found."""
    return [line[2] for line in daemon.trace() if line[0] == "loaded"]


def test_head_and_sha256sum_verify_every_file(daemon):
    found = files(daemon)
    assert [path.name for path in found] == [f"checkpoint-{number:012}.json" for number in range(3, 13)]
    for path in found:
        pipe = 'head -c -78 "$1" | sha256sum'
        told = subprocess.run(["sh", "-c", pipe, "-", path], capture_output=True, text=True, check=True).stdout
        data = path.read_bytes()
        document = json.loads(data)
        assert told.split()[0] == document["sha256"]
        assert data.endswith(f',"sha256":"{document["sha256"]}"}}\n'.encode())
        assert data.count(b"\n") == 1
        assert list(document)[-1] == "sha256"
        assert set(document) == {
            "format", "worker", "run", "generation", "schema", "saved_at", "items", "state", "sha256",
        }  # fmt: skip
        assert (document["format"], document["worker"], document["run"]) == (1, WORKER, 1)
        assert document["generation"] == int(path.stem.removeprefix("checkpoint-"))
        assert document["state"] == {"count": document["generation"]}
        assert document["items"]["done"] == document["generation"] - 1
        assert document["saved_at"].endswith("Z")


def test_a_restarted_supervisor_gives_the_newest_state_back(daemon):
    daemon.start()
    daemon.wait(lambda: len(loaded(daemon)) == 2, "it has loaded")
    assert loaded(daemon) == ["0", "12"]


@pytest.mark.parametrize("damage", ["flipped", "torn", "empty", "foreign"])
def test_a_damaged_newest_file_is_set_aside_and_the_one_before_is_used(daemon, damage):
    *_, before, newest = files(daemon)
    data = newest.read_bytes()
    spoiled = {
        "flipped": data.replace(b'"count":12', b'"count":13'),
        "torn": data[: len(data) // 2],
        "empty": b"",
        "foreign": before.read_bytes(),
    }[damage]
    newest.write_bytes(spoiled)
    daemon.start()
    event = daemon.wait_event("checkpoint_corrupted", worker=WORKER)
    assert newest.name in event["data"]["path"]
    assert event["data"]["reason"]
    daemon.wait(lambda: len(loaded(daemon)) == 2, "it has loaded")
    assert loaded(daemon)[-1] == "11"
    assert not newest.exists()
    aside = list((newest.parent / "corrupt").iterdir())
    assert [path.read_bytes() for path in aside] == [spoiled], "never loaded, never deleted"
    daemon.control("items.add", names=["g"], keys=["one-more"])
    daemon.wait(lambda: daemon.group("g")["items"]["done"] == 13, "it works on")
    # Generations rise for ever: the number of the damaged one is not used again.
    assert files(daemon)[-1].name == "checkpoint-000000000013.json"


def test_a_worker_without_a_sound_file_is_failed_until_an_operator_decides(daemon):
    for path in files(daemon):
        path.write_bytes(path.read_bytes()[:-1])
    daemon.start()
    worker = daemon.wait_worker(WORKER, state="failed")
    assert WORKER in worker["last_failure"]["message"]
    assert len(daemon.events("checkpoint_corrupted")) == 10
    assert len(loaded(daemon)) == 1, "it was started with an empty state"
    daemon.wait(lambda: daemon.worker(WORKER)["pid"] is None, "its process is ended")
    daemon.control("start", names=["g"], fresh=True)
    daemon.wait(lambda: daemon.group("g")["items"]["done"] == 12, "a fresh run is done")
    assert loaded(daemon)[-1] == "0"


def test_gzip_holds_the_same_bytes(daemons):
    daemon = daemons(config(compression="gzip", retention=3)).start()
    daemon.wait(lambda: daemon.group("g")["items"]["done"] == 12, "all are done")
    daemon.wait(lambda: len(files(daemon)) == 3, "retention")
    newest = files(daemon)[-1]
    assert newest.name == "checkpoint-000000000012.json.gz"
    plain = subprocess.run(["gzip", "-dc", newest], capture_output=True, check=True).stdout
    assert hashlib.sha256(plain[:-78]).hexdigest() == json.loads(plain)["sha256"]
    os.kill(daemon.worker(WORKER)["pid"], signal.SIGKILL)
    daemon.wait(lambda: loaded(daemon) == ["0", "12"], "it has loaded")


def test_an_unfinished_file_of_a_crash_is_not_taken_for_one(daemon):
    newest = files(daemon)[-1]
    torn = newest.with_name(f".{newest.name}.tmp")
    torn.write_bytes(b"{")
    daemon.start()
    daemon.wait(lambda: len(loaded(daemon)) == 2, "it has loaded")
    assert loaded(daemon)[-1] == "12"
    assert not daemon.events("checkpoint_corrupted")
