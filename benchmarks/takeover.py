"""`python -m benchmarks.takeover`: how long programs wait when the worker is killed.

A program has a file open and writes a byte at a time. The worker is killed; the pause is the time
until the next write returns. `pause_ms` is that of a mount that has been there for a while, which
keeps another worker loaded; `pause_at_once_ms` that of one whose worker was replaced a moment ago.
Some files are written before each kill, one of them large, so that a successor finds what a working
one leaves.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO, Final

from benchmarks.report import RESULTS, console, figure, keep, median, table
from benchmarks.stores import build
from statefs.daemon.spare import SPARE_SECONDS

CONTENT: Final = bytes(range(256)) * 4
"""1 KiB a file."""
STEADY_SECONDS: Final = {"pause_ms": SPARE_SECONDS + 3.0, "pause_at_once_ms": 1.0}
"""Before a kill."""
WRITTEN_FILES: Final = 100
LARGE_BYTES: Final = 4 << 20


def statefs(*words: str | Path) -> str:
    """Run one command and return what it printed."""
    command = [sys.executable, "-m", "statefs", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout


def work(folder: Path) -> None:
    """Change what a working program changes."""
    for number in range(WRITTEN_FILES):
        (folder / f"w{number}").write_bytes(CONTENT)
    (folder / "large").write_bytes(os.urandom(LARGE_BYTES))


def pause(state: Path, file: BinaryIO, seconds: float) -> float:
    """Work, wait so long, kill the worker and return how many ms the next write takes."""
    work(state / "current" / "files")
    time.sleep(seconds)
    worker = json.loads(statefs("status", state, "--json"))["worker_pid"]
    file.write(b".")
    os.kill(worker, signal.SIGKILL)
    started = perf_counter()
    file.write(b".")
    return (perf_counter() - started) * 1e3


def measure(folder: Path, files: int, kills: int) -> dict[str, list[float]]:
    """Mount a store of so many files and kill its worker so many times."""
    state, store = folder / "state", folder / "state.store"
    build(store, files, 1000, CONTENT, 0)
    started = perf_counter()
    statefs("mount", state)
    figures: dict[str, list[float]] = {"mount_seconds": [perf_counter() - started]}
    try:
        with open(state / "current" / "files" / "open", "wb", buffering=0) as file:
            for name, seconds in STEADY_SECONDS.items():
                figures[name] = [pause(state, file, seconds) for _ in range(kills)]
            assert os.fstat(file.fileno()).st_size == 2 * kills * len(STEADY_SECONDS)
    finally:
        statefs("umount", state)
    return figures


def main() -> None:
    """Print the median pause."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=11)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="statefs-takeover-"))
    try:
        figures: dict[str, Any] = measure(folder, arguments.files, arguments.kills)
    finally:
        shutil.rmtree(folder)
    kept = keep("takeover", {"files": arguments.files, **figures}, arguments.results)
    rows = [[name, figure(median(values)), figure(max(values))] for name, values in figures.items()]
    table(f"{arguments.files} files", ["", "median", "most"], rows)
    console.print(f"kept in {kept}")


if __name__ == "__main__":
    main()
