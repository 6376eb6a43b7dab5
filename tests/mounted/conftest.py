"""Where a test of the filesystem works: in a mounted state and, as a reference, on the disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.mounted_state import (
    MountedState,
    aborted_after,
    mounted,
    open_folder,
    several_users,
)

ABORT_SHARE = 0.8
"""The part of a test's time limit after which its mounts are aborted."""


@pytest.fixture(scope="module")
def wide_folder() -> Iterator[Path]:
    """A folder of the test module on the disk that every user may pass through."""
    with open_folder("mounted") as folder:
        yield folder


@pytest.fixture(autouse=True)
def no_hang(request: pytest.FixtureRequest, wide_folder: Path) -> Iterator[None]:
    """Aborts the mounts of a test that hangs, so that it fails instead of staying for ever."""
    limit = request.node.get_closest_marker("timeout")
    seconds = limit.args[0] if limit else float(request.config.getini("timeout"))
    with aborted_after(seconds * ABORT_SHARE, wide_folder):
        yield


@pytest.fixture(scope="module")
def shared_state(wide_folder: Path) -> Iterator[MountedState]:
    """One mounted state for the tests of a module; each works in a folder of its own."""
    folder = Path(tempfile.mkdtemp(dir=wide_folder))
    folder.chmod(0o755)
    with mounted(folder, several_users()) as state:
        state.current.chmod(0o755)
        yield state


@pytest.fixture
def own_state(wide_folder: Path) -> Iterator[MountedState]:
    """A freshly mounted state for one test that saves, kills or remounts."""
    folder = Path(tempfile.mkdtemp(dir=wide_folder))
    folder.chmod(0o755)
    with mounted(folder, several_users()) as state:
        yield state


@pytest.fixture(params=["disk", "statefs"])
def on_statefs(request: pytest.FixtureRequest) -> bool:
    """Whether `place` is in a mounted state; on the disk a wrong expectation shows itself."""
    return bool(request.param == "statefs")


@pytest.fixture
def place(on_statefs: bool, request: pytest.FixtureRequest) -> Path:
    """An empty folder, open to every user: on the disk, then in a mounted state."""
    parent: Path
    if on_statefs:
        parent = request.getfixturevalue("shared_state").files
    else:
        parent = request.getfixturevalue("wide_folder") / "disk"
        parent.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    folder.chmod(0o755)
    return folder


@pytest.fixture
def as_root() -> None:
    """Skips a test that needs privileges where there are none."""
    if os.geteuid() != 0:
        pytest.skip("only root may do this")
