"""What becomes of values that JSON has no place for: kept by one rule each, or refused with a telling name."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scraper_worker.portable import MAX_DEPTH, NotPortable, encodable, to_json


class Text(str):
    """As an HTML parser's strings are."""

    __slots__ = ()


class Number(float):
    """As numpy's are."""


@dataclasses.dataclass
class Match:
    """As users model what they scrape."""

    name: str


class Hostile(dict):
    """A mapping that can't be read."""

    def items(self):
        raise RuntimeError("no")


def kept(value):
    return json.loads(bytes(to_json(value)))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("cut \ud83d", "cut \ufffd"),
        ({"\ud83d": ["\ude00"]}, {"\ufffd": ["\ufffd"]}),
        ("\ud83d\ude00", "😀"),
        ([math.nan, math.inf, -math.inf], [None, None, None]),
        (b"ab", "YWI="),
        ({1}, [1]),
        ((1, 2), [1, 2]),
        (2**70, 2**70),
        ({None: 1, True: 2, 3: 4}, {"null": 1, "true": 2, "3": 4}),
        ([Text("x"), Number(1.5)], ["x", 1.5]),
        (dt.date(2026, 1, 2), "2026-01-02"),
        ([Match("cut \ud83d")], [{"name": "cut \ufffd"}]),
        ([{"a": frozenset(["\ud83d"])}], [{"a": ["\ufffd"]}]),
    ],
)
def test_what_is_kept(value, expected):
    assert kept(value) == expected


def nested(levels):
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value


def circle():
    value = {}
    value["again"] = [value]
    return value


async def coroutine():
    return 1


@pytest.mark.parametrize(
    ("value", "signature"),
    [
        (circle(), "result-cycle"),
        (nested(MAX_DEPTH + 1), "result-too-deep"),
        (nested(700), "result-too-deep"),
        (object(), "result-not-json"),
        ([{"a": object()}], "result-not-json"),
        ({(1, 2): 3}, "result-not-json"),
        (Hostile(a=object()), "result-not-json"),
        (msgspec.Raw(b"{broken"), "result-not-json"),
    ],
)
def test_what_is_refused(value, signature):
    with pytest.raises(NotPortable) as caught:
        to_json(value)
    assert caught.value.signature == signature


def test_100_000_levels_are_refused():
    value = nested(100_000)
    with pytest.raises(NotPortable, match="deeper than 500"):
        to_json(value)
    while value:  # else freeing it would be as deep
        value = value.pop()


def test_a_missing_await_is_named():
    with pytest.raises(NotPortable, match="await") as caught:
        to_json([coroutine()])
    assert caught.value.signature == "result-not-awaited"


def test_the_deepest_that_is_taken_and_the_widest():
    assert kept(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    wide = [{"a": [number]} for number in range(5000)]
    assert kept(wide) == wide


def test_one_thing_in_two_places_is_no_cycle():
    one = {"text": "\ud83d"}
    assert kept([one, one]) == [{"text": "\ufffd"}] * 2


@given(st.text(st.characters(codec=None), max_size=50))
def test_any_text_becomes_encodable_and_what_is_so_stays(text):
    assert encodable(text).encode().decode() == encodable(encodable(text))
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert encodable(text) == text


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)) | st.binary()


@given(
    st.recursive(
        scalars,
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec=None)), inner),
        max_leaves=20,
    )
)
def test_whatever_is_not_refused_is_json_that_anybody_can_read(value):
    assert isinstance(bytes(to_json(value)).decode(), str)
    kept(value)
