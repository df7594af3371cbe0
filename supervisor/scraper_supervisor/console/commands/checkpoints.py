"""`checkpoint`: the files are read here, with the daemon running or not; what is restored goes through the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import msgspec

from scraper_supervisor.console import views
from scraper_supervisor.console.access import daemon_or
from scraper_supervisor.console.client import Client
from scraper_supervisor.console.commands.ledger import ledger_files, restore_ledger
from scraper_supervisor.console.context import (
    DAMAGED,
    App,
    Commands,
    Refused,
    clean,
    json_option,
    pass_app,
)
from scraper_supervisor.console.offline_restore import restore_offline
from scraper_supervisor.core.formats.checkpoint_file import Damaged, TooNew
from scraper_supervisor.core.ops.state_ops import state_of_whom
from scraper_supervisor.store.opening import LedgerLocation, location, must_be_readable
from scraper_supervisor.store.states.reading import FOLDER, CheckpointReader, NoSuchGeneration
from scraper_worker.protocol import is_slot

if TYPE_CHECKING:
    from collections.abc import Callable

FC = TypeVar("FC", bound="Callable[..., Any]")
LISTED: Final = ("worker", "generation", "schema", "saved_at", "bytes", "path")


def _slot(_: click.Context, __: click.Parameter, slot: str | None) -> str | None:
    if slot is not None and not is_slot(slot):
        raise click.BadParameter(f'expected [a-z][a-z0-9-]{{0,15}}, and not "corrupt", got {slot!r}')
    return slot


def _in(slot: str | None) -> dict[str, str]:
    """What a document says of the slot; nothing for the main state."""
    return {} if slot is None else {"slot": slot}


def slot_option(text: str) -> Callable[[FC], FC]:
    """`--slot`, with what it means for a command."""
    return click.option("--slot", callback=_slot, metavar="SLOT", help=text)


@click.group(cls=Commands)
def checkpoint() -> None:
    """The states that workers saved."""


@checkpoint.command("list")
@click.argument("worker", required=False)
@slot_option("Only what is in this slot [the main states, and all slots].")
@json_option
@pass_app
def list_(app: App, worker: str | None, slot: str | None, as_json: bool) -> None:
    """List the checkpoints of all workers, or of WORKER; the newest first."""
    found = CheckpointReader(_where(app, worker).state_dir).list(worker, slot)
    if as_json:
        documents = [{name: getattr(one, name) for name in LISTED} | _in(one.slot) for one in found]
        app.emit({"checkpoints": documents})
        return
    columns = [
        ("WORKER", False),
        ("SLOT", False),
        ("GENERATION", True),
        ("SAVED", False),
        ("SIZE", True),
        ("SCHEMA", False),
    ]
    rows = [
        (
            one.worker,
            one.slot or "",
            str(one.generation),
            one.saved_at or "not usable",
            views.size(one.bytes),
            clean(one.schema or ""),
        )
        for one in found
    ]
    app.print(views.grid(columns, rows) if rows else "no checkpoints")
    for one in found:
        if one.problem is not None:
            app.note(f"{one.path}: {one.problem}")


@checkpoint.command()
@click.argument("worker")
@click.option("--generation", type=int, help="Which one [the newest].")
@slot_option("From which slot [the main state].")
@json_option
@pass_app
def show(app: App, worker: str, generation: int | None, slot: str | None, as_json: bool) -> None:
    """Print one checkpoint of WORKER, its state included."""
    try:
        found = CheckpointReader(_where(app, worker).state_dir).show(worker, generation, slot)
    except NoSuchGeneration as error:
        raise Refused(str(error)) from None
    except Damaged as error:
        which = "its newest checkpoint" if generation is None else f"checkpoint {generation}"
        raise Refused(f"{state_of_whom(worker, slot)}: {which} is damaged: {error.reason}", DAMAGED) from None
    except TooNew as error:
        which = "its newest checkpoint" if generation is None else f"checkpoint {generation}"
        raise Refused(f"{state_of_whom(worker, slot)}: {which} cannot be shown: {error.reason}") from None
    header: dict[str, Any] = msgspec.to_builtins(found.header)
    if as_json:
        app.emit({**header, "sha256": found.sha256, "state": found.state})
        return
    items = header.pop("items")
    counts = ", ".join(f"{items[name]} {name}" for name in ("pending", "done", "failed"))
    rows = [(name.replace("_", " "), clean(str(value))) for name, value in header.items()]
    app.print(views.facts([*rows, ("items", counts), ("sha256", found.sha256)]))
    click.echo(msgspec.json.format(found.state, indent=2))


@checkpoint.command()
@click.argument("worker", required=False)
@slot_option("Only what is in this slot [everything].")
@json_option
@pass_app
def verify(app: App, worker: str | None, slot: str | None, as_json: bool) -> None:
    """Read every checkpoint and the ledger, or the checkpoints of WORKER; nothing is moved. Exit code 4: damage."""
    where = _where(app, worker)
    files: list[dict[str, Any]] = [
        {
            "path": one.path,
            "kind": "checkpoint",
            "worker": one.worker,
            "generation": one.generation,
            "ok": one.ok,
            "reason": one.reason,
        }
        | _in(one.slot)
        for one in CheckpointReader(where.state_dir).verify(worker, slot)
    ]
    if worker is None and slot is None:
        files += ledger_files(where)
    damaged = [file for file in files if not file["ok"]]
    if as_json:
        app.emit({"ok": not damaged, "files": files})
    else:
        for file in damaged:
            click.echo(clean(f"{file['path']}: {file['reason']}"))
        click.echo(f"{len(files)} files read, {len(damaged)} damaged")
    if damaged:
        raise click.exceptions.Exit(DAMAGED)


@checkpoint.command()
@click.argument("worker", required=False)
@click.option("--generation", type=click.IntRange(min=1), help="Which one.")
@slot_option("Of which slot [the main state].")
@click.option("--ledger", is_flag=True, help="The ledger, from its newest sound backup; while no daemon runs.")
@json_option
@pass_app
def restore(
    app: App, worker: str | None, generation: int | None, slot: str | None, ledger: bool, as_json: bool
) -> None:
    """Write an older state of WORKER as a new newest one, and restart the worker from it.

    Returns when the worker is back. Without a daemon, the worker finds the state when it is next started. With --ledger
    and no WORKER, a damaged ledger is brought back from its newest sound backup, and what that lacks is listed.
    """
    if ledger:
        if worker is not None or generation is not None or slot is not None:
            raise click.UsageError("--ledger is given alone: neither WORKER nor --generation nor --slot goes with it")
        restore_ledger(app, as_json)
        return
    if worker is None or generation is None:
        raise click.UsageError("expected WORKER and --generation N, or --ledger; 'checkpoint list' shows what there is")
    _restore_state(app, worker, generation, slot, as_json=as_json)


def _restore_state(app: App, worker: str, generation: int, slot: str | None, *, as_json: bool) -> None:
    answer = daemon_or(app, lambda: restore_offline(app.place(), app.settings(), worker, generation, slot))
    if isinstance(answer, Client):
        with answer as client:
            asked = {"names": [worker], "generation": generation, **_in(slot)}
            answer = client.call("checkpoint.restore", timeout=None, **asked)
    if as_json:
        app.emit(answer)
        return
    click.echo(clean(f"{state_of_whom(worker, slot)}: checkpoint {generation} is restored as {answer['generation']}"))
    if answer["state"] is not None:
        app.out.print(f"{worker}: ", views.state(answer["state"]), sep="")


def _where(app: App, worker: str | None) -> LedgerLocation:
    """The location; its state folder is there, and in it something of that worker.

    Raises:
        Refused: there is nothing.
    """
    where = location(app.place())
    state_dir = where.state_dir
    if not state_dir.is_dir():
        raise Refused(f"{state_dir}: there is no state folder yet")
    must_be_readable(state_dir)  # else nothing would be found in it, and no reason told
    if (state_dir / FOLDER).is_dir():
        must_be_readable(state_dir / FOLDER)
    if worker is None:
        return where
    if not worker or "/" in worker or worker.startswith(".") or not (state_dir / FOLDER / worker).is_dir():
        raise Refused(f"{worker or repr(worker)}: no worker of that name has checkpoints in {state_dir / FOLDER}")
    return where
