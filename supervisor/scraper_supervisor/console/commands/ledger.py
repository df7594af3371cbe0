"""`checkpoint restore --ledger`: the ledger from its newest sound backup, and what that lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from scraper_supervisor.console import views
from scraper_supervisor.console.context import App, Refused, clean
from scraper_supervisor.store import maintenance
from scraper_supervisor.store.errors import Locked
from scraper_supervisor.store.locks import FolderLock
from scraper_supervisor.store.opening import LedgerLocation, location

if TYPE_CHECKING:
    from scraper_supervisor.store.maintenance import Restored


def restore_ledger(app: App, as_json: bool) -> None:
    """Put the newest sound backup in the place of a damaged ledger, and list what is missing.

    Raises:
        Refused: a daemon runs, or there is no state folder.
        StoreError: the ledger is sound, or there is no sound backup.
    """
    where = location(app.place())
    state_dir = where.state_dir
    if not state_dir.is_dir():
        raise Refused(f"{state_dir}: there is no state folder yet")
    try:
        lock = FolderLock(state_dir, command="checkpoint restore --ledger")
    except Locked as error:
        if error.command is not None:
            raise Refused(f"{error}; try again when it is done") from None
        raise Refused(f"{error}; 'scraper-supervisor stop' first: no daemon may be running meanwhile") from None
    with lock:
        done = maintenance.restore_ledger(where)
    if as_json:
        app.emit(done)
    else:
        _tell(app, done)


def ledger_files(where: LedgerLocation) -> list[dict[str, Any]]:
    """The ledger and its backups as `checkpoint verify` lists them; a seal if it is itself damaged."""
    return [
        {"path": str(one.path), "kind": "ledger", "ok": one.reason is None, "reason": one.reason}
        for one in maintenance.check(where)
    ]


def _tell(app: App, done: Restored) -> None:
    for one in done.unsound:
        app.note(f"{one.path}: passed over: {one.reason}")
    click.echo(f"restored from {clean(done.backup)}, the ledger as it was at {done.backup_at}")
    click.echo(clean(f"it was damaged: {done.damage}"))
    for path in done.moved:
        click.echo(f"moved to {clean(path)}")
    if done.unread is not None:
        app.note(f"what is missing is known in part: {done.unread}")
    if not done.missing:
        click.echo("nothing is missing, as far as the damaged ledger and the event log tell")
        return
    click.echo(f"{len(done.missing)} items are missing: unknown to the restored ledger, or not yet ended in it")
    columns = [("GROUP", False), ("RUN", True), ("KEY", False), ("OUTCOME", False), ("ITS ROW IS SOUND", False)]
    rows = [
        (
            one.group,
            views.UNKNOWN if one.run is None else str(one.run),
            clean(one.key),
            one.outcome,
            "yes" if one.recoverable else "no",
        )
        for one in done.missing
    ]
    if app.out.is_terminal:
        app.print(views.grid(columns, rows))
    else:
        for row in rows:
            click.echo("\t".join(row))
