"""Time, from one object that tests can replace. Does not format times for people."""

from __future__ import annotations

import time
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
