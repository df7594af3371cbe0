from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from scraper_supervisor.core import sealed
from scraper_supervisor.core.sealed import Counts, Damaged, FileName, Header

HEADER = Header("matches-0", 2, 7, "scores/1", "2026-05-01T12:00:00.000Z", Counts(3, 4, 5))
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
    assert found.sha256 == sealed.checksum(LINE) == hashlib.sha256(LINE[:-78]).hexdigest()


def test_line_breaks_between_tokens_do_not_break_the_line() -> None:
    line = sealed.seal(HEADER, Raw(b'{\r\n "a": [1,\n 2], "b": "x\\ny"}'))
    assert line.count(b"\n") == 1
    assert bytes(sealed.unseal(line).state) == b'{"a":[1,2],"b":"x\\ny"}'


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
        (b'{"format":2,' + LINE[12:-78], "format is 2"),
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
    packed = b"".join(sealed.compress([LINE]))
    assert packed == b"".join(sealed.compress([LINE]))
    assert packed[4:8] == bytes(4)  # no time in the header
    assert sealed.decompress(packed) == LINE
    assert b"".join(sealed.compress([LINE[:10], LINE[10:]])) == packed


PACKED = b"".join(sealed.compress([LINE]))
PACKED_NAME = FileName(7, "checkpoint-000000000007.json.gz", True)


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
        sealed.unseal_file(FileName(8, "checkpoint-000000000008.json", False), "matches-0", LINE)
    with pytest.raises(Damaged, match="worker 'matches-0', expected 'matches-1'"):
        sealed.unseal_file(FileName(7, "checkpoint-000000000007.json", False), "matches-1", LINE)


def test_the_run_of_a_damaged_file_is_guessed_from_its_head() -> None:
    plain = FileName(7, "checkpoint-000000000007.json", False)
    assert sealed.presumed_run(plain, LINE[:100]) == 2
    assert sealed.presumed_run(plain, b"") is None
    assert sealed.presumed_run(PACKED_NAME, PACKED[:-20]) == 2
    assert sealed.presumed_run(PACKED_NAME, LINE) is None


def test_file_names() -> None:
    assert sealed.file_name(12, gzip=False) == "checkpoint-000000000012.json"
    assert sealed.file_name(12, gzip=True) == "checkpoint-000000000012.json.gz"
    names = ["checkpoint-000000000002.json", "checkpoint-000000000010.json.gz", "checkpoint-3.json", "notes.txt"]
    names += [
        ".checkpoint-000000000011.json.tmp",
        "checkpoint-000000000004.json.bak",
        f"checkpoint-{12 * chr(0x661)}.json",
    ]
    assert [file.generation for file in sealed.newest_first(names)] == [10, 2]


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
    files = [(FileName(100 - place, f"{place + 1}", False), state.encode()) for place, state in enumerate(states)]
    assert "".join(file.name for file in sealed.retention_plan(files, keep)) == removed
