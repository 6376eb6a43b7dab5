"""Merging long extent lists: what many small writes after many snapshots have scattered.

Neighbouring small extents of a file are copied into one object that nobody ever writes again, and
one extent takes their place. The file stays the same: no attribute changes, and snapshots go on
reading the old objects, which are freed with the last of them. The copy is on stable storage before
the row that shows it is committed, and the row is not written when the file changed meanwhile.
Until then the copy is in `garbage`: nothing refers to it, however long the disk takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from statefs.content.checks import DamagedBytes
from statefs.content.extents import Extent, pieces
from statefs.content.objects import Piece
from statefs.ids import NOW, ObjectId
from statefs.maintenance.steps import Steps
from statefs.metadata.inodes import InodeFlag
from statefs.volume.data import EXTENTS_MANY

if TYPE_CHECKING:
    from statefs.maintenance.store import Store

SMALL_BYTES: Final = 64 * 1024
"""Extents of this size or more stay: reading them apart costs little."""
RUN_LEAST: Final = 32
"""So many neighbours at least: fewer would cost more room and writing than they save."""
GROWTH: Final = 2
"""Merged again when there are so many times as many extents: as long as snapshots hold the old
objects each merge takes room, and so all merges together take no more than the file itself."""
RUN_BYTES_MAX: Final = 8 << 20
"""Copied at a time: read, written and synced in some tens of milliseconds, in a thread."""


def runs(extents: Sequence[Extent], writable: int) -> list[tuple[int, int]]:
    """Return the ranges of a file that are worth merging, in order.

    Args:
        extents: sorted, none overlapping.
        writable: the object that may still be written, which no run may hold.

    Returns:
        (start, end), each of RUN_LEAST small extents or more without a gap between them, and of
        at most RUN_BYTES_MAX bytes. What is open at its end is in none.
    """
    found: list[tuple[int, int]] = []
    run: list[Extent] = []
    for extent in extents:
        fits = extent.end - extent.start < SMALL_BYTES and extent.object != writable
        goes_on = bool(run) and (
            run[-1].end == extent.start and extent.end - run[0].start <= RUN_BYTES_MAX
        )
        if run and not (fits and goes_on):
            _note_run(found, run)
            run = []
        if fits:
            run.append(extent)
    _note_run(found, run)
    return found


def _note_run(found: list[tuple[int, int]], run: Sequence[Extent]) -> None:
    if len(run) >= RUN_LEAST:
        found.append((run[0].start, run[-1].end))


def merge_all(store: Store) -> Steps[int]:
    """Merge the files that have become fragmented; return how many ranges were merged."""
    merged = 0
    table = store.volume.table
    for ino, (tried, worth) in list(table.fragmented.items()):
        node = table.nodes.get(ino)
        if node is None or not node.nlink or not node.flags & InodeFlag.EXTENTS:
            del table.fragmented[ino]
        # What was written in this epoch has to wait for its end.
        elif tried < table.epoch and len(store.volume.data.extents(node)) > worth:
            merged += yield from merge(store, ino)
            left = len(store.volume.data.extents(node)) if node.nlink else 0
            table.fragmented[ino] = (table.epoch, max(EXTENTS_MANY, GROWTH * left))
    return merged


def merge(store: Store, ino: int) -> Steps[int]:
    """Merge what is worth it in one file; return how many ranges were merged.

    Raises:
        OSError: the disk refused; the file is as it was.
    """
    merged = 0
    data, table = store.volume.data, store.volume.table
    node = table.node(ino)
    for start, end in runs(data.extents(node), data.current_object(node)):
        before = _within(store, ino, start, end)
        with table.change():
            number = ObjectId(table.new_id())
            table.discard_objects([number])
        try:
            plan = list(pieces(before, start, end))
            with store.objects.being_read([*plan, (start, end, number)]):
                yield partial(_copy, store, ino, plan, number)
            if before and _within(store, ino, start, end) == before:
                data.replace_extents(table.node(ino), start, end, number)
                merged += 1
            else:
                store.objects.remove(number)  # and gc takes it off its list
        except DamagedBytes as damage:
            store.objects.remove(number)  # a copy would look sound
            store.tell_damage(damage)
        except BaseException:
            store.objects.remove(number)
            raise
    return merged


def _within(store: Store, ino: int, start: int, end: int) -> list[Extent]:
    """Return what a range of a living file is made of now, none when the file is gone."""
    node = store.volume.table.nodes.get(ino)
    if node is None or not node.nlink or node.size < end:
        return []
    return [
        extent
        for extent in store.volume.data.extents(node)
        if extent.start < end and extent.end > start
    ]


def _copy(store: Store, ino: int, plan: Sequence[Piece], number: ObjectId) -> None:
    """Write the bytes of a range into a new object, durably.

    Raises:
        DamagedBytes: they are not what they were.
    """
    store.checks.check_now(ino, NOW, plan)
    store.objects.create(number)
    store.objects.write(number, store.objects.read(plan), plan[0][0])
    store.objects.sync(number)
