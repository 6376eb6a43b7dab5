"""A process that stats a file and writes into another one, again and again: how long must it wait?

`python -m benchmarks.probe FOLDER` says "ready", goes on until its input is closed, and prints one
JSON list: for each request when it began and how long it took, in nanoseconds. It is a process of
its own, so that it waits for nothing but the mount.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import Final, NamedTuple

import msgspec

from benchmarks.mounted import ROOT
from benchmarks.workloads import LINE, forced_stats

PAUSE_SECONDS: Final = 0.0005
"""Between two turns: requests come at any moment, and leave a processor to the daemon."""
END_SECONDS: Final = 30.0


class Request(NamedTuple):
    """One request of the probe: when it began, and how long it took."""

    start_ns: int
    ns: int


class Probe:
    """The requests of a probe, filled when it has ended."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def waits_ms(self, start_ns: int = 0, end_ns: int = sys.maxsize) -> list[float]:
        """Return how long each request that overlaps a time had to wait, in milliseconds."""
        return [
            request.ns / 1e6
            for request in self.requests
            if request.start_ns < end_ns and request.start_ns + request.ns > start_ns
        ]


@contextmanager
def probing(folder: Path) -> Iterator[Probe]:
    """Run a probe in a folder of a mount for the length of the `with` block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.probe", str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    probe = Probe()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield probe
        told, _ = process.communicate(timeout=END_SECONDS)
        probe.requests = msgspec.json.decode(told, type=list[Request])
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def main() -> None:
    """Send requests until the input is closed, then print what each took."""
    folder = Path(sys.argv[1])
    seen = folder / "probe.stat"
    seen.write_bytes(LINE)
    written = os.open(folder / "probe.write", os.O_WRONLY | os.O_CREAT, 0o644)
    requests: list[tuple[int, int]] = []
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
        started = perf_counter_ns()
        forced_stats(seen, 1)
        between = perf_counter_ns()
        os.pwrite(written, LINE, 0)
        ended = perf_counter_ns()
        requests += [(started, between - started), (between, ended - between)]
    os.close(written)
    sys.stdout.buffer.write(msgspec.json.encode(requests))


if __name__ == "__main__":
    main()
