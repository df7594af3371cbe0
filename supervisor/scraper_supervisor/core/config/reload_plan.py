"""What a reload would touch: the difference between two valid configurations, as a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from scraper_supervisor.core.config.parser import Problem, key_path
from scraper_supervisor.core.config.settings import GROUP_TABLES, TABLES, GroupSettings, Settings
from scraper_supervisor.core.config.uses import REFUSED, RESIZE, ROLLING, USES, fields_of, told_as

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Plan(Struct, frozen=True, kw_only=True):
    """What turns the old configuration into the new one. With anything `refused`, nothing of it may be done.

    Args:
        added: groups to start.
        removed: groups to drain.
        restart: groups whose workers must be restarted, one by one at item boundaries; `causes` names the keys.
        causes: the keys behind `restart`, by group.
        resized: groups with another count, as (old, new).
        in_place: paths of the keys that take effect with no process restarted.
        without_effect: paths of the keys that differ and that nothing reads.
        refused: changes that a running daemon can't make.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    causes: dict[str, tuple[str, ...]] = {}
    resized: dict[str, tuple[int, int]] = {}
    in_place: tuple[str, ...] = ()
    without_effect: tuple[str, ...] = ()
    refused: tuple[Problem, ...] = ()

    @property
    def empty(self) -> bool:
        """True if the two configurations say the same."""
        return self == Plan()

    @property
    def summary(self) -> str:
        """One sentence for the log, the event and the operator."""
        if self.refused:
            return "refused: " + "; ".join(map(str, self.refused))
        parts = []
        if self.added:
            parts.append(f"starts {', '.join(self.added)}")
        if self.removed:
            parts.append(f"drains {', '.join(self.removed)}")
        parts += [f"restarts {name} ({', '.join(self.causes[name])})" for name in self.restart]
        parts += [f"resizes {name} from {old} to {new}" for name, (old, new) in self.resized.items()]
        if self.in_place:
            parts.append(f"changes {', '.join(self.in_place)} in place")
        if self.without_effect:
            parts.append(f"{', '.join(self.without_effect)} changed without effect: see check")
        return "; ".join(parts) or "nothing differs"


class _Difference(Struct, frozen=True):
    """A key that differs: its table as in `USES`, its path in the file, and the group that it is one of, if any."""

    table: str
    key: str
    path: str
    group: str | None = None


def plan(old: Settings, new: Settings) -> Plan:
    """What a reload from `old` to `new` touches; everything else, process or key, is left alone."""
    causes: dict[str, list[str]] = {}
    resized: dict[str, tuple[int, int]] = {}
    in_place = list(_named_tables(old, new))
    without_effect: list[str] = []
    refused: list[Problem] = []
    for differs in _differences(old, new):
        change, group = USES[differs.table][differs.key].change, differs.group
        if change is REFUSED:
            refused.append(Problem(differs.path, change.how))
        elif change is ROLLING and group is not None:
            causes.setdefault(group, []).append(differs.key)
        elif change is RESIZE and group is not None:
            resized[group] = (old.groups[group].count, new.groups[group].count)
        elif change.effect == "in place":
            in_place.append(differs.path)
        else:
            without_effect.append(differs.path)
    return Plan(
        added=tuple(name for name in new.groups if name not in old.groups),
        removed=tuple(name for name in old.groups if name not in new.groups),
        restart=tuple(sorted(causes)),
        causes={name: tuple(keys) for name, keys in sorted(causes.items())},
        resized=dict(sorted(resized.items())),
        in_place=tuple(sorted(in_place)),
        without_effect=tuple(sorted(without_effect)),
        refused=tuple(refused),
    )


def _differences(old: Settings, new: Settings) -> Iterator[_Difference]:
    for table in TABLES:
        yield from _of_table(table, table, getattr(old, table), getattr(new, table))
    for name in old.retry.keys() & new.retry.keys():
        yield from _of_table("retry", key_path("retry", name), old.retry[name], new.retry[name])
    for name in old.targets.keys() & new.targets.keys():
        yield from _of_table("targets", key_path("targets", name), old.targets[name], new.targets[name])
    for name in old.groups.keys() & new.groups.keys():
        before, after, path = old.groups[name], new.groups[name], key_path("workers", name)
        differing = list(_of_table("workers", path, before, after, name))
        yield from differing
        if before.file_env != after.file_env and all(differs.key != "env_file" for differs in differing):
            yield _Difference("workers", "env_file", f"{path}.env_file", name)  # the same file with another content
        for table in GROUP_TABLES:
            yield from _overridden(old, new, before, after, table)


def _of_table(table: str, path: str, old: Struct, new: Struct, group: str | None = None) -> Iterator[_Difference]:
    for key in fields_of(type(new)):
        if getattr(old, key) != getattr(new, key):
            yield _Difference(table, key, told_as(path, key), group)


def _overridden(
    old: Settings, new: Settings, before: GroupSettings, after: GroupSettings, table: str
) -> Iterator[_Difference]:
    """The keys of a group's table that changed, without those that only follow the table for all groups."""
    path = f"{key_path('workers', after.name)}.{table}"
    for differs in _of_table(f"workers.{table}", path, getattr(before, table), getattr(after, table), after.name):
        follows = all(
            getattr(getattr(group, table), differs.key) == getattr(getattr(whole, table), differs.key)
            for group, whole in ((before, old), (after, new))
        )
        if not follows:
            yield differs


def _named_tables(old: Settings, new: Settings) -> Iterator[str]:
    """The paths of retry policies and targets that came or went."""
    named: tuple[tuple[str, Mapping[str, Struct], Mapping[str, Struct]], ...] = (
        ("retry", old.retry, new.retry),
        ("targets", old.targets, new.targets),
    )
    for kind, before, after in named:
        yield from (key_path(kind, name) for name in before.keys() ^ after.keys())
