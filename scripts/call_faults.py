#!/usr/bin/env python3
"""Have each system call of each operation fail, in each way that it may, and full disks at each.

    .venv/bin/python scripts/call_faults.py                       every operation
    .venv/bin/python scripts/call_faults.py --pairs               and every two of them
    .venv/bin/python scripts/call_faults.py --replay 'old:append!@17/EIO'

A workload is some operations on a small store (tests/crash/workloads.py). Its n-th call of the
disk is answered with an errno, or does a part (tests/crash/calls.py); `17+/ENOSPC` is a disk that
is full from then on. What fails is printed as the argument that repeats it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.crash.call_faults import (  # noqa: E402 - found by the path just added
    CallFault,
    FaultTally,
    all_workloads,
    fault_bench,
    try_faults,
)
from tests.crash.workloads import Workload, all_of_two  # noqa: E402

REPORT_SECONDS: Final = 10.0
"""Between two lines of output."""


def main() -> int:
    """Do what is asked for; return 1 when something was found."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--pairs", action="store_true", help="every two operations, too (hours)")
    parser.add_argument("--replay", metavar="FAULT", help="one fault, as it was printed")
    given = parser.parse_args()
    if given.replay:
        return replay(CallFault.parse(given.replay))
    return hunt([*all_workloads(), *(all_of_two() if given.pairs else ())], given.jobs)


def replay(fault: CallFault) -> int:
    """Have one fault; return 1 when something is wrong then."""
    with fault_bench() as bench:
        run = bench.tried([fault])
    print(fault, run.hit, *(run.problems or ["nothing is wrong"]), sep="\n  ")
    return 1 if run.problems else 0


def hunt(workloads: Sequence[Workload], jobs: int) -> int:
    """Try all faults of workloads; return 1 when something was found."""
    started, total, told = time.monotonic(), FaultTally(), 0.0
    with multiprocessing.Pool(jobs) as pool:
        for tally in pool.imap_unordered(_tried, workloads):
            total.add(tally)
            seconds = time.monotonic() - started
            if tally.found or seconds - told > REPORT_SECONDS:
                told = seconds
                print(f"{seconds:5.0f} s: {total}", *tally.found, sep="\n", flush=True)
    print(f"in all: {total}")
    return 1 if total.found else 0


def _tried(workload: Workload) -> FaultTally:
    with fault_bench() as bench:
        return try_faults(bench, workload)


if __name__ == "__main__":
    sys.exit(main())
