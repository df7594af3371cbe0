"""Worker protocol, version 1, on the real socket: a worker made by hand, and everything a careless one may send."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
from harness import Line, Refused
from talking import FAILURE, refusal

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"


# ---- what a worker does all its life


def test_a_raw_socket_client_of_forty_lines_is_a_worker(daemons):
    daemon = daemons(
        {
            "workers": {"raw": {"command": [sys.executable, str(EXAMPLES / "raw_worker.py")]}},
            "retry": {"default": {"base_delay": 0.4, "jitter": "none"}},
        }
    )
    daemon.launch("--once")
    assert daemon.exit_code() == 0, daemon.log()
    results = daemon.results("raw")
    assert {key: json.loads(bytes(row.result))["length"] for key, row in results.items()} == {
        "one": 3,
        "two": 3,
        "three": 5,
    }
    assert {key: row.attempts for key, row in results.items()} == {"one": 1, "two": 2, "three": 1}
    first, second = daemon.events("item_finished", key="two")
    assert (first["data"]["outcome"], second["data"]["outcome"]) == ("retry", "done")
    assert daemon.events("worker_completed")
    files = sorted((daemon.state / "checkpoints" / "raw-0").glob("checkpoint-*.json"))
    assert json.loads(files[-1].read_bytes())["state"] == {"last": "two", "before": "three"}
    assert daemon.none_left()


def test_a_failed_item_comes_again_after_its_delay(line):
    assert line.call("items.offer", items=["a"]) == {"added": 1, "known": 0}
    first = line.call("item.next")
    assert (first["key"], first["attempt"]) == ("a", 1)
    verdict = line.call("item.failed", key="a", claim=first["claim"], failure=FAILURE)
    failed_at = time.monotonic()
    assert (verdict["action"], verdict["attempt"], verdict["delay"]) == ("retry", 1, pytest.approx(0.3))
    assert verdict["reason"]
    second = line.call("item.next")
    assert time.monotonic() - failed_at >= 0.29
    assert (second["key"], second["attempt"]) == ("a", 2)
    assert second["claim"] != first["claim"]
    # The first claim was concluded: its answer again, and nothing changes.
    assert line.call("item.failed", key="a", claim=first["claim"], failure=FAILURE) == verdict
    assert line.call("item.done", key="a", claim=second["claim"]) == {"seq": 1, "duplicate": False}


def test_a_state_is_saved_and_loaded(puppet, line):
    assert line.call("checkpoint.load") is None
    saved = line.call("checkpoint.save", schema="cursor/2", state={"at": "ünïcode"})
    loaded = line.call("checkpoint.load")
    assert (loaded["generation"], loaded["schema"], loaded["state"]) == (1, "cursor/2", {"at": "ünïcode"})
    assert saved["generation"] == 1
    assert line.call("checkpoint.save", schema="cursor/2", state={"at": "b"})["generation"] == 2
    assert line.call("checkpoint.load", generation=1)["state"] == {"at": "ünïcode"}
    error = refusal(line, "checkpoint.load", generation=77)
    assert error.code == -32006
    assert refusal(line, "checkpoint.save", schema="cursor", state={}).data["path"] == "schema"
    assert refusal(line, "checkpoint.save", schema="cursor/1", state=[]).data["path"] == "state"
    worker = puppet.daemon.worker(puppet.name)
    assert worker["checkpoint"]["generation"] == 2
    with line:
        _, welcome = puppet.hello()
    assert welcome["checkpoint"]["state"] == {"at": "b"}


def test_it_is_asked_to_recycle_its_browser_between_items(puppet, line):
    daemon = puppet.daemon
    line.call("items.offer", items=["a"])
    item = line.call("item.next")
    line.tell("browser.started", browser="b1", pid=puppet.pid, engine="none", version="0")
    daemon.wait(lambda: daemon.worker(puppet.name)["browsers"], "the browser is known")
    with Line.to(daemon.runtime / "control.sock") as control:
        asked = control.post("recycle", names=[puppet.name])
        daemon.wait_event("cleanup_initiated", worker=puppet.name)
        waiting = line.post("item.next")
        line.call("item.done", key="a", claim=item["claim"])  # not before: an item is in its hands
        assert not [message for message in line.kept if message.get("method") == "browser.recycle"]
        order = line.expect("browser.recycle")
        assert order["params"]["browser"] == "b1"
        assert order["params"]["reason"]
        assert 0 < order["params"]["deadline"] <= 20
        line.tell("browser.stopped", browser="b1", reason="recycle")
        line.tell("browser.started", browser="b2", pid=puppet.pid, engine="none", version="0")
        line.answer(order)
        control.wait(asked)
    assert daemon.worker(puppet.name)["recycles"] == 1
    assert line.wait(waiting) == {"end": "complete"}


def test_what_is_none_of_its_processes_is_not_its_browser(puppet, line):
    for pid in (os.getpid(), 1, puppet.daemon.process.pid):
        bad = {"browser": "b1", "pid": pid, "engine": "none", "version": "0"}
        error = refusal(line, "browser.started", **bad)
        assert (error.code, error.data["path"]) == (-32005, "pid")
    line.tell("browser.started", **bad)
    event = puppet.daemon.wait_event("failure_pattern_detected", worker=puppet.name)
    assert event["data"]["failure"]["signature"] == "browser-not-its-own"
    assert puppet.daemon.worker(puppet.name)["browsers"] == []


def test_it_is_told_to_drain(puppet, line):
    line.call("items.offer", items=["a", "b"])
    item = line.call("item.next")
    puppet.daemon.control("drain", names=[puppet.name], wait=False)
    order = line.expect("drain")
    assert "id" not in order
    assert order["params"]["reason"]
    assert 0 < order["params"]["deadline"] <= 10
    assert line.call("item.next") == {"end": "draining"}
    assert line.call("item.done", key="a", claim=item["claim"])["duplicate"] is False
    assert line.call("goodbye", reason="drained") == {}
    for method in ("item.next", "heartbeat", "no.such.method", "hello", "goodbye"):
        assert refusal(line, method).code == -32002
    assert refusal(line, "checkpoint.save", schema="a/1", state={}).code == -32002
    puppet.exit()
    puppet.daemon.wait_worker(puppet.name, state="stopped")


# ---- what is refused, and how


def test_what_is_no_request_gets_an_error_and_the_connection_stays_open(puppet):
    with puppet.connect() as line:
        for data in (b"{nonsense}\n", b"\xff\xfe\n", b'{"jsonrpc": "2.0"\n'):
            line.send(data)
            answer = line.read()
            assert answer["error"]["code"] == -32700
            assert answer["id"] is None
        for data in ([], [{"jsonrpc": "2.0", "id": 1, "method": "hello"}], 7, "x", {"id": 1}, {"jsonrpc": "2.0"}):
            line.send(data)
            assert line.read()["error"]["code"] == -32600, data
        assert refusal(line, "item.next").code == -32002
        assert refusal(line, "no.such.method").code == -32002
        puppet.hello(line)
        error = refusal(line, "no.such.method")
        assert error.code == -32601
        line.send([1])
        assert line.read()["error"]["code"] == -32600
        assert line.call("items.offer", items=[]) == {"added": 0, "known": 0}


@pytest.mark.parametrize("depth", [513, 1_100, 50_000])
def test_deep_json_is_answered_and_harms_nobody(puppet, depth):
    line, _ = puppet.hello()
    deep = b"[" * depth + b"]" * depth
    for data in (deep, b'{"jsonrpc":"2.0","id":1,"method":"item.done","params":{"key":"a","result":' + deep + b"}}"):
        line.send(data + b"\n")
        answer = line.read()
        assert (answer["error"]["code"], answer["id"]) == (-32700, None)
    assert line.call("items.offer", items=[{"key": "a", "data": "[" * depth}]) == {"added": 1, "known": 0}
    result = "x"
    for _ in range(500):
        result = [result]
    item = line.call("item.next")
    assert line.call("item.done", key="a", claim=item["claim"], result=result)["seq"] == 1


def test_notifications_that_come_with_ids_are_answered_and_leave_the_door_open(line):
    notes = {
        "heartbeat": {"lag_ms": 1},
        "item.progress": {"key": "a", "message": "half"},
        "browser.stopped": {"browser": "b1", "reason": "close"},
    }
    for _ in range(100):
        assert all(line.call(method, **params) == {} for method, params in notes.items())
    assert line.call("items.offer", items=["a"])["added"] == 1


def test_status_tells_what_a_worker_says_of_its_item(puppet, line):
    line.call("items.offer", items=["a"])
    item = line.call("item.next")
    assert item["last"] is False
    line.call("item.progress", key="a", claim=item["claim"], message="reading", done=1, total=2.5)
    (doing,) = puppet.daemon.worker(puppet.name)["doing"]
    assert doing.pop("seconds") >= 0
    assert doing == {
        "key": "a", "claim": item["claim"], "target": None, "attempt": 1, "message": "reading", "done": 1, "total": 2.5,
    }  # fmt: skip


def test_hello_tells_whether_the_source_was_offered_to_its_end(puppet):
    line, welcome = puppet.hello()
    assert (welcome["offered"], welcome["evidence"]) == (False, None)
    line.call("items.offer", items=["a"], more=True)
    line, welcome = puppet.hello()
    assert welcome["offered"] is False
    line.call("items.offer", items=["b"])
    assert puppet.hello()[1]["offered"] is True


def test_bad_entries_are_left_out_and_named_by_their_index(puppet, line):
    bad = [{"key": 7}, "", "a\nb", {"key": "k" * 4097}, {"key": "a", "priority": 2**63}, 5, None, ["x"], {}]
    answer = line.call("items.offer", items=["good", *bad, "fine"])
    assert (answer["added"], answer["known"]) == (2, 0)
    assert [one["index"] for one in answer["refused"]] == list(range(1, len(bad) + 1))
    assert puppet.daemon.wait_event("failure_pattern_detected")["data"]["failure"]["signature"] == "offer-refused"
    claimed = line.call("item.next")
    done = line.call("item.done", key=claimed["key"], claim=claimed["claim"], offers=["more", "\u0085"])
    assert (done["duplicate"], [one["index"] for one in done["refused"]]) == (False, [1])
    assert "refused" not in line.call("items.offer", items=["last"])


def test_bad_params_are_named_by_their_path(line):
    cases = [
        ("items.offer", {}, "items"),
        ("item.done", {}, "key"),
        ("item.failed", {"key": "a", "failure": {**FAILURE, "kind": "odd"}}, "failure.kind"),
        ("item.next", {"wait": "long"}, "wait"),
        ("goodbye", {"reason": "tired"}, "reason"),
    ]
    for method, params, path in cases:
        error = refusal(line, method, **params)
        assert error.code == -32005, (method, params)
        assert error.data["path"].startswith(path), (method, params, error.data)
    error = refusal(line, "item.failed", key="a", failure={**FAILURE, "category": "odd"})
    assert error.data["expected"] == ["network", "browser", "system", "application", "external"]
    assert line.call("items.offer", items=["good"]) == {"added": 1, "known": 0}  # a bad entry refused the whole call
    assert line.call("items.offer", items=["ünï", "a" * 4096, {"key": "x", "unheard": "of"}])["added"] == 3


def test_the_257th_open_call_is_refused(line):
    line.call("items.offer", items=["a"])
    line.call("item.next")  # so that the run is not complete
    numbers = [line.post("item.next") for _ in range(256)]
    number = line.post("items.offer", items=["b"])
    with pytest.raises(Refused) as caught:
        line.wait(number)
    assert caught.value.code == -32008
    line.tell("items.offer", items=["b", "c"])  # a notification is no open call
    assert {line.wait(numbers[0])["key"], line.wait(numbers[1])["key"]} == {"b", "c"}
    for key in "abc":
        line.tell("item.done", key=key)
    assert {line.wait(number)["end"] for number in numbers[2:]} == {"complete"}


def test_a_notification_is_never_answered(line):
    for method, params in (
        ("no.such.method", {}),
        ("items.offer", {"items": [7]}),
        ("item.done", {"key": "unknown"}),
        ("checkpoint.save", {"schema": "a/1", "state": {"n": 1}}),
        ("heartbeat", {"lag_ms": 1.5, "pages": {"b1": 3}}),
        ("item.next", {}),
        ("hello", {"protocol": 9}),
    ):
        line.tell(method, **params)
    assert line.call("items.offer", items=["a"])["added"] == 1
    assert line.kept == []
    assert line.call("checkpoint.load")["state"] == {"n": 1}  # what it asked for was done all the same
    assert line.call("item.next")["key"] == "a"  # an item.next that nobody hears of lost none


def test_the_same_done_twice_gets_the_same_answer(line):
    line.call("items.offer", items=["a", "b"])
    item = line.call("item.next")
    done = {"key": "a", "claim": item["claim"], "result": 1, "offers": ["c"]}
    first = line.call("item.done", **done)
    assert first == {"seq": 1, "duplicate": False}
    assert line.call("item.done", **{**done, "result": 2}) == first
    assert refusal(line, "item.failed", key="a", claim=item["claim"], failure=FAILURE).code == -32007
    assert line.call("item.done", key="a") == {"seq": 1, "duplicate": True}
    error = refusal(line, "item.done", key="b", claim=4711)
    assert error.code == -32007
    assert refusal(line, "item.done", key="nobody's").code == -32007
    assert {line.call("item.next")["key"] for _ in "bc"} == {"b", "c"}
