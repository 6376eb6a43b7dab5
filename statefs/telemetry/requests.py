"""Counting what takes time: so cheap that each request of the kernel is counted.

One process serves one mount, so requests are counted by the process; its successor begins at 0.
"""

from __future__ import annotations

from typing import Final

BUCKETS: Final = 64
"""One for each power of two of nanoseconds; the last ones are centuries."""


class Timings:
    """How often something was done and how long it took.

    `buckets[n]` counts what took at least 2**(n-1) and less than 2**n nanoseconds, `nanoseconds` is
    the sum, `errors` counts what failed by errno. Its users change these directly.
    """

    __slots__ = ("buckets", "errors", "nanoseconds")

    def __init__(self) -> None:
        self.buckets = [0] * BUCKETS
        self.nanoseconds = 0
        self.errors: dict[int, int] = {}

    def took(self, nanoseconds: int) -> None:
        """Count one."""
        self.buckets[nanoseconds.bit_length()] += 1
        self.nanoseconds += nanoseconds

    def failed(self, errno: int) -> None:
        """Count a failure; `took` counts it too."""
        self.errors[errno] = self.errors.get(errno, 0) + 1


REQUESTS: Final[dict[str, Timings]] = {}
"""Of each kind of request that this process answers, by the name of its handler."""


def timings_of(request: str) -> Timings:
    """Return where requests of a kind are counted."""
    return REQUESTS.setdefault(request, Timings())
