"""What deleting snapshots would free, as it is computed and as it then happens."""

from __future__ import annotations

import os
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from statefs.ids import LIVING, TREE_ROOT
from statefs.maintenance.store import Store
from statefs.snapshots.sharing import Sharing, bytes_by_viewers, measure, viewers_of
from tests.unit.engine_store import EngineStore

MIB = 1 << 20
ROWS = 8192
"""More than the rows of the few files of a test take."""


def sharing_of(store: Store) -> Sharing:
    """Return who sees what of a store."""

    def allocated(number: int) -> tuple[int, int]:
        status = store.objects.stat(number)
        return status.st_size, status.st_blocks * 512

    epochs = [snapshot.epoch for snapshot in store.catalog.snapshots]
    return measure(store.database, epochs, allocated)


def object_bytes(engine: EngineStore) -> int:
    """Return what all object files take on the disk."""
    return sum(512 * engine.store.objects.blocks(number) for number in engine.objects())


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 7)), max_size=8))
def test_each_byte_counts_once_for_all_who_see_it(rows: list[tuple[int, int, int]]) -> None:
    """The sweep over ranges gives what a look at every single byte gives."""
    bytes_seen: Counter[int] = Counter()
    for position in range(12):
        viewers = 0
        for start, end, who in rows:
            viewers |= who if start <= position < end else 0
        bytes_seen[viewers] += 1
    del bytes_seen[0]
    assert bytes_by_viewers(rows) == dict(bytes_seen)


def test_who_sees_a_row() -> None:
    """Its snapshots are those of the epochs in its life; the living tree is one bit more."""
    assert viewers_of([2, 5, 9], 3, 6) == 0b010
    assert viewers_of([2, 5, 9], 1, 9) == 0b011
    assert viewers_of([2, 5, 9], 6, LIVING) == 0b1100
    assert viewers_of([2, 5, 9], 3, 5) == 0


def test_a_rewritten_range_is_freed_with_the_snapshots_that_see_it(engine: EngineStore) -> None:
    """One that is seen by two snapshots is freed by neither alone, but by both."""
    ino = engine.file("big", os.urandom(4 * MIB))
    first = engine.save()
    engine.data.write(ino, 0, os.urandom(MIB))  # ends 1 MiB that `first` alone sees
    second = engine.save()
    third = engine.save()
    engine.data.write(ino, MIB, os.urandom(2 * MIB))  # ends 2 MiB that all three see
    fourth = engine.save()
    sharing = sharing_of(engine.store)
    each = sharing.freed_by_each()
    assert MIB <= each[first] < MIB + ROWS
    assert max(each[second], each[third], each[fourth]) < ROWS
    assert 3 * MIB <= sharing.freed_by([first, second, third]) < 3 * MIB + ROWS
    assert 0 <= sharing.freed_by([second, third]) < ROWS


def test_what_was_said_to_be_freed_is_freed(engine: EngineStore) -> None:
    """The disk gets back what the sizes said, one snapshot after another."""
    ino = engine.file("big", os.urandom(8 * MIB))
    for number in range(6):
        engine.save()
        engine.data.write(ino, number * MIB, os.urandom(MIB + number * 65536))
    engine.names.unlink(TREE_ROOT, b"big")
    engine.store.collect()
    for _ in range(6):
        epoch = engine.store.catalog.snapshots[0].epoch
        said = sharing_of(engine.store).freed_by([epoch])
        before = object_bytes(engine)
        engine.delete(epoch)
        freed = before - object_bytes(engine)
        assert abs(said - freed) <= ROWS + 64 * 1024, f"said {said}, freed {freed}"
    assert object_bytes(engine) == 0


def test_what_lives_on_is_freed_by_nothing(engine: EngineStore) -> None:
    """A file that current/ still has costs its snapshots nothing."""
    engine.file("big", os.urandom(4 * MIB))
    engine.save()
    assert max(sharing_of(engine.store).freed_by_each().values()) == 0


def test_small_files_count_as_rows(engine: EngineStore) -> None:
    """Their content is in rows."""
    ino = engine.file("small", b"x" * 3000)
    epoch = engine.save()
    engine.data.write(ino, 0, b"y" * 3000)
    assert 3000 < sharing_of(engine.store).freed_by_each()[epoch] < 4000
