"""How the room on a disk changes, from samples. Pure: others say when and how much."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import linear_regression
from typing import Final

SAMPLE_SECONDS: Final = 300.0
"""Between two samples; those of a shorter time say nothing: one large file would seem to fill the
disk at once."""
WINDOW_SECONDS: Final = 24 * 3600.0
"""A day: what happens each night is in it."""
WINDOW_SAMPLES: Final = int(WINDOW_SECONDS / SAMPLE_SECONDS)
HOUR_SECONDS: Final = 3600.0

Sample = tuple[float, int]
"""When, in seconds since 1970, and how many bytes were free then."""


class DiskTrend:
    """The free bytes of a disk over the last day.

    Args:
        samples: that are known already, the oldest first.
        now_seconds: the time: those of the future, before somebody put the clock back, and those
            older than a day do not count.
    """

    def __init__(self, samples: Iterable[Sample] = (), now_seconds: float = 0.0) -> None:
        self._samples: deque[Sample] = deque(samples, maxlen=WINDOW_SAMPLES)
        self._forget(now_seconds)

    def _forget(self, now_seconds: float) -> None:
        while self._samples and self._samples[-1][0] > now_seconds:
            self._samples.pop()
        while self._samples and self._samples[0][0] <= now_seconds - WINDOW_SECONDS:
            self._samples.popleft()

    @property
    def samples(self) -> list[Sample]:
        """The samples there are, the oldest first."""
        return list(self._samples)

    def add(self, now_seconds: float, free_bytes: int) -> bool:
        """Take a sample, unless the last one has just been taken; return whether it was."""
        self._forget(now_seconds)
        if self._samples and now_seconds - self._samples[-1][0] < SAMPLE_SECONDS:
            return False
        self._samples.append((now_seconds, free_bytes))
        return True

    @property
    def bytes_per_hour(self) -> int | None:
        """How much more is free each hour, less than 0 where it is less; None while unknown."""
        if len(self._samples) < 2:
            return None
        times, free = zip(*self._samples, strict=True)
        return round(linear_regression(times, free).slope * HOUR_SECONDS)
