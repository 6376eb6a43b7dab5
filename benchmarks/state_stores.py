"""What the state stores cost, beside the calls they cannot do without, in one run.

    python -m benchmarks.state_stores [FOLDER]

Each `set` of a store is followed at once by the bare calls on the same bytes in the same folder, so
that whatever else the machine does slows both. A ratio of 1.3 is the goal of issue 5.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final
from unittest import mock

from statefs.durable import sync_folder
from statefs.state import EncryptedJsonStore, JsonStore, Key, SessionManager

VALUE: Final = "x" * 2048
SETS: Final = 1000
SESSIONS: Final = (2_500, 5_000, 10_000)
"""The goal is a list of 10,000 within 50 ms, and nothing that grows faster than their number."""
KEYS: Final = 100
"""Different ones in the growing document, whose file is 2 KB to 200 KB."""


def bare(path: Path, data: bytes, with_folder: bool) -> None:
    """Replace a file: write, fsync and rename, and with `with_folder` make the name durable."""
    temporary = path.with_name("bare.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(fd, data)
    os.fsync(fd)
    os.close(fd)
    os.rename(temporary, path)
    if with_folder:
        fd = os.open(path.parent, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def seconds(action: Callable[[], object], folder: Path) -> float:
    """Return how long something took; what it leaves to the disk is done before it returns."""
    began = time.perf_counter()
    action()
    took = time.perf_counter() - began
    sync_folder(folder)
    return took


def measure(store: JsonStore, document: str, keys: int) -> tuple[list[float], ...]:
    """Return the seconds of each set, of the bare calls, and of those with the folder's sync."""
    path = store.folder / f"{document}.json"
    took: tuple[list[float], ...] = ([], [], [])
    for number in range(SETS):
        key = f"key-{number % keys}"
        took[0].append(seconds(partial(store.set, document, key, VALUE), store.folder))
        data = path.read_bytes()
        for times, with_folder in ((took[1], False), (took[2], True)):
            calls = partial(bare, store.folder / "bare", data, with_folder)
            times.append(seconds(calls, store.folder))
    return took


def measure_sessions(folder: Path, count: int) -> str:
    """Return a line of what so many sessions cost; the disk's syncs are left out."""
    with mock.patch("os.fsync"):
        with SessionManager(folder) as sessions:
            began = time.perf_counter()
            for number in range(count):
                sessions.create("coder", f"session {number}")
            made = time.perf_counter() - began
        began = time.perf_counter()
        with SessionManager(folder) as sessions:
            opened = time.perf_counter() - began
        began = time.perf_counter()
        with SessionManager(folder, read_only=True) as sessions:
            assert len(sessions.list()) == count
        listed = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    each = f"{made / count * 1e3:14.2f}{opened * 1e3:12.0f}{listed * 1e3:12.0f}"
    return f"{count:10,}{each}{memory:12.0f}"


def main() -> None:
    """Print two tables."""
    place = sys.argv[1] if len(sys.argv) > 1 else None
    print(f"{'sessions':>10}{'ms per create':>14}{'ms to open':>12}{'to list':>12}{'MiB peak':>12}")
    for count in SESSIONS:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            print(measure_sessions(Path(folder), count))
    print()
    measure_sets(place)


def measure_sets(place: str | None) -> None:
    """Print what a set costs, beside the bare calls."""
    print(f"{SETS} sets of a 2 KB value; medians in ms, and ratios of the sums")
    print(f"{'':34}{'set':>8}{'bare':>8}{'durable':>8}{'/bare':>8}{'/durable':>9}")
    with tempfile.TemporaryDirectory(dir=place) as folder:
        key = Key(bytes(32), False, "a benchmark")
        for name, store in (
            ("JsonStore", JsonStore(Path(folder) / "plain")),
            ("EncryptedJsonStore", EncryptedJsonStore(Path(folder) / "encrypted", key)),
        ):
            with store:
                for what, keys in (("one key", 1), (f"{KEYS} keys", KEYS)):
                    took = measure(store, f"d{keys}", keys)
                    medians = "".join(f"{statistics.median(each) * 1e3:8.2f}" for each in took)
                    ratios = [sum(took[0]) / sum(each) for each in took[1:]]
                    print(f"{name + ', ' + what:34}{medians}{ratios[0]:8.2f}{ratios[1]:9.2f}")


if __name__ == "__main__":
    main()
