"""`run`: the daemon in the foreground, with a configuration or with nothing but a function."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
import unicodedata
from typing import Final

import click
from msgspec.structs import replace

from scraper_supervisor.console.commands.config import INVALID
from scraper_supervisor.console.context import USAGE, App, HelpfulCommand, Refused, pass_app
from scraper_supervisor.console.once import as_stream, shown, summary
from scraper_supervisor.core.config.parser import GROUP_NAME, parse
from scraper_supervisor.core.config.paths import Location, folders
from scraper_supervisor.store.config_file import Loaded, working_folder
from scraper_supervisor.store.errors import StoreError
from scraper_supervisor.store.opening import location, open_for_reading

_ENTRYPOINT: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_LONGEST_NAME: Final = 48  # characters of a group's name


@click.command(cls=HelpfulCommand)
@click.argument("entrypoint", metavar="[MODULE:FUNCTION]", required=False)
@click.option("--once", is_flag=True, help="End when nothing is left to do.")
@click.option("--fresh", is_flag=True, help="Begin a new run, whatever the last one was.")
@pass_app
def run(app: App, entrypoint: str | None, once: bool, fresh: bool) -> None:
    """Run the daemon in the foreground.

    MODULE:FUNCTION needs no configuration file: one worker, all defaults, state in ./.scraper-supervisor, and it ends
    when nothing is left to do, as with --once.

    Exit codes: 0 done; 1 items are left and no worker is able; 65 the ledger does not open; 69 aborted by policy; 78
    invalid configuration, or every worker says that its own set-up is wrong.
    """
    if entrypoint is None:
        loaded = app.load()
    else:
        if app.config is not None:
            raise Refused("MODULE:FUNCTION stands in for a configuration file: give it or --config, not both", USAGE)
        loaded, once = simple(entrypoint, working_folder(None, {})), True
        if not fresh:
            _same_function(loaded, entrypoint)
    # Late: the other commands need not wait for uvloop and psutil to load.
    from scraper_supervisor.daemon import start as daemon

    begin = time.monotonic()
    try:
        with shown() if once else contextlib.nullcontext() as line:
            screen = daemon.Screen(as_stream(line, sys.stderr), None if line is None else line.groups)
            ended = daemon.run(loaded, once=once, fresh=fresh, screen=screen)
    except daemon.CannotStart as error:
        raise Refused(str(error), error.code) from None
    if once and ended.code != INVALID:
        seconds = time.monotonic() - begin
        app.note(summary(loaded, ended.groups, ended.retries, ended.recoveries, seconds, app.config))
    if ended.code:
        raise Refused(ended.reason, ended.code)
    raise click.exceptions.Exit(0)


def _same_function(loaded: Loaded, entrypoint: str) -> None:
    """An unfinished run goes on by the function that began it: another one's items are none of its own.

    Raises:
        Refused: another function of that name began it.
    """
    (group,) = loaded.settings.groups
    try:
        with open_for_reading(location(loaded)) as ledger:
            run, known = next(iter(ledger.runs(group)), None), ledger.entrypoint(group)
    except (FileNotFoundError, StoreError):
        return  # there is none, or the daemon says what is wrong with it
    if run is not None and run.state != "completed" and known not in (None, entrypoint):
        remedy = f"finish it with: run {known}; or begin a new one with: run {entrypoint} --fresh"
        raise Refused(f"run {run.run} of {group} is {known}'s, and {entrypoint} can't go on with it; {remedy}")


def simple(entrypoint: str, cwd: str) -> Loaded:
    """The configuration of `run MODULE:FUNCTION`.

    Raises:
        Refused: `entrypoint` is not of that form.
        InvalidSettings: the path of a socket would be too long.
    """
    if not _ENTRYPOINT.fullmatch(entrypoint):
        hint = ""
        if entrypoint.endswith(".py") or ".py:" in entrypoint or "/" in entrypoint:
            module = os.path.basename(entrypoint.partition(":")[0]).removesuffix(".py") or "my_scraper"
            hint = f"; a module is named as in an import: {module}:{entrypoint.partition(':')[2] or 'scrape'}"
        raise Refused(f'{entrypoint}: expected MODULE:FUNCTION, such as "my_scraper:scrape"{hint}', USAGE)
    name = group_name(entrypoint.partition(":")[2])
    settings = parse({"workers": {name: {"entrypoint": entrypoint}}}, cwd)
    found = folders(settings.supervisor, {}, cwd, Location(None, "folder", cwd))
    placed = replace(settings.supervisor, state_dir=found.state_dir, runtime_dir=found.runtime_dir)
    return Loaded(None, found, cwd, settings=replace(settings, supervisor=placed))


def group_name(function: str) -> str:
    """A function's name as the name of a group."""
    plain = unicodedata.normalize("NFKD", function).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9_-]+", "-", plain).strip("_-")[:_LONGEST_NAME]
    return name if GROUP_NAME.fullmatch(name) else "scraper"
