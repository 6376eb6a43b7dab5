"""Which object holds which bytes of a file: arithmetic of half-open ranges, without any I/O.

A list of extents is sorted by start and free of overlaps; what lies between them reads as zeros.
An extent of object o holds the file's bytes [start, end) at the same offsets of o.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from statefs.errors import CorruptStore


class Extent(NamedTuple):
    """Bytes [start, end) of a file lie in `object`; the row is valid from epoch `valid_from`."""

    start: int
    end: int
    object: int
    valid_from: int


class Change(NamedTuple):
    """What turns one list of extents into another."""

    removed: list[Extent]
    added: list[Extent]


def first_touching(extents: Sequence[Extent], start: int) -> int:
    """Return the index of the first extent whose end is not before `start`, in O(log n)."""
    index = bisect_left(extents, start, key=lambda extent: extent.start)
    if index and extents[index - 1].end >= start:
        index -= 1
    return index


def is_covered(extents: Sequence[Extent], start: int, end: int, object_id: int) -> bool:
    """Whether one extent of `object_id` holds all of [start, end)."""
    index = bisect_left(extents, start + 1, key=lambda extent: extent.start) - 1
    if index < 0:
        return False
    extent = extents[index]
    return extent.object == object_id and extent.end >= end


def overlay(extents: list[Extent], written: Extent) -> Change:
    """Replace a byte range of a file's extents, in place.

    What is left of extents cut by `written` keeps its object and offsets; neighbours of the same
    object are joined with it.

    Args:
        extents: n extents, sorted, none overlapping; changed in place to 1 to n + 2 extents.
        written: the new extent, in bytes of the same file; its end may be LIVING.

    Returns:
        The extents that left the list and those that came, each sorted by start.

    Raises:
        CorruptStore: `written` is empty.

    Source: docs/on-disk-format.md, "Extents".
    """
    if written.start >= written.end:
        raise CorruptStore(f"an extent must hold at least one byte: {written}")
    low = first_touching(extents, written.start)
    high = low
    start, end = written.start, written.end
    left: Extent | None = None
    right: Extent | None = None
    while high < len(extents) and extents[high].start <= written.end:
        old = extents[high]
        high += 1
        if old.object == written.object:
            start, end = min(start, old.start), max(end, old.end)
            continue
        if old.start < written.start:
            left = old._replace(end=min(old.end, written.start), valid_from=written.valid_from)
        if old.end > written.end:
            right = old._replace(start=max(old.start, written.end), valid_from=written.valid_from)
    joined = written._replace(start=start, end=end)
    added = [extent for extent in (left, joined, right) if extent is not None]
    removed = extents[low:high]
    extents[low:high] = added
    return _minimal(removed, added, extents, low)


def _minimal(removed: list[Extent], added: list[Extent], extents: list[Extent], low: int) -> Change:
    """Drop from a change what it removes and adds again unchanged."""
    same = {old[:3]: old for old in removed}
    for index, new in enumerate(added):
        old = same.get(new[:3])
        if old is not None:
            extents[low + index] = old
    kept = {new[:3] for new in added if new[:3] in same}
    return Change(
        [old for old in removed if old[:3] not in kept],
        [new for new in added if new[:3] not in kept],
    )


def cut(extents: list[Extent], size: int, epoch: int) -> Change:
    """Drop what lies at or beyond `size`, in place: what truncation does to a file's extents.

    Args:
        extents: sorted, none overlapping; changed in place.
        size: the file's new size in bytes.
        epoch: valid_from of an extent that is shortened.
    """
    low = bisect_left(extents, size, key=lambda extent: extent.start)
    added: list[Extent] = []
    if low and extents[low - 1].end > size:
        low -= 1
        added = [extents[low]._replace(end=size, valid_from=epoch)]
    removed = extents[low:]
    extents[low:] = added
    return Change(removed, added)


def pieces(extents: Sequence[Extent], start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, end, object) that together are exactly [start, end); object 0 is zeros."""
    index = first_touching(extents, start)
    position = start
    while position < end:
        if index == len(extents) or extents[index].start >= end:
            yield position, end, 0
            return
        extent = extents[index]
        index += 1
        if extent.end <= position:
            continue
        if extent.start > position:
            yield position, extent.start, 0
            position = extent.start
        stop = min(extent.end, end)
        yield position, stop, extent.object
        position = stop
