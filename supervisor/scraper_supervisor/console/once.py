"""`run --once` for people: the progress line on a terminal, and the summary at the end."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.live import Live
from rich.text import Text

from scraper_supervisor.console.context import clean
from scraper_supervisor.core.config.units import format_duration
from scraper_supervisor.store.errors import StoreError
from scraper_supervisor.store.opening import location, open_for_reading

if TYPE_CHECKING:
    from collections.abc import Generator

    from scraper_supervisor.store.config_file import Place
    from scraper_supervisor.store.ports import ReaderPort

SIGNATURES: Final = 10  # that a group's summary names
KEYS: Final = 3  # that are named of each
LONGEST_KEY: Final = 60  # characters


class Shown(io.TextIOBase):
    """A line at the foot of the terminal that tells how far the work is; what is written to it comes above that line.

    A descriptor it has none, so that whoever writes a log asks it to.
    """

    def __init__(self, live: Live) -> None:
        self._live = live

    def groups(self, groups: list[dict[str, Any]]) -> None:
        """Show how far these groups are."""
        self._live.update(Text(" · ".join(map(_progress, groups)), no_wrap=True, overflow="ellipsis"), refresh=True)

    def write(self, text: str) -> int:
        """Print lines above."""
        self._live.console.print(Text.from_ansi(text.removesuffix("\n")), soft_wrap=True)
        return len(text)

    def isatty(self) -> bool:
        """It is one."""
        return True

    def fileno(self) -> int:
        """None: nobody may write past it."""
        raise io.UnsupportedOperation("fileno")


@contextlib.contextmanager
def shown() -> Generator[Shown | None]:
    """The progress line, where stderr is a terminal that can have one; else None."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    with Live(
        Text(""), console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as live:
        yield Shown(live)


def as_stream(line: Shown | None, other: TextIO) -> TextIO:
    """Where the log goes."""
    return other if line is None else cast("TextIO", line)


def _progress(group: dict[str, Any]) -> str:
    items = group["items"]
    if items["total"] is None:
        return f"{group['name']}: its run is being read"
    text = f"{group['name']}: {items['done']} of {items['total']} done"
    if items["failed"]:
        text += f", {items['failed']} failed"
    if items["in_flight"]:
        text += f", {items['in_flight']} in hand"
    if group["rate_per_minute"] is not None:
        text += f", {group['rate_per_minute']:.0f} a minute"
    if group["eta_seconds"] is not None:
        text += f", {format_duration(round(group['eta_seconds']))} left"
    return text if group["state"] == "running" else f"{text} ({group['state']})"


# ---- the summary -----------------------------------------------------------------------------------------------------


class _Failures(Struct):
    """The failed items of one signature: how many, and the first keys."""

    count: int
    keys: list[str]


def summary(
    place: Place, groups: list[dict[str, Any]], retries: int, recoveries: int, seconds: float, option: str | None
) -> str:
    """What came of a run, for people.

    Args:
        place: where its ledger is.
        groups: as `status` tells them.
        retries: attempts that failed and were tried again.
        recoveries: of workers and browsers.
        seconds: that it took.
        option: the value of --config, for the commands that show more.
    """
    lines = []
    for group in groups:
        lines.append(_group(group))
        if group["items"]["failed"]:
            lines += _failed(place, group["name"])
    counted = [_counted(retries, "retry", "retries"), _counted(recoveries, "recovery", "recoveries")]
    lines.append(", ".join([*counted, format_duration(round(seconds))]))
    config = "" if option is None else f" --config {option}"
    for group in groups:
        name, items = group["name"], group["items"]
        if items["failed"]:
            lines.append(f"  what failed: scraper-supervisor items list {name} --state failed{config}")
        if items["done"]:
            lines.append(f"  the results: scraper-supervisor results {name}{config}")
    lines.append(f"  what happened: scraper-supervisor events{config}")
    return "\n".join(lines)


def _group(group: dict[str, Any]) -> str:
    items = group["items"]
    if items["total"] is None:
        return f"{group['name']}: its run was not read"
    counts = [f"{items['done']} done", f"{items['failed']} failed"]
    left = items["pending"] + items["waiting"] + items["in_flight"]
    counts += [f"{left} left"] if left else []
    counts += [f"{items['parked']} parked"] if items["parked"] else []
    text = f"{group['name']}: run {group['run']} {group['state']}: {', '.join(counts)}"
    return clean(text if group["reason"] is None else f"{text}; {group['reason']}")


def _failed(place: Place, name: str) -> list[str]:
    try:
        with open_for_reading(location(place)) as ledger:
            found = _by_signature(ledger, name)
    except (OSError, StoreError, LookupError) as error:
        return [clean(f"  what failed can't be read: {error}")]
    most = sorted(found.items(), key=lambda one: -one[1].count)
    lines = [clean(f"  {one.count} x {signature}: {', '.join(one.keys)}") for signature, one in most[:SIGNATURES]]
    rest = sum(one.count for _, one in most[SIGNATURES:])
    return [*lines, f"  {rest} x others"] if rest else lines


def _by_signature(ledger: ReaderPort, name: str) -> dict[str, _Failures]:
    found: dict[str, _Failures] = {}
    for row in ledger.items(name, state="failed"):
        failure = None if row.last_failure is None else msgspec.json.decode(row.last_failure)
        signature = failure["signature"] if isinstance(failure, dict) and "signature" in failure else "cancelled"
        one = found.setdefault(signature, _Failures(0, []))
        one.count += 1
        if len(one.keys) < KEYS:
            one.keys.append(row.key if len(row.key) <= LONGEST_KEY else f"{row.key[:LONGEST_KEY]}…")
    return found


def _counted(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"
