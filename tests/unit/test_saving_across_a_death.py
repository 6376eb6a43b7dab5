from __future__ import annotations

import struct

from statefs.fuse.resent import MKDIR, RMDIR
from statefs.ids import CLONES_ROOT, SNAPSHOTS_DIR, node_id
from statefs.ids import TREE_ROOT as ROOT
from statefs.maintenance.store import Store
from tests.unit.resent_requests import request, settled

MKDIR_HEAD = struct.pack("<II", 0o755, 0o022)


def test_a_snapshot_that_was_taken_is_not_taken_again(store: Store) -> None:
    """Mkdir in snapshots/ whose worker died before its reply: the reply is the folder."""
    store.save("", "manual", {"name": "first"})
    snapshot = store.catalog.snapshots[0]
    asked = [request(MKDIR, SNAPSHOTS_DIR, MKDIR_HEAD + b"first\0")]
    answers = settled(store, asked)
    error, body = answers.replies[6]
    found = store.catalog.by_folder("first")
    assert found is not None and found[0] == snapshot
    assert (error, struct.unpack_from("<Q", body)[0]) == (0, node_id(found[1], ROOT))
    assert answers.asked_again == 0 and len(store.catalog.snapshots) == 1


def test_a_snapshot_that_was_not_taken_is_asked_for_again(store: Store) -> None:
    """The worker died in the midst: its pending row is gone, and the kernel sends mkdir again."""
    answers = settled(store, [request(MKDIR, SNAPSHOTS_DIR, MKDIR_HEAD + b"first\0")])
    assert (answers.replies, answers.asked_again) == ({}, 1)


def test_a_snapshot_that_was_deleted_is_not_sought(store: Store) -> None:
    """Rmdir in snapshots/ whose worker died before its reply; another one's is asked for again."""
    store.save("", "manual", {"name": "kept"})
    gone = request(RMDIR, SNAPSHOTS_DIR, b"gone\0", unique=8)
    kept = request(RMDIR, SNAPSHOTS_DIR, b"kept\0", unique=10)
    answers = settled(store, [gone, kept])
    assert (answers.replies, answers.asked_again) == ({8: (0, b"")}, 1)


def test_a_clone_that_is_gone_is_not_sought(store: Store) -> None:
    """Rmdir in clones/ is answered in the same way."""
    answers = settled(store, [request(RMDIR, CLONES_ROOT, b"gone\0")])
    assert (answers.replies, answers.asked_again) == ({6: (0, b"")}, 0)
