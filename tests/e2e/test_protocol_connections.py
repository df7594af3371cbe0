"""Worker protocol, version 1, on the real socket: who may speak for a worker, and what its connections may do."""

import json
import socket
import sys
import time

import pytest
from harness import Line
from talking import hello_of, refusal

pytestmark = pytest.mark.slow


# ---- hello


def test_a_long_line_before_hello_closes_the_connection(puppet):
    with puppet.connect() as line:
        line.send(b" " * 65_536 + b"\n")
        assert line.read()["error"]["code"] == -32700  # just within the limit
        line.send(b" " * 65_537)
        answer = line.read()
        assert (answer["error"]["code"], answer["id"]) == (-32004, None)
        assert line.at_end()
    line, _ = puppet.hello()
    with line:
        assert line.call("items.offer", items=["k" * 4096 for _ in range(100)])["added"] == 1  # 400 KB after hello


def test_a_wrong_token_is_refused_and_the_connection_closed(puppet):
    for changes in ({"token": "0" * 32}, {"worker": "nobody-0"}, {"worker": "g0-99"}):
        with puppet.connect() as line:
            assert refusal(line, "hello", **{**hello_of(puppet), **changes}).code == -32003
            assert line.at_end()


def test_a_stranger_with_the_right_token_is_refused(puppet):
    with Line.to(puppet.daemon.runtime / "worker.sock") as line:
        assert refusal(line, "hello", **hello_of(puppet)).code == -32003
        assert line.at_end()
    line, welcome = puppet.hello()
    assert welcome["worker"] == puppet.name
    line.close()


def test_a_descendant_of_the_worker_may_speak_for_it(daemons):
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    child = """
import json, os, socket
s = socket.socket(socket.AF_UNIX); s.connect(os.environ["SCRAPER_WORKER_SOCKET"]); f = s.makefile("rwb", buffering=0)
def call(method, **params):
    f.write(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\\n")
    return json.loads(f.readline())["result"]
call("hello", protocol=1, worker=os.environ["SCRAPER_WORKER_NAME"], token=os.environ["SCRAPER_WORKER_TOKEN"])
call("items.offer", items=["a"])
item = call("item.next"); call("item.done", key="a", claim=item["claim"], result="by a child")
call("goodbye", reason="complete")
"""
    daemon = daemons({"workers": {"family": {"command": [sys.executable, "-c", program, child]}}})
    daemon.launch("--once")
    assert daemon.exit_code() == 0, daemon.log()
    assert bytes(daemon.results("family")["a"].result) == b'"by a child"'


def test_another_protocol_is_refused_with_what_is_supported(puppet):
    with puppet.connect() as line:
        error = refusal(line, "hello", **{**hello_of(puppet), "protocol": 2})
        assert error.code == -32005
        assert error.data == {"path": "protocol", "supported": [1]}
        assert refusal(line, "hello", **{**hello_of(puppet), "protocol": "1"}).data["path"] == "protocol"
        # What a later protocol's hello looks like, this one can't know.
        assert refusal(line, "hello", protocol=3).data == {"path": "protocol", "supported": [1]}
        assert puppet.hello(line)[1]["protocol"] == 1


# ---- connections


def test_a_second_hello_replaces_and_closes_the_first_connection(puppet):
    first, _ = puppet.hello()
    first.call("items.offer", items=["a", "b"])
    one, two = first.call("item.next"), first.call("item.next")
    second, welcome = puppet.hello(in_flight=[{"key": one["key"], "claim": one["claim"]}])
    assert first.at_end()
    assert welcome["in_flight"] == [{"key": one["key"], "claim": one["claim"], "attempt": 1}]
    again = second.call("item.next")  # the claim that was not named went back at no cost
    assert (again["key"], again["attempt"]) == (two["key"], 1)
    assert refusal(second, "item.done", key=two["key"], claim=two["claim"]).code == -32007
    second.call("item.done", key=one["key"], claim=one["claim"])
    second.call("item.done", key=again["key"], claim=again["claim"])


def test_a_reconnection_keeps_the_claims_it_names(puppet):
    first, welcome = puppet.hello(in_flight=[{"key": "x", "claim": 1}])
    assert welcome["in_flight"] == []  # an incarnation's very first hello has none
    first.call("items.offer", items=["a", "b"])
    held = [first.call("item.next") for _ in "ab"]
    first.close()
    puppet.daemon.wait(lambda: puppet.daemon.worker(puppet.name)["items"]["in_flight"] == 2, "both are in its hands")
    claims = [{"key": item["key"], "claim": item["claim"]} for item in held]
    second, welcome = puppet.hello(in_flight=[*claims, {"key": "never", "claim": 999}])
    with second:
        assert sorted(one["claim"] for one in welcome["in_flight"]) == sorted(item["claim"] for item in held)
        for item in held:
            assert second.call("item.done", key=item["key"], claim=item["claim"])["duplicate"] is False
        assert second.call("item.next") == {"end": "complete"}


def test_bytes_one_by_one_and_many_lines_in_one_packet(puppet):
    with puppet.connect() as line:
        request = {"jsonrpc": "2.0", "id": "one by one", "method": "hello", "params": hello_of(puppet)}
        for byte in json.dumps(request).encode() + b"\n":
            line.send(bytes([byte]))
        answer = line.read()
        assert (answer["id"], answer["result"]["worker"]) == ("one by one", puppet.name)
        requests = [
            {"jsonrpc": "2.0", "id": number, "method": "items.offer", "params": {"items": [f"k{number}"]}}
            for number in range(50)
        ]
        line.send(b"\n".join(json.dumps(one).encode() for one in requests) + b"\n\n\n")
        answers = [line.read() for _ in range(50)]
        assert [answer["id"] for answer in answers] == list(range(50))
        assert all(answer["result"] == {"added": 1, "known": 0} for answer in answers)


def test_hello_and_what_follows_it_may_come_in_one_packet(puppet):
    with puppet.connect() as line:
        hello = {"jsonrpc": "2.0", "id": 1, "method": "hello", "params": hello_of(puppet)}
        offer = {"jsonrpc": "2.0", "id": 2, "method": "items.offer", "params": {"items": ["a"]}}
        ask = {"jsonrpc": "2.0", "id": 3, "method": "item.next"}
        line.send(b"".join(json.dumps(one).encode() + b"\n" for one in (hello, offer, ask)))
        assert [line.read()["id"] for _ in range(3)] == [1, 2, 3]


def test_a_peer_that_never_reads_harms_nobody(puppet, on_this_machine):
    deaf = puppet.connect()
    with deaf:
        puppet.hello(deaf)
        deaf.sock.settimeout(1.0)
        request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "x" * 200}).encode() + b"\n"
        with pytest.raises(TimeoutError):  # its answers pile up, so it is not read from any more
            deaf.sock.sendall(request * 1_000_000)
        begin = time.monotonic()
        assert puppet.daemon.worker(puppet.name)["state"] == "running"
        assert time.monotonic() - begin < on_this_machine(2)


def test_connections_that_say_nothing_or_half_a_line_cost_nothing(puppet):
    idle = [puppet.connect() for _ in range(50)]
    for one in idle[:25]:
        one.send(b'{"jsonrpc": "2.0", "id": 1, "met')
    line, welcome = puppet.hello()
    assert welcome["worker"] == puppet.name
    for one in idle:
        one.sock.shutdown(socket.SHUT_RDWR)
        one.close()
    assert line.call("items.offer", items=["a"])["added"] == 1
    line.close()
