"""An object file that is written again after a snapshot was deleted shows nothing of its past."""

from __future__ import annotations

import stat
from pathlib import Path

from statefs.ids import TREE_ROOT
from statefs.maintenance.store import Store, init_store, open_store
from statefs.volume.names import Creator

FILE = stat.S_IFREG | 0o644


def content(store: Store, ino: int, size: int) -> bytes:
    """Return the first `size` bytes of a file, through the plan that the mount reads by."""
    plan = store.volume.data.plan_read(ino, 0, size)
    if isinstance(plan, bytes):
        return plan
    return store.objects.read(plan)


def test_bytes_behind_the_end_of_a_reused_object_read_as_zeros(tmp_path: Path) -> None:
    """After truncation to nothing an older writable object is used again, without its old tail."""
    init_store(tmp_path / "store")
    store = open_store(tmp_path / "store")
    ino = store.volume.names.create(TREE_ROOT, b"f", FILE, Creator(0, 0)).ino
    data = store.volume.data
    data.write(ino, 0, b"1" * 20_000)
    store.save("", "manual", {})
    data.write(ino, 0, b"2" * 10_000)
    second = store.save("", "manual", {})
    data.write(ino, 0, b"3" * 5_000)
    store.delete(second["name"])
    data.truncate(ino, 0)
    store.volume.table.nodes.clear()
    data.write(ino, 0, b"4" * 9_000)
    data.truncate(ino, 9_500)
    assert content(store, ino, 9_500) == b"4" * 9_000 + bytes(500)
    store.close()
