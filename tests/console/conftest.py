"""A project folder, the command line in this process, and a stand-in for the daemon on a real socket."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from click.testing import CliRunner

from scraper_supervisor.console.cli import cli
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_worker.jsonrpc import Framer, Request, RpcError, decode_line, encode_error, encode_result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

CONFIG = '[supervisor]\nstate_dir = "state"\n[workers.matches]\nentrypoint = "scraper:scrape"\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a supervisor.toml and nothing from this machine's environment."""
    for name in ("SCRAPER_SUPERVISOR_CONFIG", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "supervisor.toml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "scraper.py").write_text("async def scrape(worker): ...\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ledger(project: Path) -> Path:
    """A ledger in the project's state folder, as a daemon's first start leaves it."""
    return make_ledger(project / "state")


def make_ledger(state_dir: Path) -> Path:
    """An empty ledger; only a daemon makes one, no command does."""
    state_dir.mkdir(mode=0o700, exist_ok=True)
    path = state_dir / "ledger.db"
    Ledger.open(path).close()
    return path


@pytest.fixture
def call(project: Path) -> Callable[..., Result]:
    """Runs a command in this process: `call("items", "add", "matches", input="k1")`."""

    def run(*arguments: str, **options: Any) -> Result:
        return CliRunner().invoke(cli, arguments, catch_exceptions=False, **options)

    return run


class FakeDaemon:
    """Answers on a control socket from `answers`: method → document, RpcError, or a function of the params."""

    def __init__(self, path: Path) -> None:
        self.answers: dict[str, Any] = {"claims": [], "reload.settle": {"workers": {}}}
        self.leaves = False  # hangs up after the next answer, as a daemon does that was told to stop
        self.requests: list[tuple[str, dict[str, Any]]] = []
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        framer = Framer(2**24)
        with connection, contextlib.suppress(ConnectionError):  # a command that did not wait for its answer
            while data := connection.recv(2**20):
                for line in framer.feed(data):
                    request = decode_line(line)
                    assert isinstance(request, Request)
                    params = msgspec.json.decode(request.params)
                    if request.method == "owner":  # asked by every command first, whom it speaks to
                        owner = self.answers.get("owner", RpcError(-32000, "it does not tell"))
                        encode = encode_error if isinstance(owner, RpcError) else encode_result
                        connection.sendall(encode(request.id, owner))
                        continue
                    self.requests.append((request.method, params))
                    answer = self.answers[request.method]
                    answer = answer(params) if callable(answer) else answer
                    if answer is None:  # hang up
                        return
                    encode = encode_error if isinstance(answer, RpcError) else encode_result
                    connection.sendall(encode(request.id, answer))
                    if self.leaves:
                        return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed already
        for thread in self._threads[1:]:
            thread.join()


@pytest.fixture
def daemon(project: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(project / "state" / "run" / "control.sock")
    yield fake
    fake.close()


@pytest.fixture
def document() -> dict[str, Any]:
    """A status document with something of everything."""

    def worker(name: str, state: str, **changes: Any) -> dict[str, Any]:
        plain = {
            "name": name, "group": "matches", "index": int(name[-1]), "state": state, "pid": 4711, "incarnation": 2,
            "restarts": 1, "started_at": "2026-05-01T12:00:00.000Z", "memory": {"rss": 90 * 2**20, "pss": 60 * 2**20},
            "cpu_percent": 12.5, "processes": 9,
            "browsers": [{"id": "b1", "pid": 4712, "memory": 300 * 2**20, "age_seconds": 75.0, "pages": 40}],
            "doing": [
                {
                    "key": "match-1017", "claim": 12, "target": None, "seconds": 41.0, "attempt": 2,
                    "message": "reading the line-ups", "done": 3, "total": 11,
                },
            ],
            "idle_reason": None, "recycles": 3, "browser_kills": 1, "browser_crashes": 0,
            "items": {"done": 50, "failed": 1, "in_flight": 2},
            "checkpoint": {"generation": 7, "saved_at": "2026-05-01T12:00:00.000Z"}, "last_failure": None,
        }  # fmt: skip
        return plain | changes

    nothing = {
        "processes": None,
        "pid": None,
        "started_at": None,
        "memory": {"rss": None, "pss": None},
        "cpu_percent": None,
    }
    failure = {
        "kind": "permanent",
        "category": "system",
        "signature": "worker-failed",
        "message": "died\x1b[31m 6 times",
    }
    scope = {
        "scope": "target", "key": "example.com", "state": "held", "items": 20, "failures": 15, "rate": 0.75,
        "limit": 0.5, "reason": "15 of 20 failed",
    }  # fmt: skip
    return {
        "supervisor": {
            "pid": 4700, "version": "1.0", "state": "running", "reason": None,
            "started_at": "2026-05-01T12:00:00.000Z",
            "config": {"path": "/x/supervisor.toml", "loaded_at": "2026-05-01T12:00:00.000Z", "error": None},
            "host": {"memory_percent": 41.0, "disk_free": 50 * 2**30},
        },
        "groups": [
            {
                "name": "matches", "run": 1, "state": "running", "reason": None,
                "items": {
                    "pending": 400, "in_flight": 2, "waiting": 5, "parked": 0, "done": 100, "failed": 1, "total": 508
                },
                "rate_per_minute": 60.0, "eta_seconds": 407.0,
            }
        ],
        "workers": [
            worker("matches-0", "running"),
            worker("matches-1", "failed", browsers=[], checkpoint=None, last_failure=failure, **nothing),
        ],
        "abort": {"state": "normal", "window_seconds": 300.0, "scopes": [scope]},
        "slo": {
            "availability": 0.99996, "recoveries": 2, "recovery_p90_seconds": 0.34, "recovery_max_seconds": 1.5,
            "checkpoint_p99_seconds": None, "items_lost": 0,
        },
    }  # fmt: skip
