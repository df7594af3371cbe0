"""What a worker that misbehaves costs another one: latencies of `item.done` beside it.

    python bench/neighbours.py [--seconds 5]

The contract: whatever one connection sends and whatever a worker prints, others' p99 stays under twice what it is
beside a worker that burns the same CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "e2e"))

from harness import Daemon

PEER = """
import json, os, socket, sys, time
sock = socket.socket(socket.AF_UNIX)
sock.connect(os.environ["SCRAPER_WORKER_SOCKET"])
file = sock.makefile("rwb", buffering=1 << 20)
number = 0
def post(method, **params):
    global number
    number += 1
    file.write(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode() + b"\\n")
def call(method, **params):
    post(method, **params)
    file.flush()
    while True:
        answer = json.loads(file.readline())
        if answer.get("id") == number:
            return answer.get("result")
name, token = os.environ["SCRAPER_WORKER_NAME"], os.environ["SCRAPER_WORKER_TOKEN"]
call("hello", protocol=1, worker=name, token=token, client="bench/1")
"""
VICTIM = """
call("items.offer", items=[f"k{index}" for index in range(40000)])
end = time.monotonic() + float(os.environ["SECONDS"])
took = []
while time.monotonic() < end:
    claim = call("item.next")
    began = time.perf_counter()
    call("item.done", key=claim["key"], claim=claim["claim"])
    took.append(time.perf_counter() - began)
    time.sleep(0.002)
took.sort()
figures = {"items": len(took), "p50_ms": 1e3 * took[len(took) // 2], "p99_ms": 1e3 * took[int(len(took) * 0.99)]}
open(os.environ["REPORT"], "w").write(json.dumps(figures))
os._exit(0)
"""
LOADS = """
call("checkpoint.save", schema="s/1", state={"page": "x" * 100000})
while True:
    for _ in range(64):
        post("checkpoint.load")
    file.flush()
    for _ in range(64):
        file.readline()
"""
BEATS = """
line = b'{"jsonrpc":"2.0","method":"heartbeat","params":{"lag_ms":1,"pages":{}}}\\n' * 1000
while True:
    sock.sendall(line)
"""
BESIDE = {
    "nothing": None,
    "a worker that burns CPU": [sys.executable, "-S", "-E", "-c", "while True: pass"],
    "yes": ["yes"],
    "lines without end": ["sh", "-c", "exec cat /dev/zero"],
    "checkpoint.load without end": [sys.executable, "-S", "-E", "-c", PEER + LOADS],
    "heartbeats without end": [sys.executable, "-S", "-E", "-c", PEER + BEATS],
}


def measure(beside: list[str] | None, seconds: float) -> dict[str, float]:
    daemon = Daemon({})
    report = daemon.folder / "report"
    env = {"SECONDS": str(seconds), "REPORT": str(report)}
    victim = {"command": [sys.executable, "-S", "-E", "-c", PEER + VICTIM], "env": env, "restart": "never"}
    groups = {"victim": victim}
    if beside is not None:
        groups["beside"] = {"command": beside, "stop_timeout": "1s"}
    daemon.configure({"workers": groups, "abort": {"enabled": False}})
    try:
        daemon.start()
        daemon.wait(report.exists, "the victim is done", seconds + 60)
        time.sleep(0.1)
        return json.loads(report.read_text()) | {"log_mb": (daemon.folder / "log").stat().st_size / 1e6}
    finally:
        daemon.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    for name, beside in BESIDE.items():
        found = measure(beside, options.seconds)
        print(f"{name:30}" + "".join(f"  {key} {value:8.2f}" for key, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
