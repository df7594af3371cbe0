"""`top`: the status live on the full screen, whatever its size; workers that do not fit are scrolled to."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click
from rich.live import Live
from rich.segment import Segment, Segments
from rich.text import Text

from scraper_supervisor.console import views
from scraper_supervisor.console.context import USAGE, App, HelpfulCommand, Refused, pass_app

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from rich.console import Console, RenderableType

REFRESH: Final = 1.0  # seconds between two looks
ROOMY: Final = 20  # lines of the terminal from which there are empty ones between the parts
_MOST_HEADER: Final = 3  # lines
_MOST_TROUBLES: Final = 4  # lines
_KEY_BYTES: Final = 16  # longer than any key's sequence
_UP: Final = ("k", "\x1b[A", "\x1bOA")
_DOWN: Final = ("j", "\x1b[B", "\x1bOB")
_PAGE_UP: Final = ("b", "\x1b[5~")
_PAGE_DOWN: Final = (" ", "\x1b[6~")
_HOME: Final = ("g", "\x1b[H", "\x1b[1~")
_END: Final = ("G", "\x1b[F", "\x1b[4~")

Line = list[Segment]


@click.command(cls=HelpfulCommand)
@pass_app
def top(app: App) -> None:
    """Show how everything stands, live on the full screen; q ends it, the arrow keys scroll the workers.

    `status --help` explains the figures.
    """
    if not (app.out.is_terminal and sys.stdin.isatty()):
        raise Refused("top needs a terminal; `status` prints the same once", USAGE)
    if app.out.is_dumb_terminal:
        kind = os.environ.get("TERM", "")
        raise Refused(f"top moves the cursor, and TERM={kind!r} cannot; `status` prints the same once", USAGE)
    screen = Screen(app.out)
    with app.connect() as client, _keys() as keys, Live(console=app.out, screen=True, auto_refresh=False) as live:
        while True:
            document, until = client.call("status"), time.monotonic() + REFRESH
            while (left := until - time.monotonic()) > 0:
                live.update(screen.draw(document), refresh=True)
                key = keys(left)
                if key in ("q", "Q"):
                    return
                screen.scroll(key)


class Screen:
    """Lays the status out on a terminal of any size: what is most worth knowing stays, the workers take the rest.

    Args:
        console: the terminal; its size is looked at anew with each picture.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._first = 0  # line of the workers' table that is shown first
        self._shown = 1  # how many of them are

    def scroll(self, key: str) -> None:
        """Move over the workers as a key says; any other key changes nothing."""
        steps = ((_UP, -1), (_DOWN, 1), (_PAGE_UP, -self._shown), (_PAGE_DOWN, self._shown))
        self._first += next((by for keys, by in steps if key in keys), 0)
        if key in _HOME:
            self._first = 0
        elif key in _END:
            self._first = sys.maxsize
        self._first = max(0, self._first)

    def draw(self, document: dict[str, Any]) -> Segments:
        """One picture of the status, as high as the terminal."""
        width, height = self._console.size
        gap: list[Line] = [[]] if height >= ROOMY else []
        head = [*self._lines(views.header(document))[:_MOST_HEADER], *gap]
        groups = self._cut(self._lines(views.groups(document["groups"], width)), max(2, height // 4), "groups")
        troubles = [line for trouble in views.troubles(document) for line in self._lines(trouble)]
        troubles = self._cut(troubles, _MOST_TROUBLES, "lines of trouble: see `status`")
        foot = [*self._lines(views.figures(document["slo"])), []]
        team = self._lines(views.workers(document["workers"], width)) if document["workers"] else []
        rest = height - len(head) - len(groups) - len(foot) - 2 * len(gap)
        if troubles and rest - len(troubles) - len(gap) >= min(len(team), 4):  # the workers' own state says it, too
            foot = [*troubles, *gap, *foot]
            rest -= len(troubles) + len(gap)
        rows = self._scrolled(team, max(2, rest))
        body = [*head, *groups, *gap, *rows]
        body = [*body[: max(0, height - len(foot))], *gap]
        body += [[]] * (height - len(body) - len(foot))  # the foot stays at the bottom
        foot[-1] = self._lines(self._hint(len(team) - 1, len(rows) - 1))[0]
        lines = [*body, *foot][-height:] if len(body) + len(foot) > height else [*body, *foot]
        return Segments([segment for line in _separated(lines) for segment in line])

    def _scrolled(self, table: list[Line], room: int) -> list[Line]:
        """The heading and as many rows as there is room for, from where the operator has scrolled to."""
        if not table:
            self._shown = 0
            return []
        self._shown = max(1, min(room - 1, len(table) - 1))
        self._first = min(self._first, len(table) - 1 - self._shown)
        return [table[0], *table[1 + self._first : 1 + self._first + self._shown]]

    def _hint(self, workers: int, shown: int) -> Text:
        hint = "q: quit"
        if workers > shown > 0:
            hint += f"   up, down, PgUp, PgDn: scroll   workers {self._first + 1}-{self._first + shown} of {workers}"
        return Text(hint, style="reverse", no_wrap=True, overflow="ellipsis")

    def _cut(self, lines: list[Line], most: int, what: str) -> list[Line]:
        """At most so many lines; the last then says how many are left out."""
        if len(lines) <= most:
            return lines
        more = Text(f"… {len(lines) - most + 1} more {what}", style="dim", no_wrap=True)
        return [*lines[: most - 1], *self._lines(more)]

    def _lines(self, thing: RenderableType) -> list[Line]:
        return self._console.render_lines(thing, pad=False)


def _separated(lines: list[Line]) -> list[Line]:
    """The lines with what ends each of them, but the last: a line break there would scroll the screen."""
    return [[*line, Segment.line()] for line in lines[:-1]] + lines[-1:]


@contextmanager
def _keys() -> Generator[Callable[[float], str]]:
    """Reads keys from the terminal: a function that waits some seconds for one, and gives "" if none came."""
    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)

    def key(wait: float) -> str:
        ready, _, _ = select.select([handle], [], [], wait)
        return os.read(handle, _KEY_BYTES).decode(errors="replace") if ready else ""

    tty.setcbreak(handle)
    try:
        yield key
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)
