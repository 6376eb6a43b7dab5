"""Time, from one object that tests can replace, and as documents write it; not as people do."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """A source of wall-clock time."""

    def now_ns(self) -> int:
        """Return nanoseconds since 1970-01-01 UTC."""


class SystemClock:
    """The machine's own clock."""

    def now_ns(self) -> int:
        """Return nanoseconds since 1970-01-01 UTC. Source: clock_gettime(2), CLOCK_REALTIME."""
        return time.time_ns()


def iso_time(time_ns: int) -> str:
    """Return a time as ISO 8601 in UTC, to the second, or finer when it is not a whole one."""
    moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    micros = time_ns // 1000 % 1_000_000
    return f"{moment}.{micros:06d}Z" if micros else f"{moment}Z"
