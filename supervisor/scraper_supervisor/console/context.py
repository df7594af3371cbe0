"""What every command shares: the two consoles, the configuration, the daemon's socket and how errors are told."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import click
import msgspec
from rich.console import Console

from scraper_supervisor.console.client import Client, Denied, NoDaemon
from scraper_supervisor.console.commands.config import invalid
from scraper_supervisor.console.serving import serving
from scraper_supervisor.core.config.parser import InvalidSettings
from scraper_supervisor.core.config.paths import control_socket
from scraper_supervisor.core.config.settings import Settings
from scraper_supervisor.store.config_file import Loaded, Place, find_place, load_or_default, working_folder
from scraper_supervisor.store.errors import LedgerUnusable, NetworkFileSystem, StoreError
from scraper_supervisor.store.folders import noted_runtime_dir

if TYPE_CHECKING:
    from collections.abc import Callable

FAILED: Final = 1
USAGE: Final = 2
NO_DAEMON: Final = 3
DAMAGED: Final = 4
NO_LEDGER: Final = 65
INTERRUPTED: Final = 130
_WHOLE: Final = 10_000  # characters: no sentence of a help text is cut


class Refused(click.ClickException):
    """A command can't do what it was asked; the message goes to stderr, the code is the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]  # click documents it as set on the class or the instance

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message, as plain text: what came from a page or a file is no markup."""
        click.echo(f"error: {clean(self.message, keep_lines=True)}", file=file or sys.stderr)


class App:
    """One command's surroundings: `click` hands it to every command.

    Args:
        config: the value of --config.
    """

    def __init__(self, config: str | None = None) -> None:
        self.config = config
        # Made here and not at import, so that each sees the streams and the environment as they are now.
        self.out = Console(highlight=False, markup=False, emoji=False)

    def load(self) -> Loaded:
        """The configuration and its folders.

        Raises:
            InvalidSettings: with every problem.
        """
        return load_or_default(self.config, os.environ, working_folder(self.config, os.environ))

    def place(self) -> Place:
        """Where the folders are, whatever else is wrong in the file.

        Raises:
            InvalidSettings: there is no file, or what names the folders does not fit.
        """
        return find_place(self.config, os.environ, working_folder(self.config, os.environ))

    def settings(self) -> Settings:
        """The configuration, or all defaults where it is not valid: for what it only makes better."""
        try:
            return self.load().settings
        except InvalidSettings:
            return Settings()

    def connect(self) -> Client:
        """A connection to the daemon, which an invalid configuration does not keep from running.

        A daemon has told in its state folder where its sockets are: systemd, cron and `su` give each another runtime
        folder. One that still goes by an older state_dir is found by the file that it serves.

        Raises:
            NoDaemon: none answers.
            InvalidSettings: there is no configuration, or what names the folders does not fit.
        """
        place = self.place()
        noted = noted_runtime_dir(Path(place.folders.state_dir))
        paths = [place.folders.control_socket] if noted is None else [control_socket(noted)]
        if place.folders.control_socket not in paths:
            paths.append(place.folders.control_socket)
        nobody: list[NoDaemon] = []
        for path in paths:
            try:
                client = Client(path)
                other = client.serves(place.folders.state_dir)
            except NoDaemon as error:
                nobody.append(error)
                continue
            if other is None:
                return client
            client.close()
            reason = f"{path}: the daemon there serves {clean(other)}, not {place.folders.state_dir}"
            nobody.append(NoDaemon(f"{reason}; give this project a runtime_dir of its own in [supervisor]"))
        elsewhere = serving(place.path)
        if elsewhere is None:
            raise nobody[0]
        return elsewhere

    def print(self, *things: object) -> None:
        """Print for people."""
        self.out.print(*things, soft_wrap=all(isinstance(thing, str) for thing in things))

    def note(self, text: str) -> None:
        """Tell people something beside the output, on stderr."""
        click.echo(clean(text, keep_lines=True), err=True)

    def emit(self, document: object) -> None:
        """Write a JSON document to stdout."""
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2))

    def emit_line(self, document: object) -> None:
        """Write a JSON document to stdout in one line."""
        click.echo(msgspec.json.encode(document))


pass_app = click.make_pass_decorator(App)


def clean(text: str, *, keep_lines: bool = False) -> str:
    """The text without what would steer a terminal: control characters are shown as in Python."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or (keep_lines and c == "\n") else c.encode("unicode_escape").decode() for c in text
    )


def explained(error: Exception) -> click.ClickException | None:
    """An expected error as the message and exit code that a command ends with; None for a bug."""
    match error:
        case click.ClickException():
            return error
        case InvalidSettings():
            outcome = invalid(error)
            return Refused(outcome.text, outcome.code)
        case NoDaemon():
            return Refused(str(error), NO_DAEMON)
        case Denied() | StoreError():
            ledger = isinstance(error, LedgerUnusable | NetworkFileSystem)
            return Refused(str(error), NO_LEDGER if ledger else FAILED)
        case OSError():
            where = f"{error.filename}: " if error.filename is not None else ""
            return Refused(f"{where}{error.strerror or error}")
    return None


# ---- commands --------------------------------------------------------------------------------------------------------


def _set_config(ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        ctx.ensure_object(App).config = value
    return value


class HelpfulCommand(click.Command):
    """A command that takes --config."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--config"],
                metavar="FILE",
                help="The configuration file.",
                callback=_set_config,
                expose_value=False,
                is_eager=True,
            )
        )


class Commands(click.Group):
    """A group whose commands take --config and end with a message, never with a traceback."""

    command_class = HelpfulCommand
    group_class = type

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, each with its first sentence: click would cut that to what is left of the line."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, one.get_short_help_str(_WHOLE)) for name, one in found if one is not None and not one.hidden]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            quiet_stdout()
            raise click.exceptions.Exit(FAILED) from None
        except Exception as error:
            known = explained(error)
            if known is None or known is error:
                raise
            raise known from None


def quiet_stdout() -> None:
    """Nobody reads any more: what is still in the buffer must not make a noise at the interpreter's end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option --json, as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)
