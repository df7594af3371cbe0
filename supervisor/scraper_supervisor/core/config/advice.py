"""What is valid in a configuration and yet doubtful: what `check` warns of."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING

from scraper_supervisor.core.config.keys import WorkerCount
from scraper_supervisor.core.config.parser import Problem, key_path
from scraper_supervisor.core.config.settings import GROUP_TABLES, TABLES, GroupSettings, Settings, keys_of
from scraper_supervisor.core.config.units import format_duration, parse_address, parse_count
from scraper_supervisor.core.config.uses import NOT_YET, USES

if TYPE_CHECKING:
    from collections.abc import Iterator


def warnings(settings: Settings, document: Mapping[str, object]) -> list[Problem]:
    """What is allowed but hardly meant, costs more than it seems, or has no effect.

    Args:
        settings: a valid configuration.
        document: the file that it was read from, for what is set there.
    """
    found: list[Problem] = []
    if not settings.groups:
        found.append(Problem("workers", "there is no [workers.NAME] table: nothing would run"))
    if settings.abort.rule == "rate":
        cost = "a plain share of the last 20 outcomes over 50% aborts on 54% of healthy days (10% failures, simulated)"
        found.append(Problem("abort.rule", f'{cost}; "evidence" sees the same outage as fast and did so on none'))
    address = settings.supervisor.metrics_listen
    if address is not None and not _is_loopback(parse_address(address)[0]):
        found.append(
            Problem("supervisor.metrics_listen", f"{address} is open to the network: nobody is asked to log in")
        )
    used = {group.retry for group in settings.groups.values()} | {"default"}
    found += [Problem(key_path("retry", name), "no group uses it") for name in settings.retry if name not in used]
    for group in settings.groups.values():
        found += _of_group(group)
    return [*found, *_without_effect(document)]


def _of_group(group: GroupSettings) -> Iterator[Problem]:
    path = key_path("workers", group.name)
    if group.item_timeout is not None and group.item_timeout >= group.progress_timeout:
        limit = f"not below progress_timeout ({format_duration(group.progress_timeout)})"
        yield Problem(f"{path}.item_timeout", f"{limit}: only an item that tells of progress gets that far")
    if group.heartbeat_timeout < 2 * group.heartbeat_interval:
        yield Problem(f"{path}.heartbeat_timeout", "below two heartbeat_intervals: one late heartbeat kills")
    if group.restart_policy.max_restarts == 0 and group.restart_policy.max_unstable == 0:
        yield Problem(f"{path}.restart_policy", "no limit at all: a worker that can't start is never given up")


def _without_effect(document: Mapping[str, object]) -> Iterator[Problem]:
    """The keys that are set and that nothing reads."""
    for table, path, given in _tables(document):
        for key in given:
            use = USES[table].get(key)
            if use is not None and use.doubt is not None:
                yield Problem(f"{path}.{key}", use.doubt)
    counts = [(name, kind) for name, kind in keys_of(GroupSettings).items() if isinstance(kind, WorkerCount)]
    for name, group in _named(document, "workers"):
        for key, kind in counts:
            least, most = parse_count(group[key], kind.most) if key in group else (0, None)
            if most is not None and USES["workers"][kind.upper].change is NOT_YET:
                path = key_path("workers", name)
                yield Problem(f"{path}.{key}", f"{least} run: the upper end of a range is {NOT_YET.how}")


def _tables(document: Mapping[str, object]) -> Iterator[tuple[str, str, Mapping[str, object]]]:
    """The file's tables: the name as in `USES`, the path, and what is set there."""
    for name in TABLES:
        yield name, name, _table(document, name)
    for kind in ("retry", "targets"):
        for name, given in _named(document, kind):
            yield kind, key_path(kind, name), given
    for name, group in _named(document, "workers"):
        path = key_path("workers", name)
        yield "workers", path, group
        for table in GROUP_TABLES:
            yield f"workers.{table}", f"{path}.{table}", _table(group, table)


def _named(document: Mapping[str, object], kind: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    tables = _table(document, kind)
    yield from ((name, _table(tables, name)) for name in tables)


def _table(parent: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = parent.get(name)
    return value if isinstance(value, Mapping) else {}


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
