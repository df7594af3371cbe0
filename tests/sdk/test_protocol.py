"""The protocol's lines: what is a message, what is none, and what is wrong with its params."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from scraper_worker import jsonrpc, protocol
from scraper_worker.jsonrpc import BadParams, Malformed, Request, Response


def line_of(params: bytes) -> bytes:
    return b'{"jsonrpc":"2.0","id":1,"method":"item.done","params":' + params + b"}"


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * depth + closing * depth


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"k":', b"}"), (b'["]]]\\"[",', b"]")])
def test_what_is_nested_deeper_than_512_is_no_json_to_us(opening: bytes, closing: bytes) -> None:
    inner = 511  # the message itself is one
    good = line_of(opening * inner + b"1" + closing * inner)
    json.loads(good)
    assert isinstance(jsonrpc.decode_line(good), Request)
    bad = jsonrpc.decode_line(line_of(opening * (inner + 1) + b"1" + closing * (inner + 1)))
    assert isinstance(bad, Malformed)
    assert bad.error.code == protocol.PARSE_ERROR
    assert "512" in bad.error.message


@pytest.mark.parametrize("depth", [513, 1_100, 100_000, 2_000_000])
@pytest.mark.parametrize("line", [nested, lambda depth: b"[" * depth, lambda depth: line_of(nested(depth)), line_of])
def test_any_depth_is_answered(line: Any, depth: int) -> None:
    found = jsonrpc.decode_line(line(depth) if line is not line_of else line_of(b'{"key":' + nested(depth) + b"}"))
    assert isinstance(found, Malformed)
    assert found.error.code == protocol.PARSE_ERROR


def test_brackets_in_strings_and_side_by_side_are_no_depth() -> None:
    wide = {"key": "[" * 3_000 + '\\"{{[[' + "\\", "result": [[], {}] * 2_000, "offers": ["[[", "{{"] * 2_000}
    assert isinstance(jsonrpc.decode_line(line_of(json.dumps(wide).encode())), Request)


def depth_of(value: Any) -> int:
    if isinstance(value, list):
        return 1 + max((depth_of(each) for each in value), default=0)
    if isinstance(value, dict):
        return 1 + max((depth_of(each) for each in value.values()), default=0)
    return 0


texts = st.text(alphabet='[]{}"\\,:a\u00fc', max_size=6)
trees = st.recursive(
    texts | st.integers(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(texts, children, max_size=4),
    max_leaves=40,
)


@given(trees, st.integers(500, 514))
@example({"]": ["[", "\\"]}, 511)
def test_depth_is_counted_as_a_parser_would(tree: Any, around: int) -> None:
    filler = [""] * 600 + [[]] * 600  # so that it is long, and has brackets enough, to be looked at
    text = json.dumps([tree, filler], ensure_ascii=False).encode()
    line = b"[" * around + text + b"]" * around
    assert jsonrpc.nested_too_deep(line) == (around + max(2, 1 + depth_of(tree), depth_of([filler])) > 512)


@given(st.binary(max_size=200) | trees.map(lambda tree: json.dumps(tree).encode()))
@example(b'{"jsonrpc":"2.0","id":{},"method":"x"}')
@example(b'{"jsonrpc":"2.0","id":1,"result":1,"error":{"code":1,"message":""}}')
def test_no_line_raises(line: bytes) -> None:
    found = jsonrpc.decode_line(line)
    assert isinstance(found, Request | Response | Malformed)


@pytest.mark.parametrize("kind", protocol.WORKER_METHODS.values(), ids=protocol.WORKER_METHODS)
@given(trees)
def test_no_params_raise_but_as_bad_ones(kind: Any, params: Any) -> None:
    with contextlib.suppress(BadParams):
        jsonrpc.decode_params(kind, Raw(json.dumps(params).encode()))


FAILURE = {"kind": "transient", "category": "network", "signature": "s", "message": "m"}


@pytest.mark.parametrize(
    ("kind", "params", "path", "right"),
    [
        (
            protocol.ItemFailed,
            {"key": "a", "failure": {**FAILURE, "kind": "odd"}},
            "failure.kind",
            ("transient", "permanent", "blocked", "infrastructure"),
        ),
        (
            protocol.FailureReport,
            {"failure": {**FAILURE, "category": 7}},
            "failure.category",
            ("network", "browser", "system", "application", "external"),
        ),
        (
            protocol.FailureReport,
            {"failure": {name: value for name, value in FAILURE.items() if name != "category"}},
            "failure.category",
            ("network", "browser", "system", "application", "external"),
        ),
        (protocol.BrowserStopped, {"browser": "b", "reason": "tired"}, "reason", ("close", "recycle", "crash")),
        (protocol.Goodbye, {"reason": "tired"}, "reason", ("complete", "drained")),
    ],
)
def test_a_wrong_value_of_a_few_is_refused_naming_the_right_ones(
    kind: Any, params: Any, path: str, right: tuple[str, ...]
) -> None:
    with pytest.raises(BadParams) as caught:
        jsonrpc.decode_params(kind, Raw(json.dumps(params).encode()))
    assert caught.value.data == {"path": path, "expected": right}
    assert ", ".join(right) in str(caught.value)
