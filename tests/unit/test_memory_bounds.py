from __future__ import annotations

import stat

import pytest

from statefs.ids import TREE_ROOT, node_id
from statefs.maintenance.store import Store
from statefs.snapshots.namespace import TREES_CACHED
from statefs.snapshots.views import PastTree
from statefs.volume.names import Creator
from statefs.volume.table import EXTENTS_KEPT, Node

CONTENT = b"small enough to be kept inline"
HOLE_BYTES = 1 << 16
"""Apart enough that two writes do not become one extent."""


def new_file(store: Store, name: bytes) -> Node:
    """Make an empty file in the root of the tree."""
    return store.volume.names.create(TREE_ROOT, name, stat.S_IFREG | 0o644, Creator(0, 0))


def test_a_closed_file_keeps_no_content_in_memory(store: Store) -> None:
    """The last close drops it, not an earlier one, and it reads the same afterwards."""
    table, data = store.volume.table, store.volume.data
    node = new_file(store, b"small")
    table.opened(node.ino)
    table.opened(node.ino)
    data.write(node.ino, 0, CONTENT)
    table.closed(node.ino)
    assert table.node(node.ino).data == CONTENT
    table.closed(node.ino)
    assert table.node(node.ino).data is None
    assert data.plan_read(node.ino, 0, 100) == CONTENT


def test_a_closed_file_keeps_no_long_list_of_extents(store: Store) -> None:
    """A file of many pieces is looked up again when it is read, with the same result."""
    table, data = store.volume.table, store.volume.data
    node = new_file(store, b"pieces")
    table.opened(node.ino)
    for number in range(EXTENTS_KEPT + 1, 0, -1):
        data.write(node.ino, number * HOLE_BYTES, CONTENT)
    before = data.plan_read(node.ino, 0, node.size)
    assert len(table.node(node.ino).extents or ()) > EXTENTS_KEPT
    table.closed(node.ino)
    assert table.node(node.ino).extents is None
    assert data.plan_read(node.ino, 0, node.size) == before


def test_only_the_trees_used_last_stay_in_memory(store: Store) -> None:
    """Looking into many snapshots makes the longest unused trees go, and they come again."""
    made = []

    class Counted(PastTree):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]  # passed on as they are
            made.append(self.epoch)

    for _ in range(TREES_CACHED + 1):
        store.save("", "manual", {})
    roots = [node_id(snapshot.view, TREE_ROOT) for snapshot in store.catalog.snapshots]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("statefs.snapshots.namespace.PastTree", Counted)
        for root in roots[:TREES_CACHED]:
            store.namespace.node(root)
        store.namespace.node(roots[0])
        store.namespace.node(roots[-1])  # takes the place of the second
        store.namespace.node(roots[0])
        store.namespace.node(roots[1])
    epochs = [snapshot.epoch for snapshot in store.catalog.snapshots]
    assert made == [*epochs, epochs[1]]
