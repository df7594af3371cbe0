from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scraper_supervisor.core.config.units import (
    format_duration,
    format_size,
    parse_address,
    parse_duration,
    parse_environment,
    parse_size,
    show,
)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("5m", 300),
        ("2h", 7200),
        ("1d", 86_400),
        ("1h30m", 5400),
        ("1.5 h", 5400),
        (" 30s ", 30),
        (0, 0),
        (30, 30),
        (0.25, 0.25),
        ("0s", 0),
    ],
)
def test_durations_are_numbers_or_numbers_with_units(written: object, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written", ["", "30", "abc", "-1s", "1e3s", "s", "30 x", "٣s", -1, math.nan, math.inf, True, None, ["30s"], {}]
)
def test_other_durations_are_refused_and_repeated(written: object) -> None:
    with pytest.raises(ValueError, match=r"expected a duration: .*\"30s\".*, got ") as caught:
        parse_duration(written)
    assert str(caught.value).endswith(show(written))


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False))
@example(60.0)
@example(0.1)
@example(1e-7)
@example(1e22)
def test_durations_survive_the_round_trip(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0s"), (0.5, "500ms"), (1.0, "1s"), (90, "90s"), (300, "5m"), (7200, "2h"), (86_400, "1d")],
)
def test_durations_are_written_short(seconds: float, written: str) -> None:
    assert format_duration(seconds) == written


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("512MiB", 512 * 1024**2),
        ("2GiB", 2 * 1024**3),
        ("1kB", 1000),
        ("1KB", 1000),
        ("1.5 KiB", 1536),
        ("500mb", 500_000_000),
        ("7B", 7),
        (1024, 1024),
        (1e9, 1_000_000_000),
    ],
)
def test_sizes_are_numbers_or_numbers_with_units(written: object, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize("written", ["", "512", "512M", "1.0001kB0", "0.3B", "-1B", -1, 0.5, math.inf, False, None])
def test_other_sizes_are_refused_and_repeated(written: object) -> None:
    with pytest.raises(ValueError, match=r"expected a size: .*\"512MiB\".*, got "):
        parse_size(written)


@given(st.integers(min_value=0, max_value=2**63))
@example(1000**3)
@example(1024**3)
def test_sizes_survive_the_round_trip(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(("size", "written"), [(0, "0B"), (1023, "1023B"), (2**30, "1GiB"), (10**9, "1GB")])
def test_sizes_are_written_short(size: int, written: str) -> None:
    assert format_size(size) == written


@pytest.mark.parametrize(
    ("written", "address"),
    [("127.0.0.1:9177", ("127.0.0.1", 9177)), ("[::1]:80", ("::1", 80)), ("localhost:65535", ("localhost", 65_535))],
)
def test_addresses_are_host_and_port(written: str, address: tuple[str, int]) -> None:
    assert parse_address(written) == address


@pytest.mark.parametrize("written", ["9177", ":9177", "host:", "host:0", "host:65536", "::1:80", "http://a:1", 9177])
def test_other_addresses_are_refused(written: object) -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        parse_address(written)


def test_an_env_file_holds_lines_of_key_and_value() -> None:
    lines = (
        "\ufeff# a comment",
        "",
        "PLAIN=a b # c",
        "export SPACED = x ",
        "EMPTY=",
        "SINGLE='a \\n \"b\"' # why",
        'DOUBLE="a\\n\\"b\\"\\\\"',
        "URL=a=b",
    )
    text = "\n".join(lines)
    assert parse_environment(text) == {
        "PLAIN": "a b # c",
        "SPACED": "x",
        "EMPTY": "",
        "SINGLE": 'a \\n "b"',
        "DOUBLE": 'a\n"b"\\',
        "URL": "a=b",
    }


@pytest.mark.parametrize(
    "line", ["secret", "=secret", "A B=secret", "A='secret", 'A="secret" x', 'A="secret\\"', "A=sec\0ret"]
)
def test_a_wrong_line_is_named_without_its_value(line: str) -> None:
    with pytest.raises(ValueError, match="line 2: ") as caught:
        parse_environment(f"OK=1\n{line}\n")
    assert "secret" not in str(caught.value)


def test_values_are_shown_as_toml_would_write_them() -> None:
    values: list[object] = [True, 1.5, 'a "b"\n', [1], {}, None, b""]
    shown = [show(value) for value in values]
    assert shown == ["true", "1.5", '"a \\"b\\"\\n"', "a list", "a table", "nothing", "a bytes"]
    assert len(show("x" * 1000)) < 70
