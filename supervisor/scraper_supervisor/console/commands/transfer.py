"""`items export` and `items import`: a whole run as portable JSON Lines, and back."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import tempfile
import time
from typing import IO, TYPE_CHECKING, Final

import click

from scraper_supervisor.console.access import queue as changing
from scraper_supervisor.console.access import reader
from scraper_supervisor.console.client import Denied, NoDaemon
from scraper_supervisor.console.context import DAMAGED, App, HelpfulCommand, Refused, clean, pass_app
from scraper_supervisor.core.formats.run_export import Checker, NotPortable
from scraper_supervisor.store.errors import NotExportable
from scraper_supervisor.store.opening import location, open_for_export

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from scraper_supervisor.console.client import Client
    from scraper_supervisor.console.offline import OfflineQueue

PIECE: Final = 256 * 1024  # characters in one request: other groups wait some 15 ms for what it writes
_FINISH_TIMEOUT: Final = None  # it returns when the workers' states are safe


@click.command("export", cls=HelpfulCommand)
@click.argument("group")
@pass_app
def export(app: App, group: str) -> None:
    """Write GROUP's latest run to stdout as JSON lines: items, outcomes, results and worker states.

    Done are the items that are done when it begins; stop the group first for an exact picture of the others.
    """
    out = sys.stdout.buffer
    with reader(app, group) as ledger:
        if ledger is None:
            raise Refused(f"{group}: it has no run yet, so there is nothing to export")
        try:
            with open_for_export(location(app.place()), ledger.runs(group)[0]) as lines:
                for line in lines.lines(time.time()):
                    out.write(line)
        except NotExportable as error:
            raise Refused(str(error), DAMAGED) from None
    out.flush()


@click.command("import", cls=HelpfulCommand)
@click.argument("group")
@click.argument("file", type=click.File("rb"))
@pass_app
def import_(app: App, group: str, file: IO[bytes]) -> None:
    """Bring what `items export` wrote to FILE (- is stdin) in as a new run of GROUP.

    All of it or nothing. With the daemon running, GROUP must be stopped, and stays stopped until it is started.
    """
    with _checked(file) as (content, checker, digest):
        with changing(app, group, "items import") as queue:
            answer = _send(queue, group, content, digest)
        what = f"{checker.items} items, {checker.done} of them done"
        states = f", {checker.states} worker states" if checker.states else ""
        click.echo(f"{group}: imported as run {answer['run']}: {what}{states}")
    if answer["state"] == "stopped":
        app.note(f"{group} is stopped; go on with: start {group}")


@contextlib.contextmanager
def _checked(file: IO[bytes]) -> Generator[tuple[IO[bytes], Checker, bytes]]:
    """The file, which is whole and can be read again from its start: its check, and the SHA-256 of its bytes.

    Raises:
        Refused: it is not a whole export; the message names the line.
    """
    checker, digest, name = Checker(), hashlib.sha256(), clean(getattr(file, "name", "-"))
    with contextlib.ExitStack() as stack:
        content = file
        if not file.seekable():
            content = stack.enter_context(tempfile.TemporaryFile())
        try:
            for line in file:
                checker.take(line)
                digest.update(line)
                if content is not file:
                    content.write(line)
            checker.finish()
        except NotPortable as error:
            raise Refused(f"{name}: {error}; nothing was imported") from None
        content.seek(0)
        yield content, checker, digest.digest()


def _send(queue: Client | OfflineQueue, group: str, content: IO[bytes], digest: bytes) -> dict[str, object]:
    again = hashlib.sha256()
    token = queue.call("items.import.begin", names=[group])["token"]  # tells ours from another command's
    try:
        for piece in _pieces(_hashed(content, again.update)):
            queue.call("items.import.lines", names=[group], token=token, text=piece)
        if again.digest() != digest:
            raise Refused(f"{group}: the file was changed while it was read; nothing was imported")
        answer: dict[str, object] = queue.call(
            "items.import.finish", timeout=_FINISH_TIMEOUT, names=[group], token=token
        )
    except BaseException:
        with contextlib.suppress(Denied, NoDaemon, Refused):  # then it is given up already, or by the next start
            queue.call("items.import.drop", names=[group], token=token)
        raise
    return answer


def _hashed(lines: Iterable[bytes], update: Callable[[bytes], object]) -> Iterator[bytes]:
    for line in lines:
        update(line)
        yield line


def _pieces(lines: Iterable[bytes]) -> Iterator[str]:
    """The lines as texts of bounded length, which may be cut anywhere."""
    held, size = [], 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= PIECE:
            yield from _cut(held)
            held, size = [], 0
    yield from _cut(held)


def _cut(lines: list[bytes]) -> Iterator[str]:
    text = b"".join(lines).decode()
    for start in range(0, len(text), PIECE):
        yield text[start : start + PIECE]
