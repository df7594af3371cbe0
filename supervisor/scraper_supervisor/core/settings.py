"""Every setting, once: its name, type, default, limits and sentence of help.

A field annotated with a `Key` is a key of the configuration file, of the same name. The parser, its hints, the
written-out configuration and the starter file's test are all derived from these annotations, so a new key is one line.
Durations are seconds, sizes bytes, and what is "off" in a file is None.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Final, Literal, TypeAlias, get_type_hints

from msgspec import Struct, field
from msgspec.structs import fields

from scraper_supervisor.core.units import format_duration, format_size

MIB: Final = 1024**2
GIB: Final = 1024**3
MINUTE: Final = 60.0
HOUR: Final = 3600.0
TEN_YEARS: Final = 3650 * 86_400.0  # longer is a slip of the pen, and more than a timer can hold

# ---- kinds of keys ---------------------------------------------------------------------------------------------------


class Key(Struct, frozen=True):
    """One key of the file; subclasses say what its value may be. `example` is for keys that are unset by default."""

    help: str
    off: bool = False
    example: str | None = None


class Duration(Key, frozen=True, kw_only=True):
    """Seconds."""

    least: float = 0.0
    most: float = TEN_YEARS


class Size(Key, frozen=True, kw_only=True):
    """Bytes."""

    least: int = 0
    most: int = 2**62


class Whole(Key, frozen=True, kw_only=True):
    """A whole number."""

    least: int = 0
    most: int = 1_000_000_000


class Real(Key, frozen=True, kw_only=True):
    """A number."""

    least: float = 0.0
    most: float = 1.0


class Flag(Key, frozen=True):
    """True or false."""


class Choice(Key, frozen=True, kw_only=True):
    """One of a few words."""

    among: tuple[str, ...]


class Text(Key, frozen=True, kw_only=True):
    """A string that matches `pattern` as a whole; `expected` says so in words."""

    pattern: str = r"(?s).+"
    expected: str = "a string that is not empty"


class FilePath(Key, frozen=True, kw_only=True):
    """A path, relative to the file; with `program` a name without a slash is looked up in PATH and left alone."""

    program: bool = False


class Address(Key, frozen=True):
    """HOST:PORT."""


class Command(Key, frozen=True):
    """A program and its arguments."""


class Patterns(Key, frozen=True):
    """A list of regular expressions."""


class Codes(Key, frozen=True):
    """A list of HTTP status codes."""


class Variables(Key, frozen=True):
    """A table of environment variables."""


# ---- tables ----------------------------------------------------------------------------------------------------------

SOON: Final = 0.001  # seconds; the least where zero would mean at once and always
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error", "critical"]
LogFormat: TypeAlias = Literal["auto", "console", "json"]
Restart: TypeAlias = Literal["on-failure", "always", "never"]
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
        Text(
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
    """How gently a host is treated, by all workers together: `[targets."HOST"]`."""

    max_in_flight: Annotated[int | None, Whole("No more items than this at once.", off=True, least=1)] = None
    delay: Annotated[float, Duration("At least this between two items' starts.")] = 0.0


class CheckpointSettings(Struct, frozen=True, kw_only=True):
    """How workers' states are kept: `[checkpoint]`."""

    retention: Annotated[int, Whole("Generations kept per worker; of equal states the newest.", least=1)] = 10
    compression: Annotated[
        Literal["none", "gzip"], Choice("How states are stored: none, or gzip.", among=("none", "gzip"))
    ] = "none"
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
    confirm_after: Annotated[float, Duration("A hold that lasts this long becomes an abort.")] = MINUTE
    consecutive_crashes: Annotated[
        int, Whole("This many deaths in a group with no item done between them abort it.", least=1)
    ] = 5
    crash_window: Annotated[float, Duration("The time in which consecutive_crashes counts.", least=SOON)] = 5 * MINUTE


class NotifySettings(Struct, frozen=True, kw_only=True):
    """Whom to tell: `[notify]`."""

    command: Annotated[
        tuple[str, ...] | None,
        Command(
            "Run on abort, a failed worker and degraded storage, with the event as JSON on its stdin.",
            example='["/usr/local/bin/notify"]',
        ),
    ] = None


class GroupSettings(Struct, frozen=True, kw_only=True):
    """One group of like workers: `[workers.NAME]`. `resources` and `restart_policy` are the ones in effect for it."""

    name: str
    directory: Annotated[str, FilePath("Where the workers run. Unset: this file's folder.", example="scrapers")]
    entrypoint: Annotated[
        str | None,
        Text(
            "The async function that scrapes, run by the SDK; or else command.",
            pattern=r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*",
            expected='"module:function"',
            example="my_scraper:scrape",
        ),
    ] = None
    command: Annotated[
        tuple[str, ...] | None,
        Command("Any program and its arguments, with or without the SDK.", example='["./scrape"]'),
    ] = None
    python: Annotated[
        str | None,
        FilePath("The interpreter of entrypoint. Unset: the daemon's.", program=True, example=".venv/bin/python"),
    ] = None
    count: Annotated[int, Whole("How many workers share the queue.", least=1, most=10_000)] = 1
    env: Annotated[dict[str, str], Variables("Environment variables of the workers.")] = {}
    env_file: Annotated[str | None, FilePath("A file of KEY=VALUE lines; env wins over it.", example="scraper.env")] = (
        None
    )
    start_timeout: Annotated[float, Duration("From spawn to hello; entrypoint only.", least=SOON)] = 30.0
    heartbeat_interval: Annotated[float, Duration("How often a worker shows that it lives.", least=0.05)] = 3.0
    heartbeat_timeout: Annotated[float, Duration("A worker silent for this long is hung.", least=0.05)] = 15.0
    progress_timeout: Annotated[
        float, Duration("A worker that ends no item for this long, with some in hand, is hung.", least=SOON)
    ] = 5 * MINUTE
    item_timeout: Annotated[float | None, Duration("An item is cancelled after this.", off=True, least=SOON)] = None
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
    retry: Annotated[str, Text("The name of a [retry.NAME] table.")] = "default"
    resources: ResourceSettings = ResourceSettings()
    restart_policy: RestartSettings = RestartSettings()
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
    notify: NotifySettings = NotifySettings()


# ---- the registry ----------------------------------------------------------------------------------------------------

TABLES: Final[dict[str, type[Struct]]] = {
    "supervisor": SupervisorSettings,
    "restart_policy": RestartSettings,
    "resources": ResourceSettings,
    "checkpoint": CheckpointSettings,
    "abort": AbortSettings,
    "notify": NotifySettings,
}
NAMED_TABLES: Final[dict[str, type[Struct]]] = {
    "workers": GroupSettings,
    "retry": RetrySettings,
    "targets": TargetSettings,
}
GROUP_TABLES: Final = ("resources", "restart_policy")  # those that [workers.NAME] may override
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
        case Duration():
            return format_duration(value)
        case Size():
            return format_size(value)
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, dict) else value


def _table(settings: Struct) -> dict[str, object]:
    pairs = ((name, written(key, getattr(settings, name))) for name, key in keys_of(type(settings)).items())
    return {name: value for name, value in pairs if value is not None}


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
