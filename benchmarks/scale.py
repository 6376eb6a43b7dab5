"""`python -m benchmarks.scale`: what size and history cost.

Two questions. `size`: with a million files, what does a save cost while nothing writes, the first
look into the snapshot, finding ten changed files, mounting, unmounting, memory? `history`: with
100,000 files and 100 snapshots of 1 % change each, is a lookup in current/ slower than in the same
tree without history, and what does a clone of them cost?
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from benchmarks.mounted import Mounted, drop_kernel_caches, mounted, start
from benchmarks.mounted import end as unmount_and_wait
from benchmarks.report import RESULTS, console, figure, keep, median, table
from benchmarks.stores import LARGE_FILE_BYTES, build, file_path, rewrite
from statefs.control.client import ControlClient
from statefs.layout import StoreLayout
from statefs.maintenance import steps
from statefs.maintenance.store import Store, open_store

SAVES: Final = 30
MOUNTS: Final = 3
LOOKUPS: Final = 2000
DIFFS: Final = 10
CLONES: Final = 3
CONTENT: Final = bytes(range(256)) * 4
"""1 KiB a file."""


def seconds(action: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = perf_counter()
    action()
    return perf_counter() - started


def measure_mounting(folder: Path, store: Path) -> dict[str, list[float]]:
    """Mount and unmount some times; seconds."""
    figures: dict[str, list[float]] = {"mount_seconds": [], "umount_seconds": []}
    state = folder / "state"
    state.mkdir(exist_ok=True)
    for _ in range(MOUNTS):
        started = perf_counter()
        process = start(state, store, "", "plain", folder / "none")
        os.stat(state / "current" / "files")
        figures["mount_seconds"].append(perf_counter() - started)
        figures["umount_seconds"].append(seconds(partial(unmount_and_wait, state, process)))
    return figures


def measure_saves(mount: Mounted, store: Path, folder: str) -> dict[str, list[float]]:
    """Save some times while nothing writes, and look into each snapshot at once."""
    figures: dict[str, list[float]] = {
        name: []
        for name in ("save_ms", "save_cpu_ms", "first_ls_ms", "first_ls_of_a_folder_ms", "mkdir_ms")
    }
    snapshots = mount.state / "snapshots"
    arguments: dict[str, Any] = {"message": "", "reason": "manual", "labels": {}}
    with ControlClient(StoreLayout(store)) as client:
        for number in range(SAVES):
            cpu, started = mount.cpu_ns(), perf_counter()
            name = client.call("save", arguments)["name"]
            figures["save_ms"].append((perf_counter() - started) * 1e3)
            figures["save_cpu_ms"].append((mount.cpu_ns() - cpu) / 1e6)
            root, inside = snapshots / name, snapshots / name / "files" / folder
            figures["first_ls_ms"].append(seconds(partial(list_long, root)) * 1e3)
            figures["first_ls_of_a_folder_ms"].append(seconds(partial(list_long, inside)) * 1e3)
            label = snapshots / f"label{number}"
            figures["mkdir_ms"].append(seconds(label.mkdir) * 1e3)
    return figures


def measure_diff(mount: Mounted, store: Path, numbers: list[int]) -> dict[str, list[float]]:
    """Change ten files after a save, and ask what changed: the daemon, then the command line."""
    figures: dict[str, list[float]] = {"diff_of_ten_ms": [], "diff_command_ms": []}
    arguments: dict[str, Any] = {"message": "", "reason": "manual", "labels": {}}
    command = [sys.executable, "-m", "statefs", "diff", str(mount.state), "latest"]
    with ControlClient(StoreLayout(store)) as client:
        for turn in range(DIFFS):
            client.call("save", arguments)
            for number in numbers[turn * 10 : turn * 10 + 10]:
                (mount.files / file_path(number, 1000)).write_bytes(b"turn %d" % turn)
            started = perf_counter()
            found = client.call("diff", {"older": "latest", "newer": "current"})
            figures["diff_of_ten_ms"].append((perf_counter() - started) * 1e3)
            assert len(found["differences"]) == 10, found
            run = partial(subprocess.run, command, check=True, capture_output=True)
            figures["diff_command_ms"].append(seconds(run) * 1e3)
    return figures


def list_long(folder: Path) -> None:
    """Do what `ls -l` does."""
    with os.scandir(folder) as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)


def measure_size(folder: Path, files: int, large_files: int) -> dict[str, Any]:
    """Answer the question `size`."""
    store = folder / "size.store"
    folder_files = 1000
    building = seconds(lambda: build(store, files, folder_files, CONTENT, large_files))
    size = files * len(CONTENT) + large_files * LARGE_FILE_BYTES
    console.print(
        f"{files:,} files, {size / 1e9:.1f} GB ({large_files} sparse files of 1 GiB), "
        f"meta.db {(store / 'meta.db').stat().st_size / 1e9:.2f} GB, made in {building:.0f} s"
    )
    figures: dict[str, Any] = {"files": files, "bytes": size}
    figures.update(measure_mounting(folder, store))
    with mounted(folder, store=store) as mount:
        figures["resident_mb_at_start"] = mount.resident_bytes() / 1e6
        figures.update(measure_saves(mount, store, "d00001"))
        sample = random.Random(3).sample(range(files), DIFFS * 10)
        figures.update(measure_diff(mount, store, sample))
        figures["resident_mb_after_saves"] = mount.resident_bytes() / 1e6
        numbers = random.Random(1).sample(range(files), min(files, 50_000))
        look_up(mount, numbers, folder_files)
        figures["resident_mb_after_50000_lookups"] = mount.resident_bytes() / 1e6
    shutil.rmtree(store)
    return figures


def look_up(mount: Mounted, numbers: list[int], folder_files: int) -> tuple[float, float]:
    """Stat files by number; return us and us of the daemon's CPU for each."""
    paths = [f"{mount.files}/{file_path(number, folder_files)}" for number in numbers]
    cpu, started = mount.cpu_ns(), perf_counter()
    for path in paths:
        os.stat(path)
    took, spent = perf_counter() - started, mount.cpu_ns() - cpu
    return took * 1e6 / len(paths), spent / 1e3 / len(paths)


def add_history(store: Store, files: int, snapshots: int, *, is_saved: bool) -> None:
    """Change 1 % of the files `snapshots` times, saving before each change or not."""
    for number in range(snapshots):
        if is_saved:
            store.save("", "manual", {})
        rewrite(store, files, 100, files // 100, number)
        store.sync()
        store.database.checkpoint()


def measure_history(folder: Path, files: int, snapshots: int) -> dict[str, Any]:
    """Answer the question `history`."""
    places = {"without": folder / "without", "with": folder / "with"}
    for name, place in places.items():
        place.mkdir()
        build(place / "state.store", files, 100, b"content", 0)
        store = open_store(place / "state.store")
        took = seconds(partial(add_history, store, files, snapshots, is_saved=name == "with"))
        steps.run(store.sealer.seal_all())  # long done in a store that has been there for a while
        store.close()
        console.print(f"{name} history: {snapshots} times 1 % changed in {took:.0f} s")
    figures: dict[str, Any] = {"files": files, "snapshots": snapshots}
    figures.update(measure_mounting(places["with"], places["with"] / "state.store"))
    figures["lookups"] = compare_lookups(places, files)
    with mounted(places["with"], store=places["with"] / "state.store") as mount:
        figures.update(measure_saves(mount, places["with"] / "state.store", "d00001"))
        figures.update(measure_clones(mount, files))
        list_everything(mount)
        figures["resident_mb_after_ls_lR"] = mount.resident_bytes() / 1e6
    return figures


def measure_clones(mount: Mounted, files: int) -> dict[str, list[float]]:
    """Clone the newest snapshot as a container does, and delete the clone."""
    figures: dict[str, list[float]] = {"clone_ms": [], "delete_clone_ms": []}
    for number in range(CLONES):
        place = mount.state / "clones" / f"clone{number}"
        figures["clone_ms"].append(seconds(place.mkdir) * 1e3)
        assert (place / "files" / file_path(files - 1, 100)).exists()
        figures["delete_clone_ms"].append(seconds(place.rmdir) * 1e3)
    return figures


def list_everything(mount: Mounted) -> None:
    """Do what `ls -lR current/files` does."""
    for folder, _, _ in os.walk(mount.files):
        list_long(Path(folder))


def compare_lookups(places: dict[str, Path], files: int) -> dict[str, dict[str, list[float]]]:
    """Look the same random files up in both stores, in turns, each file once."""
    figures: dict[str, dict[str, list[float]]] = {}
    numbers = list(range(files))
    random.Random(2).shuffle(numbers)
    with (
        mounted(places["without"], store=places["without"] / "state.store") as without,
        mounted(places["with"], store=places["with"] / "state.store") as history,
    ):
        for first in range(0, len(numbers), LOOKUPS):
            chosen = numbers[first : first + LOOKUPS]
            pairs = [("without", without), ("with", history)]
            for name, mount in pairs if first // LOOKUPS % 2 else reversed(pairs):
                us, cpu = look_up(mount, chosen, 100)
                one = figures.setdefault(name, {"lookup_us": [], "lookup_cpu_us": []})
                one["lookup_us"].append(us)
                one["lookup_cpu_us"].append(cpu)
    return figures


GOALS: Final = {
    "save_ms": "< 50", "mount_seconds": "< 2", "umount_seconds": "< 2", "first_ls_ms": "< 50",
    "diff_of_ten_ms": "< 100", "clone_ms": "< 1000",
}  # fmt: skip


def show(title: str, figures: dict[str, Any]) -> None:
    """Print the figures of one question."""
    rows = []
    for name, value in figures.items():
        if isinstance(value, list):
            rows.append([name, figure(median(value)), figure(max(value)), GOALS.get(name, "")])
        elif isinstance(value, float):
            rows.append([name, figure(value), "", "< 200" if name.startswith("resident") else ""])
    for name, lookups in figures.get("lookups", {}).items():
        for kind, values in lookups.items():
            rows.append([f"{kind} {name} history", figure(median(values)), figure(max(values)), ""])
    if "lookups" in figures:
        pair = figures["lookups"]["with"], figures["lookups"]["without"]
        for kind in ("lookup_us", "lookup_cpu_us"):
            ratios = [a / b for a, b in zip(pair[0][kind], pair[1][kind], strict=True)]
            rows.append([f"{kind}, with / without", figure(median(ratios)), "", "about 1"])
    table(title, ["", "median", "most", "goal"], rows)


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description="What size and history cost.")
    parser.add_argument("question", nargs="?", choices=("size", "history", "both"), default="both")
    parser.add_argument("--files", type=int, default=1_000_000, help="of `size`")
    parser.add_argument("--large-files", type=int, default=9, help="of 1 GiB, sparse")
    parser.add_argument("--history-files", type=int, default=100_000)
    parser.add_argument("--snapshots", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where stores are made")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where figures are kept")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="statefs-scale-", dir=arguments.folder))
    figures: dict[str, Any] = {}
    try:
        if arguments.question in ("size", "both"):
            figures["size"] = measure_size(folder, arguments.files, arguments.large_files)
            show("Size", figures["size"])
        if arguments.question in ("history", "both"):
            figures["history"] = measure_history(
                folder, arguments.history_files, arguments.snapshots
            )
            show("History", figures["history"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    drop_kernel_caches()
    console.print(f"kept in {keep('scale', figures, arguments.results)}")


if __name__ == "__main__":
    main()
