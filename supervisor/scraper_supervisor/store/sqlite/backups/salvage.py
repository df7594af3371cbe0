"""What a ledger held that another one lacks, as far as a damaged file and the event log still tell."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from msgspec import Raw, Struct

from scraper_supervisor.core.formats.timestamps import timestamp
from scraper_supervisor.store.event_log import EVENTS_FILE, read_events
from scraper_supervisor.store.sqlite.integrity.wal_check import size_of
from scraper_supervisor.store.sqlite.schema import open_anyway

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CHUNK: Final = 1_000  # rows read at once
_PATIENCE: Final = 20_000  # ranges of rows that may be unreadable before the rest is given up, some seconds
_BEYOND: Final = 1_000_000  # ids to look for above the highest of the restored ledger, and one more for each
_ROW: Final = 64  # bytes of the file: with its place in an index, a row takes about as many. Its own ids may be damaged
_MOST_RUNS: Final = 1 << 24  # of a group; a higher number is damage
_STATES: Final = frozenset({"open", "parked", "done", "failed"})

_ITEMS: Final = "SELECT id, run_id, key, state, seq FROM items WHERE id >= ? AND id < ? ORDER BY id"
_RESULT: Final = "SELECT CAST(result AS BLOB), sha256 FROM results WHERE run_id = ? AND seq = ? AND item_id = ?"

_Outcome: TypeAlias = Literal["done", "failed", "added"]


class Missing(Struct, frozen=True, omit_defaults=True):
    """An item whose outcome was acknowledged, or that was added, and of which the restored ledger does not know.

    `run` is None where nothing tells. `recoverable`: the damaged ledger has its row, or for one that is done a result
    that fits its checksum, which is `result`.
    """

    group: str
    run: int | None
    key: str
    outcome: _Outcome
    recoverable: bool
    result: Raw | None = None


class Salvage:
    """Compares a restored ledger with what there was.

    Args:
        restored: A connection to it.
    """

    def __init__(self, restored: sqlite3.Connection) -> None:
        self._restored = restored
        self._found: dict[tuple[str, int | None, str], Missing] = {}
        self._stood: set[tuple[str, int | None, str]] = set()  # items that the damaged ledger says are open
        self._runs: dict[str, list[tuple[str, int]]] = {}  # of a group: when each began, and its number
        self.unread: str | None = None  # why some of the damaged ledger could not be read
        self._ids = {place: run_id for run_id, place in self._note_runs(restored).items()}

    @property
    def missing(self) -> list[Missing]:
        """What was found so far, by group, run and key."""
        return sorted(self._found.values(), key=lambda one: (one.group, one.run or 0, one.key))

    @property
    def highest_runs(self) -> dict[str, int]:
        """The highest run of each group in either ledger, those included that are removed."""
        return {group: max(run for _, run in begun) for group, begun in self._runs.items()}

    def read_ledger(self, path: Path) -> None:
        """Note what a damaged ledger has, as far as it can be read."""
        try:
            with closing(open_anyway(path)) as db:
                self._read(db, self._highest() + _BEYOND + size_of(path) // _ROW)
        except Exception as error:  # noqa: BLE001 - whatever damage leads to: what is restored does not depend on it
            self.unread = self.unread or str(error) or type(error).__name__

    def read_events(self, state_dir: Path, since: float) -> None:
        """Note which items ended by the event log since that time (wall-clock seconds).

        Raises:
            OSError: The disk does not give it; a log that is not there is an empty one.
        """
        start = timestamp(since, "microseconds")
        try:
            for event in read_events(state_dir / EVENTS_FILE):
                if event.event == "item_finished" and event.time >= start and isinstance(event.data, dict):
                    self._note_event(event.time, event.group, event.worker, event.data)
        except FileNotFoundError:
            return

    # ---- the damaged ledger ------------------------------------------------------------------------------------------

    def _read(self, db: sqlite3.Connection, highest: int) -> None:
        names = self._note_runs(db)
        removed = {run_id for (run_id,) in db.execute("SELECT id FROM runs WHERE removed").fetchall()}
        for item, run_id, key, state, seq in self._items(db, highest):
            # One changed byte of a row's header makes another type of a value, and is no error to SQLite.
            if not isinstance(run_id, int) or not isinstance(key, str) or state not in _STATES:
                self.unread = "some of its items have values that can't be"
                continue
            if run_id not in names:
                if run_id not in removed:
                    self.unread = "some of its items are of a run that can't be read"
                continue
            group, run = names[run_id]
            theirs = self._state(group, run, key)
            if state not in ("done", "failed"):
                self._stood.add((group, run, key))
            if theirs == "done" or theirs == state or (theirs is not None and state not in ("done", "failed")):
                continue
            outcome: _Outcome = state if state in ("done", "failed") else "added"
            sound = _same_key(db, item, run_id, key)
            result = _result(db, run_id, seq, item) if outcome == "done" and sound else None
            recoverable = sound and (outcome != "done" or result is not None)
            self._found[group, run, key] = Missing(group, run, key, outcome, recoverable, result)

    def _items(self, db: sqlite3.Connection, highest: int) -> Iterator[tuple[Any, ...]]:
        """The rows that can be read; those on a page that cannot are left out."""
        patience, read = _PATIENCE, 0
        for start in range(0, highest + 1, _CHUNK):
            ranges = [(start, start + _CHUNK)]
            while ranges:
                low, high = ranges.pop()
                try:
                    rows = db.execute(_ITEMS, (low, high)).fetchall()
                except sqlite3.DatabaseError as error:
                    patience -= 1
                    self.unread = f"some of its items can't be read ({error})"
                    if patience == 0:
                        self.unread = f"most of its items can't be read ({error})"
                        return
                    if high - low > 1:
                        middle = (low + high) // 2
                        ranges += [(middle, high), (low, middle)]
                    continue
                read += len(rows)
                yield from rows
        if self.unread is None and db.execute("SELECT count(*) FROM items").fetchone() != (read,):
            self.unread = "some of its items are not where their ids say"

    def _highest(self) -> int:
        (highest,) = self._restored.execute("SELECT coalesce(max(id), 0) FROM items").fetchone()
        return int(highest)

    # ---- the restored ledger -----------------------------------------------------------------------------------------

    def _note_runs(self, db: sqlite3.Connection) -> dict[int, tuple[str, int]]:
        for name, run, started_at in db.execute(
            "SELECT name, run, started_at FROM runs JOIN groups ON groups.id = group_id WHERE run > 0"
        ).fetchall():
            sound = isinstance(name, str) and isinstance(run, int) and isinstance(started_at, str)
            if not sound or run > _MOST_RUNS:
                self.unread = "some of its runs have values that can't be"
                continue
            begun = self._runs.setdefault(name, [])
            if (started_at, run) not in begun:
                begun.append((started_at, run))
                begun.sort()
        return _runs(db)

    def _state(self, group: str, run: int | None, key: str) -> str | None:
        run_id = None if run is None else self._ids.get((group, run))
        row = self._restored.execute("SELECT state FROM items WHERE run_id = ? AND key = ?", (run_id, key)).fetchone()
        return None if row is None else str(row[0])

    def _note_event(self, time: str, group: str | None, worker: str | None, data: dict[str, Any]) -> None:
        outcome, key = data.get("outcome"), data.get("key")
        group = group or (worker or "").rpartition("-")[0]
        if outcome not in ("done", "failed") or not isinstance(key, str) or not group:
            return
        begun = reversed(self._runs.get(group, []))
        run = next((run for at, run in begun if at.rstrip("Z") <= time.rstrip("Z")), None)
        place = (group, run, key)
        ours = self._found.get(place)
        if outcome == "failed" and (place in self._stood or ours is not None):  # it was asked for again since
            return
        if ours is not None and ours.outcome == "done":
            return
        if self._state(group, run, key) not in ("done", outcome):
            self._found[place] = Missing(group, run, key, outcome, False)


def _runs(db: sqlite3.Connection) -> dict[int, tuple[str, int]]:
    """Group and number of each run, by its id."""
    rows = db.execute("SELECT runs.id, name, run FROM runs JOIN groups ON groups.id = group_id WHERE NOT removed")
    return {
        run_id: (name, run)
        for run_id, name, run in rows.fetchall()
        if isinstance(name, str) and isinstance(run, int)  # else they are damaged, which `_note_runs` tells
    }


def _same_key(db: sqlite3.Connection, item: int, run_id: int, key: str) -> bool:
    """True if the index, a second copy of the keys, says the same."""
    try:
        return bool(
            db.execute("SELECT id FROM items WHERE run_id = ? AND key = ?", (run_id, key)).fetchone() == (item,)
        )
    except sqlite3.DatabaseError:
        return False


def _result(db: sqlite3.Connection, run_id: int, seq: int | None, item: int) -> Raw | None:
    """The item's result, if it can be read and fits its checksum."""
    try:
        row = db.execute(_RESULT, (run_id, seq, item)).fetchone()
    except sqlite3.DatabaseError:
        return None
    if row is None or not isinstance(row[0], bytes) or hashlib.sha256(row[0]).hexdigest() != row[1]:
        return None
    return Raw(row[0])
