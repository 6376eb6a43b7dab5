"""Sizes, times, counts and odd text as people read them. Pure: nothing here looks at the clock."""

from __future__ import annotations

from datetime import datetime
from typing import Final

_SIZE_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_SIZE_STEP: Final = 1024
_SMALL: Final = 10
"""Below this many of a unit one decimal is shown."""

_MINUTE_SECONDS: Final = 60
_HOUR_SECONDS: Final = 60 * _MINUTE_SECONDS
_DAY_SECONDS: Final = 24 * _HOUR_SECONDS
_AGE_UNITS: Final = (
    (365 * _DAY_SECONDS, "year", "years"),
    (30 * _DAY_SECONDS, "month", "months"),
    (_DAY_SECONDS, "day", "days"),
    (_HOUR_SECONDS, "hour", "hours"),
    (_MINUTE_SECONDS, "min", "min"),
    (1, "s", "s"),
)
"""Seconds in a unit, its name for one, its name for more; largest first."""
_DURATION_UNITS: Final = _AGE_UNITS[2:]
"""Years and months have no fixed length."""


def size_text(size_bytes: int) -> str:
    """Return a size in binary units: `0 B`, `1.5 KiB`, `12 MiB`."""
    amount = float(size_bytes)
    for unit in _SIZE_UNITS[:-1]:
        # Compared after rounding, so that 1023.9 KiB becomes 1.0 MiB and not 1024 KiB.
        if round(amount) < _SIZE_STEP:
            return _amount_text(amount, unit)
        amount /= _SIZE_STEP
    return _amount_text(amount, _SIZE_UNITS[-1])


def _amount_text(amount: float, unit: str) -> str:
    decimals = 1 if unit != "B" and round(amount, 1) < _SMALL else 0
    return f"{amount:.{decimals}f} {unit}"


def count_text(count: int) -> str:
    """Return a count with its thousands set apart: `1,234,567`."""
    return f"{count:,}"


def age_text(age_seconds: float) -> str:
    """Return how long ago something was: `now`, `5 s ago`, `3 days ago`; in future `in 5 s`."""
    distance_seconds = abs(age_seconds)
    for unit_seconds, one, many in _AGE_UNITS:
        count = int(distance_seconds // unit_seconds)
        if count:
            amount = f"{count} {one if count == 1 else many}"
            return f"{amount} ago" if age_seconds > 0 else f"in {amount}"
    return "now"


def duration_text(seconds: float) -> str:
    """Return a duration in its units, largest first: `2 days`, `1 hour 30 min`, `0 s`."""
    left, parts = int(seconds), []
    for unit_seconds, one, many in _DURATION_UNITS:
        count, left = divmod(left, unit_seconds)
        if count:
            parts.append(f"{count} {one if count == 1 else many}")
    return " ".join(parts) or "0 s"


def moment(timestamp: str) -> datetime | None:
    """Return the moment an ISO 8601 timestamp names, None where it is none; UTC without a zone."""
    try:
        parsed = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    if parsed.tzinfo is None:
        from datetime import UTC

        return parsed.replace(tzinfo=UTC)
    return parsed


def local_text(timestamp: str, with_zone: bool = False) -> str:
    """Return a timestamp in the local time zone, to the second; unchanged where it is none."""
    parsed = moment(timestamp)
    if parsed is None:
        return timestamp
    return parsed.astimezone().strftime(
        "%Y-%m-%d %H:%M:%S %Z" if with_zone else "%Y-%m-%d %H:%M:%S"
    )


def since_text(timestamp: str, now_seconds: float) -> str:
    """Return how long before `now_seconds` (since 1970) a timestamp lies; empty if it is none."""
    parsed = moment(timestamp)
    return "" if parsed is None else age_text(now_seconds - parsed.timestamp())


def printable(text: str) -> str:
    r"""Return `text` with everything a terminal might obey or choke on written as \x.. escapes."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
