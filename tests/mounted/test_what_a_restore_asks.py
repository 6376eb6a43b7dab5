"""After a restore the kernel looks again at what it may have cached, and at nothing else."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import statefs
from statefs.api import State
from tests.harness.mounted_state import MountedState

FILES = 20
BESIDE = 12
"""Requests that the command, or the kernel for it, may make besides: not for each path."""


def requests(state: State) -> dict[str, int]:
    """Return how many requests of each kind the worker has answered."""
    found = re.findall(r'^statefs_request_seconds_count\{request="(\w+)"\} (\S+)$', state.metrics(),
                       re.MULTILINE)  # fmt: skip
    return {name: int(float(count)) for name, count in found}


def read_all(folder: Path) -> list[str]:
    """Return what the files of a folder hold, which is in the kernel's cache afterwards."""
    return [(folder / f"f{number}").read_text() for number in range(FILES)]


def rewrite(folder: Path) -> None:
    """Write into each file; it is of the same size."""
    for number in range(FILES):
        with open(folder / f"f{number}", "r+") as file:
            file.write("two")


def replace(folder: Path) -> None:
    """Put another file in the place of each."""
    for number in range(FILES):
        (folder / "new").write_text("two")
        os.rename(folder / "new", folder / f"f{number}")


def change_modes(folder: Path) -> None:
    """Change the mode of each file."""
    for number in range(FILES):
        (folder / f"f{number}").chmod(0o600)


def rename(folder: Path) -> None:
    """Give each file another name."""
    for number in range(FILES):
        os.rename(folder / f"f{number}", folder / f"g{number}")


CASES: tuple[tuple[Callable[[Path], None], dict[str, int]], ...] = (
    (rewrite, {"getattr": 1, "open": 1, "flush": 1, "release": 1}),
    (replace, {"lookup": 2}),
    (change_modes, {}),
    (rename, {"lookup": 3}),
    (shutil.rmtree, {}),
)
"""What is done to the files of a folder, and how many requests each of them may take after it."""


def test_requests_for_each_path(own_state: MountedState) -> None:
    """No more of each kind than it takes to make the kernel see what is restored."""
    for change, most in CASES:
        folder = own_state.files / change.__name__
        folder.mkdir()
        for number in range(FILES):
            (folder / f"f{number}").write_text("one")
        name = own_state.save()
        change(folder)
        if (folder / "f0").exists():
            read_all(folder)
        with statefs.open(own_state.state) as opened:
            before = requests(opened)
            opened.restore(name)
            after = requests(opened)
        made = {kind: after[kind] - before.get(kind, 0) for kind in after}
        surplus = {kind: count - FILES * most.get(kind, 0) for kind, count in made.items()}
        assert all(count <= BESIDE for count in surplus.values()), (change, made)
        assert read_all(folder) == ["one"] * FILES
        modes = {os.stat(folder / f"f{number}").st_mode & 0o777 for number in range(FILES)}
        assert modes == {0o644}


def test_what_the_kernel_does_not_know_is_not_visited(own_state: MountedState) -> None:
    """Nobody has looked at it since the mount."""
    for number in range(FILES):
        (own_state.files / f"f{number}").write_text("one")
    name = own_state.save()
    rewrite(own_state.files)
    own_state.remount()
    with statefs.open(own_state.state) as opened:
        before = requests(opened)
        opened.restore(name)
        after = requests(opened)
    assert sum(after.values()) - sum(before.values()) <= BESIDE, (before, after)
    assert read_all(own_state.files) == ["one"] * FILES


def test_a_file_that_changed_in_a_renamed_folder(own_state: MountedState) -> None:
    """Its content is seen where the folder was, and is again; bytes of the same size are others."""
    folder, renamed = own_state.files / "folder", own_state.files / "renamed"
    folder.mkdir()
    (folder / "f").write_text("one")
    name = own_state.save()
    os.rename(folder, renamed)
    (renamed / "f").write_text("two")
    assert (renamed / "f").read_text() == "two"
    with statefs.open(own_state.state) as opened:
        opened.restore(name)
    assert (folder / "f").read_text() == "one" and not renamed.exists()


def test_what_is_looked_up_in_a_folder_that_is_gone(own_state: MountedState) -> None:
    """That a name is not there is not remembered: the folder may come back with it."""
    folder = own_state.files / "folder"
    name = own_state.save()
    folder.mkdir()
    (folder / "f").write_text("one")
    held = os.open(folder, os.O_RDONLY)
    try:
        with statefs.open(own_state.state) as opened:
            opened.restore(name)
            with pytest.raises(OSError):
                os.stat("f", dir_fd=held)
            opened.undo()
        assert (folder / "f").read_text() == "one"
    finally:
        os.close(held)
