"""What a reload would touch: the difference between two valid configurations, as a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

from scraper_supervisor.core.parse import Problem, key_path
from scraper_supervisor.core.settings import GROUP_TABLES, TABLES, GroupSettings, Settings, keys_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RESTARTING: Final = ("entrypoint", "command", "python", "directory", "env", "env_file")
NEEDS_RESTART: Final = ("state_dir", "runtime_dir")  # of [supervisor]


class Plan(Struct, frozen=True, kw_only=True):
    """What turns the old configuration into the new one. With anything `refused`, nothing of it may be done.

    Args:
        added: groups to start.
        removed: groups to drain.
        restart: groups whose workers must be restarted, one by one at item boundaries; `causes` names the keys.
        causes: the keys behind `restart`, by group.
        resized: groups with another count, as (old, new).
        in_place: paths of the other keys that differ; they take effect with no process restarted.
        refused: changes that a running daemon can't make.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    causes: dict[str, tuple[str, ...]] = {}
    resized: dict[str, tuple[int, int]] = {}
    in_place: tuple[str, ...] = ()
    refused: tuple[Problem, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether the two configurations say the same."""
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
        return "; ".join(parts) or "nothing differs"


def plan(old: Settings, new: Settings) -> Plan:
    """What a reload from `old` to `new` touches; everything else, process or key, is left alone."""
    causes: dict[str, tuple[str, ...]] = {}
    resized: dict[str, tuple[int, int]] = {}
    in_place = [path for path in _global_changes(old, new) if path not in _REFUSED]
    for name in old.groups.keys() & new.groups.keys():
        before, after = old.groups[name], new.groups[name]
        changed = _differing(before, after)
        if before.file_env != after.file_env and "env_file" not in changed:
            changed.append("env_file")  # the same file with another content
        if restarting := tuple(key for key in RESTARTING if key in changed):
            causes[name] = restarting
        if "count" in changed:
            resized[name] = (before.count, after.count)
        path = key_path("workers", name)
        in_place += [f"{path}.{key}" for key in changed if key not in RESTARTING and key != "count"]
        for table in GROUP_TABLES:
            in_place += [f"{path}.{table}.{key}" for key in _overridden(old, new, before, after, table)]
    changed = _differing(old.supervisor, new.supervisor)
    return Plan(
        added=tuple(name for name in new.groups if name not in old.groups),
        removed=tuple(name for name in old.groups if name not in new.groups),
        restart=tuple(sorted(causes)),
        causes=dict(sorted(causes.items())),
        resized=dict(sorted(resized.items())),
        in_place=tuple(sorted(in_place)),
        refused=tuple(
            Problem(f"supervisor.{key}", "needs a daemon restart") for key in NEEDS_RESTART if key in changed
        ),
    )


_REFUSED: Final = frozenset(f"supervisor.{key}" for key in NEEDS_RESTART)


def _differing(old: Struct, new: Struct) -> list[str]:
    return [name for name in keys_of(type(new)) if getattr(old, name) != getattr(new, name)]


def _global_changes(old: Settings, new: Settings) -> Iterator[str]:
    for table in TABLES:
        yield from (f"{table}.{name}" for name in _differing(getattr(old, table), getattr(new, table)))
    yield from _named_changes("retry", old.retry, new.retry)
    yield from _named_changes("targets", old.targets, new.targets)


def _named_changes(kind: str, old: Mapping[str, Struct], new: Mapping[str, Struct]) -> Iterator[str]:
    for name in old.keys() | new.keys():
        path = key_path(kind, name)
        if name in old and name in new:
            yield from (f"{path}.{key}" for key in _differing(old[name], new[name]))
        else:
            yield path


def _overridden(old: Settings, new: Settings, before: GroupSettings, after: GroupSettings, table: str) -> Iterator[str]:
    """The keys of a group's table that changed, without those that only follow the table for all groups."""
    for key in _differing(getattr(before, table), getattr(after, table)):
        follows = all(
            getattr(getattr(group, table), key) == getattr(getattr(whole, table), key)
            for group, whole in ((before, old), (after, new))
        )
        if not follows:
            yield key
