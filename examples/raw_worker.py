"""A worker without the SDK: the protocol by hand. Any language that has sockets and JSON can do the same."""

import json
import socket
import time
from os import environ

supervisor = socket.socket(socket.AF_UNIX)
supervisor.connect(environ["SCRAPER_WORKER_SOCKET"])
lines = supervisor.makefile("rb")


def send(**message):
    supervisor.sendall(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


def call(method, **params):
    send(id=(number := time.monotonic_ns()), method=method, params=params)
    for message in map(json.loads, lines):
        if message.get("method") == "browser.recycle":  # may come at any time; we have no browser to replace
            send(id=message["id"], result={})
        elif message.get("id") == number:
            error = message.get("error") or {"code": None}
            if error["code"] == -32001:  # its disk is full: the same call again, later
                time.sleep(error["data"]["retry_after"])
                return call(method, **params)
            return message["result"] if error["code"] is None else exit(f"{method}: {error['message']}")
    exit("the supervisor is gone")


call("hello", protocol=1, client="raw/1", worker=environ["SCRAPER_WORKER_NAME"], token=environ["SCRAPER_WORKER_TOKEN"])
call("items.offer", items=["one", "two", "three"])  # what the run knows already is not added again
while "key" in (item := call("item.next")):  # waits; once told to drain, the answer is {"end": "draining"}
    mine = {"key": item["key"], "claim": item["claim"]}
    if item["key"] == "two" and item["attempt"] == 1:
        busy = {"kind": "transient", "category": "external", "signature": "busy", "message": "busy, try again"}
        call("item.failed", **mine, failure=busy)
        continue
    saved = call("checkpoint.load")
    call("checkpoint.save", schema="raw/1", state={"last": item["key"], "before": saved and saved["state"]["last"]})
    call("item.done", **mine, result={"length": len(item["key"])})
call("goodbye", reason="complete" if item["end"] == "complete" else "drained")
