"""`python -m benchmarks.time_travel`: what going back, and forgetting, cost.

Two questions. `restore`: in a store of a million files of which ten have changed, how long do
restore, restore of one path, undo and diff take on a mount? `delete`: with 100,000 files and 100
snapshots of 1 % change each, how long does it take to delete the oldest, until its space is back,
and how long must programs on the mount wait meanwhile? The last one deleted is of another kind:
every file has been written anew since, so it alone holds the old ones.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any, Final, NamedTuple

import statefs
from benchmarks.mounted import Mounted, mounted
from benchmarks.probe import probing
from benchmarks.report import RESULTS, console, figure, keep, median, show
from benchmarks.scale import CONTENT, DIFFS, add_history, measure_diff, seconds
from benchmarks.steps import TASK, Step, steps_since
from benchmarks.stores import build, file_path, rewrite
from statefs.api import State
from statefs.maintenance.store import open_store

ROUNDS: Final = 10
CHANGED_FILES: Final = 10
FOLDER_FILES: Final = 100
"""Files of a folder of the store with a history."""
OLDEST: Final = 5
"""So many snapshots are deleted, each the oldest of those that are left."""
QUIET_SECONDS: Final = 2.0
"""The probe also runs while nothing is deleted, to see what the machine itself makes it wait."""
IDLE_NS: Final = 300_000_000
"""The collector has come to its end when it has not been called for so long."""
POLL_SECONDS: Final = 0.05
GIVE_UP_SECONDS: Final = 600.0
GOALS: Final = {
    "restore_ten_ms": "< 200", "diff_of_ten_ms": "< 100", "longest_step_ms": "< 50",
    "longest_wait_ms": "< 50",
}  # fmt: skip


# Going back.


def measure_going_back(mount: Mounted, state: State, numbers: list[int]) -> dict[str, list[float]]:
    """Change ten files and go back, again and again.

    Args:
        numbers: of files, ten for each round.
    """
    names = ("restore_ten_ms", "undo_ten_ms", "restore_one_ms", "save_ms")
    figures: dict[str, list[float]] = {name: [] for name in names}
    started = perf_counter()
    saved = state.save().name
    state.seal(saved)
    console.print(f"saved and sealed in {perf_counter() - started:.0f} s")
    for first in range(0, len(numbers), CHANGED_FILES):
        paths = [
            f"files/{file_path(number, 1000)}" for number in numbers[first : first + CHANGED_FILES]
        ]
        changed, current = b"changed in round %d" % first, mount.state / "current"
        for path in paths:
            (current / path).write_bytes(changed)
        figures["save_ms"].append(seconds(state.save) * 1e3)
        figures["restore_ten_ms"].append(seconds(partial(state.restore, saved)) * 1e3)
        assert all((current / path).read_bytes() == CONTENT for path in paths)
        figures["undo_ten_ms"].append(seconds(state.undo) * 1e3)
        assert all((current / path).read_bytes() == changed for path in paths)
        figures["restore_one_ms"].append(seconds(partial(state.restore, saved, paths[:1])) * 1e3)
        assert (current / paths[0]).read_bytes() == CONTENT
        state.restore(saved)
    return figures


def measure_restores(folder: Path, files: int) -> dict[str, Any]:
    """Answer the question `restore`."""
    store = folder / "state.store"
    building = seconds(lambda: build(store, files, 1000, CONTENT, 0))
    console.print(f"{files:,} files made in {building:.0f} s")
    sample = random.Random(1).sample(range(files), CHANGED_FILES * ROUNDS + 10 * DIFFS)
    figures: dict[str, Any] = {"files": files}
    with mounted(folder, store=store) as mount, statefs.open(mount.state, store) as state:
        figures.update(
            measure_going_back(mount, state, sample[: CHANGED_FILES * ROUNDS])
            | measure_diff(mount, store, sample[CHANGED_FILES * ROUNDS :])
        )
        figures["resident_mb"] = mount.resident_bytes() / 1e6
    shutil.rmtree(store)
    return figures


# Forgetting.


class Deleted(NamedTuple):
    """What one deletion cost, in milliseconds."""

    call_ms: float
    until_space_is_back_ms: float
    longest_step_ms: float
    """The longest time the loop did something else than answer requests, or answered some."""
    longest_wait_ms: float
    """The longest that a request of the probe took."""
    collecting: dict[str, list[float]]
    """Each call of the collector, by its name."""


class Watch:
    """Deletes snapshots of a mount, and looks at what that does to programs.

    Args:
        mount: whose daemon writes its steps down.
        state: an open door to it.
    """

    def __init__(self, mount: Mounted, state: State) -> None:
        self._state = state
        self._steps = mount.state.parent / "steps.out"
        self._files = mount.files

    def quiet(self) -> list[float]:
        """Return what the probe waits for while nothing is deleted, milliseconds."""
        with probing(self._files) as probe:
            time.sleep(QUIET_SECONDS)
        return probe.waits_ms()

    def delete(self, name: str) -> Deleted:
        """Delete one snapshot while the probe runs."""
        with probing(self._files) as probe:
            time.sleep(POLL_SECONDS)
            start_ns = perf_counter_ns()
            call_seconds = seconds(partial(self._state.delete, name))
            end_ns = self.end_of_collecting(start_ns)
        steps = steps_since(self._steps, start_ns)
        collecting: dict[str, list[float]] = {}
        for step in steps:
            if step.name != TASK:
                collecting.setdefault(step.name, []).append(step.ms)
        return Deleted(
            call_seconds * 1e3,
            (end_ns - start_ns) / 1e6,
            max((step.ms for step in steps if step.start_ns < end_ns), default=0.0),
            max(probe.waits_ms(start_ns, end_ns), default=0.0),
            collecting,
        )

    def end_of_collecting(self, start_ns: int) -> int:
        """Wait until the collector, called since a time, is idle; return since when it is."""
        give_up = perf_counter() + GIVE_UP_SECONDS
        while perf_counter() < give_up:
            calls = [step for step in steps_since(self._steps, start_ns) if step.name != TASK]
            if calls and _is_the_end(calls[-1]) and perf_counter_ns() - calls[-1].end_ns > IDLE_NS:
                return calls[-1].end_ns
            time.sleep(POLL_SECONDS)
        raise SystemExit("the space of a deleted snapshot did not come back in time")


def _is_the_end(step: Step) -> bool:
    return step.name == "shrink" and not step.goes_on


def measure_deletions(folder: Path, files: int, snapshots: int) -> dict[str, Any]:
    """Answer the question `delete`."""
    store = folder / "state.store"
    build(store, files, FOLDER_FILES, b"content", 0)
    made = open_store(store)
    took = seconds(partial(add_history, made, files, snapshots, is_saved=True))
    whole = made.save("", "manual", {})["name"]
    rewrite(made, files, FOLDER_FILES, files, snapshots)
    made.save("", "manual", {})
    made.close()
    console.print(f"{files:,} files, {snapshots} snapshots of 1 % change made in {took:.0f} s")
    with (
        mounted(folder, mode="steps", store=store) as mount,
        statefs.open(mount.state, store) as state,
    ):
        console.print(f"sealed in {seconds(state.seal):.0f} s")
        watch = Watch(mount, state)
        figures: dict[str, Any] = {"files": files, "snapshots": snapshots, "quiet": watch.quiet()}
        names = [each.name for each in state.list_snapshots()]
        figures["oldest"] = [
            watch.delete(name)._asdict() for name in names[: min(OLDEST, snapshots - 1)]
        ]
        start_ns = perf_counter_ns()
        for name in names[min(OLDEST, snapshots - 1) : -2]:
            state.delete(name)
        watch.end_of_collecting(start_ns)
        figures["whole"] = [watch.delete(whole)._asdict()]
    return figures


# What is told.


def rows_of_restores(figures: dict[str, Any]) -> list[list[str]]:
    """Return a table's rows: what, median, most, goal."""
    return [
        [name, figure(median(values)), figure(max(values)), GOALS.get(name, "")]
        for name, values in figures.items()
        if isinstance(values, list)
    ]


def rows_of_deletions(figures: dict[str, Any]) -> list[list[str]]:
    """Return a table's rows: what, of the oldest (median and most), of a whole one, goal."""
    rows = []
    for name in Deleted._fields:
        if name == "collecting":
            continue
        oldest = [each[name] for each in figures["oldest"]]
        whole = figures["whole"][0][name]
        rows.append(
            [name, figure(median(oldest)), figure(max(oldest)), figure(whole), GOALS.get(name, "")]
        )
    for call in ("delete_rows", "candidates", "free", "shrink"):
        oldest = [ms for each in figures["oldest"] for ms in each["collecting"].get(call, [])]
        whole = figures["whole"][0]["collecting"].get(call, [])
        rows.append(
            [
                f"each_{call}_ms", figure(median(oldest or [0])), figure(max(oldest or [0])),
                figure(max(whole or [0])), "< 50",
            ]
        )  # fmt: skip
    quiet = figures["quiet"]
    return [
        *rows,
        ["wait_at_rest_ms", figure(median(quiet)), figure(max(quiet)), "", ""],
    ]


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description="What going back, and forgetting, cost.")
    parser.add_argument(
        "question", nargs="?", choices=("restore", "delete", "both"), default="both"
    )
    parser.add_argument("--files", type=int, default=1_000_000, help="of `restore`")
    parser.add_argument("--history-files", type=int, default=100_000, help="of `delete`")
    parser.add_argument("--snapshots", type=int, default=100, help="of `delete`")
    parser.add_argument("--folder", type=Path, help="where stores are made")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where figures are kept")
    parser.add_argument("--markdown", action="store_true", help="tables as the docs have them")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="statefs-time-travel-", dir=arguments.folder))
    figures: dict[str, Any] = {}
    told = partial(show, is_markdown=arguments.markdown)
    try:
        if arguments.question in ("restore", "both"):
            figures["restore"] = measure_restores(folder, arguments.files)
            title = f"Going back, {arguments.files:,} files"
            told(title, ["", "median", "most", "goal"], rows_of_restores(figures["restore"]))
        if arguments.question in ("delete", "both"):
            figures["delete"] = measure_deletions(
                folder, arguments.history_files, arguments.snapshots
            )
            title = f"Deleting, {arguments.history_files:,} files, {arguments.snapshots} snapshots"
            columns = ["", "oldest", "most", "whole", "goal"]
            told(title, columns, rows_of_deletions(figures["delete"]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    console.print(f"kept in {keep('time-travel', figures, arguments.results)}")


if __name__ == "__main__":
    main()
