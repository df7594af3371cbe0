"""`status`, `top` and `events`: looking, without changing anything."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import time
import tty
from collections import deque
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec
from rich.console import Group
from rich.live import Live
from rich.text import Text

from scraper_supervisor.console import views
from scraper_supervisor.console.context import USAGE, App, HelpfulCommand, Refused, clean, json_option, pass_app
from scraper_supervisor.core.config.units import parse_duration
from scraper_supervisor.store.event_log import EVENTS_FILE, EventRecord, decode_event, exists, follow_lines, read_events

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

REFRESH: Final = 1.0  # seconds between two looks of `top`
POLL: Final = 0.25  # seconds between two looks at a followed file
TAIL: Final = 10  # events that `events --follow` begins with


@click.command(cls=HelpfulCommand)
@click.argument("worker", required=False)
@json_option
@pass_app
def status(app: App, worker: str | None, as_json: bool) -> None:
    """Show how everything stands, or one WORKER in detail."""
    with app.connect() as client:
        document = client.call("status")
    if worker is None:
        _show(app, document, views.overview(document, app.out.width), as_json=as_json)
        return
    found = next((one for one in document["workers"] if one["name"] == worker), None)
    if found is None:
        known = ", ".join(one["name"] for one in document["workers"]) or "none"
        raise Refused(f"no worker is named {worker!r}; known are: {known}")
    _show(app, found, views.worker_view(found), as_json=as_json)


def _show(app: App, document: dict[str, Any], view: Group, *, as_json: bool) -> None:
    if as_json:
        app.emit(document)
    else:
        app.print(view)


@click.command(cls=HelpfulCommand)
@pass_app
def top(app: App) -> None:
    """Show how everything stands, live on the full screen; q ends it."""
    if not (app.out.is_terminal and sys.stdin.isatty()):
        raise Refused("top needs a terminal; `status` prints the same once", USAGE)
    hint = Text("q: quit", style="dim")
    with app.connect() as client, _keys() as keys, Live(console=app.out, screen=True, auto_refresh=False) as live:
        while True:
            document = client.call("status")
            live.update(Group(views.overview(document, app.out.width), Text(), hint), refresh=True)
            if keys(REFRESH) in ("q", "Q"):
                return


@contextmanager
def _keys() -> Generator[Callable[[float], str]]:
    """Reads keys from the terminal: a function that waits some seconds for one, and gives "" if none came."""
    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)

    def key(wait: float) -> str:
        ready, _, _ = select.select([handle], [], [], wait)
        return os.read(handle, 1).decode(errors="replace") if ready else ""

    tty.setcbreak(handle)
    try:
        yield key
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)


# ---- events ----------------------------------------------------------------------------------------------------------


@click.command(cls=HelpfulCommand)
@click.option("--follow", "-f", is_flag=True, help="Go on with what is written from now on.")
@click.option("--since", metavar="T", help='From then on: a time ("2026-05-01T12:00:00Z") or an age ("10m").')
@click.option("--json", "as_json", is_flag=True, help="One event a line, as JSON.")
@pass_app
def events(app: App, follow: bool, since: str | None, as_json: bool) -> None:
    """Print the event log; with the daemon running or not."""
    path = Path(app.load().folders.state_dir) / EVENTS_FILE
    start = None if since is None else since_time(since, datetime.now(UTC))
    if follow:
        found = _recent(path, start)
    else:
        if not exists(path):
            raise Refused(f"{path}: there is no event log yet")
        found = (event for event in read_events(path) if start is None or event.time >= start)
    for event in found:
        if as_json:
            app.emit_line(
                {
                    name: value
                    for name, value in msgspec.structs.asdict(event).items()
                    if value is not None or name == "data"
                }
            )
        else:
            app.out.print(views.event_line(event), soft_wrap=True)


def since_time(text: str, now: datetime) -> str:
    """The time that --since means, as the event log writes times (RFC 3339 UTC): such strings sort by time.

    Raises:
        Refused: it is neither a time nor an age.
    """
    try:
        if re.match(r"\d{4}-", text):
            moment = datetime.fromisoformat(text)
            moment = moment.astimezone(UTC)  # one without a zone is this machine's
        else:
            moment = now - timedelta(seconds=parse_duration(float(text) if text.isdecimal() else text))
        return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError):
        expected = 'expected a time ("2026-05-01T12:00:00Z") or an age ("30s", "10m", "2h")'
        raise Refused(f"--since: {expected}, got {clean(text)!r}", USAGE) from None


def _recent(path: Path, start: str | None) -> Iterator[EventRecord]:
    """The last events, or all since `start`, and then what is written."""
    past: deque[EventRecord] = deque(maxlen=TAIL if start is None else None)
    caught_up = False
    for line in follow_lines(path):
        if line is None:  # this is as far as it goes at present
            caught_up = True
            yield from past
            past.clear()
            time.sleep(POLL)
            continue
        event = decode_event(line)
        if event is None or (start is not None and event.time < start):
            continue
        if caught_up:
            yield event
        else:
            past.append(event)
