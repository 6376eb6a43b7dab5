from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from statefs.units import (
    age_text,
    count_text,
    duration_text,
    local_text,
    moment,
    since_text,
    size_text,
)

MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR


@pytest.fixture
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set the local time zone to one with daylight saving, given as a rule so no file is needed."""
    monkeypatch.setenv("TZ", "EST5EDT,M3.2.0,M11.1.0")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (10 * 1024, "10 KiB"),
        (1024 * 1024 - 1, "1.0 MiB"),
        (123 << 20, "123 MiB"),
        (5 << 30, "5.0 GiB"),
        ((1 << 63) - 1, "8.0 EiB"),
        (1 << 80, "1048576 EiB"),
    ],
)
def test_a_size_is_shown_in_the_unit_that_keeps_it_short(size_bytes: int, text: str) -> None:
    """Below ten of a unit one decimal is kept; a value never rounds up to 1024 of a unit."""
    assert size_text(size_bytes) == text


def test_every_size_has_few_digits() -> None:
    """No size below an exbibyte of exbibytes needs more than four digits."""
    for power in range(69):
        for size_bytes in ((1 << power) - 1, 1 << power, (1 << power) + 1):
            number = size_text(size_bytes).split()[0]
            assert len(number.replace(".", "")) <= 4


@pytest.mark.parametrize(
    ("age_seconds", "text"),
    [
        (0, "now"),
        (0.9, "now"),
        (-0.9, "now"),
        (1, "1 s ago"),
        (59.9, "59 s ago"),
        (MINUTE, "1 min ago"),
        (HOUR - 1, "59 min ago"),
        (HOUR, "1 hour ago"),
        (2 * HOUR, "2 hours ago"),
        (DAY, "1 day ago"),
        (29 * DAY, "29 days ago"),
        (31 * DAY, "1 month ago"),
        (364 * DAY, "12 months ago"),
        (800 * DAY, "2 years ago"),
        (-5, "in 5 s"),
        (-2 * HOUR, "in 2 hours"),
    ],
)
def test_an_age_is_one_number_and_one_unit(age_seconds: float, text: str) -> None:
    """It is rounded down, and a clock that was set back shows as the future."""
    assert age_text(age_seconds) == text


def test_counts_have_their_thousands_apart() -> None:
    """A million is readable at a glance."""
    assert count_text(1234567) == "1,234,567"
    assert count_text(0) == "0"


@pytest.mark.usefixtures("new_york")
def test_times_are_local() -> None:
    """A timestamp in UTC is shown in the time zone of the machine, summer and winter."""
    assert local_text("2026-01-13T12:00:00Z", with_zone=True) == "2026-01-13 07:00:00 EST"
    assert local_text("2026-07-13T12:00:00Z", with_zone=True) == "2026-07-13 08:00:00 EDT"
    assert local_text("2026-07-13T12:00:00.123456789Z") == "2026-07-13 08:00:00"


@pytest.mark.usefixtures("new_york")
def test_a_timestamp_without_a_zone_is_utc() -> None:
    """All documents are in UTC, so a missing Z changes nothing."""
    assert moment("2026-01-13T12:00:00") == moment("2026-01-13T12:00:00Z")


def test_what_is_no_timestamp_is_shown_as_it_is() -> None:
    """A damaged document can still be looked at."""
    assert local_text("yesterday") == "yesterday"
    assert since_text("yesterday", now_seconds=0) == ""
    assert moment("") is None


def test_since_counts_from_the_moment_given() -> None:
    """The present is an argument, so that output can be tested."""
    assert since_text("1970-01-01T00:00:10Z", now_seconds=15.5) == "5 s ago"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (90, "1 min 30 s"),
        (HOUR, "1 hour"),
        (2 * DAY, "2 days"),
        (36 * HOUR + 5 * MINUTE, "1 day 12 hours 5 min"),
        (400 * DAY, "400 days"),
    ],
)
def test_durations(seconds: int, text: str) -> None:
    """Exact, in days at most: months and years have no fixed length."""
    assert duration_text(seconds) == text
