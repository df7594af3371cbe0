"""`abort replay`: what the configured policy would have made of a recorded events file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from scraper_supervisor.console.context import App, HelpfulCommand, clean, json_option, pass_app
from scraper_supervisor.core.policy.holds.replay import Replay, ReplayReport

if TYPE_CHECKING:
    from typing import BinaryIO

LONGEST: Final = 1_048_576  # bytes of a line: what is longer is none of our events, and is read in pieces


@click.command("replay", cls=HelpfulCommand)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
@pass_app
def abort_replay(app: App, file: Path, as_json: bool) -> None:
    """Tell whether and when the configured policy would have held and aborted what FILE recorded.

    FILE is an event log (events.jsonl) or anything with such lines; the daemon is not asked. The attempts of a scope
    that is held in the replay do not count, but for those that stand for its probes.
    """
    settings = app.load().settings
    replay = Replay(settings.abort, {name: group.abort for name, group in settings.groups.items()})
    with file.open("rb") as lines:
        report = _read(replay, lines)
    if as_json:
        app.emit(msgspec.to_builtins(report))
        return
    for one in report.decisions:
        app.print(clean(f"{one.time}  {one.action:8} {one.reason}"))
    app.print(_summary(report))


def _read(replay: Replay, lines: BinaryIO) -> ReplayReport:
    while line := lines.readline(LONGEST):
        replay.feed(line)
    return replay.report()


def _summary(report: ReplayReport) -> str:
    if not report.items:
        return "no votes: there is no attempt in it that would count"
    held = sum(one.action == "held" for one in report.decisions)
    aborted = sum(one.action == "aborted" for one in report.decisions)
    return f"{report.items} votes from {report.since} to {report.until}: {held} holds, {aborted} aborts"
