"""What the daemon changes for itself of the process that it was given, so that workers get it as it was."""

from __future__ import annotations

import contextlib
import os
import resource
from typing import Final

from msgspec import Struct

OWN_UMASK: Final = 0o077  # states hold cookies: nothing that we or the store make is for others to read


class Surroundings(Struct, frozen=True):
    """What a process started by us is to have: the umask, and the limits of open files (soft, hard)."""

    umask: int
    open_files: tuple[int, int]

    def give(self, pid: int) -> None:
        """Give a process that was just started its limit of open files: what uses select() relies on a low one.

        Its soft limit is ours for the moment from its start until now.
        """
        with contextlib.suppress(OSError, ValueError):  # it has ended already
            if resource.getrlimit(resource.RLIMIT_NOFILE) != self.open_files:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, self.open_files)


def as_they_are() -> Surroundings:
    """What we were given, unchanged."""
    umask = os.umask(OWN_UMASK)
    os.umask(umask)
    return Surroundings(umask, resource.getrlimit(resource.RLIMIT_NOFILE))


def take_over() -> Surroundings:
    """Take our own umask, and as many open files as the host allows; what workers are to have."""
    given = as_they_are()
    os.umask(OWN_UMASK)
    with contextlib.suppress(OSError, ValueError):  # a host that allows no more: what there is must do
        resource.setrlimit(resource.RLIMIT_NOFILE, (given.open_files[1], given.open_files[1]))
    return given
