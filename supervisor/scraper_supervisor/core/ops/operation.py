"""What every question to the store has in common: a ticket, and an answer of a known type."""

from __future__ import annotations

from typing import Generic, TypeVar

from msgspec import Struct

AnswerT = TypeVar("AnswerT", covariant=True)


class Operation(Struct, Generic[AnswerT], frozen=True):
    """Something that the store is asked, and answers with an AnswerT under the same ticket."""

    ticket: int
