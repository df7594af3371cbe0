"""A real daemon in a temporary folder, seen from outside: its process, sockets, files, signals, and what it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil
import tomli_w

from scraper_supervisor.store.sqlite.reader import LedgerReader

HERE = Path(__file__).parent
PATIENCE = 60.0  # seconds; a test that waits this long for anything has failed
MARK = "SCRAPER_E2E_MARK"
SUPERVISOR = shlex.split(os.environ.get("SCRAPER_E2E_COMMAND", "")) or [sys.executable, "-m", "scraper_supervisor"]


def wait_for(condition, what, timeout=PATIENCE, every=0.01):
    """Call `condition` until it gives something true, and return that."""
    deadline = time.monotonic() + timeout
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() >= deadline:
            raise AssertionError(f"after {timeout:g} s still not: {what}")
        time.sleep(every)


def alive(pid):
    """Whether that process runs (a zombie does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Refused(Exception):
    """An error answer."""

    def __init__(self, error):
        super().__init__(error["message"])
        self.code = error["code"]
        self.data = error.get("data")


class Line:
    """A socket that carries a JSON object a line, and the JSON-RPC that is spoken on it."""

    def __init__(self, sock):
        self.sock = sock
        self.sock.settimeout(PATIENCE)
        self._rest = b""
        self._numbers = 0
        self.kept = []

    @classmethod
    def to(cls, path):
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
            raise
        return cls(sock)

    def send(self, data):
        self.sock.sendall(data if isinstance(data, bytes) else json.dumps(data).encode() + b"\n")

    def read(self):
        """The next message; None at the end of the stream."""
        while b"\n" not in self._rest:
            try:
                data = self.sock.recv(1 << 20)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        return json.loads(line)

    def post(self, method, **params):
        """Send a request without waiting; its id."""
        self._numbers += 1
        self.send({"jsonrpc": "2.0", "id": self._numbers, "method": method, "params": params})
        return self._numbers

    def tell(self, method, **params):
        """Send a notification."""
        self.send({"jsonrpc": "2.0", "method": method, "params": params})

    def wait(self, number):
        """The answer to a request; what else comes meanwhile is kept."""
        for message in self.kept:
            if "method" not in message and message.get("id") == number:
                self.kept.remove(message)
                return self._result(message)
        while True:
            message = self.read()
            if message is None:
                raise EOFError("the connection was closed")
            if "method" not in message and message.get("id") == number:
                return self._result(message)
            self.kept.append(message)

    def expect(self, method):
        """The next request or notification of that method."""
        for message in self.kept:
            if message.get("method") == method:
                self.kept.remove(message)
                return message
        while (message := self.read()) is not None:
            if message.get("method") == method:
                return message
            self.kept.append(message)
        raise EOFError("the connection was closed")

    @staticmethod
    def _result(message):
        if "error" in message:
            raise Refused(message["error"])
        return message["result"]

    def call(self, method, **params):
        return self.wait(self.post(method, **params))

    def answer(self, message, result=None):
        self.send({"jsonrpc": "2.0", "id": message["id"], "result": result or {}})

    def at_end(self):
        """Whether the peer closed, after what is still to be read; waits for it."""
        while (message := self.read()) is not None:
            self.kept.append(message)
        return True

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Census:
    """All processes that began with one daemon, whoever their parent is by now."""

    def __init__(self):
        self.mark = uuid.uuid4().hex
        self._sessions = set()

    def take(self):
        """Living processes, pid to psutil.Process. Sessions once seen are remembered: not all bear the mark."""
        entries = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                marked = f"{MARK}={self.mark}\0".encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
                entries[process.pid] = (process, os.getsid(process.pid), process.ppid(), marked)
        found = {pid for pid, entry in entries.items() if entry[3] or entry[1] in self._sessions}
        while True:
            # Never our own session: what bears the mark leads one, or is in one that such a process leads.
            self._sessions |= {entries[pid][1] for pid in found} - {os.getsid(0)}
            more = {p for p, e in entries.items() if e[1] in self._sessions or e[2] in found} - found
            if not more:
                return {pid: entries[pid][0] for pid in found if pid != os.getpid()}
            found |= more

    def kill(self):
        """SIGKILL until none is left."""

        def none_left():
            found = self.take()
            for process in found.values():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            return not found

        wait_for(none_left, "all of the daemon's processes dead", every=0.02)


class Daemon:
    """One daemon, its folder and its configuration; `start` it as often as you like.

    Args:
        config: the configuration as a mapping, or as text to be written as it is.
        env: more environment.
    """

    def __init__(self, config, env=None):
        self.folder = Path(tempfile.mkdtemp(prefix="e2e-"))  # short: a socket's path has 107 bytes at most
        self.state = self.folder / "state"
        self.runtime = self.folder / "run"
        self.config_path = self.folder / "supervisor.toml"
        self.census = Census()
        self.process = None
        self.prefix = []  # a command that executes the one behind it
        self._env = env or {}
        self.config = config
        self.configure(config)

    # ---- its life

    def configure(self, config):
        """Write the configuration; folders and a quiet log are added to a mapping."""
        self.config = config
        if isinstance(config, str):
            self.config_path.write_text(config)
            return
        given = {"state_dir": str(self.state), "runtime_dir": str(self.runtime), "log_format": "json"}
        document = {**config, "supervisor": {**given, **config.get("supervisor", {})}}
        draft = self.config_path.with_suffix(".new")
        draft.write_bytes(tomli_w.dumps(document).encode())
        draft.replace(self.config_path)

    def launch(self, *options):
        """Start it without waiting for anything."""
        env = {**os.environ, MARK: self.census.mark, **self._env}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *SUPERVISOR, "run", "--config", str(self.config_path), *options],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def start(self, *options):
        """Start it, and wait until it serves."""
        self.launch(*options)
        self.wait(lambda: self.process.poll() is not None or self._serves(), "the daemon serves")
        assert self.process.poll() is None, self.log()
        return self

    def _serves(self):
        try:
            return self.status()["supervisor"]["state"] != "starting"
        except (OSError, EOFError):
            return False

    @property
    def pid(self):
        return self.process.pid

    def send(self, signum):
        os.kill(self.pid, signum)

    def exit_code(self, timeout=PATIENCE):
        """Wait for its end."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon still runs; its log ends:\n{self.log()}") from None

    def stop(self, signum=signal.SIGTERM):
        """End it in good order; its exit code."""
        self.send(signum)
        return self.exit_code()

    def kill(self):
        """SIGKILL to the daemon alone."""
        self.process.kill()
        self.process.wait()

    def close(self):
        """End whatever is left of it, and remove its folder."""
        self.census.take()
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.census.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- what it says

    def control(self, method, **params):
        """Ask on the control socket."""
        with Line.to(self.runtime / "control.sock") as line:
            return line.call(method, **params)

    def status(self):
        return self.control("status")

    def worker(self, name):
        return next((one for one in self.status()["workers"] if one["name"] == name), None)

    def group(self, name):
        return next(one for one in self.status()["groups"] if one["name"] == name)

    def pids(self):
        """Worker name to PID."""
        return {one["name"]: one["pid"] for one in self.status()["workers"]}

    def events(self, *names, **fields):
        """The events of these names whose data or head holds these fields."""
        path = self.state / "events.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        found = [json.loads(line) for line in lines if line.endswith(b"\n")]
        return [
            event
            for event in found
            if (not names or event["event"] in names)
            and all({**event["data"], **event}.get(name) == value for name, value in fields.items())
        ]

    def log(self):
        """The end of its log."""
        path = self.folder / "log"
        return path.read_text(errors="replace")[-6000:] if path.exists() else ""

    def wait(self, condition, what, timeout=PATIENCE):
        """`wait_for`, with the log if it is in vain."""
        try:
            return wait_for(condition, what, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; the daemon's log ends:\n{self.log()}") from None

    def wait_event(self, name, timeout=PATIENCE, **fields):
        return self.wait(lambda: self.events(name, **fields), f"event {name} {fields or ''}", timeout)[-1]

    def wait_worker(self, name, timeout=PATIENCE, **fields):
        """Wait until a worker's status has these values."""

        def there():
            worker = self.worker(name)
            return worker if worker and all(worker[key] == value for key, value in fields.items()) else None

        return self.wait(there, f"{name} has {fields}", timeout)

    def command(self, *arguments, code=0):
        """What a command with this configuration prints; it must end with that code."""
        command = [*SUPERVISOR, *arguments, "--config", str(self.config_path)]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout

    # ---- what it wrote

    def results(self, group):
        """Key to result row of the latest run."""
        with LedgerReader(self.state / "ledger.db") as ledger:
            rows = list(ledger.results(group))
        assert len({row.key for row in rows}) == len(rows), "a key has two results"
        assert [row.seq for row in rows] == sorted({row.seq for row in rows}), "seq is not rising"
        return {row.key: row for row in rows}

    def items(self, group):
        """Key to item row of the latest run."""
        with LedgerReader(self.state / "ledger.db") as ledger:
            return {row.key: row for row in ledger.items(group)}

    def trace(self):
        """What the test's own scrapers noted in the file `trace`, a list of words a line."""
        path = self.folder / "trace"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    # ---- its processes

    def processes(self):
        """Living processes that it started, directly or not; without itself."""
        return {pid: process for pid, process in self.census.take().items() if pid != self.pid}

    def none_left(self):
        """No process of it lives."""
        wait_for(lambda: not self.processes(), f"no process left: {self.processes()}")
        return True


class Puppet:
    """A worker whose strings a test pulls: `puppet.py`, which hands out sockets connected in its name."""

    def __init__(self, daemon, name):
        self.daemon = daemon
        self.name = name
        self.path = daemon.folder / f"{name}.puppet"
        self.token = self.pid = None
        self._lines = []

    def _ask(self, word):
        """(answer, fd or None)"""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(self.path))
            sock.sendall(word.encode())
            data, fds, _, _ = socket.recv_fds(sock, 65536, 1)
            return json.loads(data) if data else None, fds[0] if fds else None

    def wait(self, not_pid=None):
        """Wait until its process is there, after the one of `not_pid`."""

        def there():
            with contextlib.suppress(OSError):
                found, fd = self._ask("connect")
                os.close(fd)
                if found["pid"] != not_pid:
                    return found
            return None

        found = self.daemon.wait(there, f"puppet {self.name} is there")
        self.token, self.pid = found["token"], found["pid"]
        self.daemon.wait_worker(self.name, pid=self.pid)
        return self

    def connect(self):
        """A connection to worker.sock, made by the worker's process."""
        _, fd = self._ask("connect")
        self._lines.append(Line(socket.socket(fileno=fd)))
        return self._lines[-1]

    def hello(self, line=None, **changes):
        """A connection that said hello: (line, welcome)."""
        line = line or self.connect()
        params = {"protocol": 1, "worker": self.name, "token": self.token, "client": "puppet/1", **changes}
        return line, line.call("hello", **params)

    def close(self):
        """Close all its connections."""
        for line in self._lines:
            line.close()

    def exit(self, code=0):
        """Have its process exit."""
        with contextlib.suppress(OSError, json.JSONDecodeError):
            self._ask(f"exit {code}")
