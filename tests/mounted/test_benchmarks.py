from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]
RUN_SECONDS: Final = 100

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.skipif(os.geteuid() != 0, reason="emptying the kernel's caches needs root"),
]


def figures_of(tmp_path: Path, *command: str) -> dict[str, Any]:
    """Run a benchmark and return what it kept."""
    kept = tmp_path / "kept"
    done = subprocess.run(
        [sys.executable, "-m", *command, "--folder", str(tmp_path), "--results", str(kept)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = kept.iterdir()
    figures: dict[str, Any] = json.loads(file.read_text())
    return figures


def test_operations_are_measured_in_every_mode(tmp_path: Path) -> None:
    """Each mode has times, and the counting daemons have seen the requests and commits."""
    figures = figures_of(tmp_path, "benchmarks.operations", "--rounds", "1", "--only", "mkdir")
    assert set(figures["times_us"]) == {"plain", "close", "fsync"}
    for mode in ("close", "fsync"):
        counted = figures["counted"][mode]["mkdir"][-1]
        assert counted["requests"]["mkdir"] == counted["commits"]
        assert figures["handlers"][mode]["mkdir"][1] > 0


def test_size_and_history_are_measured(tmp_path: Path) -> None:
    """Small stores give figures of every kind that large ones would."""
    sizes = ("--files", "2000", "--large-files", "1", "--history-files", "1000", "--snapshots", "3")
    figures = figures_of(tmp_path, "benchmarks.scale", *sizes)
    assert min(figures["size"]["save_ms"]) > 0
    assert set(figures["history"]["lookups"]) == {"with", "without"}


def test_disturbance_by_sealing_is_measured(tmp_path: Path) -> None:
    """Little content of each kind; the snapshot is sealed while the loop runs."""
    figures = figures_of(
        tmp_path, "benchmarks.sealing", "--megabytes", "16", "--small-files", "300"
    )
    for kind in ("large", "small"):
        assert figures[kind]["seconds"] > 0
        assert figures[kind]["quiet"]["calls"] > figures[kind]["quiet"]["p99_ms"] > 0


def test_going_back_and_forgetting_are_measured(tmp_path: Path) -> None:
    """A deletion is seen from both sides: by the loop's own steps, and by a program that waits."""
    sizes = ("--files", "2000", "--history-files", "1000", "--snapshots", "3")
    figures = figures_of(tmp_path, "benchmarks.time_travel", *sizes)
    for name in ("restore_ten_ms", "restore_one_ms", "undo_ten_ms", "diff_of_ten_ms"):
        assert min(figures["restore"][name]) > 0
    (whole,) = figures["delete"]["whole"]
    assert len(figures["delete"]["oldest"]) == 2
    assert sum(whole["collecting"]["delete_rows"]) <= whole["until_space_is_back_ms"]
    assert whole["longest_wait_ms"] > 0
    assert whole["longest_step_ms"] >= max(whole["collecting"]["delete_rows"])


def test_peers_are_measured_where_they_are_installed(tmp_path: Path) -> None:
    """The tool that is always there has figures; what others mount and make is gone."""
    sizes = ("--files", "200", "--large-mib", "1", "--rounds", "1")
    figures = figures_of(tmp_path, "benchmarks.peers", *sizes)
    assert set(figures["ms"]["statefs"]) == {
        "first", "create", "list_first", "diff", "restore", "delete"
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_what_counting_costs_can_be_measured(tmp_path: Path) -> None:
    """Figures of each round, of requests that are counted and of such that are not."""
    sizes = ("--requests", "50", "--rounds", "2")
    figures = figures_of(tmp_path, "benchmarks.counting", *sizes)
    for modes in figures["cpu_us"].values():
        assert {mode: len(rounds) for mode, rounds in modes.items()} == {"plain": 2, "uncounted": 2}
        assert all(each > 0 for rounds in modes.values() for each in rounds)
