"""Bytes and durations."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.errors import InvalidValue
from ollamaops.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4096", 4096),
        (4096, 4096),
        (0, 0),
        ("1b", 1),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("500MB", 500_000_000),
        ("24GiB", 24 * 2**30),
        ("24gib", 24 * 2**30),
        ("24Gi", 24 * 2**30),
        ("24G", 24 * 10**9),
        (" 1.5 GB ", 1_500_000_000),
        ("1.1GB", 1_100_000_000),
        ("0.3KiB", 307),
        ("2TiB", 2 * 2**40),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_a_size_is_read_exactly(text: str | int, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "1 2", "1.GB", ".5GB", "1e3", "1PB", "1bb", "١GB", "1GBi", -1, True]
)
def test_what_is_not_a_size_is_refused(text: str | int) -> None:
    with pytest.raises(InvalidValue, match="is not a size") as caught:
        parse_size(text)
    assert caught.value.hint == "write a number and a unit: 24GiB, 500MB, 4096"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90.0),
        ("1h30m", 5400.0),
        ("300ms", 0.3),
        ("2d", 172800.0),
        ("1.5h", 5400.0),
        (" 90 ", 90.0),
        ("0.5", 0.5),
        (90, 90.0),
        (0.25, 0.25),
        ("0s", 0.0),
    ],
)
def test_a_duration_is_read_as_seconds(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["", "s", "-5m", "5 m", "5min", "1h30", "²", "1e3", "5M", math.nan, math.inf, -1, -0.5, True]
)
def test_what_is_not_a_duration_is_refused(text: str | float) -> None:
    with pytest.raises(InvalidValue, match="is not a duration") as caught:
        parse_duration(text)
    assert caught.value.hint == "write it like 30s, 5m, 1h30m or 2d"


MOST_SECONDS = 10 * 365 * 86400
_digits = st.integers(1, 10_000).map(lambda count: "9" * count)
_numbers = st.builds(
    lambda whole, point, part: whole + point + part, _digits, st.sampled_from([".", ""]), _digits
)


def parsed(parse: Callable[[str | int], float], given: str | int) -> float | None:
    """What it is read as, None if it is refused, in a message of decent length."""
    try:
        return parse(given)
    except InvalidValue as error:
        said = str(error)
    assert len(said) < 120
    return None


@given(_numbers | _digits, st.sampled_from(["", "s", "h", "ms", "d1s", "GiB", "TB", " B", "x"]))
def test_a_number_of_any_length_is_read_or_refused(number: str, unit: str) -> None:
    assert 0 <= (parsed(parse_size, number + unit) or 0) < 2**63
    assert 0 <= (parsed(parse_duration, number + unit) or 0) <= MOST_SECONDS


@given(st.integers() | st.integers(min_value=2**62) | st.integers(1, 5000).map(lambda count: 10**count))
def test_a_whole_number_of_any_size_is_taken_or_refused(number: int) -> None:
    for signed in (number, -number):
        assert parsed(parse_size, signed) == (signed if 0 <= signed < 2**63 else None)
        assert parsed(parse_duration, signed) == (signed if 0 <= signed <= MOST_SECONDS else None)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1500, "1.5 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (20_200_000_000, "20.2 GB"),
        (1_000_000_000_000, "1.0 TB"),
        (1_500_000_000_000_000, "1500 TB"),
    ],
)
def test_a_size_is_shown_with_three_digits(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.integers(0, 10**15))
def test_a_shown_size_is_near_the_size(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == pytest.approx(size_bytes, rel=0.051)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (0.34, "0.3s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (42.2, "42s"),
        (59.6, "1m00s"),
        (90, "1m30s"),
        (3599.7, "1h00m"),
        (7500, "2h05m"),
        (86400 * 3 + 3600 * 4, "3d04h"),
    ],
)
def test_a_duration_is_shown_with_two_units_at_most(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(0.0, 10**7))
def test_a_shown_duration_is_near_the_duration(seconds: float) -> None:
    shown = parse_duration(format_duration(seconds))
    assert shown == pytest.approx(seconds, abs=0.06 if seconds < 9.9 else 0.51 if seconds < 3600 else 3601)
