"""What the workloads of the benchmarks do while the clocks run, and what they leave to others."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.workloads import OTHER_DESCRIPTORS, WORKLOADS

CREATE = next(each for each in WORKLOADS if each.name == "create")


def open_below(folder: Path) -> int:
    """Return how many descriptors of this process lead into a folder."""
    links = []
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            links.append(os.readlink(each))
    return sum(link.startswith(f"{folder}/") for link in links)


def test_a_creation_is_measured_without_the_closing_that_follows(tmp_path: Path) -> None:
    """All files are there and open when the clocks are read, and closed at the end; each round."""
    for _ in range(2):
        CREATE.prepare(tmp_path / "work", CREATE.operations)
        assert os.listdir(tmp_path / "work") == []
        CREATE.run(tmp_path / "work", CREATE.operations)
        assert open_below(tmp_path / "work") == CREATE.operations
        CREATE.finish(tmp_path / "work", CREATE.operations)
        assert open_below(tmp_path / "work") == 0
        assert len(os.listdir(tmp_path / "work")) == CREATE.operations


def test_a_creation_asks_for_the_descriptors_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that may be raised is; one that may not be is told before anything is measured."""
    asked: list[tuple[int, int]] = []
    wanted = CREATE.operations + OTHER_DESCRIPTORS
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    for limits in ((100, wanted), (wanted, wanted), (100, resource.RLIM_INFINITY)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        CREATE.prepare(tmp_path / "work", CREATE.operations)
    assert asked == [(wanted, wanted), (wanted, resource.RLIM_INFINITY)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, wanted - 1))
    with pytest.raises(SystemExit, match="ulimit -Hn"):
        CREATE.prepare(tmp_path / "work", CREATE.operations)
