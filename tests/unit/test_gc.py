"""Space comes back: rows of deleted snapshots, ranges and whole object files."""

from __future__ import annotations

import errno
from itertools import pairwise
from pathlib import Path

import pytest

from statefs.ids import LIVING, TREE_ROOT
from statefs.maintenance import gc, steps, store
from statefs.maintenance.gc import unreferenced
from statefs.metadata.schema import PAGE_BYTES
from statefs.metadata.temporal import VERSIONED
from tests.unit.engine_store import EngineStore

BIG = 1 << 20
PART = 1 << 18


def space(engine: EngineStore) -> int:
    """Return the bytes that object files take on the disk."""
    return sum(engine.store.objects.stat(number).st_blocks * 512 for number in engine.objects())


@pytest.mark.parametrize(
    ("referenced", "free"),
    [
        ([], [(0, 100)]),
        ([(0, 100)], []),
        ([(0, LIVING)], []),
        ([(10, 20), (30, 40)], [(0, 10), (20, 30), (40, 100)]),
        ([(30, 40), (10, 35)], [(0, 10), (40, 100)]),
        ([(10, 90), (20, 30)], [(0, 10), (90, 100)]),
        ([(50, LIVING)], [(0, 50)]),
        ([(200, 300)], [(0, 100)]),
    ],
)
def test_what_nothing_refers_to_is_free(
    referenced: list[tuple[int, int]], free: list[tuple[int, int]]
) -> None:
    """In any order, overlapping, open-ended, behind the end."""
    assert [part for part in unreferenced(referenced, 100) if part[0] < part[1]] == free


def test_an_object_that_nothing_refers_to_is_removed(engine: EngineStore) -> None:
    """With its row and its place in the list of garbage."""
    engine.file("f", b"a" * BIG)
    engine.names.unlink(TREE_ROOT, b"f")
    assert engine.rows("garbage") == 1
    engine.store.collect()
    assert (engine.objects(), engine.rows("objects"), engine.rows("garbage")) == (set(), 0, 0)


def test_ranges_that_were_overwritten_are_punched_out(engine: EngineStore) -> None:
    """Once the snapshot that saw them is gone; what is still seen stays."""
    ino = engine.file("f", b"a" * BIG)
    first = engine.save()
    engine.data.write(ino, PART, b"b" * PART)
    second = engine.save()
    engine.store.sync()
    before = space(engine)
    engine.delete(first)
    assert space(engine) <= before - PART + 4096
    expected = b"a" * PART + b"b" * PART + b"a" * (BIG - 2 * PART)
    assert engine.content(ino) == engine.past_content(second, ino) == expected


def test_bytes_of_a_kept_snapshot_stay(engine: EngineStore) -> None:
    """Deleting its neighbours, its files in current, and collecting harms nothing."""
    ino = engine.file("f", b"a" * BIG)
    epochs = []
    for letter in (b"b", b"c", b"d"):
        epochs.append(engine.save())
        engine.data.write(ino, PART, letter * 100)
    engine.names.unlink(TREE_ROOT, b"f")
    engine.delete(epochs[2])
    engine.delete(epochs[0])
    expected = b"a" * PART + b"b" * 100 + b"a" * (BIG - PART - 100)
    assert engine.past_content(epochs[1], ino) == expected
    engine.delete(epochs[1])
    assert engine.objects() == set()


def test_rows_are_deleted_in_steps(engine: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is one transaction of limited size, and every store in between is sound."""
    monkeypatch.setattr(gc, "ROWS_PER_STEP", 10)
    for number in range(35):
        engine.file(f"f{number}", b"x")
    epoch = engine.save()
    steps.run(engine.store.sealer.seal_all())
    for number in range(35):
        engine.names.unlink(TREE_ROOT, f"f{number}".encode())
    kept = engine.save()
    steps.run(engine.store.sealer.seal_all())
    engine.hide(epoch)
    left = []
    while engine.store.collector.delete_rows():
        left.append(tuple(engine.rows(life.table) for life in VERSIONED))
        assert engine.problems() == []
    for before, after in pairwise(left):
        assert 0 <= sum(before) - sum(after) <= 10
    assert all(rows < 10 for rows in left[-1])
    assert [each.epoch for each in engine.store.catalog.snapshots] == [kept]


def test_nothing_is_freed_before_the_rows_are_durable(engine: EngineStore) -> None:
    """What a row referred to when the candidates were taken is spared this time."""
    ino = engine.file("f", b"a" * BIG)
    engine.save()
    engine.data.write(ino, 0, b"b" * PART)
    engine.data.truncate(ino, PART)
    engine.hide(1)
    while engine.store.collector.delete_rows():
        pass
    engine.store.sync_bytes()
    engine.store.settle()
    candidates = engine.store.collector.candidates()
    assert candidates
    number = max(candidates)
    engine.store.collector.free({number: [(0, BIG)]})
    assert number in engine.objects()


def test_an_object_being_read_is_left_for_later(engine: EngineStore) -> None:
    """A thread may have looked up where the bytes are before they lost their last row."""
    engine.file("f", b"a" * BIG)
    engine.names.unlink(TREE_ROOT, b"f")
    (number,) = engine.objects()
    collector = engine.store.collector
    with engine.store.objects.being_read([(0, BIG, number)]):
        collector.free(collector.candidates())
        assert engine.store.objects.read([(0, 5, number)]) == b"aaaaa"
    engine.store.collect()
    assert engine.objects() == set()


def test_a_host_that_cannot_punch_keeps_the_space(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is no error; any other refusal leaves the object a candidate."""
    ino = engine.file("f", b"a" * BIG)
    engine.data.truncate(ino, PART)
    engine.store.objects.truncate(min(engine.objects()), BIG)
    engine.table.database.execute(
        "INSERT OR IGNORE INTO garbage SELECT id FROM objects WHERE ino = ?", (ino,)
    )

    def refused(*_: int) -> None:
        raise OSError(errno.EIO, "refused")

    with monkeypatch.context() as patch:
        patch.setattr(engine.store.objects, "punch", refused)
        with pytest.raises(OSError, match="refused"):
            engine.store.collect()
    assert engine.rows("garbage") == 1
    engine.store.collect()
    assert engine.rows("garbage") == 0
    assert engine.content(ino) == b"a" * PART
    engine.store.objects.truncate(min(engine.objects()), PART)


def test_an_interrupted_deletion_is_finished_later(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill in the middle the snapshot stays hidden, and its rows go."""
    monkeypatch.setattr(gc, "ROWS_PER_STEP", 3)
    for number in range(20):
        engine.file(f"f{number}", b"x" * 10_000)
    epoch = engine.save()
    for number in range(20):
        engine.names.unlink(TREE_ROOT, f"f{number}".encode())
    engine.hide(epoch)
    engine.store.collector.delete_rows()
    with engine.killed() as after:
        assert after.store.catalog.snapshots == []
        after.store.collect()
        assert (after.rows("snapshots"), after.rows("extents"), after.objects()) == (0, 0, set())
    engine.store.collect()


def test_an_emptied_store_is_small_again_after_a_clean_close(tmp_path: Path) -> None:
    """Promise 8 for meta.db: no page is kept for files that nobody will make."""
    root = tmp_path / "store"
    with EngineStore(root):
        pass
    empty = (root / "meta.db").stat().st_size
    with EngineStore(root) as engine:
        for number in range(400):
            engine.file(f"f{number}", b"x" * 5000)
        epoch = engine.save()
        for number in range(400):
            engine.names.unlink(TREE_ROOT, f"f{number}".encode())
        engine.delete(epoch)
    assert (root / "meta.db").stat().st_size <= empty + 8 * PAGE_BYTES


def test_what_may_have_to_stand_in_for_lost_bytes_is_kept(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until what was written over it is durable: a loss of power may come before."""
    ino = engine.file("f", b"a" * BIG)
    engine.save()
    engine.hide(1)
    while engine.store.collector.delete_rows():
        pass
    engine.data.write(ino, 0, b"b" * BIG)
    assert engine.store.collector.candidates() == {}
    row = engine.database.value("SELECT max(id) FROM objects WHERE ino = ?", (ino,))
    monkeypatch.setattr(store, "boot_id", lambda: "another")
    engine.store.objects.truncate(row, 0)
    with engine.killed() as after:
        assert after.content(ino) == b"a" * BIG
    engine.store.objects.truncate(row, BIG)
    engine.store.collect()
    assert engine.objects() == {row}
