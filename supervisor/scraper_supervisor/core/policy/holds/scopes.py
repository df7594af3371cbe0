"""The scopes of the hold policy: a target in a group, a host in all groups, a group, everything."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from scraper_supervisor.core.formats.event_payloads import ScopeKind


class ScopeName(NamedTuple):
    """Which scope: `key` is the host of a target, the name of a group, and empty for all of it.

    `group` is the group's name for a group and for a target in it. A host that is held in all groups has None.
    """

    scope: ScopeKind
    key: str
    group: str | None

    def covers(self, other: ScopeName) -> bool:
        """True if all that is in the other scope is in this one too."""
        if self.scope == "global" or self == other:
            return True
        if self.scope == "group":
            return self.group == other.group
        return self.group is None and other.scope == "target" and other.key == self.key

    def __str__(self) -> str:
        """As sentences name it."""
        if self.scope == "global":
            return "all groups"
        if self.scope == "group":
            return f"group {self.key}"
        return f"{self.key} in all groups" if self.group is None else f"{self.key} in group {self.group}"


EVERYTHING: Final = ScopeName("global", "", None)


@lru_cache(maxsize=4096)
def scopes_of(group: str, target: str | None) -> tuple[ScopeName, ...]:
    """All scopes that an item is in, the narrowest first."""
    if target is None:
        return (ScopeName("group", group, group), EVERYTHING)
    hosts = (ScopeName("target", target, group), ScopeName("target", target, None))
    return (*hosts, ScopeName("group", group, group), EVERYTHING)


@lru_cache(maxsize=4096)
def judged(group: str, target: str | None) -> tuple[ScopeName, ...]:
    """Those in which an item's vote may raise an alarm, the narrowest first; a host in all groups is held by status."""
    return tuple(name for name in scopes_of(group, target) if name.scope != "target" or name.group is not None)
