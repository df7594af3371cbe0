"""What a worker prints or sends is its own affair."""

import sys

import pytest

FLOODS = {
    "yes": ["yes"],
    "heartbeats": [
        sys.executable,
        "-S",
        "-E",
        "-c",
        """
import json, os, socket
sock = socket.socket(socket.AF_UNIX)
sock.connect(os.environ["SCRAPER_WORKER_SOCKET"])
hello = {"protocol": 1, "worker": os.environ["SCRAPER_WORKER_NAME"], "token": os.environ["SCRAPER_WORKER_TOKEN"],
         "client": "flood/1"}
sock.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "hello", "params": hello}).encode() + b"\\n")
sock.recv(65536)
while True:
    sock.sendall(b'{"jsonrpc":"2.0","method":"heartbeat","params":{"lag_ms":1,"pages":{}}}\\n' * 1000)
""",
    ],
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_leaves_the_others_their_turn(daemons, puppet_of, puppet_command, flood):
    """`yes` took a neighbour from 4.5 to 0.9 items a second, and wrote 167 MB in seconds (bench/neighbours.py)."""
    groups = {
        "p": {"command": puppet_command, "stop_timeout": "2s"},
        "flood": {"command": FLOODS[flood], "stop_timeout": "1s"},
    }
    daemon = daemons({"workers": groups, "abort": {"enabled": False}}).start()
    puppet = puppet_of(daemon, "p-0")
    line, _ = puppet.hello()
    line.call("items.offer", items=[f"k{index}" for index in range(100)])
    for _ in range(100):
        claim = line.call("item.next")
        line.call("item.done", key=claim["key"], claim=claim["claim"])
    if flood == "yes":
        dropped = daemon.wait(lambda: daemon.worker("flood-0")["lines_dropped"], "some are dropped")
        assert dropped > 1000
        assert daemon.worker("p-0")["lines_dropped"] == 0
        daemon.wait(lambda: " lines dropped" in (daemon.folder / "log").read_text(), "the gap is told")
        assert (daemon.folder / "log").stat().st_size < 50_000_000
    assert daemon.worker("flood-0")["state"] == "running"
    puppet.close()
