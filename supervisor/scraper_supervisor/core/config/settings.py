"""Every setting, once: its name, type, default, limits and sentence of help.

A field annotated with a `Key` is a key of the configuration file, of the same name. The parser, its hints, the
written-out configuration and the starter file's test are all derived from these annotations: a new key is a field here
and its entry in `uses.USES`, which says who reads it and what a reload does with it.
Durations are seconds, sizes bytes, and what is "off" in a file is None.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Final, Literal, TypeAlias, get_type_hints

from msgspec import Struct, field
from msgspec.structs import fields

from scraper_supervisor.core.config.keys import (
    Address,
    Choice,
    Codes,
    CommandLine,
    Database,
    Duration,
    FilePath,
    Flag,
    Key,
    Patterns,
    Real,
    Size,
    Urls,
    Variables,
    Whole,
    Words,
    WorkerCount,
)
from scraper_supervisor.core.config.units import format_duration, format_size

MIB: Final = 1024**2
GIB: Final = 1024**3
MINUTE: Final = 60.0
HOUR: Final = 3600.0

# ---- tables ----------------------------------------------------------------------------------------------------------

SOON: Final = 0.001  # seconds; the least where zero would mean at once and always
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error", "critical"]
LogFormat: TypeAlias = Literal["auto", "console", "json"]
Restart: TypeAlias = Literal["on-failure", "always", "never"]
Compression: TypeAlias = Literal["none", "gzip"]
OnComplete: TypeAlias = Literal["stop", "repeat", "wait"]
Jitter: TypeAlias = Literal["full", "equal", "none"]


class SupervisorSettings(Struct, frozen=True, kw_only=True):
    """The daemon itself: `[supervisor]`."""

    state_dir: Annotated[
        str | None,
        FilePath(
            "The ledger, the checkpoints and the events. Unset: $STATE_DIRECTORY, else the XDG state folder.",
            example="/var/lib/scraper-supervisor",
        ),
    ] = None
    runtime_dir: Annotated[
        str | None,
        FilePath(
            "The sockets. Unset: $RUNTIME_DIRECTORY, else under $XDG_RUNTIME_DIR, else run/ in the state folder.",
            example="/run/scraper-supervisor",
        ),
    ] = None
    ledger: Annotated[
        str | None,
        Database(
            "The PostgreSQL database of a queue that many hosts share. Unset: ledger.db in the state folder.",
            example="postgresql://scraper@db.example.com/scraper",
        ),
    ] = None
    instance: Annotated[
        str | None,
        Words(
            "This host's name among those that share the ledger. Unset: the host's name to its first dot.",
            pattern=r"[a-z0-9][a-z0-9-]{0,62}",
            expected="a name of a-z, 0-9 and -, at most 63",
            example="scraper-1",
        ),
    ] = None
    lease: Annotated[
        float, Duration("A host that is silent for this long loses what it had leased of a shared ledger.", least=1.0)
    ] = MINUTE
    log_level: Annotated[
        LogLevel,
        Choice("What is logged: debug, info, warning, error or critical.", among=LogLevel.__args__),
    ] = "info"
    log_format: Annotated[
        LogFormat,
        Choice("How: console, json, or auto: console on a terminal, JSON lines elsewhere.", among=LogFormat.__args__),
    ] = "auto"
    control_group: Annotated[
        str | None,
        Words(
            "A system group whose members may control the daemon. Unset: only its own user.",
            pattern=r"[^\s:]+",
            expected="the name of a system group",
            example="scrapers",
        ),
    ] = None
    metrics_listen: Annotated[
        str | None,
        Address("Serve Prometheus text at /metrics on this address. Unset: not at all.", example="127.0.0.1:9177"),
    ] = None
    on_abort: Annotated[
        Literal["exit", "hold"],
        Choice("After an abort: exit (code 69), or hold: stay up in state aborted.", among=("exit", "hold")),
    ] = "exit"


class RestartSettings(Struct, frozen=True, kw_only=True):
    """When a worker is started again, and when it is given up: `[restart_policy]`."""

    base_delay: Annotated[float, Duration("The wait before the second restart; the first is immediate.")] = 1.0
    max_delay: Annotated[float, Duration("No wait is longer.")] = MINUTE
    multiplier: Annotated[float, Real("Each wait is this many times the one before.", least=1.0, most=1000.0)] = 2.0
    stable_after: Annotated[float, Duration("Running this long ends a streak of restarts.", least=SOON)] = MINUTE
    max_restarts: Annotated[
        int, Whole("More restarts than this within `within`: the worker is failed. 0: never give up.")
    ] = 5
    within: Annotated[float, Duration("The time in which max_restarts counts.", least=SOON)] = 5 * MINUTE
    max_unstable: Annotated[int, Whole("This many in a row without a stable period: the worker is failed. 0: off.")] = (
        10
    )


class ResourceSettings(Struct, frozen=True, kw_only=True):
    """What workers and browsers may use: `[resources]`. Memory is PSS; a worker's is without its browsers."""

    sample_interval: Annotated[float, Duration("How often memory and CPU are measured.", least=0.05)] = 1.0
    browser_memory: Annotated[
        int | None, Size("Soft: no further item on this browser; it is recycled when empty.", off=True, least=MIB)
    ] = GIB
    browser_memory_max: Annotated[int | None, Size("Hard: kill the browser now.", off=True, least=MIB)] = 2 * GIB
    worker_memory: Annotated[
        int | None, Size("Soft: restart the worker when its hands are empty.", off=True, least=MIB)
    ] = GIB
    worker_memory_max: Annotated[int | None, Size("Hard: kill the worker now.", off=True, least=MIB)] = 2 * GIB
    cpu_percent: Annotated[
        float | None,
        Real("Soft: recycle over this for cpu_sustained; 100 is one core.", off=True, least=1.0, most=100_000.0),
    ] = None
    cpu_sustained: Annotated[float, Duration("How long cpu_percent has to be exceeded.")] = MINUTE
    browser_lifetime: Annotated[float | None, Duration("Soft: recycle at this age.", off=True, least=1.0)] = 2 * HOUR
    browser_pages: Annotated[int | None, Whole("Soft: recycle after this many pages.", off=True, least=1)] = None
    host_memory_percent: Annotated[
        float | None,
        Real("The share of the machine's memory in use that starts clean-up.", off=True, least=1, most=100),
    ] = 80.0
    disk_free: Annotated[int, Size("Below this much free disk no further item is handed out.")] = 500 * MIB
    recycle_deadline: Annotated[float, Duration("An empty browser that isn't replaced by then is killed.")] = 20.0
    max_concurrent_recycles: Annotated[
        int | None, Whole("How many browsers are recycled at once. Unset: 1 per 4 workers.", least=1, example="1")
    ] = None
    max_concurrent_launches: Annotated[
        int | None, Whole("How many browsers start at once. Unset: 1 per core.", least=1, example="2")
    ] = None
    leak_forecast: Annotated[
        bool, Flag("Recycle a browser early whose growth will take it to browser_memory within 10 minutes.")
    ] = True


class RetrySettings(Struct, frozen=True, kw_only=True):
    """How often and when an item is tried again: `[retry.NAME]`."""

    max_attempts: Annotated[int, Whole("After this many attempts an item is failed for good.", least=1)] = 5
    base_delay: Annotated[float, Duration("The wait before the first retry, before jitter.")] = 1.0
    multiplier: Annotated[float, Real("Each wait is this many times the one before.", least=1.0, most=1000.0)] = 2.0
    max_delay: Annotated[float, Duration("No wait is longer, unless the server asks for it by Retry-After.")] = MINUTE
    jitter: Annotated[Jitter, Choice("How waits are spread: full, equal or none.", among=Jitter.__args__)] = "full"
    transient_patterns: Annotated[tuple[str, ...], Patterns("A failure that matches is tried again.")] = ()
    permanent_patterns: Annotated[tuple[str, ...], Patterns("A failure that matches is final.")] = ()
    retryable_status: Annotated[tuple[int, ...], Codes("HTTP codes that are tried again.")] = ()
    permanent_status: Annotated[tuple[int, ...], Codes("HTTP codes that are final.")] = ()


class TargetSettings(Struct, frozen=True, kw_only=True):
    """How gently a host is treated, by all workers of all groups together: `[targets."HOST"]`, or "*" for any other."""

    max_in_flight: Annotated[int | None, Whole("No more items than this at once.", off=True, least=1)] = None
    delay: Annotated[float, Duration("At least this between two items' starts.")] = 0.0


class CheckpointSettings(Struct, frozen=True, kw_only=True):
    """How workers' states are kept: `[checkpoint]`."""

    retention: Annotated[int, Whole("Generations kept per worker; of equal states the newest.", least=1)] = 10
    compression: Annotated[Compression, Choice("How states are stored: none, or gzip.", among=Compression.__args__)] = (
        "none"
    )
    max_state: Annotated[int, Size("A larger state is refused.", least=1024, most=GIB)] = 64 * MIB
    interval: Annotated[
        float, Duration("How often the latest state is written again with the progress since.", least=1.0)
    ] = 5 * MINUTE


class AbortSettings(Struct, frozen=True, kw_only=True):
    """When scraping on would only do harm: `[abort]`."""

    enabled: Annotated[bool, Flag("Whether failing scopes are held and aborted at all.")] = True
    rule: Annotated[
        Literal["evidence", "rate"],
        Choice(
            "How failures are judged: evidence, or rate: their plain share, with false alarms.",
            among=("evidence", "rate"),
        ),
    ] = "evidence"
    window: Annotated[float, Duration("How far back outcomes count.", least=1.0)] = 5 * MINUTE
    min_items: Annotated[int, Whole("No verdict on fewer outcomes than this.", least=1)] = 20
    failure_limit: Annotated[float, Real("The share of failures that is too much.", least=0.001)] = 0.5
    normal_rate: Annotated[float, Real("The share of failures on a healthy day.")] = 0.1
    probe_interval: Annotated[
        float, Duration("The wait before a held scope's first probe; it doubles from one to the next.", least=SOON)
    ] = 2.0
    probe_max: Annotated[float, Duration("No wait between two probes is longer.", least=SOON)] = 5.0
    confirm_after: Annotated[float, Duration("A hold that lasts this long becomes an abort.")] = MINUTE
    parked: Annotated[
        Literal["keep", "fail"] | float,
        Duration(
            "What becomes of an aborted target's items: keep, fail, or one more probe after this long.",
            least=1.0,
            words=("keep", "fail"),
        ),
    ] = "keep"
    consecutive_crashes: Annotated[
        int, Whole("This many deaths in a group with no item done between them abort it.", least=1)
    ] = 5
    crash_window: Annotated[float, Duration("The time in which consecutive_crashes counts.", least=SOON)] = 5 * MINUTE


class EvidenceSettings(Struct, frozen=True, kw_only=True):
    """What is kept of an item that fails for good, such as a picture of its page: `[evidence]`."""

    enabled: Annotated[bool, Flag("Whether anything is kept.")] = True
    trace: Annotated[bool, Flag("Record a Playwright trace of an item's last attempt.")] = False
    max_size: Annotated[int, Size("For the whole host; the oldest is removed first.", least=MIB)] = GIB


class LogSettings(Struct, frozen=True, kw_only=True):
    """What is kept of what workers print: `[logs]`."""

    max_size: Annotated[int, Size("A worker's file over this is put aside.", least=65_536)] = 16 * MIB
    keep: Annotated[int, Whole("Older files kept for each worker.", most=1000)] = 3
    lines_per_second: Annotated[int, Whole("What a worker prints beyond this is counted, not kept.", least=1)] = 1000


class NotifySettings(Struct, frozen=True, kw_only=True):
    """Whom to tell: `[notify]`."""

    urls: Annotated[tuple[str, ...], Urls("Services to tell, as the URLs that apprise takes.")] = ()
    command: Annotated[
        tuple[str, ...] | None,
        CommandLine(
            "Run on abort, a failed worker and degraded storage, with the event as JSON on its stdin.",
            example='["/usr/local/bin/notify"]',
        ),
    ] = None


class GroupSettings(Struct, frozen=True, kw_only=True):
    """One group of like workers: `[workers.NAME]`. `resources`, `restart_policy` and `abort` are in effect for it.

    `count` is how many workers run; of a range such as "2-8" that is the least, and `count_max` the most, else None.
    """

    name: str
    directory: Annotated[str, FilePath("Where the workers run. Unset: this file's folder.", example="scrapers")]
    entrypoint: Annotated[
        str | None,
        Words(
            "The async function that scrapes, run by the SDK; or else command.",
            pattern=r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*",
            expected='"module:function"',
            example="my_scraper:scrape",
        ),
    ] = None
    command: Annotated[
        tuple[str, ...] | None,
        CommandLine("Any program and its arguments, with or without the SDK.", example='["./scrape"]'),
    ] = None
    python: Annotated[
        str | None,
        FilePath("The interpreter of entrypoint. Unset: the daemon's.", program=True, example=".venv/bin/python"),
    ] = None
    count: Annotated[
        int,
        WorkerCount(
            'How many workers share the queue, or "2-8": as many of these as the host bears.', upper="count_max"
        ),
    ] = 1
    count_max: int | None = None
    env: Annotated[dict[str, str], Variables("Environment variables of the workers.")] = {}
    env_file: Annotated[str | None, FilePath("A file of KEY=VALUE lines; env wins over it.", example="scraper.env")] = (
        None
    )
    start_timeout: Annotated[float, Duration("From spawn to hello; entrypoint only.", least=SOON)] = 30.0
    heartbeat_interval: Annotated[float, Duration("How often a worker shows that it lives.", least=0.05)] = 3.0
    heartbeat_timeout: Annotated[float, Duration("A worker silent for this long is hung.", least=0.05)] = 15.0
    progress_timeout: Annotated[
        float,
        Duration(
            "An item that tells no progress for this long is ended; so is a worker that takes no item.", least=SOON
        ),
    ] = 5 * MINUTE
    item_timeout: Annotated[
        float | None, Duration("An item is ended after this, whatever it tells.", off=True, least=SOON)
    ] = None
    stop_timeout: Annotated[float, Duration("What a drain may take; then SIGTERM, and SIGKILL 5s later.")] = 30.0
    restart: Annotated[
        Restart,
        Choice("Whether a worker that ended is started again: on-failure, always or never.", among=Restart.__args__),
    ] = "on-failure"
    on_complete: Annotated[
        OnComplete,
        Choice("At the end: stop, repeat with a new run, or wait for more.", among=OnComplete.__args__),
    ] = "stop"
    repeat_delay: Annotated[float, Duration("The pause before a repeat.")] = MINUTE
    keep_runs: Annotated[int, Whole("Completed runs kept in the ledger.", least=1)] = 5
    retry: Annotated[str, Words("The name of a [retry.NAME] table.")] = "default"
    resources: ResourceSettings = ResourceSettings()
    restart_policy: RestartSettings = RestartSettings()
    abort: AbortSettings = AbortSettings()
    file_env: dict[str, str] = {}  # what env_file held when it was read


def _retry() -> dict[str, RetrySettings]:
    return {"default": RetrySettings()}


class Settings(Struct, frozen=True, kw_only=True):
    """A whole, valid configuration. `retry` always has a "default"."""

    supervisor: SupervisorSettings = SupervisorSettings()
    groups: dict[str, GroupSettings] = {}
    restart_policy: RestartSettings = RestartSettings()
    resources: ResourceSettings = ResourceSettings()
    retry: dict[str, RetrySettings] = field(default_factory=_retry)
    targets: dict[str, TargetSettings] = {}
    checkpoint: CheckpointSettings = CheckpointSettings()
    abort: AbortSettings = AbortSettings()
    evidence: EvidenceSettings = EvidenceSettings()
    logs: LogSettings = LogSettings()
    notify: NotifySettings = NotifySettings()


# ---- the registry ----------------------------------------------------------------------------------------------------

TABLES: Final[dict[str, type[Struct]]] = {
    "supervisor": SupervisorSettings,
    "restart_policy": RestartSettings,
    "resources": ResourceSettings,
    "checkpoint": CheckpointSettings,
    "abort": AbortSettings,
    "evidence": EvidenceSettings,
    "logs": LogSettings,
    "notify": NotifySettings,
}
NAMED_TABLES: Final[dict[str, type[Struct]]] = {
    "workers": GroupSettings,
    "retry": RetrySettings,
    "targets": TargetSettings,
}
GROUP_TABLES: Final = ("resources", "restart_policy", "abort")  # those that [workers.NAME] may override
ORDERS: Final[dict[type[Struct], tuple[tuple[str, str, bool], ...]]] = {  # (lower, higher, may they be equal)
    RestartSettings: (("base_delay", "max_delay", True),),
    ResourceSettings: (("browser_memory", "browser_memory_max", True), ("worker_memory", "worker_memory_max", True)),
    RetrySettings: (("base_delay", "max_delay", True),),
    AbortSettings: (("normal_rate", "failure_limit", False),),
    GroupSettings: (("heartbeat_interval", "heartbeat_timeout", False),),
}


@cache
def keys_of(table: type[Struct]) -> dict[str, Key]:
    """The keys that a table of the file may hold, in the order in which they are written."""
    hints = get_type_hints(table, include_extras=True)
    found = ((item.name, getattr(hints[item.name], "__metadata__", ())) for item in fields(table))
    return {name: data[0] for name, data in found if data and isinstance(data[0], Key)}


def written(key: Key, value: Any) -> object:
    """A setting as the file writes it; None where it is simply left out."""
    if value is None:
        return "off" if key.off else None
    match key:
        case Size():
            return format_size(value)
        case Duration() if not isinstance(value, str):
            return format_duration(value)
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, dict) else value


def _table(settings: Struct) -> dict[str, object]:
    table = {}
    for name, key in keys_of(type(settings)).items():
        value = written(key, getattr(settings, name))
        if isinstance(key, WorkerCount) and (upper := getattr(settings, key.upper)) is not None:
            value = f"{value}-{upper}"
        if value is not None:
            table[name] = value
    return table


def effective(settings: Settings) -> dict[str, object]:
    """The whole configuration as a TOML document, defaults filled in; parsing it gives equal settings again."""
    document: dict[str, object] = {name: _table(getattr(settings, name)) for name in TABLES}
    document["retry"] = {name: _table(policy) for name, policy in settings.retry.items()}
    document["targets"] = {name: _table(target) for name, target in settings.targets.items()}
    document["workers"] = {
        name: _table(group) | {table: _table(getattr(group, table)) for table in GROUP_TABLES}
        for name, group in settings.groups.items()
    }
    return document
