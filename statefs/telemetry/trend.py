"""How the room on a disk changes, from samples. Pure: others say when and how much."""

from __future__ import annotations

from collections import deque
from statistics import linear_regression
from typing import Final

SAMPLE_SECONDS: Final = 60.0
"""Between two samples that are kept."""
WINDOW_SAMPLES: Final = 24 * 60
"""A day: what happens each night is in it."""
SPAN_SECONDS: Final = 300.0
"""Samples of a shorter time say nothing: one large file would seem to fill the disk at once."""
HOUR_SECONDS: Final = 3600.0


class DiskTrend:
    """The free bytes of a disk over the last day."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=WINDOW_SAMPLES)

    def add(self, now_seconds: float, free_bytes: int) -> None:
        """Take a sample, unless the last one has just been taken.

        Args:
            now_seconds: of a clock that only goes on.
        """
        if not self._samples or now_seconds - self._samples[-1][0] >= SAMPLE_SECONDS:
            self._samples.append((now_seconds, free_bytes))

    @property
    def bytes_per_hour(self) -> int | None:
        """How much more is free each hour, less than 0 where it is less; None while unknown."""
        if not self._samples or self._samples[-1][0] - self._samples[0][0] < SPAN_SECONDS:
            return None
        times, free = zip(*self._samples, strict=True)
        return round(linear_regression(times, free).slope * HOUR_SECONDS)
