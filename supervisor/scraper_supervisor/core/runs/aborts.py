"""What the abort policy decides is told and carried out here, and taken back when an operator gives another chance.

One scope's suspicion, abort, execution and end are one incident: all their events bear its correlation id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from scraper_supervisor.core.formats.event_payloads import AbortEvaluated, AbortExecuted, AbortTriggered
from scraper_supervisor.core.policy.abort import GLOBAL
from scraper_supervisor.core.runs.shutdown import is_over
from scraper_supervisor.core.states.group import GroupState
from scraper_supervisor.core.states.supervisor import SupervisorTrigger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scraper_supervisor.core.fleet_state import FleetState
    from scraper_supervisor.core.formats.event_names import Severity
    from scraper_supervisor.core.policy.abort import AbortWindow, Decision, ScopeId
    from scraper_supervisor.core.runs.groups import Groups

CLEARED: Final = "cleared by an operator"


class AllTogether(ValueError):
    """Everything was aborted at once, and can't be cleared group by group."""


class Incident(Struct):
    """A scope that is not normal: its correlation id, and since when it is as it is, in monotonic seconds."""

    id: str
    since: float


class Aborts:
    """Carries out decisions of the abort policy."""

    def __init__(self, state: FleetState, groups: Groups, window: AbortWindow) -> None:
        self._state = state
        self._groups = groups
        self._window = window
        self._incidents: dict[ScopeId, Incident] = {}

    def since(self, scope: ScopeId) -> float | None:
        """Since when a scope has been as it is, in monotonic seconds; None for a normal one."""
        known = self._incidents.get(scope)
        return None if known is None else known.since

    def decided(self, decisions: Iterable[Decision], now: float) -> None:
        """The abort policy decided something: it is told, and an abort executed."""
        state = self._state
        for decision in decisions:
            incident = self._incident(decision)
            about = decision.key if decision.scope == "group" else None
            counted = (decision.items, decision.failures, decision.rate, decision.limit)
            told = (decision.scope, decision.key, about, *counted, decision.reason, None)
            if decision.action != "aborted":
                severity: Severity = "warning" if decision.action == "suspected" else "info"
                state.publish(AbortEvaluated(*told, decision.action), severity, group=about, incident=incident)
                continue
            names = tuple(state.groups) if decision.scope == "global" else (decision.key,)
            state.publish(AbortTriggered(*told), incident=incident, group=about)
            for name in names:
                group = state.groups.get(name)
                if group is not None:
                    self._groups.abort(group, f"aborted: {decision.reason}", now, parks=decision.scope == "group")
            if decision.scope == "global" or all(is_over(group) for group in state.groups.values()):
                state.go(SupervisorTrigger.ABORT)
            state.publish(AbortExecuted(*told, names), incident=incident, group=about)

    def _incident(self, decision: Decision) -> str:
        """The scope's, from its suspicion or abort until it is normal again."""
        scope: ScopeId = (decision.scope, decision.key)
        if decision.action == "cleared":
            known = self._incidents.pop(scope, None)
            return self._state.outbox.incident_id() if known is None else known.id
        known = self._incidents.setdefault(scope, Incident(self._state.outbox.incident_id(), decision.time))
        known.since = decision.time
        return known.id

    # ---- another chance

    def clear(self, names: tuple[str, ...], now: float) -> list[dict[str, Any]]:
        """Give what is aborted another chance: everything, or the groups of these names. Nothing else is touched.

        Returns:
            The scopes that were cleared, as `status` names scopes; none if nothing was aborted.

        Raises:
            AllTogether: names were given, and everything is aborted.
        """
        everything = GLOBAL in self._aborted(now)
        if everything and names:
            raise AllTogether("all groups are aborted together, not one by one; clear them together: abort clear")
        known = self._state.groups
        groups = [name for name in names or known if known[name].state is GroupState.ABORTED]
        cleared: list[dict[str, Any]] = []
        if everything:
            self._window.clear()
            cleared.append({"scope": "global", "key": "", "group": None})
        for name in groups:
            self._window.forget(name, CLEARED)
            cleared.append({"scope": "group", "key": name, "group": name})
        if cleared:
            self._state.go(SupervisorTrigger.CLEAR)
        for name in groups:
            self._groups.resume_run(known[name], now, reset=True)
        return cleared

    def another_chance(self, name: str, now: float) -> None:
        """An operator requeued parked items of this group: every aborted scope that they are in goes on."""
        group = self._state.groups.get(name)
        if group is not None and group.state is GroupState.ABORTED:
            self.clear(() if GLOBAL in self._aborted(now) else (name,), now)

    def _aborted(self, now: float) -> list[ScopeId]:
        return [(scope.scope, scope.key) for scope in self._window.scopes(now) if scope.state == "aborted"]
