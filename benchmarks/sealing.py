"""`python -m benchmarks.sealing`: does sealing disturb who works meanwhile?

A loop of stat(2), each of a name that the kernel does not know and the daemon must look up, runs
while a snapshot of new content is sealed: once of large files, once of many small ones. Told are
the times of single calls, beside those of the same loop while nothing is sealed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter, perf_counter_ns, sleep
from typing import Any, Final

from benchmarks.mounted import Mounted, mounted
from benchmarks.report import RESULTS, console, figure, keep, table
from statefs.control.client import ControlClient
from statefs.layout import StoreLayout

QUIET_SECONDS: Final = 3.0
LARGE_BYTES: Final = 64 << 20
SMALL_BYTES: Final = 4096
PAUSE_SECONDS: Final = 0.001
"""Between two calls, so that the loop itself does not take a whole core of two."""
CALLS_BETWEEN_LOOKS: Final = 50
GOAL_MS: Final = 5.0


def stat_until(folder: Path, prefix: str, is_over: Callable[[], bool]) -> list[float]:
    """Stat names that do not exist until something is over; return the milliseconds of each."""
    times: list[float] = []

    while not is_over():
        for _ in range(CALLS_BETWEEN_LOOKS):
            path = f"{folder}/{prefix}{len(times)}"
            started = perf_counter_ns()
            with suppress(FileNotFoundError):
                os.stat(path)
            times.append((perf_counter_ns() - started) / 1e6)
            sleep(PAUSE_SECONDS)
    return times


def quiet(mount: Mounted, prefix: str) -> list[float]:
    """Return the times of the loop while nothing else happens."""
    end = perf_counter() + QUIET_SECONDS
    return stat_until(mount.files, prefix, lambda: perf_counter() > end)


def while_sealing(mount: Mounted, store: Path, prefix: str) -> tuple[list[float], float]:
    """Save; return the times of the loop until the snapshot is sealed, and how long that took."""
    with ControlClient(StoreLayout(store)) as client:
        arguments: dict[str, Any] = {"message": "", "reason": "manual", "labels": {}}
        name = client.call("save", arguments)["name"]
        started = perf_counter()
        document = StoreLayout(store).snapshots / f"{name}.json"
        times = stat_until(mount.files, prefix, lambda: b'"sealed": true' in document.read_bytes())
        return times, perf_counter() - started


def write_large(folder: Path, size: int) -> int:
    """Make files of 64 MiB whose bytes differ; return how many bytes."""
    folder.mkdir()
    written = 0
    while written < size:
        with open(folder / f"{written}", "wb") as file:
            block = os.urandom(1 << 20)
            for _ in range(min(LARGE_BYTES, size - written) >> 20):
                file.write(block)
        written += LARGE_BYTES
    return size


def write_small(folder: Path, count: int) -> int:
    """Make files of 4 KiB, a thousand in a folder; return how many bytes."""
    for number in range(count):
        if number % 1000 == 0:
            (folder / f"{number}").mkdir(parents=True)
        path = folder / f"{number // 1000 * 1000}" / f"f{number}"
        path.write_bytes(number.to_bytes(4, "big") * (SMALL_BYTES // 4))
    return count * SMALL_BYTES


def percentile(times: list[float], share: float) -> float:
    """Return the time that a share of all calls did not exceed."""
    return sorted(times)[min(len(times) - 1, int(len(times) * share))]


def summary(times: list[float]) -> dict[str, float]:
    """Return what is told of a loop."""
    return {
        "calls": len(times),
        "median_ms": percentile(times, 0.5),
        "p99_ms": percentile(times, 0.99),
        "most_ms": max(times),
    }


def measure(folder: Path, megabytes: int, small_files: int) -> dict[str, Any]:
    """Seal both kinds of content beside a loop of stat(2)."""
    figures: dict[str, Any] = {}
    store = folder / "state.store"
    with mounted(folder) as mount:
        kinds: dict[str, Callable[[], int]] = {
            "large": lambda: write_large(mount.files / "large", megabytes << 20),
            "small": lambda: write_small(mount.files / "small", small_files),
        }
        for kind, write in kinds.items():
            size = write()
            os.sync()
            before = summary(quiet(mount, f"{kind}-quiet"))
            cpu = mount.cpu_ns()
            times, took = while_sealing(mount, store, f"{kind}-sealing")
            figures[kind] = {
                "bytes": size,
                "seconds": took,
                "cpu_seconds": (mount.cpu_ns() - cpu) / 1e9,
                "quiet": before,
                "sealing": summary(times),
            }
        figures["resident_mb"] = mount.resident_bytes() / 1e6
    return figures


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description="Does sealing disturb who works meanwhile?")
    parser.add_argument("--megabytes", type=int, default=1024, help="of large files")
    parser.add_argument("--small-files", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="where the store is made")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where figures are kept")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="statefs-sealing-", dir=arguments.folder))
    try:
        figures = measure(folder, arguments.megabytes, arguments.small_files)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for kind in ("large", "small"):
        one = figures[kind]
        title = f"{kind} files, {one['bytes'] / 1e6:.0f} MB sealed in {one['seconds']:.1f} s"
        rows = [
            [name, *(figure(one[name][key]) for key in ("median_ms", "p99_ms", "most_ms"))]
            for name in ("quiet", "sealing")
        ]
        table(
            f"{title} (goal: p99 < {GOAL_MS:.0f} ms)",
            ["ms of a stat", "median", "p99", "most"],
            rows,
        )
    console.print(f"kept in {keep('sealing', figures, arguments.results)}")


if __name__ == "__main__":
    main()
