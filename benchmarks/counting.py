"""`python -m benchmarks.counting`: what it costs that each request is counted and timed.

Two mounts, one whose handlers count and one whose handlers do not, get the same requests in turn;
figures are medians over the rounds of the CPU that the worker takes for a request.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any, Final

import pyfuse3

from benchmarks.counters import REQUESTS
from benchmarks.mounted import Mode, Mounted, mounted
from benchmarks.report import RESULTS, keep, median, table
from statefs.errors import PosixError
from statefs.fuse.errno_map import errno_of
from statefs.fuse.operations import Operations

MODES: Final[tuple[Mode, ...]] = ("plain", "uncounted")
PAGE: Final = bytes(4096)


def count_nothing() -> None:
    """Put doors before the handlers of this process that map errors, as ever, and do not count."""
    for name in REQUESTS:
        handler = getattr(getattr(Operations, name), "__wrapped__", None)
        if handler is not None:
            setattr(Operations, name, _door(handler))


def _door(handler: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(handler)
    async def answering(self: Operations, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return await handler(self, *args, **kwargs)
        except PosixError as error:
            raise pyfuse3.FUSEError(error.errno) from None
        except Exception as error:
            raise pyfuse3.FUSEError(errno_of(error)) from error

    return answering


def ask_attribute(mount: Mounted, requests: int) -> None:
    """Ask for an extended attribute, which the kernel never remembers."""
    path = mount.files / "file"
    for _ in range(requests):
        os.getxattr(path, "user.a")


def write_pages(mount: Mounted, requests: int) -> None:
    """Overwrite a page of a file."""
    fd = os.open(mount.files / "file", os.O_WRONLY)
    try:
        for _ in range(requests):
            os.pwrite(fd, PAGE, 0)
    finally:
        os.close(fd)


WORKLOADS: Final = {"getxattr": ask_attribute, "write": write_pages}


def cpu_us(mount: Mounted, workload: Callable[[Mounted, int], None], requests: int) -> float:
    """Return the microseconds of CPU that the worker takes for each request."""
    before = mount.cpu_ns()
    workload(mount, requests)
    return (mount.cpu_ns() - before) / requests / 1000


def measure(folder: Path, requests: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the figures of each round by workload and mode."""
    found: dict[str, dict[str, list[float]]] = {
        name: {mode: [] for mode in MODES} for name in WORKLOADS
    }
    with ExitStack() as stack:
        mounts = {}
        for mode in MODES:
            place = folder / mode
            place.mkdir()
            mounts[mode] = stack.enter_context(mounted(place, "durability=fsync", mode))
            file = mounts[mode].files / "file"
            file.write_bytes(bytes(1 << 16))
            os.setxattr(file, "user.a", b"x")
        for number in range(rounds):
            for name, workload in WORKLOADS.items():
                for mode in MODES if number % 2 else reversed(MODES):
                    found[name][mode].append(cpu_us(mounts[mode], workload, requests))
    return found


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--folder", type=Path, help="where the stores are made")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="statefs-bench-", dir=chosen.folder) as folder:
        found = measure(Path(folder), chosen.requests, chosen.rounds)
    rows = []
    for name, modes in found.items():
        counted, uncounted = (median(modes[mode]) for mode in MODES)
        added = median([a - b for a, b in zip(modes["plain"], modes["uncounted"], strict=True)])
        rows.append([name, *(f"{each:.2f}" for each in (counted, uncounted, added))])
    table("us of CPU for a request", ["request", "counted", "not counted", "difference"], rows)
    print(keep("counting", {"cpu_us": found}, chosen.results))


if __name__ == "__main__":
    main()
