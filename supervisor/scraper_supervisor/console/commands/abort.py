"""`abort`: what the abort policy sees or did, and another chance; with the daemon running or not."""

from __future__ import annotations

import click

from scraper_supervisor.console import views
from scraper_supervisor.console.access import daemon_or
from scraper_supervisor.console.client import Client, NoDaemon
from scraper_supervisor.console.commands.replay import abort_replay
from scraper_supervisor.console.context import App, Commands, json_option, pass_app
from scraper_supervisor.console.offline_abort import clear_offline, last_abort


@click.group(cls=Commands)
def abort() -> None:
    """The abort policy: what it sees, and starting again after it."""


@abort.command("status")
@json_option
@pass_app
def abort_status(app: App, as_json: bool) -> None:
    """Show the abort window: every scope that is not normal, and the largest of the others.

    Without a daemon: what the last one aborted, and why, as the event log and the ledger have it.
    """
    try:
        with app.connect() as client:
            document = client.call("status")["abort"]
    except NoDaemon:
        document = last_abort(app.place(), app.settings())
        app.note("no daemon answers; this is how the last one left it")
    if as_json:
        app.emit(document)
    else:
        app.print(views.abort_view(document))


@abort.command("clear")
@click.option("--group", metavar="NAME", help="Only this group.")
@json_option
@pass_app
def abort_clear(app: App, group: str | None, as_json: bool) -> None:
    """Give what was aborted another chance; what is not aborted stays as it is."""
    names = () if group is None else (group,)
    answer = daemon_or(app, lambda: clear_offline(app.place(), app.settings(), names))
    if isinstance(answer, Client):
        with answer as client:
            answer = client.call("abort.clear", names=names)
    if as_json:
        app.emit(answer)
    elif answer["cleared"]:
        click.echo(f"cleared: {', '.join(views.scope_name(scope) for scope in answer['cleared'])}")
    else:
        click.echo("nothing is aborted: nothing was changed")


abort.add_command(abort_replay)
