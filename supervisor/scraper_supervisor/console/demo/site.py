"""A small website of football fixtures that misbehaves on demand: what the demo and the tests scrape.

It needs nothing but this machine: it listens on 127.0.0.1 and answers from a seed. Every fault is a function of
(seed, path, visit number), so that the same knobs give the same trouble, and a request that is tried again succeeds in
the end; only a missing page stays missing. The access log says what was served, to be compared with the ledger.

Run alone: `python -m scraper_supervisor.console.demo.site --matches 300 --error 0.1`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import select
import signal
import socket
import struct
import sys
import threading
import time
from datetime import date, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from scraper_supervisor.core.formats.timestamps import timestamp

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self, TextIO

Kind: TypeAlias = Literal["ok", "error", "limited", "missing", "reset", "hang", "leak", "crash"]

_SHARES: Final = ("error", "limited", "reset", "hang", "crash")  # one draw decides among these, a visit
_IDLE: Final = 30.0  # seconds that a connection may say nothing
_CLOSING: Final = 5.0  # seconds that close() waits for the last answers

_TEAMS: Final = (
    "Ashford", "Brackley", "Corby", "Dunmore", "Eastleigh", "Farnley", "Glossop", "Harrow", "Ilkeston", "Jarrow",
    "Kendal", "Larkhall", "Matlock", "Nelson", "Oakham", "Penrith", "Quorn", "Redcar", "Selby", "Thirsk",
)  # fmt: skip

_STYLE: Final = (
    "body{font:16px system-ui;max-width:40rem;margin:2rem auto;padding:0 1rem}.score{font-size:3rem}.late{display:none}"
)

# A page's own memory dies with the page. What it puts into the cache storage of a private context stays in the memory
# of the browser's main process until that context ends. Neither closing the page nor revisiting it frees anything.
_LEAK: Final = """<script>
(async () => {
  const kept = new Uint8Array(%d * 1048576).fill(1);
  const cache = await caches.open("leak");
  await cache.put("/kept" + location.pathname + "?" + performance.timeOrigin + Math.random(), new Response(kept));
})().finally(() => { document.querySelector(".late").className = "score"; });
</script>"""

# V8 ends the process when an array would be longer than it can ever be: at once, and with little memory used.
_CRASH: Final = "<script>'a'.repeat(2 ** 27 + 8).split('')</script>"


class Knobs(Struct, frozen=True, kw_only=True):
    """What the site holds and how it misbehaves. Shares are 0 to 1.

    Raises:
        ValueError: a share is out of range, or a visit's shares add up to more than 1.
    """

    matches: int = 300
    per_page: int = 25  # matches on a fixture list
    seed: int = 1
    latency: tuple[float, float] = (0.0, 0.0)  # seconds, uniform between the two
    error: float = 0.0  # of visits: 500
    limited: float = 0.0  # of visits: 429 with Retry-After
    retry_after: int = 1  # seconds, in that header
    reset: float = 0.0  # of visits: the connection is reset, and so at the next visit
    hang: float = 0.0  # of visits: no answer until the client goes
    hang_limit: float = 60.0  # seconds, after which the site goes
    crash: float = 0.0  # of visits to a match: the page crashes its renderer
    faulty_visits: int = 3  # from a path's next visit on, none of the above befalls it
    missing: float = 0.0  # of matches: 404, at every visit
    leak: float = 0.0  # of matches: the page leaves memory behind in its browser, at every visit
    leak_mib: int = 32  # MiB, each time

    def __post_init__(self) -> None:
        shares = {name: getattr(self, name) for name in (*_SHARES, "missing", "leak")}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: a share is 0 to 1, not {share}")
        if sum(shares[name] for name in _SHARES) > 1 + 1e-9:
            raise ValueError(f"{', '.join(_SHARES)}: together at most 1, for each visit meets one of them at most")
        if self.matches < 0 or self.per_page < 1:
            raise ValueError("matches: at least 0, and per_page: at least 1")
        if not 0 <= self.latency[0] <= self.latency[1]:
            raise ValueError(f"latency: two numbers of seconds, the lower one first, not {self.latency}")


class Match(Struct, frozen=True):
    """A match as its page tells it; `score` is "2-1"."""

    id: int
    date: str
    home: str
    away: str
    score: str


class Access(Struct, frozen=True):
    """A line of the access log. `status` is None where nothing was answered; `visit` counts from 1, a path each."""

    time: str
    method: str
    path: str
    status: int | None
    kind: Kind
    visit: int


def unit(seed: int, *parts: object) -> float:
    """A number in [0, 1) that depends on the arguments alone."""
    digest = hashlib.blake2b(repr((seed, *parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def match_of(seed: int, number: int) -> Match:
    """The match of that number, the same at every call."""

    def pick(what: str, count: int) -> int:
        return int(unit(seed, what, number) * count)

    home = pick("home", len(_TEAMS))
    away = (home + 1 + pick("away", len(_TEAMS) - 1)) % len(_TEAMS)
    day = date(2024, 8, 17) + timedelta(days=7 * ((number - 1) // 10))
    score = f"{pick('home goals', 5)}-{pick('away goals', 4)}"
    return Match(number, day.isoformat(), _TEAMS[home], _TEAMS[away], score)


def fate_of(knobs: Knobs, path: str, visit: int) -> Kind:
    """What befalls that visit to that path."""
    is_match = path.startswith("/match/")
    if is_match and unit(knobs.seed, "missing", path) < knobs.missing:
        return "missing"
    if visit <= knobs.faulty_visits:
        # Chromium silently repeats a request once that was reset on a connection made ahead of need, as most are: a
        # single reset would be seen by no scraper.
        fault = _fault(knobs, path, visit)
        if fault != "reset" and visit > 1 and _fault(knobs, path, visit - 1) == "reset":
            fault = "reset"
        if fault is not None and (is_match or fault != "crash"):
            return fault
    if is_match and unit(knobs.seed, "leak", path) < knobs.leak:
        return "leak"
    return "ok"


def _fault(knobs: Knobs, path: str, visit: int) -> Kind | None:
    drawn = unit(knobs.seed, "fault", path, visit)
    for name in _SHARES:
        drawn -= getattr(knobs, name)
        if drawn < 0:
            return name  # the names of these shares are kinds
    return None


class DemoSite:
    """The site, listening from the moment it is made. A context manager that closes it.

    Args:
        knobs: how it behaves; `site.knobs` may be replaced while it runs, to begin or end an outage.
        port: 0 takes a free one.
        access_log: a file that gets a JSON line a request, beside `accesses()`.

    Raises:
        OSError: the port is taken, or the log can't be opened.
    """

    def __init__(self, knobs: Knobs | None = None, *, port: int = 0, access_log: Path | None = None) -> None:
        self.knobs = knobs or Knobs()
        self._lock = threading.Lock()
        self._visits: dict[str, int] = {}
        self._accesses: list[Access] = []
        self._server = _Server(self, port)
        try:
            self._file: TextIO | None = access_log.open("a", encoding="utf-8", buffering=1) if access_log else None
        except OSError:
            self._server.close()
            raise
        self.port: Final[int] = self._server.server_port
        self.url: Final = f"http://127.0.0.1:{self.port}"  # without a slash at its end
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="demo-site", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, end what hangs, and wait for the last answers. Harmless the second time."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.close()
        if self._file is not None:
            self._file.close()

    def accesses(self) -> list[Access]:
        """The access log so far, oldest first."""
        with self._lock:
            return list(self._accesses)

    def match(self, number: int) -> Match:
        """The truth about a match, to compare a scraper's result with."""
        return match_of(self.knobs.seed, number)

    def missing(self) -> set[int]:
        """The matches whose pages are 404 for good."""
        every = range(1, self.knobs.matches + 1)
        return {number for number in every if fate_of(self.knobs, f"/match/{number}", 1) == "missing"}

    def arrive(self, path: str) -> int:
        """Count a visit; returns its number, from 1."""
        with self._lock:
            visit = self._visits[path] = self._visits.get(path, 0) + 1
        return visit

    def record(self, method: str, path: str, status: int | None, kind: Kind, visit: int) -> None:
        """Write an access, before it is answered: what a client has seen is always in the log."""
        now = timestamp(time.time())
        access = Access(now, method, path, status, kind, visit)
        with self._lock:
            self._accesses.append(access)
            if self._file is not None and not self._file.closed:
                self._file.write(msgspec.json.encode(access).decode() + "\n")


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def __init__(self, site: DemoSite, port: int) -> None:
        self.site = site
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()
        self.stopped, self._stop = socket.socketpair()  # `stopped` has something to read once the site closes
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError:
            self.stopped.close()
            self._stop.close()
            raise

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own asks the resolver for this machine's name, which can take long
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            self._open.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._changed:
                self._open.discard(request)
                self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):  # browsers hang up all the time
            super().handle_error(request, client_address)

    def close(self) -> None:
        self.server_close()
        self._stop.send(b".")
        with self._changed:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)  # wakes the idle ones; an answer under way is still sent
            self._changed.wait_for(lambda: not self._open, _CLOSING)
        self._stop.close()
        self.stopped.close()


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]  # none but _Server makes it
    protocol_version = "HTTP/1.1"
    server_version = "DemoSite"
    sys_version = ""
    timeout = _IDLE

    def do_GET(self) -> None:
        site = self.server.site
        knobs = site.knobs
        visit = site.arrive(self.path)
        low, high = knobs.latency
        self._wait(low + (high - low) * unit(knobs.seed, "latency", self.path, visit))
        kind = fate_of(knobs, self.path, visit)
        body = self._body(knobs, kind)
        if body is None:
            kind = "missing"
        status = {"error": 500, "limited": 429, "missing": 404, "reset": None, "hang": None}.get(kind, 200)
        site.record(self.command, self.path, status, kind, visit)
        if status is None:
            self._fail(kind, knobs.hang_limit)
        elif status == 200 and body is not None:
            self._answer(status, body, {})
        else:
            title = f"{status} {HTTPStatus(status).phrase}"
            self._answer(status, _page(title, ""), {"Retry-After": str(knobs.retry_after)} if status == 429 else {})

    def _body(self, knobs: Knobs, kind: Kind) -> bytes | None:
        """The page at this path, or None if there is none."""
        where, _, query = self.path.partition("?")
        if where in {"/", "/fixtures"}:
            pages = max(1, -(-knobs.matches // knobs.per_page))
            page = query.removeprefix("page=") or "1"
            return _fixtures(knobs, int(page), pages) if page.isdecimal() and 1 <= int(page) <= pages else None
        number = where.removeprefix("/match/")
        if number != where and number.isdecimal() and 1 <= int(number) <= knobs.matches:
            return _match(match_of(knobs.seed, int(number)), kind, knobs.leak_mib)
        return None

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")  # on one used again, a browser repeats what is reset more often
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, kind: Kind, hang_limit: float) -> None:
        self.close_connection = True
        if kind == "hang":
            self._wait(hang_limit)
        else:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # Detached, since the server would shut the connection down in good order first.
            socket.close(self.connection.detach())

    def _wait(self, seconds: float) -> None:
        """Until the time is over, the client has gone or the site closes."""
        if seconds > 0:
            poll = select.poll()
            poll.register(self.connection, select.POLLRDHUP)
            poll.register(self.server.stopped, select.POLLIN)
            poll.poll(seconds * 1000)

    def log_message(self, *_: object, **__: object) -> None:
        """Keep quiet: the site has its own log."""


def _page(title: str, body: str) -> bytes:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head>'
        f'<body><h1>{title}</h1>{body}<p><a href="/fixtures">All fixtures</a></p></body></html>'
    ).encode()


def _fixtures(knobs: Knobs, page: int, pages: int) -> bytes:
    first = (page - 1) * knobs.per_page + 1
    matches = [match_of(knobs.seed, n) for n in range(first, min(first + knobs.per_page, knobs.matches + 1))]
    rows = "".join(f'<li>{m.date} <a class="match" href="/match/{m.id}">{m.home} - {m.away}</a></li>' for m in matches)
    links = " ".join(f'<a class="page" href="/fixtures?page={n}">{n}</a>' for n in range(1, pages + 1))
    return _page(f"Fixtures, page {page} of {pages}", f"<ul>{rows}</ul><nav>{links}</nav>")


def _match(match: Match, kind: Kind, leak_mib: int) -> bytes:
    extra = {"leak": _LEAK % leak_mib, "crash": _CRASH}.get(kind, "")
    score = "late" if kind == "leak" else "score"  # such a page has its score once the memory is taken
    return _page(
        f"{match.home} - {match.away}",
        f'<p class="date">{match.date}</p><p><span class="home">{match.home}</span>'
        f' <span class="{score}">{match.score}</span> <span class="away">{match.away}</span></p>{extra}',
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; prints the address, once it listens. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scraper_supervisor.console.demo.site", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="[a free one]")
    parser.add_argument("--access-log", type=Path, metavar="FILE", help="a JSON line a request")
    for field in msgspec.structs.fields(Knobs):
        option = f"--{field.name.replace('_', '-')}"
        if field.name == "latency":
            parser.add_argument(option, type=float, nargs=2, metavar=("LOW", "HIGH"), default=field.default, help="s")
        else:
            parser.add_argument(option, type=type(field.default), default=field.default, help=f"[{field.default}]")
    given = vars(parser.parse_args(arguments))
    port, access_log = given.pop("port"), given.pop("access_log")
    try:
        given["latency"] = tuple(given["latency"])
        knobs = Knobs(**given)
    except ValueError as error:
        parser.error(str(error))
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # before any thread starts, so that sigwait gets them
    with DemoSite(knobs, port=port, access_log=access_log) as site:
        sys.stdout.write(f"{site.url}\n")
        sys.stdout.flush()
        signal.sigwait(ends)
    return 0


if __name__ == "__main__":
    sys.exit(main())
