"""Checkpoint files: what contract section 5 promises of them, checked with the tools that it names."""

import hashlib
import json
import os
import signal
import subprocess

import pytest
from harness import HERE, SUPERVISOR

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


def command(daemon, *words):
    """What a command on the daemon's configuration prints, which ended well."""
    command = [*SUPERVISOR, *words, "--config", daemon.config_path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def seal(document):
    """A checkpoint's bytes, made by hand."""
    text = json.dumps(document, separators=(",", ":"))[:-1].encode()
    return text + b',"sha256":"' + hashlib.sha256(text).hexdigest().encode() + b'"}\n'


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
    daemon.wait(lambda: len(daemon.events("checkpoint_corrupted")) == 10, "all ten are told of")
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


def test_verify_beside_a_daemon_whose_files_come_and_go(daemons):
    told = config(retention=2)
    told["workers"]["g"]["env"] = {"E2E_ITEMS": "100000"}
    daemon = daemons(told).start()
    daemon.wait(lambda: daemon.group("g")["items"]["done"] > 20, "some are done")
    for _ in range(3):
        before = daemon.group("g")["items"]["done"]
        document = json.loads(command(daemon, "checkpoint", "verify", "--json"))
        assert document["ok"] is True
        assert {file["kind"] for file in document["files"]} == {"checkpoint", "ledger"}
        assert daemon.group("g")["items"]["done"] > before
    (daemon.state / "checkpoints" / WORKER / "checkpoint-000000000001.json").write_bytes(b"foreign")
    words = [*SUPERVISOR, "checkpoint", "verify", "--json", "--config", daemon.config_path]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    bad = [file for file in json.loads(told.stdout)["files"] if not file["ok"]]
    assert (told.returncode, [file["generation"] for file in bad]) == (4, [1])


# ---- versions --------------------------------------------------------------------------------------------------------


def test_a_later_format_is_refused_and_left_alone(daemon):
    newest = files(daemon)[-1]
    document = json.loads(newest.read_bytes())
    del document["sha256"]
    data = seal({**document, "format": 2})
    newest.write_bytes(data)
    daemon.start()
    worker = daemon.wait_worker(WORKER, state="failed")
    assert "checkpoint 12 of g-0 cannot be used: it was written by a later version" in worker["last_failure"]["message"]
    assert newest.read_bytes() == data
    assert not (newest.parent / "corrupt").exists()
    assert not daemon.events("checkpoint_corrupted")
    assert loaded(daemon) == ["0"], "it was not started from an older one"
    answer = json.loads(command(daemon, "checkpoint", "restore", WORKER, "--generation", "11", "--json"))
    assert answer == {"worker": WORKER, "restored": 11, "generation": 13, "state": "running"}
    daemon.wait(lambda: loaded(daemon) == ["0", "11"], "it has loaded")
    assert newest.read_bytes() == data


def test_a_state_that_no_migration_leads_from_is_kept(daemons):
    """Neither the end that the worker comes to, nor the supervisor's own saving, puts another over it."""
    told = config()
    told["workers"]["g"] |= {"entrypoint": "scrapers:outgrown", "restart": "never", "env": {"E2E_ITEMS": "1"}}
    daemon = daemons(told).start()
    daemon.wait(lambda: daemon.worker(WORKER)["state"] == "failed", "it has saved, and failed over it")
    assert [json.loads(path.read_bytes())["state"] for path in files(daemon)] == [{"old": True}]
    assert "the saved state is shape/1, this code reads shape/3, and no migration leads from version 2" in daemon.log()
    assert daemon.stop() == 0
    (path,) = files(daemon)
    document = json.loads(path.read_bytes())
    assert (document["schema"], document["state"]) == ("shape/1", {"old": True})


# ---- restore ---------------------------------------------------------------------------------------------------------


def test_restore_restarts_the_worker_from_an_older_state(daemon):
    daemon.start()
    daemon.wait(lambda: loaded(daemon) == ["0", "12"], "it has loaded")
    pid = daemon.worker(WORKER)["pid"]
    answer = json.loads(command(daemon, "checkpoint", "restore", WORKER, "--generation", "5", "--json"))
    assert answer == {"worker": WORKER, "restored": 5, "generation": 13, "state": "running"}
    daemon.wait(lambda: loaded(daemon) == ["0", "12", "5"], "it has loaded")
    worker = daemon.worker(WORKER)
    assert worker["pid"] != pid
    assert worker["checkpoint"]["generation"] == 13
    daemon.control("items.add", names=["g"], keys=["one-more"])
    daemon.wait(lambda: daemon.group("g")["items"]["done"] == 13, "it works on")
    assert daemon.stop() == 0
    assert json.loads(files(daemon)[-1].read_bytes())["state"] == {"count": 6}


def test_restore_while_the_worker_saves_is_the_newest_all_the_same(daemons):
    told = config(retention=1_000)
    told["workers"]["g"]["env"] = {"E2E_ITEMS": "400"}
    daemon = daemons(told).start()
    daemon.wait(lambda: daemon.group("g")["items"]["done"] > 20, "some are done")
    answer = json.loads(command(daemon, "checkpoint", "restore", WORKER, "--generation", "3", "--json"))
    daemon.wait(lambda: len(loaded(daemon)) == 2, "it has loaded")
    assert loaded(daemon) == ["0", "3"]
    (path,) = [path for path in files(daemon) if f"{answer['generation']:012}" in path.name]
    assert json.loads(path.read_bytes())["state"] == {"count": 3}


def test_restore_without_a_daemon(daemon):
    said = command(daemon, "checkpoint", "restore", WORKER, "--generation", "4")
    assert said == "g-0: checkpoint 4 is restored as 13\n"
    daemon.start()
    daemon.wait(lambda: loaded(daemon) == ["0", "4"], "it has loaded")


def test_restore_brings_a_worker_back_whose_files_were_all_damaged(daemon):
    kept = files(daemon)[0]
    data = kept.read_bytes()
    for path in files(daemon):
        path.write_bytes(b"")
    daemon.start()
    daemon.wait_worker(WORKER, state="failed", pid=None)
    kept.write_bytes(data)  # from a backup
    command(daemon, "checkpoint", "restore", WORKER, "--generation", "3")
    daemon.wait(lambda: loaded(daemon) == ["0", "3"], "it has loaded")
    assert daemon.worker(WORKER)["state"] == "running"
    assert daemon.group("g")["state"] == "running"


def test_a_fresh_run_takes_no_notice_of_damage_before_it(daemon):
    for path in files(daemon):
        path.write_bytes(b"")
    daemon.start("--fresh")
    daemon.wait(lambda: loaded(daemon) == ["0", "0"], "it has begun anew")
    daemon.wait(lambda: daemon.group("g")["items"]["done"] == 12, "all are done")
