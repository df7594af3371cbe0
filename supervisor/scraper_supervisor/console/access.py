"""Who reads the queue and who changes it: the ledger's file, the daemon, or with none running this process."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from scraper_supervisor.console.client import Client, NoDaemon
from scraper_supervisor.console.context import FAILED, NO_DAEMON, App, Refused, clean
from scraper_supervisor.console.offline import OfflineQueue
from scraper_supervisor.store.errors import Locked
from scraper_supervisor.store.opening import location, open_for_reading

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from scraper_supervisor.store.ports import ReaderPort

PATIENCE: Final = 10.0  # seconds for a daemon that is starting to listen, or for another command to be done
_LOOK: Final = 0.05  # seconds between two looks

T = TypeVar("T")


@contextmanager
def reader(app: App, group: str) -> Generator[ReaderPort | None]:
    """The ledger, which has a run of that group; None if the group is configured and has none yet.

    Args:
        app: the command's surroundings.
        group: the group's name.

    Raises:
        Refused: there is no ledger, or no such group; or the run that is read is removed meanwhile.
        LedgerUnusable: the ledger does not open.
    """
    where, configured = location(app.place()), app.settings().groups
    try:
        ledger = open_for_reading(where)
    except FileNotFoundError:
        if group in configured:
            yield None
            return
        raise Refused(f"{where}: there is no ledger yet") from None
    with ledger:
        if ledger.runs(group):
            try:
                yield ledger
            except LookupError as error:
                raise Refused(str(error)) from None
        elif group in configured:
            yield None
        else:
            known = ", ".join(sorted({*ledger.groups(), *configured})) or "none"
            raise Refused(f"no group is named {clean(group)!r}; known are: {known}")


@contextmanager
def queue(app: App, group: str, command: str) -> Generator[Client | OfflineQueue]:
    """Who changes the queue of a group: the daemon, or with none running ourselves, under the state folder's lock.

    A daemon that is starting holds the lock before it listens, and so does another command until it is done: either is
    waited for, but not for long.

    Args:
        app: the command's surroundings.
        group: the group's name.
        command: what is being done, for those who find the folder locked.

    Raises:
        Refused: nobody knows the group, there is no ledger, or somebody else uses the state folder.
        LedgerUnusable: the ledger does not open.
        OSError: the state folder can't be used.
    """
    with daemon_or(app, lambda: OfflineQueue(app.place(), app.settings(), group, command)) as changer:
        yield changer


def daemon_or(app: App, alone: Callable[[], T]) -> Client | T:
    """A connection to the daemon, or what `alone` gives while none runs.

    Args:
        app: the command's surroundings.
        alone: takes the state folder's lock; tried again while it raises Locked.

    Raises:
        Refused: somebody uses the state folder, and neither listens nor is done after a while.
    """
    deadline = time.monotonic() + PATIENCE
    told = False
    while True:
        try:
            return app.connect()
        except NoDaemon as error:
            nobody = error
        try:
            return alone()
        except Locked as error:
            busy = error
        if time.monotonic() >= deadline:
            if busy.command is not None:
                raise Refused(f"{busy}; try again when it is done", FAILED)
            raise Refused(f"{busy}, but does not answer: {nobody}", NO_DAEMON)
        if not told:
            app.note(f"{busy}; waiting for it")
            told = True
        time.sleep(_LOOK)
