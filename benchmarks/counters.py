"""Counters that a daemon raises and the benchmark reads, in a file that both have mapped.

Each counter is one 64-bit number at a fixed place, written by the daemon alone.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REQUESTS: Final = (
    "lookup", "getattr", "setattr", "forget", "readlink", "mknod", "mkdir", "symlink", "link",
    "unlink", "rmdir", "rename", "open", "create", "read", "write", "flush", "release", "fsync",
    "opendir", "readdir", "releasedir", "fsyncdir", "statfs", "access", "setxattr", "getxattr",
    "listxattr", "removexattr",
)  # fmt: skip
"""The handlers of pyfuse3, by name; `readdir` is READDIRPLUS."""
_TIMED: Final = tuple(f"{name}_ns" for name in REQUESTS)
NAMES: Final = (*REQUESTS, *_TIMED, "statements", "commits", "waiting_ns")
"""Requests; CPU of each handler; SQL statements, commits among them; CPU of the loop's thread
while it waits for the kernel."""


@dataclass(frozen=True)
class Counts:
    """What was counted between two readings, in the order of `NAMES`."""

    values: tuple[int, ...]

    def __getitem__(self, name: str) -> int:
        return self.values[NAMES.index(name)]

    def minus(self, earlier: Counts) -> Counts:
        """Return what was counted since an earlier reading."""
        return Counts(tuple(a - b for a, b in zip(self.values, earlier.values, strict=True)))

    def requests(self) -> dict[str, int]:
        """Return how many requests of each kind there were, without the kinds there were not."""
        return {name: self[name] for name in REQUESTS if self[name]}


class Counters:
    """The mapped file.

    Args:
        path: made when it is missing.
    """

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(8 * len(NAMES))
            self._map = mmap.mmap(file.fileno(), 8 * len(NAMES))
        self.slots = memoryview(self._map).cast("Q")

    @staticmethod
    def place(name: str) -> int:
        """Return the index of a counter in `slots`."""
        return NAMES.index(name)

    def read(self) -> Counts:
        """Return all counters as they are now."""
        return Counts(tuple(self.slots))
