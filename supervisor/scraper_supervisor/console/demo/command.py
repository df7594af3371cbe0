"""`demo`: a site that misbehaves, real browser workers that scrape it, and what the supervisor makes of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import click
import tomli_w
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scraper_supervisor.console import views
from scraper_supervisor.console.client import Client, Denied, NoDaemon
from scraper_supervisor.console.context import FAILED, INTERRUPTED, App, HelpfulCommand, Refused, clean, pass_app
from scraper_supervisor.console.demo.figures import Incidents, compare, paths, summary
from scraper_supervisor.console.demo.site import DemoSite, Knobs
from scraper_supervisor.store.errors import StoreError
from scraper_supervisor.store.event_log import EVENTS_FILE, decode_event, follow_lines
from scraper_supervisor.store.opening import LedgerLocation
from scraper_worker.protocol import ENV_SOCKET

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from scraper_supervisor.core.formats.event_names import EventName
    from scraper_supervisor.store.event_log import EventRecord

GROUP: Final = "matches"
POLL: Final = 0.25  # seconds between two looks at the daemon
PLAIN_EVERY: Final = 5.0  # seconds between two lines of progress where there is no terminal
KILL_AT: Final = 0.45  # the share of items after which a worker is killed
GIVE_UP: Final = 300.0  # seconds, after which something is wrong
STOP_WITHIN: Final = 45.0  # seconds that the daemon has to end
SHOWN_EVENTS: Final = 8
PREFIX: Final = "scraper-demo-"
LONGEST_FOLDER: Final = 41  # bytes; under a longer one workers get their TMPDIRs elsewhere, and we remove this one

KNOBS: Final = Knobs(
    matches=400,
    latency=(0.02, 0.15),
    error=0.05,
    limited=0.01,
    reset=0.03,
    hang=0.005,
    hang_limit=2.0,
    crash=0.005,
    missing=0.01,
    leak=0.05,
    leak_mib=48,
)
TOLD: Final[frozenset[EventName]] = frozenset(
    {
        "worker_started", "worker_ready", "worker_exited", "worker_backoff", "worker_failed", "worker_hung",
        "worker_completed", "threshold_breached", "cleanup_initiated", "browser_restarted", "hold_started",
        "hold_ended", "abort_triggered", "permanent_failure", "retry_exhausted", "storage_degraded",
        "storage_recovered",
    }
)  # fmt: skip


@click.command(cls=HelpfulCommand)
@pass_app
def demo(app: App) -> None:
    """Watch the supervisor at work: browser workers scrape a local site that fails, leaks and hangs.

    It needs nothing but this machine, takes about a minute, cleans up behind itself and ends with the figures. Exit
    code 0: every item was scraped once and none was lost.
    """
    with DemoSite(KNOBS) as site, Stage(site) as stage:
        app.print(f"A site of {KNOBS.matches} matches at {site.url}; one in ten of its requests fails.")
        app.print("Two workers with a browser each scrape it; one worker will be killed, leaking browsers replaced.")
        if os.geteuid() == 0:
            app.print("Run as root, Chromium has no sandbox here; run it as another user and it has.")
        app.print("Ctrl-C ends it early.\n")
        with _shown(app, stage) as show:
            while stage.step():
                show()
        stage.end()
        if stage.stops:
            app.print("stopped early: everything is cleaned up")
            raise click.exceptions.Exit(INTERRUPTED)
        _conclude(app, stage)


def _conclude(app: App, stage: Stage) -> None:
    """Print the figures, and end with their code."""
    try:
        outcome = compare(stage.site, LedgerLocation(stage.state_dir), GROUP)
    except (FileNotFoundError, LookupError, StoreError) as error:
        raise Refused(
            f"the demo's daemon did not get to work (exit code {stage.code}): {error}\n{stage.log()}"
        ) from None
    slo = stage.document["slo"] if stage.document is not None else {}
    app.print(summary(outcome, stage.incidents, slo, stage.elapsed))
    if not outcome.ok or stage.code != 0:
        reason = f"the daemon's exit code is {stage.code}" if outcome.ok else "not every item ended as it should"
        raise Refused(f"{reason}\n{stage.log()}", FAILED)
    app.print(Text("\nEvery item was scraped once, and none was lost.", style="green"))


# ---- the stage -------------------------------------------------------------------------------------------------------


class Stage:
    """The daemon at work on the site, in a folder of its own; a context manager that leaves nothing behind.

    Args:
        site: what is scraped.
    """

    def __init__(self, site: DemoSite) -> None:
        self.site = site
        self.expected: Final = len(paths(site))
        self.document: dict[str, Any] | None = None  # the latest status
        self.recent: deque[EventRecord] = deque(maxlen=SHOWN_EVENTS)
        self.fresh: list[EventRecord] = []  # those of the latest step
        self.incidents = Incidents()
        self.stops = 0
        self.code: int | None = None
        self.elapsed = 0.0
        self._client: Client | None = None
        self._started = self._gave_up = False
        self._killed = False
        self._began = time.monotonic()
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:  # undone in reverse order, at the end or if the beginning fails
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                undo.callback(signal.signal, signum, signal.signal(signum, self._stop))
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_short_folder()))
            undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.state_dir = self.folder / "state"
            self._run_dir = self.folder / "run"
            self._events = undo.enter_context(contextlib.closing(follow_lines(self.state_dir / EVENTS_FILE)))
            self._start()
            undo.callback(end_leftovers, str(self._run_dir / "worker.sock"))
            undo.callback(self.end)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _start(self) -> None:
        config = self.folder / "supervisor.toml"
        config.write_text(tomli_w.dumps(configuration(self.site.url)), encoding="utf-8")
        self._log = self.folder / "daemon.log"
        with self._log.open("wb") as log:
            self._daemon = subprocess.Popen(
                [sys.executable, "-m", "scraper_supervisor", "run", "--config", str(config), "--once"],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours to pass on, once
            )
        self._started = True

    def step(self) -> bool:
        """Wait a moment, look, and do what the demo does to its workers. False when the daemon has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.code = self._daemon.wait(POLL)
        self.elapsed = time.monotonic() - self._began
        if self.code is None:
            self._look()
            self._kill_one()
            if self.elapsed > GIVE_UP and not self._gave_up:
                self._gave_up = True
                self._daemon.send_signal(signal.SIGTERM)
        self._read_events()
        return self.code is None

    def end(self) -> None:
        """End the daemon, if it still runs."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._daemon.poll() is None:
            self._daemon.send_signal(signal.SIGTERM)
            try:
                self._daemon.wait(STOP_WITHIN)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()

    def log(self) -> str:
        """The last lines that the daemon printed."""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])

    def _look(self) -> None:
        """Ask for the status; a daemon that is not up yet, or no more, has none."""
        try:
            if self._client is None:
                self._client = Client(str(self._run_dir / "control.sock"))
            self.document = self._client.call("status", timeout=5.0)
        except (NoDaemon, Denied):
            if self._client is not None:
                self._client.close()
                self._client = None

    def _kill_one(self) -> None:
        """Kill a worker that has items in hand, once, in the middle."""
        if self._killed or self.stops or self.ended < self.expected * KILL_AT:
            return
        for worker in (self.document or {}).get("workers", []):
            if worker["state"] == "running" and worker["pid"] is not None and worker["items"]["in_flight"]:
                self._killed = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker["pid"], signal.SIGKILL)
                return

    def _read_events(self) -> None:
        self.fresh.clear()
        while (line := next(self._events)) is not None:
            event = decode_event(line)
            if event is None:
                continue
            self.incidents.note(event)
            if event.event in TOLD:
                self.recent.append(event)
                self.fresh.append(event)

    def _stop(self, _signum: int, _frame: object) -> None:
        """Ctrl-C: the daemon drains; once more, and it stops at once."""
        self.stops += 1
        if self._started:
            self._daemon.send_signal(signal.SIGTERM)

    @property
    def items(self) -> dict[str, int]:
        """The counts of the run, as far as they are known."""
        groups = self.document["groups"] if self.document is not None else []
        return {name: count or 0 for group in groups for name, count in group["items"].items()}

    @property
    def ended(self) -> int:
        """Items done or failed for good."""
        items = self.items
        return items.get("done", 0) + items.get("failed", 0)

    @property
    def eta(self) -> float | None:
        """Seconds to the end at the present rate."""
        rates = [group["rate_per_minute"] for group in (self.document or {}).get("groups", [])]
        return (self.expected - self.ended) / rates[0] * 60 if rates and rates[0] else None


def configuration(url: str) -> dict[str, Any]:
    """The demo's configuration: small limits, so that a minute shows what otherwise takes days."""
    return {
        "supervisor": {"state_dir": "state", "runtime_dir": "run"},
        "workers": {
            GROUP: {
                "entrypoint": "scraper_supervisor.console.demo.scraper:scrape",
                "count": 2,
                "env": {"DEMO_SITE_URL": url},
            }
        },
        "resources": {
            "browser_memory": "550MiB",
            "sample_interval": "500ms",
            "host_memory_percent": "off",
            "disk_free": "50MiB",
        },
        "retry": {"default": {"base_delay": "250ms", "max_delay": "2s", "max_attempts": 8}},
        "checkpoint": {"interval": "5s"},
    }


def end_leftovers(socket_path: str) -> None:
    """Kill what a daemon that died left behind: processes whose environment names its socket."""
    mark = f"{ENV_SOCKET}={socket_path}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            # Ended meanwhile, or another user's: not ours to end.
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)


def _short_folder() -> str | None:
    """Where the demo's folder goes, None for the usual place: all that the demo leaves is to be in it."""
    usual = os.path.join(tempfile.gettempdir(), f"{PREFIX}12345678")
    return None if len(usual.encode()) <= LONGEST_FOLDER else "/tmp"


# ---- what is shown ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _shown(app: App, stage: Stage) -> Generator[Callable[[], None]]:
    """A function that shows the stage as it now is: live on a terminal, as lines elsewhere."""
    if not app.out.is_terminal:
        yield _Lines(app, stage).show
        return
    with Live(console=app.out, auto_refresh=False, transient=True) as live:
        yield lambda: live.update(frame(stage, app.out.width), refresh=True)


def frame(stage: Stage, width: int) -> Group:
    """One picture of the demo."""
    line = Table.grid(padding=(0, 2))
    bar = views.Bar(stage.ended, max(1, stage.expected), max(10, min(40, width - 45)))
    line.add_row(
        bar, f"{stage.ended}/{stage.expected}", f"ETA {views.seconds(stage.eta)}", views.seconds(stage.elapsed)
    )
    parts: list[Any] = [line, Text(_counts(stage), style="dim"), Text()]
    if stage.document is None:
        parts.append(Text("starting"))
    else:
        parts.append(views.workers(stage.document["workers"], width))
    parts.append(Text())
    for event in stage.recent:
        text = views.event_line(event)
        text.truncate(width, overflow="ellipsis")
        parts.append(text)
    if stage.stops:
        parts.append(Text("\ndraining: what is in hand is finished; Ctrl-C again stops at once", style="yellow"))
    return Group(*parts)


def _counts(stage: Stage) -> str:
    items = stage.items
    return (
        f"{items.get('in_flight', 0)} in flight, {items.get('waiting', 0)} waiting for a retry,"
        f" {stage.incidents.retries} attempts failed and were repeated, {items.get('failed', 0)} failed for good"
    )


class _Lines:
    """The demo as plain lines."""

    def __init__(self, app: App, stage: Stage) -> None:
        self._app = app
        self._stage = stage
        self._next = 0.0

    def show(self) -> None:
        """Print the events since, and every few seconds how far it is."""
        stage = self._stage
        for event in stage.fresh:
            click.echo(views.event_line(event).plain)
        if stage.elapsed >= self._next:
            self._next = stage.elapsed + PLAIN_EVERY
            eta = views.seconds(stage.eta)
            click.echo(
                clean(f"{stage.elapsed:.0f} s: {stage.ended}/{stage.expected} ended, ETA {eta}, {_counts(stage)}")
            )
