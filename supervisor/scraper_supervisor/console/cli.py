"""The command line: the commands, and how each ends."""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import TYPE_CHECKING, Final

import click

from scraper_supervisor import __version__
from scraper_supervisor.console.commands import config as config_commands
from scraper_supervisor.console.commands.abort import abort
from scraper_supervisor.console.commands.checkpoints import checkpoint
from scraper_supervisor.console.commands.control import CONTROL
from scraper_supervisor.console.commands.items import items, results
from scraper_supervisor.console.commands.run import run
from scraper_supervisor.console.commands.top import top
from scraper_supervisor.console.commands.transfer import export, import_
from scraper_supervisor.console.commands.watch import events, status
from scraper_supervisor.console.context import FAILED, INTERRUPTED, App, Commands, Refused, json_option, pass_app
from scraper_supervisor.console.demo.command import demo

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM: Final = "scraper-supervisor"
ENV_TRACEBACK: Final = "SCRAPER_SUPERVISOR_TRACEBACK"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--config", metavar="FILE", help="The configuration file; every command takes it too.")
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, config: str | None) -> None:
    """Keep browser scrapers running: restarts, memory limits, a durable queue, checkpoints and an abort policy."""
    ctx.obj = App(config)


@cli.command()
@json_option
@pass_app
def check(app: App, as_json: bool) -> None:
    """Validate the configuration, printing every error at once."""
    _tell(app, config_commands.check(app.config), as_json=as_json)


@cli.command()
@json_option
@pass_app
def config(app: App, as_json: bool) -> None:
    """Print the configuration in effect, defaults filled in, as TOML."""
    _tell(app, config_commands.config(app.config), as_json=as_json)


@cli.command()
@click.argument("file", required=False)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@pass_app
def init(app: App, file: str | None, force: bool) -> None:
    """Write a commented starter configuration to FILE [./supervisor.toml]."""
    _tell(app, config_commands.init(file, force=force), as_json=False)


def _tell(app: App, outcome: config_commands.CommandOutcome, *, as_json: bool) -> None:
    if as_json:
        app.emit(outcome.document)
    elif outcome.code:
        raise Refused(outcome.text, outcome.code)
    else:
        click.echo(outcome.text)
    if outcome.code:
        raise click.exceptions.Exit(outcome.code)


items.add_command(export)
items.add_command(import_)
for command in (run, demo, status, top, events, *CONTROL, items, results, checkpoint, abort):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code. A traceback is shown for a bug alone, and then asks to be reported."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding shows an escape, not an error
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(args=None if arguments is None else list(arguments), prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        code = INTERRUPTED
    except Exception as error:  # noqa: BLE001 - people get a sentence; who wants the traceback asks for it
        code = _bug(error)
    sys.exit(code if isinstance(code, int) else 0)


def _bug(error: Exception) -> int:
    if os.environ.get(ENV_TRACEBACK):
        traceback.print_exception(error)
    click.echo(f"error: a bug in {PROGRAM} {__version__}: {type(error).__name__}: {error}", err=True)
    click.echo(f"Please report it, with the traceback that {ENV_TRACEBACK}=1 in the environment shows.", err=True)
    return FAILED
