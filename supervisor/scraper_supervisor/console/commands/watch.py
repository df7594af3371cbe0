"""`status` and `events`: looking, without changing anything."""

from __future__ import annotations

import re
import time
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec
from msgspec import Struct

from scraper_supervisor.console import views
from scraper_supervisor.console.context import USAGE, App, HelpfulCommand, Refused, clean, json_option, pass_app
from scraper_supervisor.console.legend import LEGEND
from scraper_supervisor.core.config.units import parse_duration
from scraper_supervisor.core.formats.event_names import SEVERITIES, Severity
from scraper_supervisor.store.event_log import EVENTS_FILE, EventRecord, decode_event, exists, follow_lines, read_events

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Group

POLL: Final = 0.25  # seconds between two looks at a followed file
TAIL: Final = 10  # events that `events --follow` begins with


class _Explained(HelpfulCommand):
    """A command whose help explains the figures that it shows."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """Write the legend at the end of the help."""
        with formatter.section("Figures"):
            formatter.write_dl(LEGEND)


@click.command(cls=_Explained)
@click.argument("worker", required=False)
@json_option
@pass_app
def status(app: App, worker: str | None, as_json: bool) -> None:
    """Show how everything stands, or one WORKER in detail."""
    with app.connect() as client:
        document = client.call("status") if worker is None else client.call("status", names=[worker])
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


# ---- events ----------------------------------------------------------------------------------------------------------


@click.command(cls=HelpfulCommand)
@click.option("--follow", "-f", is_flag=True, help="Go on with what is written from now on.")
@click.option("--since", metavar="T", help='From then on: a time ("2026-05-01T12:00:00Z") or an age ("10m").')
@click.option("--worker", metavar="W", help="Only of this worker.")
@click.option("--severity", type=click.Choice(SEVERITIES), help="Only of this severity, and worse.")
@click.option("--incident", metavar="ID", help="Only of this incident: events that bear this correlation_id.")
@click.option("--json", "as_json", is_flag=True, help="One event a line, as JSON.")
@pass_app
def events(
    app: App,
    follow: bool,
    since: str | None,
    worker: str | None,
    severity: Severity | None,
    incident: str | None,
    as_json: bool,
) -> None:
    """Print the event log, with the daemon running or not; its times are UTC."""
    path = Path(app.place().folders.state_dir) / EVENTS_FILE
    start = None if since is None else since_time(since, datetime.now(UTC))
    wanted = _Wanted(start, worker, severity, incident)
    if follow:
        found = _recent(path, wanted)
    else:
        if not exists(path):
            raise Refused(f"{path}: there is no event log yet")
        found = (event for event in read_events(path) if wanted.fits(event))
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


class _Wanted(Struct, frozen=True):
    """Which events are asked for: those that fit all that is given."""

    since: str | None
    worker: str | None
    severity: Severity | None
    incident: str | None

    def fits(self, event: EventRecord) -> bool:
        """True if the event is asked for."""
        return (
            (self.since is None or event.time >= self.since)
            and self.worker in (None, event.worker)
            and self.incident in (None, event.correlation_id)
            and (self.severity is None or _rank(event.severity) >= _rank(self.severity))
        )


def _rank(severity: str) -> int:
    """How bad a severity is; one that we do not know is the worst, so that it is not missed."""
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


def _recent(path: Path, wanted: _Wanted) -> Iterator[EventRecord]:
    """The last events, or all since some time, and then what is written."""
    past: deque[EventRecord] = deque(maxlen=TAIL if wanted.since is None else None)
    caught_up = False
    for line in follow_lines(path):
        if line is None:  # this is as far as it goes at present
            caught_up = True
            yield from past
            past.clear()
            time.sleep(POLL)
            continue
        event = decode_event(line)
        if event is None or not wanted.fits(event):
            continue
        if caught_up:
            yield event
        else:
            past.append(event)
