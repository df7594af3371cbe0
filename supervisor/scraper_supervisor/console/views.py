"""How things look: the status document as tables for people, for any width."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from scraper_supervisor.console.context import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rich.console import Console, ConsoleOptions, RenderableType

Document = dict[str, Any]

WIDE: Final = 120  # columns of the terminal from which everything is shown
MEDIUM: Final = 80  # from which most is
NARROW: Final = 56  # below which only the least is
UNKNOWN: Final = "-"

_STYLES: Final = {
    "running": "green",
    "completed": "green",
    "done": "green",
    "normal": "green",
    "starting": "cyan",
    "draining": "cyan",
    "stopping": "cyan",
    "paused": "yellow",
    "degraded": "yellow",
    "backoff": "yellow",
    "held": "yellow",
    "waiting": "yellow",
    "parked": "yellow",
    "failed": "red",
    "aborted": "red",
    "aborting": "red",
    "warning": "yellow",
    "error": "red",
    "critical": "bold red",
    "debug": "dim",
}

_PLAIN: Final = frozenset({"reason", "key", "summary", "what"})  # data of events that says what it is
_TROUBLED: Final = frozenset({"failed", "backoff", "held", "aborted"})

# ---- words -----------------------------------------------------------------------------------------------------------


def state(name: str) -> Text:
    """A state in its colour."""
    return Text(name, style=_STYLES.get(name, ""))


def size(value: float | None) -> str:
    """Bytes, short: 512 MiB."""
    if value is None:
        return UNKNOWN
    for unit in ("B", "KiB", "MiB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def seconds(value: float | None) -> str:
    """A duration, short: 340 ms, 4.2 s, 12m 03s, 2h 05m, 3d 4h."""
    if value is None:
        return UNKNOWN
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600}h"


def share(value: float | None) -> str:
    """A share as a percentage; 100% is only said of all."""
    if value is None:
        return UNKNOWN
    percent = f"{value * 100:.2f}%"
    return "99.99%" if percent == "100.00%" and value < 1 else percent.replace(".00%", "%")


def number(value: float | None) -> str:
    """A count, or - if it is not known."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def ago(time: str | None, now: datetime | None = None) -> str:
    """How long ago an RFC 3339 time was."""
    if time is None:
        return UNKNOWN
    return seconds(max(0.0, ((now or datetime.now(UTC)) - datetime.fromisoformat(time)).total_seconds()))


def failure(value: Mapping[str, Any] | None) -> str:
    """A failure in a line: its kind, signature and message."""
    if value is None:
        return UNKNOWN
    text = f"{value.get('kind', '')}: {value.get('signature', '')}: {value.get('message', '')}"
    return clean(" ".join(text.split()))


# ---- tables ----------------------------------------------------------------------------------------------------------


def grid(columns: Iterable[tuple[str, bool]], rows: Iterable[Iterable[RenderableType]]) -> Table:
    """A plain table: (heading, whether it is a number) for each column."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, is_number in columns:
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def facts(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    """Names and values."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value) if isinstance(value, str) else value)
    return table


def overview(document: Document, width: int) -> Group:
    """The whole status."""
    parts: list[RenderableType] = [header(document), Text(), groups(document["groups"], width)]
    if document["workers"]:
        parts += [Text(), workers(document["workers"], width)]
    troubled = troubles(document)
    if troubled:
        parts += [Text(), *troubled]
    return Group(*parts, Text(), figures(document["slo"]))


def header(document: Document) -> Text:
    """Who and in which state, in a line or two."""
    supervisor = document["supervisor"]
    text = Text.assemble("scraper-supervisor ", supervisor["version"], "  ", state(supervisor["state"]))
    text.append(f"  pid {supervisor['pid']}  up {ago(supervisor['started_at'])}")
    host = supervisor["host"]
    if host["memory_percent"] is not None:
        text.append(f"  host memory {host['memory_percent']:.0f}%")
    if host["disk_free"] is not None:
        text.append(f"  disk free {size(host['disk_free'])}")
    if supervisor.get("reason"):
        text.append(f"\n{clean(supervisor['reason'])}", style="yellow")
    if supervisor["config"]["error"]:
        text.append(f"\nthe configuration file was not taken: {clean(supervisor['config']['error'])}", style="red")
    return text


def groups(found: list[Document], width: int) -> RenderableType:
    """The groups with their progress."""
    if not found:
        return Text("no groups are configured")
    names = [("GROUP", False), ("STATE", False), ("DONE", True), ("FAILED", True), ("LEFT", True)]
    if width >= NARROW:
        names.insert(2, ("PROGRESS", False))
    if width >= MEDIUM:
        names += [("/MIN", True), ("ETA", True)]
    if width >= WIDE:
        names += [("RUN", True), ("IN FLIGHT", True), ("WAITING", True), ("PARKED", True)]
    rows = []
    for group in found:
        items = group["items"]
        left = None if items["total"] is None else items["total"] - items["done"] - items["failed"]
        row: list[RenderableType] = [Text(group["name"]), state(group["state"])]
        row += [number(items["done"]), number(items["failed"]), number(left)]
        if width >= NARROW:
            row.insert(2, bar(items))
        if width >= MEDIUM:
            row += [number(group["rate_per_minute"]), seconds(group["eta_seconds"])]
        if width >= WIDE:
            row += [number(group["run"]), number(items["in_flight"]), number(items["waiting"]), number(items["parked"])]
        rows.append(row)
    return grid(names, rows)


def bar(items: Document, width: int = 12) -> RenderableType:
    """How much of a run has ended."""
    if not items["total"]:
        return Text(UNKNOWN)
    return Bar(items["done"] + items["failed"], items["total"], width)


class Bar:
    """A progress bar that says how far it is without its colours, too: copied text and a log have none.

    Args:
        ended: of the total.
        total: more than 0.
        width: columns; it is full when all has ended, and never before.
    """

    def __init__(self, ended: int, total: int, width: int) -> None:
        self._done = min(ended, total) * width // total
        self._left = width - self._done

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Draw it, in ASCII where the terminal's encoding has nothing else."""
        done, left = "#." if options.ascii_only else "█░"
        yield Text.assemble((done * self._done, "green"), (left * self._left, "dim"), no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """It is as wide as it is."""
        return Measurement(self._done + self._left, self._done + self._left)


def workers(found: list[Document], width: int) -> Table:
    """The workers with what they use."""
    names = [("WORKER", False), ("STATE", False), ("MEMORY", True), ("BROWSERS", True)]
    if width >= NARROW:
        names += [("DONE", True), ("FAILED", True)]
    if width >= MEDIUM:
        names += [("RESTARTS", True), ("RECYCLES", True), ("KILLS", True)]
    if width >= WIDE:
        names += [("PID", True), ("CPU", True), ("PAGES", True), ("IN FLIGHT", True), ("UP", True)]
    rows = []
    for worker in found:
        items, browsers = worker["items"], worker["browsers"]
        row: list[RenderableType] = [Text(worker["name"]), state(worker["state"]), size(worker["memory"]["pss"])]
        row.append(browser_memory(browsers))
        if width >= NARROW:
            row += [number(items["done"]), number(items["failed"])]
        if width >= MEDIUM:
            row += [number(worker["restarts"]), number(worker["recycles"]), number(worker["browser_kills"])]
        if width >= WIDE:
            cpu = worker["cpu_percent"]
            row += [str(worker["pid"] or UNKNOWN), UNKNOWN if cpu is None else f"{cpu:.0f}%"]
            pages = [browser["pages"] for browser in browsers if browser["pages"] is not None]
            row += [number(sum(pages)) if pages else UNKNOWN, number(items["in_flight"]), ago(worker["started_at"])]
        rows.append(row)
    return grid(names, rows)


def browser_memory(browsers: list[Document]) -> str:
    """What a worker's browsers take together; how many they are if it is not one."""
    if not browsers:
        return UNKNOWN
    known = [browser["memory"] for browser in browsers if browser["memory"] is not None]
    total = size(sum(known)) if len(known) == len(browsers) else UNKNOWN
    return total if len(browsers) == 1 else f"{len(browsers)}: {total}"


def troubles(document: Document) -> list[RenderableType]:
    """What an operator should look at, if anything: failed workers and groups, and the abort policy's scopes."""
    found = [(group["name"], group["state"], group.get("reason")) for group in document["groups"]]
    found += [(worker["name"], worker["state"], _message(worker)) for worker in document["workers"]]
    found += [(scope_name(scope), scope["state"], scope["reason"]) for scope in document["abort"]["scopes"]]
    return [
        Text.assemble(f"{name}: ", state(where), f": {clean(reason)}")
        for name, where, reason in found
        if where in _TROUBLED and reason
    ]


def _message(worker: Document) -> str:
    return " ".join(str((worker["last_failure"] or {}).get("message", "")).split())


def figures(slo: Document) -> Text:
    """The service-level figures."""
    text = f"availability {share(slo['availability'])}  recoveries {slo['recoveries']}"
    if slo["recoveries"]:
        text += f" (p90 {seconds(slo['recovery_p90_seconds'])}, max {seconds(slo['recovery_max_seconds'])})"
    text += f"  checkpoint p99 {seconds(slo['checkpoint_p99_seconds'])}  items lost {number(slo['items_lost'])}"
    return Text(text, style="dim")


def worker_view(worker: Document) -> Group:
    """One worker, in detail."""
    memory, items, saved = worker["memory"], worker["items"], worker["checkpoint"]
    cpu = UNKNOWN if worker["cpu_percent"] is None else f"{worker['cpu_percent']:.0f}%"
    checkpoint = UNKNOWN if saved is None else f"generation {saved['generation']}, {ago(saved['saved_at'])} ago"
    rows: list[tuple[str, RenderableType]] = [
        ("worker", f"{worker['name']} (group {worker['group']}, incarnation {worker['incarnation']})"),
        ("state", state(worker["state"])),
        (
            "process",
            f"pid {worker['pid'] or UNKNOWN}, up {ago(worker['started_at'])}, processes {number(worker['processes'])}",
        ),
        ("memory", f"{size(memory['pss'])} (RSS {size(memory['rss'])}), without its browsers"),
        ("cpu", cpu),
        ("items", f"{items['done']} done, {items['failed']} failed, {items['in_flight']} in flight"),
        ("handed nothing", UNKNOWN if worker["idle_reason"] is None else clean(worker["idle_reason"])),
        ("restarts", str(worker["restarts"])),
        (
            "browsers",
            f"recycled {worker['recycles']}, killed {worker['browser_kills']}, crashed {worker['browser_crashes']}",
        ),
        ("checkpoint", checkpoint),
        ("last failure", failure(worker["last_failure"])),
    ]
    parts: list[RenderableType] = [facts(rows)]
    if worker["browsers"]:
        columns = [("BROWSER", False), ("PID", True), ("MEMORY", True), ("AGE", True), ("PAGES", True)]
        parts += [
            Text(),
            grid(
                columns,
                [
                    (
                        Text(clean(b["id"])),
                        str(b["pid"]),
                        size(b["memory"]),
                        seconds(b["age_seconds"]),
                        number(b["pages"]),
                    )
                    for b in worker["browsers"]
                ],
            ),
        ]
    if worker["doing"]:
        columns = [("ITEM", False), ("FOR", True), ("ATTEMPT", True), ("DONE", True), ("", False)]
        parts += [Text(), grid(columns, [_in_hand(one) for one in worker["doing"]])]
    return Group(*parts)


def _in_hand(one: Document) -> tuple[RenderableType, ...]:
    done = UNKNOWN if one["done"] is None else str(one["done"])
    if one["total"] is not None:
        done += f" of {one['total']}"
    return (
        Text(clean(one["key"])),
        seconds(one["seconds"]),
        str(one["attempt"]),
        done,
        Text(clean(one["message"] or "")),
    )


def scope_name(scope: Document) -> str:
    """A scope as people call it."""
    return clean(f"{scope['scope']} {scope['key']}".strip())


def abort_view(abort: Document) -> Group:
    """The abort window."""
    lead = Text.assemble("abort: ", state(abort["state"]), f", window {seconds(abort['window_seconds'])}")
    if not abort["scopes"]:
        return Group(lead, Text("no votes yet"))
    columns = [("SCOPE", False), ("STATE", False), ("ITEMS", True), ("FAILED", True), ("RATE", True), ("LIMIT", True)]
    rows = [
        (
            Text(scope_name(scope)),
            state(scope["state"]),
            number(scope["items"]),
            number(scope["failures"]),
            share(scope["rate"]),
            share(scope["limit"]),
        )
        for scope in abort["scopes"]
    ]
    reasons = [Text(f"{scope_name(s)}: {clean(s['reason'])}") for s in abort["scopes"] if s["reason"]]
    return Group(lead, grid(columns, rows), *reasons)


def event_line(event: Any) -> Text:
    """An event of the log in a line; `event` is an EventRecord. Its time is one that `--since` takes."""
    time = f"{event.time[:19]}Z" if event.time.endswith("Z") and len(event.time) >= 20 else event.time
    where = event.worker or event.group or ""
    text = Text.assemble((clean(time), "dim"), "  ", (clean(event.event), _STYLES.get(event.severity, "")))
    if where:
        text.append(f"  {clean(where)}", style="bold")
    return text.append(f"  {summary(event.data)}")


def summary(data: Any) -> str:
    """An event's data, short: the reason alone where there is one, else every plain value."""
    if not isinstance(data, dict):
        return "" if data is None else clean(str(data))
    parts: list[str] = []
    in_bytes = str(data.get("what", "")).startswith(("browser_memory", "worker_memory", "disk_free"))
    for name, value in data.items():
        match value:
            case _ if value in (None, "", [], {}):
                continue
            case {"reason": str(reason)}:
                parts.append(f"{name}: {reason}")
            case {"message": message}:
                parts.append(f"{name}: {message}")
            case dict() | list():
                parts.append(f"{name}: {len(value)} entries")
            case bool():
                parts += [name] if value else []
            case int() if in_bytes and name in ("limit", "value"):
                parts.append(f"{name} {size(value)}")
            case float():
                parts.append(f"{name} {value:.3g}")
            case _:
                parts.append(f"{value}" if name in _PLAIN else f"{name} {value}")
    return clean(" ".join(", ".join(parts).split()))
