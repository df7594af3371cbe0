from __future__ import annotations

import hashlib
import json

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from scraper_supervisor.core.formats import checkpoint_file as sealed
from scraper_supervisor.core.formats.checkpoint_file import CheckpointHeader, Counts, Damaged, FileName, TooNew

HEADER = CheckpointHeader("matches-0", 2, 7, "scores/1", "2026-05-01T12:00:00.000Z", Counts(3, 4, 5))
LINE = sealed.seal(HEADER, Raw(b'{"page":1,"name":"\xc3\xa9,\\"sha256\\":\\""}'))


def test_the_line_is_as_the_contract_says() -> None:
    head, footer = LINE[:-78], LINE[-78:]
    assert footer == b',"sha256":"%b"}\n' % hashlib.sha256(head).hexdigest().encode()
    assert LINE.count(b"\n") == 1
    assert list(json.loads(LINE)) == [
        "format", "worker", "run", "generation", "schema", "saved_at", "items", "state", "sha256",
    ]  # fmt: skip
    assert json.loads(LINE)["format"] == 1
    assert json.loads(LINE)["items"] == {"pending": 3, "done": 4, "failed": 5}


def test_a_sealed_state_comes_back_undecoded() -> None:
    found = sealed.unseal(LINE)
    assert found.header == HEADER
    assert bytes(found.state) == b'{"page":1,"name":"\xc3\xa9,\\"sha256\\":\\""}'
    assert found.sha256 == sealed.seal_parts(HEADER, found.state).sha256 == hashlib.sha256(LINE[:-78]).hexdigest()


def test_line_breaks_between_tokens_do_not_break_the_line() -> None:
    line = sealed.seal(HEADER, Raw(b'{\r\n "a": [1,\n 2], "b": "x\\ny"}'))
    assert line.count(b"\n") == 1
    assert bytes(sealed.unseal(line).state) == b'{ "a": [1, 2], "b": "x\\ny"}'


def test_a_state_of_many_slices_is_sealed_and_compared_as_one() -> None:
    state = b'{"big":"' + b"0123456789abcdef" * 200_000 + b'",\r\n"end":1}'
    sealing = sealed.seal_parts(HEADER, Raw(state))
    line = b"".join(sealing.parts)
    assert max(memoryview(part).nbytes for part in sealing.parts) <= 2**20
    found = sealed.unseal(line)
    assert bytes(found.state) == state.replace(b"\r\n", b"")
    assert sealing.digest == sealed.state_digest(found.state) == hashlib.sha256(found.state).digest()
    assert line == sealed.seal(HEADER, found.state)
    assert sealed.decompress(b"".join(sealed.compress(sealing.parts, "gzip"))) == line
    with pytest.raises(Damaged):
        sealed.unseal(line[:1_500_000] + b"x" + line[1_500_001:])


@pytest.mark.parametrize("schema", ['a,"state":1/1', "x" * 100_000 + "/1", 'é\n",\\"state":/1'])
def test_where_the_state_begins_is_not_mistaken(schema: str) -> None:
    header = msgspec.structs.replace(HEADER, schema=schema)
    found = sealed.unseal(sealed.seal(header, Raw(b'{"state":{"state":2}}')))
    assert (found.header, bytes(found.state)) == (header, b'{"state":{"state":2}}')


@given(st.integers(0, len(LINE) - 1), st.integers(0, 7))
def test_any_flipped_bit_is_damage(at: int, bit: int) -> None:
    with pytest.raises(Damaged):
        sealed.unseal(LINE[:at] + bytes([LINE[at] ^ (1 << bit)]) + LINE[at + 1 :])


@given(st.integers(0, len(LINE) - 1), st.integers(1, len(LINE)))
def test_any_cut_is_damage(at: int, length: int) -> None:
    with pytest.raises(Damaged):
        sealed.unseal(LINE[:at] + LINE[at + length :])


@given(st.integers(0, len(LINE) - 1), st.integers(1, len(LINE)))
def test_any_doubled_piece_is_damage(at: int, length: int) -> None:
    with pytest.raises(Damaged):
        sealed.unseal(LINE[: at + length] + LINE[at:])


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_damage_and_nothing_else(data: bytes) -> None:
    with pytest.raises(Damaged):
        sealed.unseal(data)


def resealed(text: bytes) -> bytes:
    return text + b',"sha256":"' + hashlib.sha256(text).hexdigest().encode() + b'"}\n'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"format":0,' + LINE[12:-78], "format is 0, which never was"),
        (LINE[:-79] + b",}", "no checkpoint"),
        (LINE[: LINE.index(b',"state"')], "it has no state"),
        (b'{"format":1', "no checkpoint"),
        (b"\xff\xfe", "no checkpoint"),
        (LINE[:-78].replace(b'"run":2', b'"run":"2"'), "no checkpoint"),
        (LINE[:-78].replace(b'"page":1', b'"page":\n1'), "more than one line"),
    ],
)
def test_a_fitting_checksum_alone_is_not_enough(text: bytes, reason: str) -> None:
    with pytest.raises(Damaged, match=reason):
        sealed.unseal(resealed(text))


def test_gzip_gives_the_same_file_for_the_same_bytes() -> None:
    packed = b"".join(sealed.compress([LINE], "gzip"))
    assert packed == b"".join(sealed.compress([LINE], "gzip"))
    assert packed[4:8] == bytes(4)  # no time in the header
    assert sealed.decompress(packed) == LINE
    assert b"".join(sealed.compress([LINE[:10], LINE[10:]], "gzip")) == packed


PACKED = b"".join(sealed.compress([LINE], "gzip"))
PACKED_NAME = FileName(7, "checkpoint-000000000007.json.gz", "gzip")


@example(220, 3)
@given(st.integers(0, len(PACKED) - 1), st.integers(0, 7))
def test_a_flipped_bit_of_a_gzip_file_is_damage_or_means_nothing(at: int, bit: int) -> None:
    data = PACKED[:at] + bytes([PACKED[at] ^ (1 << bit)]) + PACKED[at + 1 :]
    try:
        assert sealed.unseal_file(PACKED_NAME, "matches-0", data) == sealed.unseal(LINE)
    except Damaged:
        return
    padding = len(PACKED) - 8 - 1  # deflate's last byte, before the checksum and the size: bits over that nobody reads
    assert at < 10 or at == padding  # of the header: the time, the level, the operating system


@given(st.integers(0, len(PACKED) - 1), st.integers(1, len(PACKED)))
def test_a_cut_or_longer_gzip_file_is_damage(at: int, length: int) -> None:
    for data in (PACKED[:at], PACKED + PACKED[at : at + length]):
        with pytest.raises(Damaged):
            sealed.unseal_file(PACKED_NAME, "matches-0", data)


def test_a_file_must_be_what_its_name_says() -> None:
    with pytest.raises(Damaged, match="generation 7, its name says 8"):
        sealed.unseal_file(FileName(8, "checkpoint-000000000008.json", "none"), "matches-0", LINE)
    with pytest.raises(Damaged, match="worker 'matches-0', expected 'matches-1'"):
        sealed.unseal_file(FileName(7, "checkpoint-000000000007.json", "none"), "matches-1", LINE)


def test_a_line_of_other_make_is_read_too() -> None:
    document = json.loads(LINE)
    del document["sha256"]
    assert sealed.unseal(resealed(json.dumps(document)[:-1].encode())).header == HEADER


# ---- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b'{"format":2,' + LINE[12:-78],
        b'{"format":7,"what":"nobody knows yet"',
        b'{"state":{},"format":2',
        b'{"format": 2, "state": {}, "more": 1',
    ],
)
def test_a_later_format_is_no_damage(text: bytes) -> None:
    with pytest.raises(
        TooNew, match=r"written by a later version .*; use that version, or restore an older generation"
    ):
        sealed.unseal(resealed(text))


def test_a_later_format_with_another_checksum_is_damage() -> None:
    with pytest.raises(Damaged, match="checksum does not fit"):
        sealed.unseal(b'{"format":2,' + LINE[12:])


def test_an_older_format_is_brought_up_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def second(fields: sealed.Fields) -> sealed.Fields:
        return {**fields, "site": Raw(b'"a"')}

    def third(fields: sealed.Fields) -> sealed.Fields:
        return {**{name: value for name, value in fields.items() if name != "site"}, "run": fields["site"]}

    def fourth(fields: sealed.Fields) -> sealed.Fields:
        return {**fields, "run": Raw(b"9"), "state": Raw(b'{"was":%b}' % fields["state"])}

    monkeypatch.setattr(sealed, "FORMAT", 4)
    with pytest.raises(Damaged, match="format is 1, which never was"):
        sealed.unseal(LINE)
    monkeypatch.setattr(sealed, "UPGRADES", {1: second, 2: third, 3: fourth})
    found = sealed.unseal(LINE)
    assert found.header == msgspec.structs.replace(HEADER, run=9)
    assert json.loads(bytes(found.state)) == {"was": {"page": 1, "name": 'é,"sha256":"'}}
    assert sealed.unseal(sealed.seal(HEADER, Raw(b"{}"))).header == HEADER  # the present one needs none


def test_file_names() -> None:
    assert sealed.file_name(12, "none") == "checkpoint-000000000012.json"
    assert sealed.file_name(12, "gzip") == "checkpoint-000000000012.json.gz"
    names = ["checkpoint-000000000002.json", "checkpoint-000000000010.json.gz", "checkpoint-3.json", "notes.txt"]
    names += [
        "checkpoint-0000000000011.json",
        ".checkpoint-000000000011.json.tmp",
        "checkpoint-000000000004.json.bak",
        f"checkpoint-{12 * chr(0x661)}.json",
    ]
    assert [file.generation for file in sealed.newest_first(names)] == [10, 2]
    after_the_last = sealed.file_name(10**12, "none")  # a foreign name may have made it the next one
    assert sealed.newest_first([*names, after_the_last])[0] == FileName(10**12, after_the_last, "none")


@pytest.mark.parametrize(
    ("states", "keep", "removed"),
    [
        ("abcde", 10, ""),
        ("abcde", 2, "345"),
        ("abcde", 0, "2345"),
        ("aabca", 10, "25"),
        ("aab", 2, "2"),  # two distinct ones stay, though three files came before the third
        ("abab", 2, "34"),
        ("", 3, ""),
    ],
)
def test_retention_counts_generations_and_keeps_the_newest_of_equals(states: str, keep: int, removed: str) -> None:
    files = [(FileName(100 - place, f"{place + 1}", "none"), state.encode()) for place, state in enumerate(states)]
    assert "".join(file.name for file in sealed.retention_plan(files, keep)) == removed
