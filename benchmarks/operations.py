"""`python -m benchmarks.operations`: what each operation costs on a mount, beside a plain folder.

Every workload runs on a plain folder and on a mount of each durability mode in turn, several
rounds; figures are medians over the rounds. CPU is that of the daemon's process. Requests,
statements and the handlers' own CPU come from a second pass with daemons that count, because
counting takes time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final

from benchmarks.counters import REQUESTS, Counts
from benchmarks.mounted import Mode, Mounted, mounted
from benchmarks.report import RESULTS, console, figure, keep, median, table
from benchmarks.workloads import WORKLOADS, Workload, make_cold

MODES: Final = ("close", "fsync")
COUNTED_ROUNDS: Final = 3
"""Counts hardly vary; three rounds show whether the first one differs."""
GOALS_US: Final = {
    "lookup": 30.0, "getattr": 30.0, "open": 30.0, "release": 30.0, "create": 120.0,
    "unlink": 120.0,
}  # fmt: skip
"""The most CPU that a request of these kinds may take."""


@dataclass
class Place:
    """Where workloads run: a plain folder, or a mount.

    Args:
        name: in the table.
        folder: holds one folder for each workload.
        mount: whose CPU is measured; None for a plain folder.
    """

    name: str
    folder: Path
    mount: Mounted | None = None
    times_us: dict[str, list[float]] = field(default_factory=dict)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, list[tuple[Counts, float]]] = field(default_factory=dict)

    def measure(self, workload: Workload) -> None:
        """Run a workload once and keep its figures."""
        folder = self.folder / workload.name.replace("/", "-")
        folder.mkdir(exist_ok=True)
        workload.prepare(folder, workload.operations)
        os.sync()  # what earlier workloads left to be written would slow this one's syncs down
        make_cold(workload)
        counters = self.mount.counters if self.mount else None
        before = counters.read() if counters else None
        try:
            cpu, started = self._cpu_ns(), perf_counter_ns()
            workload.run(folder, workload.operations)
            took, spent = perf_counter_ns() - started, self._cpu_ns() - cpu
            counted = counters.read().minus(before) if counters and before else None
        finally:
            workload.finish(folder, workload.operations)
        per_us = 1000 * workload.operations
        self.times_us.setdefault(workload.name, []).append(took / per_us)
        self.cpu_us.setdefault(workload.name, []).append(spent / per_us)
        if counted:
            self.counts.setdefault(workload.name, []).append((counted, spent / per_us))

    def _cpu_ns(self) -> int:
        return self.mount.cpu_ns() if self.mount else 0


def run(
    folder: Path, workloads: Sequence[Workload], rounds: int, mode: Mode, modes: Sequence[str]
) -> list[Place]:
    """Run all workloads in all places, `rounds` times, interleaved."""
    with ExitStack() as stack:
        plain = folder / "plain"
        plain.mkdir(parents=True)
        places = [Place("plain", plain)] if mode == "plain" else []
        for durability in modes:
            mount = mounted(folder / durability, f"durability={durability}", mode)
            entered = stack.enter_context(mount)
            places.append(Place(durability, entered.files, entered))
        for number in range(rounds):
            for workload in workloads:
                for place in places:
                    place.measure(workload)
            console.print(f"{mode}: round {number + 1} of {rounds}", style="dim")
    return places


def show_operations(
    workloads: Sequence[Workload], timed: list[Place], counted: list[Place]
) -> None:
    """Print what each operation costs."""
    plain, *mounts = timed
    columns = ["us per operation", "plain"]
    for mount in mounts:
        columns += [mount.name, "CPU", "waiting", "requests", "SQL", "commits"]
    rows = []
    for workload in workloads:
        name = workload.name
        row = [name, figure(median(plain.times_us[name]))]
        for mount, counter in zip(mounts, counted, strict=True):
            counts = [
                [counts[key] / workload.operations for counts, _ in counter.counts[name]]
                for key in ("waiting_ns", "statements", "commits")
            ]
            sent = [
                sum(counts.requests().values()) / workload.operations
                for counts, _ in counter.counts[name]
            ]
            row += [
                figure(median(mount.times_us[name])),
                figure(median(mount.cpu_us[name])),
                figure(median(counts[0]) / 1000),
                figure(median(sent)),
                figure(median(counts[1])),
                figure(median(counts[2])),
            ]
        rows.append(row)
    table("Operations", columns, rows)


def handler_cpu(place: Place) -> dict[str, tuple[int, float]]:
    """Return, for each kind of request, how many there were and their mean CPU in us."""
    totals: dict[str, tuple[int, float]] = {}
    for name in REQUESTS:
        every = [counts for rounds in place.counts.values() for counts, _ in rounds]
        number = sum(counts[name] for counts in every)
        if number:
            totals[name] = number, sum(counts[f"{name}_ns"] for counts in every) / number / 1000
    return totals


def show_requests(counted: list[Place]) -> None:
    """Print what each kind of request costs in its handler."""
    figures = {place.name: handler_cpu(place) for place in counted}
    columns = ["CPU in the handler, us", *(f"{place.name}" for place in counted), "number", "goal"]
    rows = []
    for name in REQUESTS:
        if not any(name in one for one in figures.values()):
            continue
        row = [name]
        row += [figure(one[name][1]) if name in one else "-" for one in figures.values()]
        row.append(str(sum(one[name][0] for one in figures.values() if name in one)))
        row.append(f"< {GOALS_US[name]:.0f}" if name in GOALS_US else "")
        rows.append(row)
    table("Requests", columns, rows)


def figures_of(timed: list[Place], counted: list[Place]) -> dict[str, Any]:
    """Return everything for the JSON file."""
    return {
        "times_us": {place.name: place.times_us for place in timed},
        "cpu_us": {place.name: place.cpu_us for place in timed if place.mount},
        "counted": {
            place.name: {
                name: [
                    {
                        "requests": counts.requests(),
                        "statements": counts["statements"],
                        "commits": counts["commits"],
                        "waiting_ns": counts["waiting_ns"],
                        "cpu_us": cpu,
                    }
                    for counts, cpu in rounds
                ]
                for name, rounds in place.counts.items()
            }
            for place in counted
        },
        "handlers": {place.name: handler_cpu(place) for place in counted},
    }


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description="What each operation costs on a mount.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="workloads whose name holds this text")
    parser.add_argument("--folder", type=Path, help="where stores and the plain folder are made")
    parser.add_argument("--modes", default=",".join(MODES), help="durability modes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where figures are kept")
    arguments = parser.parse_args()
    workloads = [one for one in WORKLOADS if arguments.only in one.name]
    modes = arguments.modes.split(",")
    folder = Path(tempfile.mkdtemp(prefix="statefs-operations-", dir=arguments.folder))
    try:
        timed = run(folder / "timed", workloads, arguments.rounds, "plain", modes)
        counted = run(folder / "counted", workloads, COUNTED_ROUNDS, "count", modes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show_operations(workloads, timed, counted)
    show_requests(counted)
    path = keep("operations", figures_of(timed, counted), arguments.results)
    console.print(f"kept in {path}")


if __name__ == "__main__":
    main()
