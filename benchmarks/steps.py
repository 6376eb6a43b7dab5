"""How long the daemon's loop is busy with one thing: a line for each, written by the daemon.

Two kinds are kept: each call of the collector (maintenance/gc.py), which frees what a deleted
snapshot held, and each step of any task that takes LONG_NS or more. While a step runs, no request
is answered, so the longest step is the longest that the loop itself has held the mount up.
Times are those of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final, NamedTuple, TextIO

import trio

from statefs.maintenance.gc import Collector

COLLECTING: Final = ("delete_rows", "candidates", "free", "shrink")
"""The collector's calls, in the order in which they give space back."""
LONG_NS: Final = 1_000_000
"""Shorter steps of tasks are not written down: there are thousands each second."""
TASK: Final = "task"


class Step(NamedTuple):
    """Something that the loop did without looking at requests.

    Args:
        name: of COLLECTING, or TASK.
        start_ns: when it began.
        end_ns: when it ended.
        goes_on: whether a call of the collector said that there is more to do.
    """

    name: str
    start_ns: int
    end_ns: int
    goes_on: bool

    @property
    def ms(self) -> float:
        """How long it took, in milliseconds."""
        return (self.end_ns - self.start_ns) / 1e6


class TaskSteps(trio.abc.Instrument):
    """Writes a line for each long step of a task."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._started_ns = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Note when a task goes on."""
        self._started_ns = perf_counter_ns()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Write down that it took long."""
        ended_ns = perf_counter_ns()
        if ended_ns - self._started_ns >= LONG_NS:
            self._file.write(f"{TASK} {self._started_ns} {ended_ns} 0\n")


def watch(path: Path) -> None:
    """Let this process, a daemon that has not begun, write its steps into a file."""
    file = path.open("w", buffering=1)
    for name in COLLECTING:
        setattr(Collector, name, _written(name, getattr(Collector, name), file))
    run = trio.run

    def watched(*args: Any, **kwargs: Any) -> Any:
        return run(*args, **kwargs, instruments=[TaskSteps(file)])

    trio.run = watched  # type: ignore[assignment]  # lifecycle calls it with its own arguments


def _written(name: str, call: Callable[..., Any], file: TextIO) -> Callable[..., Any]:
    def writing(*args: Any, **kwargs: Any) -> Any:
        started_ns = perf_counter_ns()
        result = call(*args, **kwargs)
        file.write(f"{name} {started_ns} {perf_counter_ns()} {int(bool(result))}\n")
        return result

    return writing


def steps_since(path: Path, since_ns: int) -> list[Step]:
    """Return what a daemon has written of what began at a time or later, in order of its end."""
    found = []
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            continue  # it is being written
        name, start, end, goes_on = line.split()
        if int(start) >= since_ns:
            found.append(Step(name, int(start), int(end), goes_on == "1"))
    return found
