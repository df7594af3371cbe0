"""What operators order: the daemon, its groups and its workers."""

from __future__ import annotations

from typing import Any, Final

import click

from scraper_supervisor.console import views
from scraper_supervisor.console.client import Denied
from scraper_supervisor.console.commands.config import INVALID
from scraper_supervisor.console.context import App, HelpfulCommand, Refused, pass_app

_no_wait = click.option("--no-wait", is_flag=True, help="Return at once, not when it is done.")


@click.command(cls=HelpfulCommand)
@pass_app
def reload(app: App) -> None:
    """Read the configuration again: all of it takes effect, or nothing."""
    with app.connect() as client:
        try:
            answer = client.call("reload", timeout=None)
        except Denied as error:
            raise Refused(_rejection(error), INVALID) from None
        click.echo(answer["summary"])
        try:
            client.call("reload.settle", timeout=None)  # the restarts that the change needs are part of it
        except Denied as error:
            raise Refused(f"the new configuration is in force, but a restart failed: {error}") from None


def _rejection(error: Denied) -> str:
    """Every problem in a line of its own; the message has them all in one."""
    problems = error.data.get("problems", []) if isinstance(error.data, dict) else []
    if not problems:
        return str(error)
    lines = [": ".join(part for part in (problem["path"], problem["message"]) if part) for problem in problems]
    return "\n  ".join(["the configuration was rejected, the old one goes on:", *lines])


@click.command(cls=HelpfulCommand)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@_no_wait
@pass_app
def stop(app: App, names: tuple[str, ...], no_wait: bool) -> None:
    """Drain and stop the daemon, or only groups and workers; these then stay stopped until `start`."""
    if names:
        _order(app, "stop", names, wait=not no_wait)
        return
    with app.connect() as client:
        client.stop(wait=not no_wait)
    app.note("the daemon is draining" if no_wait else "the daemon has stopped")


def _make(name: str, text: str, what: str = "NAME") -> click.Command:
    """A command that orders something of groups and workers."""

    @click.command(name, cls=HelpfulCommand, help=text)
    @click.argument("names", metavar=f"[{what}]...", nargs=-1)
    @_no_wait
    @pass_app
    def command(app: App, names: tuple[str, ...], no_wait: bool) -> None:
        _order(app, name, names, wait=not no_wait)

    return command


@click.command(cls=HelpfulCommand)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--fresh", is_flag=True, help="Begin a new run, whose workers start without their checkpoints.")
@_no_wait
@pass_app
def start(app: App, names: tuple[str, ...], fresh: bool, no_wait: bool) -> None:
    """Start what is stopped, drained, failed or completed; a completed group begins a new run."""
    _order(app, "start", names, wait=not no_wait, fresh=fresh)


def _order(app: App, method: str, names: tuple[str, ...], *, wait: bool, **params: Any) -> None:
    """Have it done, and tell where the workers stand then."""
    with app.connect() as client:
        answer = client.call(method, timeout=None, names=names, wait=wait, **params)
    workers = answer.get("workers", {})
    if isinstance(workers, dict):
        for name, state in sorted(workers.items()):
            app.out.print(f"{name}: ", views.state(state), sep="")
    else:
        click.echo(f"{method}: ordered for {', '.join(workers) or 'no worker'}")


pause = _make("pause", "Hand out no further items; what is in hand is finished. Outlives the daemon.")
resume = _make("resume", "End a pause.")
drain = _make("drain", "Finish what is in hand and end the workers; they stay away until `start`.")
restart = _make("restart", "End workers at an item boundary and start them again.")
recycle = _make("recycle", "Replace the browsers of workers at an item boundary.", "WORKER")

CONTROL: Final = (reload, stop, pause, resume, drain, start, restart, recycle)
