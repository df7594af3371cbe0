"""What an operator does without a daemon stands in the event log, too: whoever holds the folder's lock writes alone.

The act itself is done by then: a log that can't be written is told, and undoes nothing.
"""

from __future__ import annotations

import os
import secrets
import time
from typing import TYPE_CHECKING, Any

import click

from scraper_supervisor.console.context import clean
from scraper_supervisor.core.formats.event_line import encode, event_line
from scraper_supervisor.core.formats.redaction import Redactor, secrets_of
from scraper_supervisor.core.operators.acts import act
from scraper_supervisor.store.event_log import EVENTS_FILE, EventLogWriter

if TYPE_CHECKING:
    from pathlib import Path

    from scraper_supervisor.core.config.settings import Settings


def acted(state_dir: Path, settings: Settings, method: str, names: tuple[str, ...], **given: Any) -> None:
    """Append `operator_acted` to the event log; the caller has the state folder locked.

    Args:
        state_dir: the folder.
        settings: the configuration, whose secrets are hidden.
        method: the request, as the daemon would get it.
        names: of groups or workers.
        given: what else the request holds; see `act`.
    """
    told = act(method, names, os.geteuid(), **given)
    if told is None:
        return
    data, redactor = encode(told), Redactor(secrets_of(settings))
    data = redactor.json(data) if redactor.suspects(data) else data
    writer = EventLogWriter(state_dir / EVENTS_FILE)
    try:
        writer.append(event_line(time.time(), told, data, told.SEVERITY, f"{secrets.token_hex(4)}-0"))
        if os.geteuid() == 0:  # a file made by root is the daemon's to write all the same
            owner = state_dir.stat()
            os.chown(writer.path, owner.st_uid, owner.st_gid)
    except OSError as error:
        click.echo(clean(f"{writer.path}: the event log was not written: {error.strerror or error}"), err=True)
    finally:
        writer.close()
