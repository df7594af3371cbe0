"""One transaction of the ledger: what each operation does to the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from msgspec import Raw

from scraper_supervisor.core.formats.timestamps import timestamp
from scraper_supervisor.core.ops.import_ops import (
    DropState,
    ImportBegin,
    ImportDrop,
    ImportFinish,
    ImportLines,
    ImportOp,
    TakeState,
)
from scraper_supervisor.core.ops.item_ops import (
    Added,
    AddItems,
    Cancel,
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
    RunEnd,
    RunImage,
    RunOp,
    RunState,
    SetIntent,
    SetRunState,
    WorkerTotals,
)
from scraper_supervisor.store.sqlite import run_import as importing
from scraper_supervisor.store.sqlite.item_sets import change, find_keys
from scraper_supervisor.store.sqlite.items import NOTHING_ADDED, conclude, offer
from scraper_supervisor.store.sqlite.run_counters import RunCounters
from scraper_supervisor.store.sqlite.run_numbers import next_number

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    from scraper_supervisor.core.ops.all_ops import Answer, LedgerOp

# Every operation but the end of a claim.
_ItemsOp: TypeAlias = Requeue | Cancel | Park | Unpark
_ItemOp: TypeAlias = AddItems | LeaseFresh | LeaseWaiting | ConfirmClaims | FindConclusion | FindKeys | _ItemsOp
_Rest: TypeAlias = ReserveClaims | SetIntent | LoadIntents | Probe

PREFETCH: Final = Prefetch(4_096, 8_192)  # items; a million pending ones cost the memory of these
_PAGE: Final = 4_096  # bytes
_NULL: Final = b"null"

_ENTRY: Final = (
    "SELECT id, key, target, CAST(data AS BLOB), -rank, ord, attempts, infrastructure, blocked, alone, not_before,"
    " given FROM items WHERE run_id = ? AND state = 'open'"
)
_LANE: Final = f"{_ENTRY} AND target IS ? AND not_before IS NULL AND (rank, ord) > (?, ?) ORDER BY rank, ord LIMIT ?"
_LANE_FROM_START: Final = f"{_ENTRY} AND target IS ? AND not_before IS NULL ORDER BY rank, ord LIMIT ?"
_LANE_PLACE: Final = f"{_ENTRY} AND target IS ? AND not_before IS NULL AND rank = ? AND ord = ?"
_CLAIMED: Final = f"{_ENTRY} AND key = ? AND coalesce(last_claim, 0) < ?"
_WAITING: Final = f"{_ENTRY} AND not_before IS NOT NULL ORDER BY not_before LIMIT ?"


class Batch:
    """The operations of one transaction, which has begun; the counts are written by `write_counters`.

    Args:
        cursor: The transaction's.
        tick: Wall-clock seconds, never twice the same.
    """

    def __init__(self, cursor: sqlite3.Cursor, tick: Callable[[], float]) -> None:
        self._cursor = cursor
        self._tick = tick
        self._now = 0.0
        self._all_counters: dict[int, RunCounters] = {}
        self.removed_runs = False
        self._touched = 0  # items, about
        self._bytes = 0  # of keys, data, results and failures; a large one is many pages

    @property
    def weight(self) -> int:
        """How much it has written: items, about, and as many more as it has written pages' worth of their texts."""
        return self._touched + self._bytes // _PAGE

    def write_counters(self) -> None:
        """Write the counts of all runs that changed. To be called before the transaction is committed."""
        for counters in self._all_counters.values():
            counters.write(self._cursor)

    def forget_counters(self) -> None:
        """Drop counts that were not written, after a rollback."""
        self._all_counters.clear()

    def perform(self, ops: Sequence[LedgerOp]) -> list[Answer]:
        """Carry out operations in their order; ends of claims that stand side by side are written together.

        Raises:
            LookupError: One names a run, group or item that is not there.
            sqlite3.Error: SQLite refused; the transaction is to be rolled back.
        """
        self._touched += len(ops)
        answers: list[Answer] = []
        together: dict[int, Conclude] = {}  # by item: the end of a second claim of it comes after the first
        for op in ops:
            if together and (not isinstance(op, Conclude) or op.item in together):
                answers += self._conclude(list(together.values()))
                together.clear()
            if isinstance(op, Conclude):
                together[op.item] = op
            else:
                answers.append(self._perform(op))
        return answers + self._conclude(list(together.values()))

    def _perform(self, op: _ItemOp | RunOp | ImportOp | _Rest) -> Answer:
        self._now = self._tick()
        match op:
            case OpenRun() | LoadRun() | SetRunState() | CompleteRun():
                return self._perform_on_run(op)
            case ReserveClaims() | SetIntent() | LoadIntents() | Probe():
                return self._perform_small(op)
            case ImportBegin() | ImportLines() | ImportFinish() | ImportDrop() | TakeState() | DropState():
                self.removed_runs = True  # perhaps: an import that was given up
                if isinstance(op, ImportLines):
                    self._touched += op.lines.count(b"\n")
                    self._bytes += len(op.lines)
                return importing.perform(self._cursor, op, self._now)
            case _:
                return self._perform_on_items(op)

    def _perform_on_items(self, op: _ItemOp) -> Answer:
        match op:
            case AddItems():
                if op.last:
                    self._cursor.execute("UPDATE runs SET offered = 1 WHERE id = ? AND NOT offered", (op.run_id,))
                return self._add(self._counters(op.run_id), op.items) if op.items else NOTHING_ADDED
            case LeaseFresh():
                return self._lease_fresh(op)
            case LeaseWaiting():
                return Leased(tuple(self._entries(_WAITING, (op.run_id, op.limit))))
            case ConfirmClaims():
                return self._confirm(op)
            case FindConclusion():
                return self._find(op)
            case FindKeys():
                return find_keys(self._cursor, op)
            case Requeue() | Cancel() | Park() | Unpark():
                changed = change(self._cursor, self._counters(op.run_id), op)
                self._touched += changed.changed
                return changed

    def _perform_on_run(self, op: RunOp) -> Answer:
        match op:
            case OpenRun():
                return self._open_run(op)
            case LoadRun():
                return self._image(op.group)
            case SetRunState():
                self._set_run_state(op.group, op.run_id, op.state)
                return None
            case CompleteRun():
                return self._complete(op)

    def _perform_small(self, op: _Rest) -> Answer:
        execute = self._cursor.execute
        match op:
            case ReserveClaims():
                return self._reserve(op)
            case SetIntent(intent=None):
                execute("DELETE FROM intents WHERE name = ?", (op.name,))
            case SetIntent():
                execute("INSERT OR REPLACE INTO intents (name, intent) VALUES (?, ?)", (op.name, op.intent))
            case LoadIntents():
                rows = execute("SELECT name, intent FROM intents ORDER BY name").fetchall()
                return Intents(tuple((name, intent) for name, intent in rows))
            case Probe():
                execute("INSERT INTO probes (id, count) VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET count = count + 1")
        return None

    def _reserve(self, op: ReserveClaims) -> Reserved:
        (upto,) = self._cursor.execute(
            "INSERT INTO groups (name, next_claim) VALUES (?, 1 + ?) ON CONFLICT (name)"
            " DO UPDATE SET next_claim = next_claim + ? RETURNING next_claim",
            (op.group, op.count, op.count),
        ).fetchone()
        return Reserved(upto - op.count, upto)

    # ---- items -------------------------------------------------------------------------------------------------------

    def _add(self, counters: RunCounters, items: Sequence[NewItem]) -> Added:
        self._touched += len(items)
        self._bytes += sum(len(item.key) + len(item.data) for item in items)
        return offer(self._cursor, counters, items)

    def _conclude(self, ops: list[Conclude]) -> list[Concluded | LeaseLost]:
        """End claims, all of different items; those of one run together."""
        self._bytes += sum(len(op.result or b"") + len(op.failure or b"") + len(op.answer or b"") for op in ops)
        by_run: dict[int, list[Conclude]] = {}
        for op in ops:
            by_run.setdefault(op.run_id, []).append(op)
        answers: dict[int, Concluded | LeaseLost] = {}
        for run_id, mine in by_run.items():
            ended = conclude(self._cursor, self._counters(run_id), mine, self._tick, self._add)
            answers.update(zip((op.item for op in mine), ended, strict=True))
        return [answers[op.item] for op in ops]

    def _lease_fresh(self, op: LeaseFresh) -> Leased:
        entries: list[Entry] = []
        for front in op.fronts:
            target, after = front.target, front.after
            if after is None:
                found = self._entries(_LANE_FROM_START, (op.run_id, target, op.limit))
            else:
                found = self._entries(_LANE, (op.run_id, target, *after, op.limit))
            if found and len(found) == op.limit:
                # Two retries may share a place; the next fetch begins after it and must not miss the second.
                last = found[-1]
                place = self._entries(_LANE_PLACE, (op.run_id, target, -last.priority, last.order))
                if len(place) > 1:
                    seen = {entry.id for entry in found}
                    found += [entry for entry in place if entry.id not in seen]
            entries += found
        return Leased(tuple(entries))

    def _entries(self, query: str, values: tuple[object, ...]) -> list[Entry]:
        now = self._now
        return [
            Entry(
                item, key, target, Raw(_NULL if data is None else data), priority, order, attempts, infrastructure,
                blocked, bool(alone), None if not_before is None else not_before - now, bool(given),
            )
            for item, key, target, data, priority, order, attempts, infrastructure, blocked, alone, not_before, given
            in self._cursor.execute(query, values).fetchall()
        ]  # fmt: skip

    def _find(self, op: FindConclusion) -> Conclusion | None:
        row = self._one(
            "SELECT state, seq, last_claim, last_outcome, CAST(last_answer AS BLOB) FROM items"
            " WHERE run_id = ? AND key = ?",
            (op.run_id, op.key),
        )
        if row is None:
            return None
        state, seq, claim, outcome, answer = row
        return Conclusion(state, seq, claim, outcome, None if answer is None else Raw(answer))

    def _confirm(self, op: ConfirmClaims) -> Confirmed:
        (upto,) = self._one("SELECT next_claim FROM groups WHERE name = ?", (op.group,)) or (0,)
        confirmed: list[ConfirmedClaim] = []
        for named in op.claims:
            found = self._entries(_CLAIMED, (op.run_id, named.key, named.claim)) if named.claim < upto else []
            confirmed += [ConfirmedClaim(named.claim, entry) for entry in found]
        return Confirmed(tuple(confirmed))

    # ---- runs --------------------------------------------------------------------------------------------------------

    def _open_run(self, op: OpenRun) -> RunImage:
        execute = self._cursor.execute
        execute("INSERT INTO groups (name) VALUES (?) ON CONFLICT (name) DO NOTHING", (op.group,))
        (group_id,) = self._one("SELECT id FROM groups WHERE name = ?", (op.group,)) or (0,)
        newest = self._one(
            "SELECT run, state, fresh_from FROM runs WHERE group_id = ? AND NOT removed ORDER BY run DESC LIMIT 1",
            (group_id,),
        )
        run, state, fresh_from = newest or (0, "completed", 1)
        if newest is None or op.mode == "fresh" or (op.mode == "next" and state == "completed"):
            run = next_number(self._cursor, op.group, run)
            execute(
                "INSERT INTO runs (group_id, run, state, fresh_from, started_at) VALUES (?, ?, 'running', ?, ?)",
                (group_id, run, run if op.mode == "fresh" else fresh_from, timestamp(self._now)),
            )
        if op.entrypoint is not None:
            execute("UPDATE runs SET entrypoint = ? WHERE group_id = ? AND run = ?", (op.entrypoint, group_id, run))
        execute(
            "UPDATE runs SET removed = 1 WHERE NOT removed AND id IN"
            " (SELECT id FROM runs WHERE group_id = ? ORDER BY run DESC LIMIT -1 OFFSET ?)",
            (group_id, max(op.keep_runs, 1)),
        )
        self.removed_runs = self.removed_runs or self._cursor.rowcount > 0
        return self._image(op.group)

    def _set_run_state(self, group: str, run_id: int, state: RunState) -> None:
        finished = None if state == "running" else timestamp(self._now)
        self._cursor.execute("UPDATE runs SET state = ?, finished_at = ? WHERE id = ?", (state, finished, run_id))
        if not self._cursor.rowcount:
            raise LookupError(f"{group}: the ledger has no run {run_id}")

    def _complete(self, op: CompleteRun) -> RunEnd:
        image = self._image(op.group)
        if image.run_id != op.run_id:
            raise LookupError(f"{op.group}: run {op.run_id} is not the newest any more")
        if image.waiting or any(lane.open for lane in image.lanes):
            return RunEnd("running", image)
        state: RunState = "aborted" if image.parked else "completed"
        self._set_run_state(op.group, op.run_id, state)
        return RunEnd(state, self._image(op.group))

    def _image(self, group: str) -> RunImage:
        self.write_counters()
        row = self._one(
            "SELECT runs.id, run, state, fresh_from, done, failed, parked, waiting, started_at, finished_at,"
            " offered, host, hosts FROM runs JOIN groups ON groups.id = group_id WHERE name = ? AND NOT removed"
            " ORDER BY run DESC LIMIT 1",
            (group,),
        )
        if row is None:
            raise LookupError(f"the ledger has no run of group {group!r}")
        run_id, run, state, fresh_from, done, failed, parked, waiting, started_at, finished_at, offered, *hosts = row
        execute = self._cursor.execute
        lanes = execute("SELECT target, open FROM lanes WHERE run_id = ? ORDER BY target", (run_id,)).fetchall()
        totals = execute(
            "SELECT worker, done, failed FROM totals WHERE run_id = ? ORDER BY worker", (run_id,)
        ).fetchall()
        return RunImage(
            run_id, run, state, fresh_from, done, failed, parked, waiting, tuple(Lane(*lane) for lane in lanes),
            started_at, finished_at, tuple(WorkerTotals(*each) for each in totals),
            importing.owed(self._cursor, run_id), PREFETCH, bool(offered), *hosts,
        )  # fmt: skip

    # ---- helpers -----------------------------------------------------------------------------------------------------

    def _counters(self, run_id: int) -> RunCounters:
        counters = self._all_counters.get(run_id)
        if counters is None:
            counters = self._all_counters[run_id] = RunCounters(self._cursor, run_id)
        return counters

    def _one(self, query: str, values: tuple[object, ...] = ()) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._cursor.execute(query, values).fetchone()
        return row
