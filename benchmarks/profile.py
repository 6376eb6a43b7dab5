"""`python -m benchmarks.profile WORKLOAD`: where the daemon's loop spends its time.

The daemon runs its loop under cProfile while the workload is repeated. cProfile makes calls of
Python functions look dearer than they are: read it for the order, and take times from `operations`.
"""

from __future__ import annotations

import argparse
import pstats
import shutil
import tempfile
from pathlib import Path
from time import perf_counter

from benchmarks.mounted import mounted
from benchmarks.report import console
from benchmarks.workloads import WORKLOADS, make_cold


def main() -> None:
    """Profile one workload and print the functions that took most."""
    parser = argparse.ArgumentParser(description="Where the daemon's loop spends its time.")
    parser.add_argument("workload", help="a part of a workload's name")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--options", default="", help="mount options")
    parser.add_argument("--sort", default="tottime", help="tottime or cumulative")
    parser.add_argument("--lines", type=int, default=30)
    parser.add_argument("--callers", default="", help="also who calls the functions named so")
    arguments = parser.parse_args()
    workload = next((one for one in WORKLOADS if arguments.workload in one.name), None)
    if workload is None:
        parser.error("no such workload; there are: " + ", ".join(one.name for one in WORKLOADS))
    folder = Path(tempfile.mkdtemp(prefix="statefs-profile-"))
    done = 0
    try:
        with mounted(folder, arguments.options, "profile") as mount:
            place = mount.files / "work"
            place.mkdir()
            give_up = perf_counter() + arguments.seconds
            while perf_counter() < give_up:
                workload.prepare(place, workload.operations)
                make_cold(workload)
                try:
                    workload.run(place, workload.operations)
                finally:
                    workload.finish(place, workload.operations)
                done += workload.operations
        console.print(f"{workload.name}: {done} operations, with those that prepare them")
        statistics = pstats.Stats(str(folder / "profile.out"))
        statistics.strip_dirs().sort_stats(arguments.sort).print_stats(arguments.lines)
        if arguments.callers:
            statistics.print_callers(arguments.callers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
