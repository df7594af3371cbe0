"""`abort replay`: recorded events given to the hold policy again, to see when it would have held and aborted.

The recording has the attempts that were made, not those that would have been. So while a scope is held here, its first
recorded attempt that began when a probe was due stands for that probe, and its others do not count. After an abort it
goes on, that scope aside.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec
from msgspec import Struct

from scraper_supervisor.core.formats.timestamps import timestamp
from scraper_supervisor.core.policy.holds.policy import HoldPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scraper_supervisor.core.config.settings import AbortSettings
    from scraper_supervisor.core.policy.holds.hold import Fate
    from scraper_supervisor.core.policy.holds.rulings import Ruling

MOST_STARTS: Final = 3  # holds by status that one item may start
_CANCELLED: Final = "cancelled"  # the signature of what an operator ended


class _Failure(Struct):
    kind: str = "transient"
    signature: str = ""
    status: int | None = None
    retry_after: float | None = None


class _Attempt(Struct):
    key: str
    outcome: str
    target: str | None = None
    seconds: float | None = None
    failure: _Failure | None = None


class _Exit(Struct):
    """`died` is null in what older versions wrote: then an end that nobody ordered, and that was not 0, is a death."""

    ordered: bool = False
    code: int | None = None
    charged: str | None = None
    died: bool | None = None

    @property
    def death(self) -> bool:
        """It speaks against its group."""
        return self.died if self.died is not None else not (self.ordered or self.code == 0)


class _Finished(Struct, tag_field="event", tag="item_finished"):
    time: datetime
    data: _Attempt
    group: str


class _Exited(Struct, tag_field="event", tag="worker_exited"):
    time: datetime
    data: _Exit
    group: str


_Line: TypeAlias = _Finished | _Exited


class ReplayDecision(Struct, frozen=True):
    """What the policy would have decided, and when; times are RFC 3339 UTC."""

    time: str
    action: str
    scope: str
    key: str
    group: str | None
    items: int
    failures: int
    reason: str


class ReplayReport(Struct, frozen=True, rename={"since": "from", "until": "to"}):
    """What `abort replay` prints: the votes that counted, from when to when, and what was decided."""

    items: int
    since: str | None
    until: str | None
    aborted: bool
    decisions: tuple[ReplayDecision, ...]


class Replay:
    """Give it the lines of an events file in their order; anything that is no event of an attempt or death is skipped.

    Args:
        settings: `[abort]`.
        groups: each group's own.
    """

    def __init__(self, settings: AbortSettings, groups: Mapping[str, AbortSettings]) -> None:
        self._policy = HoldPolicy(settings, groups)
        self._decoder = msgspec.json.Decoder(_Line)
        self._starts: dict[tuple[str, str], int] = {}
        self._items = 0
        self._first: float | None = None
        self._last: float | None = None
        self._rulings: list[Ruling] = []

    def feed(self, line: bytes) -> None:
        """Take one line."""
        if b'"item_finished"' not in line and b'"worker_exited"' not in line:
            return
        try:
            event = self._decoder.decode(line)
        except msgspec.DecodeError:
            return  # torn, or not ours
        if event.time.tzinfo is None:
            return
        now = event.time.timestamp()
        if isinstance(event, _Exited):
            if event.data.death:
                self._policy.crash(now, event.group, event.data.charged)
        else:
            self._attempt(now, event.group, event.data)
        self._rulings += self._policy.evaluate(now)

    def report(self) -> ReplayReport:
        """What came of it so far."""
        return ReplayReport(
            self._items,
            _written(self._first),
            _written(self._last),
            any(ruling.action == "aborted" for ruling in self._rulings),
            tuple(_told(ruling) for ruling in self._rulings if ruling.action != "evaluated"),
        )

    def _attempt(self, now: float, group: str, attempt: _Attempt) -> None:
        policy, failure, target = self._policy, attempt.failure, attempt.target
        if failure is not None and failure.signature == _CANCELLED:
            return
        began = now - (attempt.seconds or 0.0)
        self._rulings += policy.evaluate(now)  # an abort may have rested
        probe = None
        if policy.stands(group, target):
            if policy.gate(began, group, target) != "probe":
                return
            probe = policy.begin_probe(began, group, target, attempt.key)
        if failure is not None:
            identity = (group, attempt.key)
            started = self._starts.get(identity, 0)
            if policy.told(now, group, target, failure.status, failure.retry_after, start=started < MOST_STARTS):
                self._starts[identity] = started + 1
        kind = failure.kind if failure is not None else "done"
        failed = attempt.outcome != "done"
        policy.vote(now, group, attempt.key, failed=failed, target=target, infrastructure=kind == "infrastructure")
        if probe is not None:
            policy.end_probe(now, probe, _fate(kind, failed=failed))
        self._items += 1
        self._first = now if self._first is None else self._first
        self._last = now


def _fate(kind: str, *, failed: bool) -> Fate:
    if not failed:
        return "done"
    match kind:
        case "permanent" | "infrastructure":
            return kind
    return "failed"


def _written(moment: float | None) -> str | None:
    return None if moment is None else timestamp(moment)


def _told(ruling: Ruling) -> ReplayDecision:
    name = ruling.name
    counted = (ruling.items, ruling.failures, ruling.reason)
    return ReplayDecision(timestamp(ruling.time), ruling.action, name.scope, name.key, name.group, *counted)
