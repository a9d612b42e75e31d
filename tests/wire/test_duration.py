"""Durations and moments."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp.errors import BadValue
from jmp.wire.duration import moment, parse, text


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("90s", 90),
        ("15m", 900),
        ("1h30m", 5400),
        ("2d", 172800),
        ("1.5h", 5400),
        ("0s", 0),
        (" 5m ", 300),
        ("1d2h3m4s", 93784),
    ],
)
def test_durations(words: str, seconds: float) -> None:
    assert parse(words) == seconds


@pytest.mark.parametrize(
    "words", ["", "90", "h", "1x", "30m1h", "1h1h", "-5m", "1 h", "1h 30m", "inf", "nan", ".5h", "1e3s"]
)
def test_what_is_no_duration(words: str) -> None:
    with pytest.raises(BadValue) as caught:
        parse(words)
    assert caught.value.message == f"{words!r} is no duration: write it as 90s, 15m, 1h30m or 2d"


@pytest.mark.parametrize("words", ["36526d", "9" * 400 + "s"])
def test_nobody_means_more_than_a_hundred_years(words: str) -> None:
    assert parse("36525d") == 36525 * 86400
    with pytest.raises(BadValue, match=r"is longer than a hundred years$"):
        parse(words)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (45, "45s"),
        (59.6, "1m"),
        (5400, "1h 30m"),
        (5401, "1h 30m"),
        (90061, "1d 1h"),
        (86401, "1d 1s"),
        (-60, "-1m"),
        (-0.2, "0s"),
    ],
)
def test_durations_are_shown_by_their_two_largest_units(seconds: float, words: str) -> None:
    assert text(seconds) == words


@given(st.integers(1, 59), st.sampled_from("dhms"))
def test_what_is_shown_reads_as_the_same(count: int, unit: str) -> None:
    seconds = parse(f"{count}{unit}")
    assert parse(text(seconds).replace(" ", "")) == seconds


@pytest.fixture
def _vienna(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A zone with summer time."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Vienna")
        time.tzset()
        yield
    time.tzset()


def utc(words: str) -> float:
    return datetime.fromisoformat(f"{words}+00:00").timestamp()


NOW = utc("2026-11-24T09:00:00")  # 10:00 in Vienna


@pytest.mark.usefixtures("_vienna")
@pytest.mark.parametrize(
    ("words", "then"),
    [
        ("+2h", "2026-11-24T11:00"),
        ("14:30", "2026-11-24T13:30"),
        ("9:00", "2026-11-25T08:00"),
        ("10:00", "2026-11-25T09:00"),
        ("2026-12-01T08:00", "2026-12-01T07:00"),
        ("2026-12-01", "2026-11-30T23:00"),
        ("2026-07-01T08:00", "2026-07-01T06:00"),
        ("2026-12-01T08:00Z", "2026-12-01T08:00"),
        ("2026-12-01T08:00+05:00", "2026-12-01T03:00"),
    ],
)
def test_moments(words: str, then: str) -> None:
    assert moment(words, NOW) == utc(then)


@pytest.mark.usefixtures("_vienna")
def test_a_clock_time_is_that_of_the_next_day_even_when_the_clocks_change() -> None:
    saturday = utc("2026-10-24T10:00:00")
    assert moment("9:00", saturday) == utc("2026-10-25T08:00")


@pytest.mark.parametrize("words", ["", "25:00", "14:60", "tomorrow", "2026-13-01", "0001-01-01", "9999-12-31T23:59"])
def test_what_is_no_moment(words: str) -> None:
    try:
        assert moment(words, NOW) == pytest.approx(datetime.fromisoformat(words).astimezone().timestamp())
    except (BadValue, OverflowError) as error:
        assert isinstance(error, BadValue)  # noqa: PT017


@pytest.mark.parametrize("words", ["9999-12-31T23:59-23:59", "0001-01-01T00:00+23:59"])
def test_what_is_no_moment_anywhere(words: str) -> None:
    with pytest.raises(BadValue, match="is no time"):
        moment(words, NOW)


@pytest.mark.parametrize("words", ["+5", "+", "+-5m"])
def test_a_moment_from_now_needs_a_duration(words: str) -> None:
    with pytest.raises(BadValue, match="is no duration"):
        moment(words, NOW)
