from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krbrefresh._text import moment_text, parse_duration, seconds_text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("90s", 90),
        ("10m", 600),
        ("8h", 28800),
        ("7d", 604800),
        ("1.5h", 5400),
        ("0.5", 0.5),
        (".5s", 0.5),
        ("2.", 2),
        (" 15s\n", 15),
        ("007s", 7),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "s", ".", ".s", "-1", "-1s", "+1", "1e3", "1_000", "inf", "nan", "1.2.3", "0x10", "33%", "٣s", "²"),
        *("1 h", "1h30m", "1H", "1w", "1ms", "10 minutes"),
    ],
)
def test_what_is_no_duration_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration: write 90s, 10m, 8h, 7d"):
        parse_duration(text)


def test_a_duration_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="has an end"):
        parse_duration("9" * 400)


@given(st.text(max_size=6) | st.text("0123456789.smhd -", max_size=6))
def test_a_duration_is_a_number_or_refused(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert 0 <= seconds < float("inf")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (0.999, "0s"),
        (1, "1s"),
        (45.7, "45s"),
        (60, "1m"),
        (61, "1m 1s"),
        (600, "10m"),
        (3599, "59m 59s"),
        (3600, "1h"),
        (3601, "1h"),  # two units, side by side
        (35880, "9h 58m"),
        (35881, "9h 58m"),
        (86399, "23h 59m"),
        (86400, "1d"),
        (86460, "1d"),
        (529200, "6d 3h"),
        (365 * 86400, "365d"),
        (-90, "1m 30s"),
    ],
)
def test_lengths_are_written(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@given(st.integers(0, 10**9))
def test_a_length_of_one_unit_is_read_back(seconds: int) -> None:
    parts = seconds_text(seconds).split()
    assert 1 <= len(parts) <= 2
    assert 0 <= seconds - sum(map(parse_duration, parts)) < 3600


@pytest.mark.parametrize(
    ("timestamp", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (0.9, "1970-01-01T00:00:00Z"),
        (2**31, "2038-01-19T03:14:08Z"),
        (2**32 - 1, "2106-02-07T06:28:15Z"),
        (-1, "1969-12-31T23:59:59Z"),
        (1e300, "1e+300"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_moments_are_written(timestamp: float, text: str) -> None:
    assert moment_text(timestamp) == text
