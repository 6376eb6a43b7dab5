"""Arithmetic of extents: each rule by an example, then all of them against an array of bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statefs.content.extents import (
    Change,
    Extent,
    cut,
    first_touching,
    is_covered,
    overlay,
    pieces,
)
from statefs.errors import CorruptStore
from statefs.ids import LIVING

OLD, NEW = 7, 8
"""Two objects."""


def old(start: int, end: int) -> Extent:
    """Return an extent of the old object, born in epoch 1."""
    return Extent(start, end, OLD, 1)


def new(start: int, end: int) -> Extent:
    """Return an extent of the new object, born in epoch 2."""
    return Extent(start, end, NEW, 2)


def test_a_write_inside_an_extent_keeps_the_bytes_on_both_sides() -> None:
    """Both remainders still point at the old object, at the offset they had."""
    extents = [old(0, 100)]
    overlay(extents, new(40, 60))
    assert [extent[:3] for extent in extents] == [(0, 40, OLD), (40, 60, NEW), (60, 100, OLD)]


def test_remainders_are_born_with_the_write() -> None:
    """They are other rows than the one they were cut from."""
    extents = [old(0, 100)]
    overlay(extents, new(40, 60))
    assert [extent.valid_from for extent in extents] == [2, 2, 2]


def test_a_write_over_several_extents_ends_them_all() -> None:
    """What lay wholly inside is gone, what stuck out is cut."""
    extents = [old(0, 10), old(20, 30), old(40, 50), old(60, 70)]
    change = overlay(extents, new(5, 45))
    assert [extent[:3] for extent in extents] == [
        (0, 5, OLD), (5, 45, NEW), (45, 50, OLD), (60, 70, OLD),
    ]  # fmt: skip
    assert change.removed == [old(0, 10), old(20, 30), old(40, 50)]


def test_a_write_into_a_hole_changes_nothing_else() -> None:
    """Its neighbours stay the rows they were."""
    extents = [old(0, 10), old(50, 60)]
    change = overlay(extents, new(20, 30))
    assert change == Change([], [new(20, 30)])
    assert extents == [old(0, 10), new(20, 30), old(50, 60)]


def test_neighbours_of_one_object_become_one_extent() -> None:
    """Sequential writes of a file need one row, not one for each write."""
    extents = [new(0, 10), new(20, 30)]
    overlay(extents, new(10, 20))
    assert extents == [new(0, 30)]


def test_neighbours_of_different_objects_stay_apart() -> None:
    """Bytes of two objects are two extents, even without a gap."""
    extents = [old(0, 10)]
    change = overlay(extents, new(10, 20))
    assert extents == [old(0, 10), new(10, 20)]
    assert change == Change([], [new(10, 20)])


def test_the_open_end_belongs_to_the_last_writer() -> None:
    """A write at the end of the file is open-ended; an older open end is cut there."""
    extents = [old(0, LIVING)]
    overlay(extents, new(50, LIVING))
    assert [extent[:3] for extent in extents] == [(0, 50, OLD), (50, LIVING, NEW)]


def test_a_write_before_an_open_end_leaves_it_open() -> None:
    """The remainder behind the write goes on to the end of the file."""
    extents = [old(0, LIVING)]
    overlay(extents, new(0, 10))
    assert [extent[:3] for extent in extents] == [(0, 10, NEW), (10, LIVING, OLD)]


def test_an_empty_write_is_an_error() -> None:
    """An extent holds at least one byte."""
    with pytest.raises(CorruptStore, match="at least one byte"):
        overlay([], new(5, 5))


@pytest.mark.parametrize(
    ("size", "left"),
    [
        (0, []),
        (5, [(0, 5)]),
        (10, [(0, 10)]),
        (15, [(0, 10)]),
        (25, [(0, 10), (20, 25)]),
        (99, [(0, 10), (20, 99)]),
    ],
)
def test_truncation_ends_or_shortens_what_lies_behind(
    size: int, left: list[tuple[int, int]]
) -> None:
    """An extent is whole, cut or gone; a cut one is a row of the current epoch."""
    extents = [old(0, 10), old(20, LIVING)]
    cut(extents, size, 2)
    assert [extent[:2] for extent in extents] == left
    assert all(extent.valid_from == (1 if extent in (old(0, 10),) else 2) for extent in extents)


def test_a_cut_at_a_boundary_changes_only_what_is_behind() -> None:
    """No row is written for an extent that ends where the file does."""
    extents = [old(0, 10), old(10, 20)]
    assert cut(extents, 10, 2) == Change([old(10, 20)], [])


def test_pieces_tell_holes_from_bytes() -> None:
    """Together they are the range, in order; object 0 stands for zeros."""
    extents = [old(10, 20), new(20, 30)]
    assert list(pieces(extents, 0, 40)) == [
        (0, 10, 0), (10, 20, OLD), (20, 30, NEW), (30, 40, 0),
    ]  # fmt: skip
    assert list(pieces(extents, 12, 15)) == [(12, 15, OLD)]
    assert list(pieces([], 3, 5)) == [(3, 5, 0)]


def test_covered_means_by_one_extent_of_that_object() -> None:
    """A hole, another object or two extents in a row do not count."""
    extents = [new(0, 10), old(10, 20), new(30, LIVING)]
    assert is_covered(extents, 0, 10, NEW)
    assert is_covered(extents, 35, LIVING, NEW)
    assert not is_covered(extents, 0, 11, NEW)
    assert not is_covered(extents, 10, 20, NEW)
    assert not is_covered(extents, 25, 35, NEW)
    assert not is_covered([], 0, 1, NEW)


def test_the_first_touching_extent_may_end_at_the_position() -> None:
    """It is a neighbour that a write may be joined with."""
    extents = [old(0, 10), old(20, 30)]
    assert [first_touching(extents, at) for at in (0, 10, 11, 20, 30, 31)] == [0, 0, 1, 1, 1, 2]


SIZE = 40
edges = st.integers(0, SIZE)
writes = st.tuples(edges, edges, st.integers(1, 4)).filter(lambda write: write[0] < write[1])
cuts = st.tuples(edges, st.just(-1), st.just(0))


@given(st.lists(st.one_of(writes, writes, writes, cuts), max_size=30))
def test_extents_are_an_array_of_objects(steps: list[tuple[int, int, int]]) -> None:
    """Whatever is written and cut: each byte's object, the order, and the changes told of."""
    extents: list[Extent] = []
    model = [0] * SIZE
    for epoch, (start, end, number) in enumerate(steps, 1):
        before = list(extents)
        if number == 0:
            change = cut(extents, start, epoch)
            model[start:] = [0] * (SIZE - start)
        else:
            change = overlay(extents, Extent(start, end, number, epoch))
            model[start:end] = [number] * (end - start)
        edges_in_order = [edge for extent in extents for edge in (extent.start, extent.end)]
        assert edges_in_order == sorted(edges_in_order)
        assert all(extent.start < extent.end for extent in extents)
        told = [extent for extent in before if extent not in change.removed] + change.added
        assert sorted(told) == extents
        assert not set(change.removed) & set(change.added)
    found = [0] * SIZE
    for start, end, number in pieces(extents, 0, SIZE):
        found[start:end] = [number] * (end - start)
    assert found == model
    assert len(extents) == sum(1 for _ in _runs(model))


def _runs(model: list[int]) -> list[int]:
    """Return the object of each run of equal, written bytes: as many extents there should be."""
    return [
        number for at, number in enumerate(model) if number and (at == 0 or model[at - 1] != number)
    ]
