"""Deleting a snapshot with which clones share small content, also where the disk is full."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from statefs.errors import PosixError
from statefs.ids import CLONES_ROOT, TREE_ROOT
from statefs.maintenance import cloning, gc, steps
from tests.unit.engine_store import EngineStore, tree_of
from tests.unit.test_clones import BIG, clone, delete


@pytest.mark.parametrize("is_newest", [True, False])
def test_small_content_outlives_its_snapshot(engine: EngineStore, is_newest: bool) -> None:
    """Deleting the snapshot gives it to the clone, also where the file then changes in place."""
    ino, gone = engine.file("f", b"one"), engine.file("g", b"two")
    first = engine.save()
    if not is_newest:
        engine.data.write(ino, 0, b"ONE")
        engine.save()
    steps.run(cloning.clone(engine.store, engine.store.catalog.snapshots[0], b"test"))
    root = engine.names.lookup(CLONES_ROOT, b"test").ino
    engine.delete(first)
    assert engine.rows("shared") == 0
    engine.data.write(ino, 0, b"changed")
    engine.names.unlink(TREE_ROOT, b"g")
    engine.save()
    engine.forget_memory()
    for name, content in ((b"f", b"one"), (b"g", b"two")):
        copy = engine.names.lookup(root, name).ino
        assert copy not in (ino, gone)
        assert engine.content(copy) == content
    assert engine.problems() == []


def test_deleting_a_snapshot_with_clones_goes_in_steps(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is gone at once; what clones share is copied a part at a time, also by who comes next."""
    for number in range(60):
        engine.file(f"f{number}", b"%d" % number)
    epoch = engine.save()
    root = clone(engine, "test")
    then = tree_of(engine, root=root)
    monkeypatch.setattr(gc, "ROWS_PER_STEP", 8)
    engine.hide(epoch)
    left = [engine.rows("shared")]
    while left[-1]:
        assert engine.store.collector.delete_rows()
        left.append(engine.rows("shared"))
        with engine.killed() as again:
            assert again.problems() == []
            assert tree_of(again, root=root) == then
            assert again.store.catalog.snapshots == []
            again.store.collect()
            assert tree_of(again, root=root) == then
            assert again.rows("shared") == again.rows("snapshots") == 0
            assert again.problems() == []
    assert max(one - other for one, other in itertools.pairwise(left)) <= 8
    engine.store.collect()
    assert tree_of(engine, root=root) == then
    assert engine.rows("snapshots") == 0
    assert engine.problems() == []


@contextmanager
def without_room_for_copies(engine: EngineStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the disk refuse what clones would be given inside the `with` block."""

    def fail(*_: object) -> None:
        raise PosixError(errno.ENOSPC)

    with monkeypatch.context() as patched:
        patched.setattr(engine.table.temporal, "copy_shared", fail)
        yield


@pytest.mark.parametrize("end", ["room", "clone deleted", "killed"])
def test_a_full_disk_does_not_keep_a_snapshot_with_clones(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """It is deleted, and its space comes back, but for small files that clones share with it.

    They stay what they were, whatever happens to current/ and to other snapshots, and go when there
    is room for copies or when the clones go.
    """
    small, large = engine.file("f", b"one"), engine.file("big", b"x" * BIG, engine.folder("sub"))
    older = engine.save()
    engine.file("g", b"two")
    epoch = engine.save()
    root = clone(engine, "test")
    then = tree_of(engine, root=root)
    with without_room_for_copies(engine, monkeypatch):
        engine.delete(epoch)
        assert engine.store.catalog.by_epoch(epoch) is None
        assert not engine.store.collector.is_busy
        engine.data.write(small, 0, b"ONE")
        engine.data.write(large, 0, b"y")
        engine.names.unlink(TREE_ROOT, b"g")
        newer = engine.save()
        engine.data.write(small, 0, b"111")
        engine.delete(older)
        engine.delete(newer)
        engine.forget_memory()
        assert tree_of(engine, root=root) == then
        assert engine.rows("shared") == 2
        assert engine.problems() == []
    if end == "clone deleted":
        delete(engine, "test")
    elif end == "killed":
        with engine.killed() as again:
            again.store.collect()
            assert tree_of(again, root=root) == then
            assert again.rows("shared") == again.rows("snapshots") == 0
            assert again.problems() == []
    engine.store.collect()
    assert engine.rows("shared") == engine.rows("snapshots") == 0
    if end != "clone deleted":
        assert tree_of(engine, root=root) == then
        delete(engine, "test")
    assert engine.content(small) == b"111"
    assert engine.rows("inline") == 1
    assert engine.problems() == []


def test_on_a_full_disk_the_space_of_large_files_comes_back(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clone of a folder that shares small files does not keep what else the snapshot held."""
    engine.file("f", b"one", engine.folder("sub"))
    engine.file("big", b"x" * BIG)
    epoch = engine.save()
    root = clone(engine, "part", path="sub")
    engine.names.unlink(TREE_ROOT, b"big")
    assert len(engine.objects()) == 1
    with without_room_for_copies(engine, monkeypatch):
        engine.delete(epoch)
        assert engine.objects() == set()
        assert engine.content(engine.names.lookup(root, b"f").ino) == b"one"
        assert engine.rows("shared") == 1
        assert engine.problems() == []
    engine.store.collect()
    assert engine.rows("shared") == 0
    assert engine.problems() == []
