"""A directory of 100,000 entries, made without the mount, listed while a process changes it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from benchmarks.stores import build, file_path
from tests.harness.mounted_state import MountedState, mounted, open_folder
from tests.harness.processes import Child

ENTRIES: Final = 100_000
CHANGES: Final = 600
"""A round of creating and renaming or removing each; a listing lasts for some thirty."""
LISTINGS_MIN: Final = 5
"""With fewer beside the changes, nothing is shown."""
MOVED_EVERY: Final = 250
"""Of the first entries, those that are renamed within the directory or moved out of it."""
REPLACED_EVERY: Final = 10
"""Of the names that are there throughout, those that come to lead to a new file."""


@pytest.fixture(scope="module")
def large() -> Iterator[MountedState]:
    """A state whose folder d00000 has ENTRIES files, f0 and so on."""
    with open_folder("large") as folder:
        store = folder / "state.store"
        build(store, ENTRIES, ENTRIES, b"", 0)
        with mounted(folder, store=store) as state:
            yield state


def change(state: MountedState, folder: Path, done: Path) -> None:
    """Create, replace, rename, move out and remove entries, and save in the midst of it."""
    elsewhere = state.files / "elsewhere"
    elsewhere.mkdir()
    for number in range(CHANGES):
        new = folder / f"new-{number}"
        new.touch()
        if number % 3 == 0:
            os.rename(new, folder / f"f{number * REPLACED_EVERY + 1}")
        elif number % 3 == 1:
            os.rename(new, folder / f"other-{number}")
        else:
            new.unlink()
        moved = number * MOVED_EVERY
        if moved < ENTRIES:
            os.rename(folder / f"f{moved}", (folder, elsewhere)[number % 2] / f"moved-{moved}")
        if number == CHANGES // 2:
            (state.snapshots / "midst").mkdir()
    done.touch()


def test_a_hundred_thousand_entries_while_they_change(large: MountedState, tmp_path: Path) -> None:
    """Each name that was there throughout is listed exactly once, and no name twice."""
    folder = large.files / Path(file_path(0, ENTRIES)).parent
    done = tmp_path / "done"
    steady = {f"f{number}" for number in range(ENTRIES) if number % MOVED_EVERY}
    listings = 0
    with Child({"change": lambda: change(large, folder, done)}) as child:
        child.ask("change")
        while not done.exists():
            with os.scandir(folder) as entries:
                listed = Counter(entry.name for entry in entries)
            assert {name: listed[name] for name in steady} == dict.fromkeys(steady, 1)
            assert max(listed.values()) == 1
            listings += 1
        child.answer()
    assert listings >= LISTINGS_MIN
    made = {f"other-{number}" for number in range(1, CHANGES, 3)}
    kept = {f"moved-{number}" for number in range(0, ENTRIES, 2 * MOVED_EVERY)}
    assert set(os.listdir(folder)) == steady | made | kept
