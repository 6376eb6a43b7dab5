from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from statefs.ids import TREE_ROOT
from statefs.maintenance.store import Store, init_store, open_store
from statefs.volume.names import Creator

OWNER: Final = Creator(0, 0)
FILE_MODE: Final = stat.S_IFREG | 0o644
STEPS_COUNTED: Final = 50
"""Steps of SQLite's machine between two counts: a scan of one row takes about ten."""


def files_added(store: Store, number: int) -> None:
    """Make empty files in files/."""
    folder = store.volume.names.lookup(TREE_ROOT, b"files")
    already = store.volume.table.files
    for index in range(already, already + number):
        store.volume.names.create(folder.ino, b"f%d" % index, FILE_MODE, OWNER)


def steps_of_save(store: Store) -> int:
    """Return how much work a save is for SQLite, in its own steps."""
    steps = 0

    def count() -> bool:
        nonlocal steps
        steps += 1
        return False

    store.database.connection.set_progress_handler(count, STEPS_COUNTED)
    try:
        store.save("", "manual", {})
    finally:
        store.database.connection.set_progress_handler(None)
    return steps


def test_a_save_is_as_much_work_for_many_files_as_for_few(tmp_path: Path) -> None:
    """No statement of a save scans the tree: two thousand files more add next to no step."""
    init_store(tmp_path / "store")
    store = open_store(tmp_path / "store")
    try:
        steps_of_save(store)
        files_added(store, 10)
        few = steps_of_save(store)
        files_added(store, 2000)
        many = steps_of_save(store)
        assert few > 0
        assert many - few <= 20
    finally:
        store.close()


def test_files_in_runtime_are_not_counted_however_deep(tmp_path: Path) -> None:
    """runtime/ is no user data: a snapshot counts nothing below it."""
    init_store(tmp_path / "store")
    store = open_store(tmp_path / "store")
    try:
        names, data = store.volume.names, store.volume.data
        runtime = names.lookup(TREE_ROOT, b"runtime")
        deeper = names.create(runtime.ino, b"deeper", stat.S_IFDIR | 0o755, OWNER)
        for folder in (runtime, deeper, names.lookup(TREE_ROOT, b"files")):
            data.write(names.create(folder.ino, b"f", FILE_MODE, OWNER).ino, 0, b"ten bytes.")
        saved = store.save("", "manual", {})
        assert (saved["files"], saved["bytes"]) == (1, 10)
    finally:
        store.close()
