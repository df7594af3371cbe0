"""`items` and `results`: the queue, with the daemon running or not."""

from __future__ import annotations

import codecs
import sys
import time
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, get_args

import click
import msgspec

from scraper_supervisor.console import views
from scraper_supervisor.console.access import queue as changing
from scraper_supervisor.console.access import reader
from scraper_supervisor.console.client import NoDaemon
from scraper_supervisor.console.context import (
    USAGE,
    App,
    Commands,
    HelpfulCommand,
    Refused,
    clean,
    json_option,
    pass_app,
)
from scraper_supervisor.core.formats.timestamps import timestamp
from scraper_supervisor.core.ops.item_ops import ItemState
from scraper_worker.jsonrpc import BadParams, check_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scraper_supervisor.console.client import Client
    from scraper_supervisor.console.offline import OfflineQueue
    from scraper_supervisor.store.ports import ItemRow, ReaderPort

CHUNK: Final = 1000  # keys in one request: with the longest keys it is still below what a line may hold
SHOWN: Final = 1000  # items that a terminal is shown
POLL: Final = 0.5  # seconds between two looks of `results --follow`
HIGHEST_SEQ: Final = 2**63 - 1  # that the ledger can hold
COLUMNS: Final[tuple[tuple[str, bool], ...]] = (
    ("KEY", False),
    ("STATE", False),
    ("ATTEMPTS", True),
    ("WORKER", False),
    ("LAST FAILURE", False),
)


@click.group(cls=Commands)
def items() -> None:
    """The queue of a group: add, list, requeue and cancel items; export a run, and import one."""


@items.command()
@click.argument("group")
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@pass_app
def add(app: App, group: str, keys: tuple[str, ...]) -> None:
    """Add items to GROUP's run: each KEY, or without any one a line from stdin. Known keys are not added again."""
    with changing(app, group, "items add") as queue:
        added = known = 0
        for chunk in _chunks(_checked(keys or _lines(app))):
            answer = queue.call("items.add", names=[group], keys=chunk)
            added, known = added + answer["added"], known + answer["known"]
    click.echo(f"{group}: {added} added, {known} known already")


@items.command("list")
@click.argument("group")
@click.option("--state", type=click.Choice(get_args(ItemState)), help="Only items in this state.")
@click.option("--key", "containing", metavar="TEXT", help="Only items whose key contains TEXT.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many.")
@click.option("--after", metavar="KEY", help="Only items that were added after this one.")
@json_option
@pass_app
def list_(
    app: App,
    group: str,
    state: ItemState | None,
    containing: str | None,
    limit: int | None,
    after: str | None,
    as_json: bool,
) -> None:
    """List the items of GROUP's run, in the order in which they were added."""
    claims = _claims(app, group)  # first: what ends meanwhile is then told as ended, not as neither
    with reader(app, group) as ledger:
        found = _rows(ledger, group, state, after, containing, claims) if ledger is not None else iter(())
        rows = islice(found, limit)
        if as_json:
            _emit_items(rows)
        elif app.out.is_terminal:
            _show_items(app, rows)
        else:
            out = sys.stdout
            out.write("\t".join(heading for heading, _ in COLUMNS) + "\n")
            for row in rows:
                out.write("\t".join(_cells(row)) + "\n")
            out.flush()


@items.command()
@click.argument("group")
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@click.option("--failed", is_flag=True, help="All failed items.")
@click.option("--parked", is_flag=True, help="All parked items.")
@pass_app
def requeue(app: App, group: str, keys: tuple[str, ...], failed: bool, parked: bool) -> None:
    """Make failed or parked items of GROUP pending again, with no attempts charged."""
    if not (keys or failed or parked):
        raise Refused("nothing to requeue: name KEYs, or give --failed or --parked", USAGE)
    with changing(app, group, "items requeue") as queue:
        changed, untouched = 0, []
        if failed or parked:
            changed += queue.call("items.requeue", names=[group], keys=[], failed=failed, parked=parked)["changed"]
        for chunk in _chunks(_checked(keys)):
            answer = queue.call("items.requeue", names=[group], keys=chunk)
            changed += answer["changed"]
            untouched += answer["untouched"]
    _report(group, f"{changed} requeued", untouched, "neither failed nor parked")


@items.command()
@click.argument("group")
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@pass_app
def cancel(app: App, group: str, keys: tuple[str, ...]) -> None:
    """Fail items of GROUP for good; one in flight is ended by its worker."""
    with changing(app, group, "items cancel") as queue:
        changed, untouched, ordered = 0, [], 0
        for chunk in _chunks(_checked(keys)):
            in_flight = _held(queue, group) & set(chunk)
            answer = queue.call("items.cancel", names=[group], keys=chunk)
            changed += answer["changed"]
            ordered += len(in_flight.difference(answer["untouched"]))
            untouched += answer["untouched"]
    in_hand = f", {ordered} in flight are being cancelled" if ordered else ""
    _report(group, f"{changed} cancelled{in_hand}", untouched, "unknown, done or failed already")


def _report(group: str, text: str, untouched: list[str], why: str) -> None:
    click.echo(f"{group}: {text}")
    if untouched:
        raise Refused(f"{group}: {len(untouched)} left as they are ({why}): {', '.join(untouched[:10])}")


# ---- results ---------------------------------------------------------------------------------------------------------


@click.command(cls=HelpfulCommand)
@click.argument("group")
@click.option("--run", "run_number", type=click.IntRange(min=1), help="Which run [the latest].")
@click.option(
    "--after",
    type=click.IntRange(min=0, max=HIGHEST_SEQ),
    default=0,
    metavar="SEQ",
    help="Only what was done after that one.",
)
@click.option("--follow", "-f", is_flag=True, help="Go on with what is done from now on.")
@pass_app
def results(app: App, group: str, run_number: int | None, after: int, follow: bool) -> None:
    """Print the done items of GROUP's run as JSON lines."""
    out, encode = sys.stdout.buffer, msgspec.json.encode
    with reader(app, group) as ledger:
        if ledger is None:
            return
        runs = [info.run for info in ledger.runs(group)]
        if run_number is None:
            run_number = runs[0]  # named from here on: --follow stays with its run
        elif run_number not in runs:
            known = ", ".join(str(run) for run in sorted(runs))
            raise Refused(f"{group}: the ledger has no run {run_number}; it has: {known}")
        while True:
            for row in ledger.results(group, run_number, after):
                after = row.seq
                out.write(encode(row) + b"\n")
            out.flush()
            if not follow:
                return
            time.sleep(POLL)


# ---- reading ---------------------------------------------------------------------------------------------------------


def _claims(app: App, group: str) -> dict[str, str]:
    """Key → worker of what is in flight in a group; nothing is without a daemon."""
    try:
        with app.connect() as client:
            return _in_flight(client.call("claims"), group)
    except NoDaemon:
        return {}


def _held(queue: Client | OfflineQueue, group: str) -> set[str]:
    return set(_in_flight(queue.call("claims"), group))


def _in_flight(claims: list[list[Any]], group: str) -> dict[str, str]:
    return {key: worker for key, worker, _ in claims if worker.rpartition("-")[0] == group}


def _rows(
    ledger: ReaderPort,
    group: str,
    state: ItemState | None,
    after: str | None,
    containing: str | None,
    claims: dict[str, str],
) -> Iterator[ItemRow]:
    now = timestamp(time.time())
    read = partial(ledger.items, group, after=after, containing=containing)
    is_open = state in ("pending", "waiting", "in_flight")  # the ledger does not know which of these one is now
    found = read(state="open" if is_open else state)
    for row in found:
        shown = _as_it_is(row, claims.get(row.key), now)
        if state in (None, shown.state):
            yield shown


def _as_it_is(row: ItemRow, holder: str | None, now: str) -> ItemRow:
    """An item with what the ledger does not hold: in whose hands it is, and whether its time has come."""
    if row.state not in ("pending", "waiting"):
        return row
    if holder is not None:
        return msgspec.structs.replace(row, state="in_flight", worker=holder, not_before=None)
    if row.not_before is not None and row.not_before <= now:
        return msgspec.structs.replace(row, state="pending", not_before=None)
    return row


def _emit_items(rows: Iterator[ItemRow]) -> None:
    """One document, written as it is read: a run may have a million items."""
    out, encode = sys.stdout.buffer, msgspec.json.encode
    out.write(b'{"items":[\n')
    for index, row in enumerate(rows):
        out.write(b",\n" + encode(row) if index else encode(row))
    out.write(b"\n]}\n")
    out.flush()


def _show_items(app: App, rows: Iterator[ItemRow]) -> None:
    columns, shown = COLUMNS, [_cells(row) for row in islice(rows, SHOWN)]
    if app.out.width < views.WIDE:  # the failure would leave no room for the keys
        columns, shown = columns[:4], [cells[:4] for cells in shown]
    app.print(views.grid(columns, [(cells[0], views.state(cells[1]), *cells[2:]) for cells in shown]))
    more = sum(1 for _ in rows)
    if more:
        app.note(f"{more} more: a pipe or --json gets them all")


def _cells(row: ItemRow) -> tuple[str, ...]:
    failure = None if row.last_failure is None else msgspec.json.decode(row.last_failure)
    state = f"{row.state} until {row.not_before}" if row.state == "waiting" and row.not_before else row.state
    return clean(row.key), state, str(row.attempts), row.worker or views.UNKNOWN, views.failure(failure)


# ---- changing --------------------------------------------------------------------------------------------------------


def _lines(app: App) -> Iterator[str]:
    """The keys on stdin, empty lines left out."""
    if sys.stdin.isatty():
        app.note("reading keys from the terminal, one a line; Ctrl-D ends")
    for number, line in enumerate(
        sys.stdin.buffer
    ):  # bytes: what is no UTF-8 is to be refused by its number, not to break the reading
        # Some editors put a mark before the first character of a file, which is none of the key's.
        text = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
        key = text.rstrip(b"\r\n").decode(errors="surrogateescape")
        if key:
            yield key


def _checked(keys: Iterable[str]) -> Iterator[str]:
    for number, key in enumerate(keys, 1):
        try:
            check_key(key, f"key {number}")
        except BadParams as error:
            raise Refused(f"{error.path}: {error}: {clean(key[:60])!r}; those before it are added", USAGE) from None
        yield key


def _chunks(keys: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(keys)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
