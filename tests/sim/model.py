"""The store as the records describe it, in plain Python: what is committed stays, the rest never was.

The real ledger is tested against a model of its own; here it stands in for the disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Raw, Struct, field

from scraper_supervisor.core.formats.redaction import digest_of, hidden_in
from scraper_supervisor.core.ops.item_ops import (
    RETRY_ORIGIN,
    Added,
    AddItems,
    Cancel,
    Changed,
    Conclude,
    Concluded,
    Conclusion,
    ConfirmClaims,
    Confirmed,
    ConfirmedClaim,
    Entry,
    FindConclusion,
    FindKeys,
    Leased,
    LeaseFresh,
    LeaseLost,
    LeaseWaiting,
    NewItem,
    Park,
    Requeue,
    ReserveClaims,
    Reserved,
    Unpark,
    WholeKeys,
)
from scraper_supervisor.core.ops.run_ops import (
    CompleteRun,
    Intents,
    Lane,
    LoadIntents,
    LoadRun,
    OpenRun,
    Prefetch,
    Probe,
    ReportedHosts,
    RunEnd,
    RunImage,
    SetIntent,
    SetRunState,
    WorkerTotals,
)
from scraper_supervisor.core.ops.state_ops import LoadState, ProbeFolder, SaveState, StateLoaded, StateSaved

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scraper_supervisor.core.ops.all_ops import Answer, Op

WALL = 1_750_000_000.0  # wall-clock seconds at monotonic 0


class Row(Struct):
    """An item's row."""

    id: int
    key: str
    target: str | None
    data: Raw
    priority: int
    order: float
    state: str = "open"
    attempts: int = 0
    infrastructure: int = 0
    blocked: int = 0
    alone: bool = False
    not_before: float | None = None
    seq: int | None = None
    claim: int | None = None
    outcome: str | None = None
    answer: Raw | None = None
    worker: str | None = None
    given: bool = True
    cancelled: bool = False


class Run(Struct):
    """A run's row and its items."""

    run_id: int
    run: int
    fresh_from: int
    state: str = "running"
    orders: int = 0
    seqs: int = 0
    items: dict[int, Row] = {}
    keys: dict[str, int] = {}
    totals: dict[str, list[int]] = {}
    offered: bool = False
    hosts: ReportedHosts = field(default_factory=ReportedHosts)

    def row(self, key: str) -> Row | None:
        """The item of that key."""
        return self.items.get(self.keys.get(key, 0))

    def open(self, *, timed: bool) -> list[Row]:
        """Unfinished items with or without a time to wait for."""
        return [row for row in self.items.values() if row.state == "open" and (row.not_before is not None) == timed]


class ModelStore:
    """What is on the disk: the ledger and the checkpoint files."""

    def __init__(self, prefetch: Prefetch = Prefetch()) -> None:  # noqa: B008 - a value that nobody can change
        self.runs: dict[str, list[Run]] = {}
        self.next_claim: dict[str, int] = {}
        self.intents: dict[str, Any] = {}
        self.states: dict[str, list[tuple[int, int, str, Raw]]] = {}  # generation, run, schema, state
        self.damaged: set[str] = set()  # workers whose files are all damaged
        self.prefetch = prefetch
        self._ids = 0

    def newest(self, group: str) -> Run:
        """The group's newest run."""
        return self.runs[group][-1]

    def run(self, run_id: int) -> Run:
        """A run by its number."""
        return next(run for runs in self.runs.values() for run in runs if run.run_id == run_id)

    def perform(self, op: Op, now: float) -> Answer:  # noqa: C901 - one arm an operation
        """Carry out an operation at monotonic `now`."""
        match op:
            case OpenRun():
                return self._open(op)
            case LoadRun(group=group):
                return self._image(group)
            case SetRunState(run_id=run_id, state=state):
                self.run(run_id).state = state
            case AddItems(run_id=run_id, items=items, last=last):
                self.run(run_id).offered |= last
                return self._add(self.run(run_id), items)
            case Conclude():
                return self._conclude(op, now)
            case LeaseFresh():
                return self._fetch(op, now)
            case CompleteRun():
                return self._complete(op)
            case ConfirmClaims():
                return self._confirm(op, now)
            case LeaseWaiting(run_id=run_id, limit=limit):
                rows = sorted(self.run(run_id).open(timed=True), key=lambda row: row.not_before or 0)
                return Leased(tuple(_entry(row, now) for row in rows[:limit]))
            case FindConclusion(run_id=run_id, key=key):
                row = self.run(run_id).row(key)
                if row is None:
                    return None
                outcome: Any = row.outcome
                state: Any = row.state
                return Conclusion(state, row.seq, row.claim, outcome, row.answer)
            case ReserveClaims(group=group, count=count):
                first = self.next_claim.get(group, 1)
                self.next_claim[group] = first + count
                return Reserved(first, first + count)
            case SetIntent(name=name, intent=intent):
                self.intents[name] = intent
                if intent is None:
                    del self.intents[name]
            case LoadIntents():
                return Intents(tuple(sorted(self.intents.items())))
            case Requeue() | Cancel():
                return self._change(op)
            case FindKeys(run_id=run_id, shown=shown):
                return WholeKeys(tuple(_whole(self.run(run_id), key) for key in shown))
            case Park() | Unpark():
                return self._move(op)
            case SaveState():
                return self._save(op)
            case LoadState():
                return self._load(op)
            case Probe() | ProbeFolder():
                pass
        return None

    # ---- runs

    def _open(self, op: OpenRun) -> RunImage:
        runs = self.runs.setdefault(op.group, [])
        newest = runs[-1] if runs else None
        if newest is None or op.mode == "fresh" or (op.mode == "next" and newest.state == "completed"):
            number = 1 if newest is None else newest.run + 1
            fresh_from = number if newest is None or op.mode == "fresh" else newest.fresh_from
            self._ids += 1
            runs.append(Run(self._ids, number, fresh_from))
        return self._image(op.group)

    def _image(self, group: str) -> RunImage:
        run = self.newest(group)
        lanes: dict[str | None, int] = {}
        for row in run.open(timed=False):
            lanes[row.target] = lanes.get(row.target, 0) + 1
        count = {state: sum(row.state == state for row in run.items.values()) for state in ("done", "failed", "parked")}
        state: Any = run.state
        return RunImage(
            run.run_id,
            run.run,
            state,
            run.fresh_from,
            count["done"],
            count["failed"],
            count["parked"],
            len(run.open(timed=True)),
            tuple(Lane(target, number) for target, number in lanes.items()),
            "2026-01-01T00:00:00Z",
            None,
            tuple(WorkerTotals(worker, *totals) for worker, totals in run.totals.items()),
            prefetch=self.prefetch,
            offered=run.offered,
            host=run.hosts.host,
            hosts=run.hosts.count,
        )

    def _complete(self, op: CompleteRun) -> RunEnd:
        run = self.run(op.run_id)
        if not any(row.state == "open" for row in run.items.values()):
            run.state = "aborted" if any(row.state == "parked" for row in run.items.values()) else "completed"
        state: Any = run.state
        return RunEnd(state, self._image(op.group))

    def _confirm(self, op: ConfirmClaims, now: float) -> Confirmed:
        found = []
        for named in op.claims:
            row = self.run(op.run_id).row(named.key)
            given = named.claim < self.next_claim.get(op.group, 1)
            if given and row is not None and row.state == "open" and (row.claim or 0) < named.claim:
                found.append(ConfirmedClaim(named.claim, _entry(row, now)))
        return Confirmed(tuple(found))

    # ---- items

    def _add(self, run: Run, items: Iterable[NewItem]) -> Added:
        added, known = [], 0
        for index, item in enumerate(items):
            run.orders += 1
            if item.key in run.keys:
                known += 1
                continue
            self._ids += 1
            run.keys[item.key] = self._ids
            order = float(run.orders)
            run.items[self._ids] = Row(self._ids, item.key, item.target, item.data, item.priority, order)
            run.items[self._ids].given = item.target is not None
            added.append((index, self._ids, order))
        return Added(tuple(added), known)

    def _conclude(self, op: Conclude, now: float) -> Concluded | LeaseLost:
        run = self.run(op.run_id)
        row = run.items[op.item]
        assert row.key == op.key
        if row.claim is not None and row.claim > op.claim:
            return LeaseLost()
        assert row.state == "open", f"{op.outcome} of {op.key} by claim {op.claim}, which is {row.state} already"
        again = row.claim == op.claim and op.outcome in ("done", "retry")
        assert not again, f"claim {op.claim} of {op.key} ended as {row.outcome} and once more as {op.outcome}"
        row.claim, row.outcome, row.answer, row.worker = op.claim, op.outcome, op.answer, op.worker
        row.attempts, row.infrastructure, row.blocked, row.alone = op.attempts, op.infrastructure, op.blocked, op.alone
        if op.reported is not None:
            run.hosts.learn(op.reported)
        row.target = op.target if op.target is not None else row.target
        row.not_before = None
        if op.outcome == "done":
            run.seqs += 1
            row.seq = run.seqs
        if op.outcome in ("done", "failed"):
            row.state = op.outcome
            row.cancelled = op.failure is not None and b'"cancelled by an operator"' in bytes(op.failure)
            run.totals.setdefault(op.worker, [0, 0])[op.outcome == "failed"] += 1
        elif op.outcome == "retry":
            row.not_before = None if op.delay is None else now + op.delay
            row.order = WALL + now + (op.delay or 0.0) - RETRY_ORIGIN
        return Concluded(row.seq, row.order if row.state == "open" else None, self._add(run, op.offers))

    def _fetch(self, op: LeaseFresh, now: float) -> Leased:
        found: list[Entry] = []
        rows = self.run(op.run_id).open(timed=False)
        for target, after in ((front.target, front.after) for front in op.fronts):
            lane = sorted((-row.priority, row.order, row.id) for row in rows if row.target == target)
            lane = [place for place in lane if after is None or place[:2] > after]
            cut = lane[: op.limit]
            cut += [place for place in lane[op.limit :] if cut and place[:2] == cut[-1][:2]]
            found += [_entry(self.run(op.run_id).items[number], now) for _, _, number in cut]
        return Leased(tuple(found))

    def _change(self, op: Requeue | Cancel) -> Changed:
        run = self.run(op.run_id)
        wanted = ("failed", "parked") if isinstance(op, Requeue) else ("open", "parked")
        named = [run.row(key) for key in dict.fromkeys(op.keys)]
        rows = {row.id: row for row in named if row is not None and row.state in wanted}
        untouched = tuple(key for key in dict.fromkeys(op.keys) if run.keys.get(key) not in rows)
        if isinstance(op, Requeue):
            every = {"failed"} if op.failed else set()
            every |= {"parked"} if op.parked else set()
            rows |= {row.id: row for row in run.items.values() if row.state in every and not row.cancelled}
        parked = sum(row.state == "parked" for row in rows.values()) if isinstance(op, Requeue) else 0
        for row in sorted(rows.values(), key=lambda row: row.id):
            row.not_before = None
            if isinstance(op, Cancel):
                row.state, row.cancelled = "failed", True
                continue
            run.orders += 1
            row.cancelled = False
            row.state, row.order, row.attempts, row.infrastructure = "open", float(run.orders), 0, 0
            row.blocked, row.alone = 0, False
        return Changed(len(rows), untouched, parked)

    def _move(self, op: Park | Unpark) -> Changed:
        before, after = ("open", "parked") if isinstance(op, Park) else ("parked", "open")
        rows = [row for row in self.run(op.run_id).items.values() if row.state == before][: op.limit]
        for row in rows:
            row.state = after
        return Changed(len(rows), ())

    # ---- checkpoints

    def _save(self, op: SaveState) -> StateSaved:
        whose = _place(op.worker, op.slot)
        known = self.states.setdefault(whose, [])
        generation = known[-1][0] + 1 if known else 1
        known.append((generation, op.run, op.schema, op.state))
        self.damaged.discard(whose)
        return StateSaved(generation, "0" * 64, "2026-01-01T00:00:00Z", 0.001, len(bytes(op.state)), ())

    def _load(self, op: LoadState) -> StateLoaded:
        whose = _place(op.worker, op.slot)
        if whose in self.damaged:
            return StateLoaded("damaged")
        known = [one for one in self.states.get(whose, ()) if one[1] >= op.fresh_from]
        if op.generation is not None:
            known = [one for one in self.states.get(whose, ()) if one[0] == op.generation]
        if not known:
            return StateLoaded("none" if op.generation is None else "unknown")
        generation, run, schema, state = known[-1]
        return StateLoaded("sound", generation, run, schema, "2026-01-01T00:00:00Z", state)


def _whole(run: Run, shown: str) -> str:
    beginning, digest = hidden_in(shown) or ("", "")
    found = [key for key in run.keys if key.startswith(beginning) and digest_of(key) == digest]
    return found[0] if len(found) == 1 else shown


def _place(worker: str, slot: str | None) -> str:
    return worker if slot is None else f"{worker}/{slot}"


def _entry(row: Row, now: float) -> Entry:
    due_in = None if row.not_before is None else row.not_before - now
    return Entry(
        row.id,
        row.key,
        row.target,
        row.data,
        row.priority,
        row.order,
        row.attempts,
        row.infrastructure,
        row.blocked,
        row.alone,
        due_in,
        row.given,
    )
