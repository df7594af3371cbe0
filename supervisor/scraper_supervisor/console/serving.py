"""The daemon that serves a configuration file though its folders are no longer where that file says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scraper_supervisor.console.client import Client, Denied, NoDaemon

if TYPE_CHECKING:
    from collections.abc import Iterator

_BOUND: Final = Path("/proc/net/unix")  # Linux lists here what every socket is bound to, whoever asks
_MOST: Final = 32  # sockets that are asked
_WAIT: Final = 2.0  # seconds for the answer of one


def serving(config: str | None) -> Client | None:
    """A connection to a daemon of this user, or of root, that goes by that configuration file; None if there is none.

    Args:
        config: the file's absolute path; without one a daemon cannot be told from others.
    """
    if config is None:
        return None
    for path in _control_sockets():
        try:
            client = Client(path)
        except NoDaemon:
            continue
        try:
            if client.uid in (0, os.geteuid()) and _config_of(client) == config:
                return client
        except (NoDaemon, Denied):
            pass  # another program's, or one on its way out
        client.close()
    return None


def _control_sockets() -> Iterator[str]:
    try:
        lines = _BOUND.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    # Num RefCount Protocol Flags Type St Inode Path; flag 10000: it listens.
    bound = {fields[7] for line in lines if len(fields := line.split(maxsplit=7)) == 8 and fields[3] == "00010000"}
    yield from sorted(path for path in bound if path.endswith("/control.sock"))[:_MOST]


def _config_of(client: Client) -> object:
    owner = client.call("owner", timeout=_WAIT)
    return owner.get("config") if isinstance(owner, dict) else None
