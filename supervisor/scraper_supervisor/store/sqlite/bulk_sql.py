"""Many rows in one statement.

Each statement that Python runs lets go of the interpreter and must win it back from the event loop. With one statement
a row, the ledger's thread would spend its time waiting for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MOST: Final = 256  # rows in one statement
_T = TypeVar("_T")
Row: TypeAlias = tuple[object, ...]


def chunks(rows: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """The rows in pieces whose sizes are powers of two, so that SQLite has to prepare few statements."""
    start = 0
    while start < len(rows):
        size = min(_MOST, 1 << (len(rows) - start).bit_length() - 1)
        yield rows[start : start + size]
        start += size


def flat(rows: Sequence[Row]) -> list[object]:
    """All values of all rows, to be bound."""
    return [value for row in rows for value in row]


def values(columns: int, rows: int) -> str:
    """The text behind VALUES for so many rows."""
    row = f"({', '.join('?' * columns)})"
    return ", ".join([row] * rows)
