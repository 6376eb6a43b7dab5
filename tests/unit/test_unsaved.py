"""What counts as a change since the newest snapshot, and when a change is to be saved."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statefs.ids import TREE_ROOT
from statefs.maintenance import merging, steps
from statefs.maintenance.merging import merge_all
from statefs.maintenance.unsaved import Debounce, has_unsaved, touched_before
from statefs.volume import data
from statefs.volume.table import TOUCHED_MAX
from tests.unit.engine_store import FILE, ME, EngineStore
from tests.unit.test_merging import MANY, scattered

Deed = Callable[[EngineStore, int, int], object]


def furnished(engine: EngineStore) -> tuple[int, int]:
    """Make a small and a large file, save, and return their numbers."""
    small, large = engine.file("small", b"content"), engine.file("large", b"x" * 100_000)
    engine.save()
    assert not has_unsaved(engine.store)
    return small, large


CHANGES: dict[str, Deed] = {
    "write small": lambda e, small, _: e.data.write(small, 0, b"C"),
    "write large": lambda e, _, large: e.data.write(large, 5, b"y"),
    "append": lambda e, _, large: e.data.write(large, 100_000, b"y"),
    "truncate": lambda e, small, _: e.data.truncate(small, 0),
    "create": lambda e, *_: e.file("new"),
    "mkdir": lambda e, *_: e.folder("folder"),
    "unlink": lambda e, *_: e.names.unlink(TREE_ROOT, b"small"),
    "rename": lambda e, *_: e.names.rename(TREE_ROOT, b"small", TREE_ROOT, b"renamed", 0),
    "link": lambda e, small, _: e.names.link(small, TREE_ROOT, b"other"),
    "xattr": lambda e, small, _: e.attributes.set_xattr(small, b"user.k", b"v"),
}


@pytest.mark.parametrize("deed", CHANGES)
def test_each_kind_of_change_counts(engine: EngineStore, deed: str) -> None:
    """Whatever a snapshot would show; and a save makes it saved."""
    small, large = furnished(engine)
    CHANGES[deed](engine, small, large)
    assert has_unsaved(engine.store)
    engine.save()
    assert not has_unsaved(engine.store)


def test_reading_is_no_change(engine: EngineStore) -> None:
    """Content, attributes, names, and what gc does for itself."""
    small, large = furnished(engine)
    engine.forget_memory()
    assert engine.content(small) == b"content" and len(engine.content(large)) == 100_000
    engine.names.listing(TREE_ROOT, 0, 100)
    engine.attributes.xattr_names(small)
    engine.save()
    engine.delete(1)
    assert not has_unsaved(engine.store)


def test_merging_extents_is_no_change(engine: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon does it for itself: the file stays the same, so there is nothing to save."""
    for module in (merging, data):
        monkeypatch.setattr(module, "EXTENTS_MANY", MANY)
    scattered(engine)
    assert steps.run(merge_all(engine.store)) > 0
    assert not has_unsaved(engine.store)


def test_what_is_in_runtime_is_no_change(engine: EngineStore) -> None:
    """Snapshots leave it out; a change elsewhere counts all the same."""
    furnished(engine)
    runtime = engine.names.lookup(TREE_ROOT, b"runtime").ino
    ports = engine.file("ports.tmp", b"{}", runtime)
    engine.data.write(ports, 0, b"[]")
    engine.names.unlink(runtime, b"ports.tmp")
    assert not has_unsaved(engine.store)
    engine.names.link(engine.file("status", b"", runtime), TREE_ROOT, b"status")
    assert has_unsaved(engine.store)


def test_a_file_without_a_name_is_no_change(engine: EngineStore) -> None:
    """No snapshot shows it, whatever is written to it while it is open."""
    small, _ = furnished(engine)
    engine.table.opened(small)
    engine.names.unlink(TREE_ROOT, b"small")
    engine.save()
    engine.data.write(small, 0, b"more")
    assert not has_unsaved(engine.store)
    engine.table.closed(small)
    assert not has_unsaved(engine.store)


def test_many_changes_are_one_change(engine: EngineStore) -> None:
    """Beyond a limit they are not told apart, and cost no memory."""
    folder = engine.folder("many")
    engine.save()
    for number in range(TOUCHED_MAX + 10):
        ino = engine.names.create(folder, b"%d" % number, FILE, ME).ino
        engine.data.write(ino, 0, b"x")
    assert len(engine.table.touched) == TOUCHED_MAX
    assert has_unsaved(engine.store)


def test_changes_of_an_earlier_process_are_found(engine: EngineStore) -> None:
    """After a kill, rows tell what no process remembers."""
    small, _ = furnished(engine)
    with engine.killed() as next_one:
        assert touched_before(next_one.store) == set()
    engine.data.write(small, 0, b"C")
    with engine.killed() as next_one:
        assert not has_unsaved(next_one.store)
        assert touched_before(next_one.store) == {small}


def test_a_new_store_has_nothing_to_save(engine: EngineStore) -> None:
    """Its folders are no change; a file in one of them is."""
    assert touched_before(engine.store) == set()
    engine.file("first", b"", engine.names.lookup(TREE_ROOT, b"files").ino)
    assert touched_before(engine.store) != set()


def test_a_change_waits_a_period() -> None:
    """Counted from the first change, so that a busy tree is saved, too."""
    debounce = Debounce()
    assert not debounce.is_due(100, 1, True, 30)
    assert not debounce.is_due(129, 1, True, 30)
    assert debounce.is_due(130, 1, True, 30)


def test_a_save_by_somebody_else_begins_the_period_anew() -> None:
    """Another epoch: its first change counts, not one that is saved already."""
    debounce = Debounce()
    assert not debounce.is_due(100, 1, True, 30)
    assert not debounce.is_due(125, 2, True, 30)
    assert not debounce.is_due(154, 2, True, 30)
    assert debounce.is_due(155, 2, True, 30)


def test_what_was_put_off_waits_again() -> None:
    """When it turned out that nothing is to be saved, or the disk was full."""
    debounce = Debounce()
    debounce.is_due(0, 1, True, 30)
    assert debounce.is_due(30, 1, True, 30)
    debounce.put_off(30)
    assert not debounce.is_due(59, 1, True, 30)
    assert debounce.is_due(60, 1, True, 30)


@given(st.lists(st.tuples(st.integers(1, 10), st.booleans()), max_size=200), st.integers(1, 40))
def test_there_is_never_more_than_one_in_a_period(
    looks: list[tuple[int, bool]], period: int
) -> None:
    """However changes come; and each is saved within a period and one look."""
    debounce, now, epoch, saves, is_touched, first = Debounce(), 0, 1, [-period], False, None
    for pause, changes in looks:
        now += pause
        is_touched = is_touched or changes
        first = now if is_touched and first is None else first
        if debounce.is_due(now, epoch, is_touched, period):
            assert first is not None and now >= first + period
            saves.append(now)
            epoch, is_touched, first = epoch + 1, False, None
        elif first is not None:
            assert now < first + period
    assert all(b - a >= period for a, b in pairwise(saves))
