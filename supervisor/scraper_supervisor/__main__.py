"""`python -m scraper_supervisor`, and the command `scraper-supervisor`."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def main() -> None:
    """Run a command and exit with its code; what it stands on is put in order before anything else is loaded."""
    open_streams()
    if runs_the_daemon(sys.argv[1:]):
        # A SIGHUP or SIGTERM while we load waits until the daemon can act upon it, instead of killing us.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    from scraper_supervisor.console.cli import main as command_line

    command_line()


def open_streams() -> None:
    """Lead standard streams that are closed to /dev/null, else the next file that is opened would be one of them."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def runs_the_daemon(words: Sequence[str]) -> bool:
    """True if the command is `run`."""
    rest = iter(words)
    for word in rest:
        if word == "--config":
            next(rest, None)
        elif not word.startswith("-"):
            return word == "run"
    return False


if __name__ == "__main__":
    main()
