"""Long lists of extents are merged; nobody sees a difference, whatever happens meanwhile."""

from __future__ import annotations

import random

import pytest

from statefs.content.extents import Extent
from statefs.ids import LIVING
from statefs.maintenance import merging, steps, verify
from statefs.maintenance.merging import RUN_LEAST, SMALL_BYTES, merge_all, runs
from statefs.snapshots.catalog import Snapshot
from statefs.volume import data
from tests.unit.engine_store import EngineStore

PIECE = 512
SIZE = 1 << 20
MANY = 512


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some hundred extents are made in a moment, the real bound takes seconds."""
    for module in (merging, data):
        monkeypatch.setattr(module, "EXTENTS_MANY", MANY)


def scattered(engine: EngineStore) -> tuple[int, bytearray]:
    """Return a file of many extents, written in small pieces over some snapshots."""
    number = engine.file("f", b"")
    content = bytearray(random.Random(1).randbytes(SIZE))
    engine.data.write(number, 0, bytes(content))
    chooser = random.Random(2)
    for _ in range(6):
        engine.save()
        for _ in range(250):
            place = chooser.randrange(SIZE // PIECE) * PIECE
            content[place : place + PIECE] = piece = chooser.randbytes(PIECE)
            engine.data.write(number, place, piece)
    engine.save()
    return number, content


def count_extents(engine: EngineStore, number: int) -> int:
    """Return how many extents a living file has."""
    return len(engine.data.extents(engine.node(number)))


def test_runs_are_of_small_neighbours_that_nobody_writes() -> None:
    """A large one, a gap, the object of this epoch and the open end each break a run."""
    small = [Extent(n * 100, n * 100 + 100, 1 + n % 2, 1) for n in range(RUN_LEAST)]
    end = RUN_LEAST * 100
    assert runs(small, 9) == [(0, end)]
    assert runs(small[1:], 9) == []
    assert runs(small, 2) == []
    assert runs([*small, Extent(end, end + SMALL_BYTES, 3, 1)], 9) == [(0, end)]
    assert runs([*small, Extent(end, LIVING, 3, 1)], 9) == [(0, end)]
    assert runs([*small[:5], *small[6:]], 9) == []


def test_a_scattered_file_is_merged_and_stays_the_same(engine: EngineStore) -> None:
    """Fewer extents, the same bytes now and in every snapshot; all is freed in the end."""
    number, content = scattered(engine)
    row = engine.node(number).row()
    past = {each.epoch: engine.past_content(each.epoch, number) for each in snapshots(engine)}
    before = count_extents(engine, number)
    assert before > MANY
    assert steps.run(merge_all(engine.store)) > 0
    assert count_extents(engine, number) < before / 4
    assert engine.content(number) == bytes(content)
    assert engine.node(number).row() == row
    for epoch, then in past.items():
        assert engine.past_content(epoch, number) == then
    assert engine.problems() == []
    for each in snapshots(engine):
        engine.delete(each.epoch)
    assert engine.content(number) == bytes(content)
    with engine.killed() as after:
        assert after.content(number) == bytes(content)


def snapshots(engine: EngineStore) -> list[Snapshot]:
    """Return the snapshots there are."""
    return list(engine.store.catalog.snapshots)


@pytest.mark.parametrize("kind", ["written", "cut", "removed", "saved and written"])
def test_a_change_meanwhile_wins(engine: EngineStore, kind: str) -> None:
    """What a program did while bytes were copied is there, and nothing of the copy."""
    number, content = scattered(engine)
    steps_of_merge = merge_all(engine.store)
    step = next(steps_of_merge)
    while True:
        value = step()
        if kind.endswith("written"):
            if kind.startswith("saved"):
                engine.save()
            engine.data.write(number, 1000, b"new")
            content[1000:1003] = b"new"
        elif kind == "cut":
            engine.data.truncate(number, 3000)
            del content[3000:]
        elif engine.node(number).nlink:
            engine.names.unlink(16, b"f")
        try:
            step = steps_of_merge.send(value)
        except StopIteration:
            break
    if kind != "removed":
        assert engine.content(number) == bytes(content)
        engine.data.truncate(number, SIZE)
        assert engine.content(number) == bytes(content).ljust(SIZE, b"\0")
    assert engine.problems() == []


def test_a_merge_that_fails_leaves_no_object(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full: the file is as it was."""
    number, content = scattered(engine)
    before = engine.objects()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine.store.objects, "write", refuse)
    with pytest.raises(OSError, match="No space"):
        steps.run(merge_all(engine.store))
    assert engine.objects() == before
    assert engine.content(number) == bytes(content)


def test_a_copy_that_takes_long_is_no_damage(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever verify looks: the object that no row shows yet is known, and gc leaves it alone."""
    monkeypatch.setattr(verify, "STEP_SECONDS", 0)
    number, content = scattered(engine)
    collector = engine.store.collector
    merging_all = merge_all(engine.store)
    looked = 0
    try:
        step = next(merging_all)
        while True:
            value = step()
            assert engine.store.verify_files() == []
            while engine.store.freeing(collector.delete_rows):
                pass
            collector.free(collector.candidates())
            looked += 1
            step = merging_all.send(value)
    except StopIteration:
        pass
    assert looked > 0
    engine.forget_memory()
    assert engine.content(number) == bytes(content)
    engine.store.collect()
    assert engine.problems() == []
    assert engine.rows("garbage") == 0


def test_a_copy_cut_short_by_a_crash_is_cleared_away(engine: EngineStore) -> None:
    """Its object file goes, and the file is as it was."""
    number, content = scattered(engine)
    before = engine.objects()
    step = next(merge_all(engine.store))
    step()
    assert engine.objects() > before
    with engine.killed() as after:
        assert after.objects() == before
        after.store.collect()
        assert after.rows("garbage") == 0
        assert after.content(number) == bytes(content)
        assert after.problems() == []
