"""The format of an export: what is written is read, and whatever is not whole is refused, naming the line."""

import hashlib
import json
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from scraper_supervisor.core.formats.run_export import (
    Checker,
    Joiner,
    NotPortable,
    PortableItem,
    Result,
    RunHeader,
    WorkerState,
    Writer,
    parse,
    renamed,
)
from scraper_supervisor.core.ops.run_ops import WorkerTotals

TIME = "2026-05-01T12:00:00.000Z"
FAILURE = Raw(b'{"kind":"transient","signature":"timeout"}')


def done(key, seq, result=b'{"n":1}'):
    outcome = Result(seq, Raw(result), TIME, hashlib.sha256(result).hexdigest())
    return PortableItem(key, "a.test", Raw(b"null"), 0, 1.0, "done", 1, worker="g-0", result=outcome)


RECORDS = [
    RunHeader(1, "scraper-supervisor-run", "g", 3, "running", TIME, None, TIME),
    WorkerState("g-0", 3, 12, "cursor/2", TIME, Raw(b'{"page": 7}')),
    WorkerTotals("g-0", 2, 1),
    done("x", 1),
    PortableItem("y", None, Raw(b'{"a":[1, 2]}'), 5, 2.0, "pending", 0),
    PortableItem("z", "b.test", Raw(b"null"), 0, -8.5e9, "waiting", 2, 1, 3, True, TIME, "g-1", FAILURE),
    PortableItem("p", None, Raw(b"null"), -1, 4.0, "parked", 0),
    done("r", 2, b'{"text":"\\u00e4 \xc3\xa4", "cr":\r1}'),
    PortableItem("f", None, Raw(b"null"), 0, 5.0, "failed", 5, worker="g-0", last_failure=FAILURE),
]


def export(records=RECORDS):
    writer = Writer()
    return [*(writer.line(record) for record in records), writer.end()]


WHOLE = b"".join(export())


def read(lines):
    checker = Checker()
    records = [checker.take(line) for line in lines]
    checker.finish()
    return records


def plain(record):
    """Comparable: two Raws are equal if they hold the same."""
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    return {
        name: bytes(value) if isinstance(value, Raw) else plain(value) if isinstance(value, Result) else value
        for name, value in fields.items()
    }


def test_what_is_written_is_read():
    assert read(BytesIO(WHOLE).readlines())
    found = read(export())
    assert [plain(record) for record in found[:-1]] == [plain(record) for record in RECORDS]
    checker = Checker()
    for line in export():
        checker.take(line)
    assert (checker.items, checker.done, checker.states) == (6, 2, 1)
    assert checker.finish().run == 3


def test_the_end_holds_the_checksum_of_all_bytes_before_it():
    lines = export()
    end = json.loads(lines[-1])["end"]
    assert end == {"lines": 9, "items": 6, "sha256": hashlib.sha256(b"".join(lines[:-1])).hexdigest()}


def test_what_an_item_does_not_have_is_not_written():
    assert json.loads(export()[4])["item"] == {
        "key": "y", "target": None, "data": {"a": [1, 2]}, "priority": 5, "order": 2.0, "state": "pending",
        "attempts": 0,
    }  # fmt: skip
    assert parse(export()[4]).last_failure is UNSET


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_found(at, by):
    spoiled = bytearray(WHOLE)
    spoiled[at] ^= by
    with pytest.raises(NotPortable):
        read(BytesIO(spoiled).readlines())


@given(st.integers(0, len(WHOLE) - 1))
def test_a_cut_is_found(at):
    with pytest.raises(NotPortable):
        read(BytesIO(WHOLE[:at]).readlines())


@pytest.mark.parametrize("change", ["drop", "double", "swap"])
@pytest.mark.parametrize("at", range(9))
def test_a_line_that_is_missing_doubled_or_moved_is_found(change, at):
    lines = export()
    if change == "drop":
        del lines[at]
    elif change == "double":
        lines.insert(at, lines[at])
    else:
        lines[at], lines[at + 1] = lines[at + 1], lines[at]
    with pytest.raises(NotPortable):
        read(lines)


def resealed(change):
    """An export of which a line was changed by somebody who knows how to seal it."""
    lines = [json.loads(line) for line in export()[:-1]]
    for line in lines:
        if "result" in line.get("item", {}):  # json writes it otherwise than it was
            result = line["item"]["result"]
            text = json.dumps(result["result"], ensure_ascii=False)
            result["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    change(lines)
    body = [json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines]
    items = sum("item" in line for line in lines)
    end = {"lines": len(body), "items": items, "sha256": hashlib.sha256(b"".join(body)).hexdigest()}
    return [*body, json.dumps({"end": end}).encode() + b"\n"]


def test_fields_that_are_not_known_are_ignored():
    def change(lines):
        for line in lines:
            for part in [line, *(value for value in line.values() if isinstance(value, dict))]:
                part["later"] = {"x": 1}

    assert len(read(resealed(change))) == 10


def put(at, path, value):
    def change(lines):
        *way, last = path.split(".")
        part = lines[at]
        for name in way:
            part = part[name]
        part[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (put(0, "format", 2), "line 1: format: this version reads format 1, the file has 2; use the version that"),
        (put(0, "format", "1"), "line 1: format: this version reads format 1, the file has 1"),
        (put(0, "kind", "other"), "line 1: kind: expected 'scraper-supervisor-run', got 'other'"),
        (put(0, "started_at", "yesterday"), "line 1: started_at: expected a time of RFC 3339, got 'yesterday'"),
        (put(0, "state", "odd"), "line 1: expected a line of an export: Invalid enum value 'odd' - at `state`"),
        (put(1, "worker.name", "../g"), "line 2: worker.name: expected a worker's name, GROUP-INDEX, got '../g'"),
        (put(1, "worker.schema", "cursor"), "line 2: worker.schema: expected \"NAME/INTEGER\", got 'cursor'"),
        (put(1, "worker.state", [1]), "line 2: worker.state: expected an object"),
        (put(2, "totals.done", -1), "line 3: totals: expected counts"),
        (put(2, "totals.worker", "g"), "line 3: totals.worker: expected a worker's name"),
        (put(4, "item.key", "a\nb"), "line 5: item.key: a key must not contain control characters: 'a\\\\nb'"),
        (put(4, "item.key", ""), "line 5: item.key: a key is 1 to 4096 bytes"),
        (put(4, "item.state", "in_flight"), "line 5: expected a line of an export: Invalid enum value 'in_flight'"),
        (put(4, "item.state", "done"), "line 5: item.result: expected one for state done and for no other"),
        (put(3, "item.state", "failed"), "line 4: item.result: expected one for state done and for no other"),
        (put(4, "item.state", "waiting"), "line 5: item.not_before: expected one for state waiting"),
        (put(5, "item.not_before", "2026-05-01T12:00:00"), "line 6: item.not_before: expected a time of RFC 3339"),
        (put(4, "item.attempts", -1), "line 5: expected a line of an export: Expected `int` >= 0 - at `item.attempts`"),
        (put(4, "item.priority", 2**64), "line 5: expected a line of an export: "),
        (put(4, "item.order", 1e300), "line 5: expected a line of an export: "),
        (put(4, "item.worker", "g-x"), "line 5: item.worker: expected a worker's name"),
        (put(3, "item.worker", None), "line 4: item.worker: expected one for state done"),
        (put(3, "item.result.sha256", "0" * 64), "line 4: item.result.sha256: expected '000"),
        (put(3, "item.result.result", {"n": 2}), "line 4: item.result.sha256: expected "),
        (put(3, "item.result.seq", 0), "line 4: expected a line of an export: Expected `int` >= 1"),
        (put(4, "item", None), "line 5: expected a header, a worker's state, a worker's totals, an item or the end"),
    ],
)
def test_what_does_not_fit_is_named_with_its_line(change, why):
    with pytest.raises(NotPortable, match=f"^{why}"):
        read(resealed(change))


@pytest.mark.parametrize("seqs", [(1, 3), (2, 3), (1, 1), (2, 2)])
def test_seqs_with_a_gap_are_refused(seqs):
    records = [RECORDS[0], done("x", seqs[0]), done("y", seqs[1])]
    with pytest.raises(NotPortable, match="line 4: expected the seqs of the 2 done items to be 1 to 2, each once"):
        read(export(records))


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([], "it is empty: expected an export"),
        (export()[:-1], r'it is cut short: expected a line \{"end":…\} after line 9'),
        ([*export(), *export()], "line 11: nothing may follow the end"),
        ([*export()[:-1], export()[-1][:-1]], "line 10: it is cut short: expected a newline"),
        ([b"\n"], "line 1: expected a line of an export: Input data was truncated"),
        ([b"{}\n"], "line 1: expected a header"),
        ([export()[1]], "line 1: expected the header here"),
        ([export()[0], export()[0]], "line 2: a second header"),
        ([b'{"format":1,"kind":"\xff"}\n'], "line 1: byte 21 is not UTF-8"),
    ],
)
def test_what_is_no_export_is_refused(lines, why):
    with pytest.raises(NotPortable, match=f"^{why}"):
        read(lines)


def test_a_worker_is_renamed_by_its_index():
    assert renamed("matches-12", "other-group") == "other-group-12"


@given(st.lists(st.text("aä\n", max_size=12)), st.lists(st.integers(0, 60)))
def test_pieces_are_joined_to_whole_lines(lines, cuts):
    text = "".join(lines)
    cuts = sorted(min(cut, len(text)) for cut in cuts)
    joiner = Joiner()
    taken = [joiner.take(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert all(piece == b"" or piece.endswith(b"\n") for piece in taken)
    end = text.rfind("\n") + 1
    assert b"".join(taken).decode() == text[:end]
    assert joiner.cut == (end < len(text))
