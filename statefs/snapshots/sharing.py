"""What deleting snapshots would free: the rows and bytes that only they see. Reads rows only.

Whatever exists is seen by some set of snapshots, and perhaps by the living tree. `measure` adds up
the sizes of the past by that set; what deleting some snapshots frees is then a sum over the sets
that lie within them. Sizes of rows are estimates, those of content are exact to the disk's block.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby
from typing import Final

from statefs.ids import LIVING
from statefs.metadata.connection import Queries

Viewers = int
"""A set of snapshots: bit i stands for the i-th oldest, the bit above them all for current/."""

_ROW_BYTES: Final = {
    "inodes": "110",
    "entries": "80 + length(name)",
    "xattrs": "50 + length(name) + length(value)",
    "extents": "60",
    "inline": "50 + length(data)",
    "digests": "70 + ifnull(length(blocks), 0)",
}
"""What a row takes with its indexes: measured on stores of many files, to a tenth or so."""


_OBJECTS: Final = f"SELECT count(DISTINCT object) FROM extents WHERE valid_to < {LIVING}"
PROGRESS_OBJECTS: Final = 500
"""Progress is told after so many object files: some hundredths of a second."""


class Sharing:
    """Sizes of the past by who sees it.

    Args:
        epochs: of all snapshots, oldest first.
        sizes: bytes by the set of snapshots that see them, and nobody else.
    """

    def __init__(self, epochs: Sequence[int], sizes: dict[Viewers, int]) -> None:
        self._number = {epoch: i for i, epoch in enumerate(epochs)}
        self._sizes = sizes

    def freed_by(self, epochs: Collection[int]) -> int:
        """Return the bytes that deleting all these snapshots frees."""
        gone = sum(1 << self._number[epoch] for epoch in set(epochs))
        return sum(size for viewers, size in self._sizes.items() if not viewers & ~gone)

    def freed_by_each(self) -> dict[int, int]:
        """Return for each snapshot the bytes that deleting it alone frees."""
        return {epoch: self._sizes.get(1 << i, 0) for epoch, i in self._number.items()}


def measure(
    database: Queries,
    epochs: Sequence[int],
    allocated: Callable[[int], tuple[int, int]],
    on_progress: Callable[[int, int], None] | None = None,
) -> Sharing:
    """Add up the past of a store by who sees it.

    Args:
        database: its rows.
        epochs: of all its snapshots, oldest first.
        allocated: gives an object file's length and the bytes that it takes on the disk.
        on_progress: told now and then of how many object files of how many; may raise to give up.
    """
    total = database.value(_OBJECTS)
    sizes: defaultdict[Viewers, int] = defaultdict(int)
    for table, row_bytes in _ROW_BYTES.items():
        for valid_from, valid_to, size in database.rows(
            f"SELECT valid_from, valid_to, sum({row_bytes}) FROM {table}"
            f" WHERE valid_to < {LIVING} GROUP BY valid_from, valid_to"
        ):
            sizes[viewers_of(epochs, valid_from, valid_to)] += size
    # An object of which every range lives on is freed by no deletion.
    extents = database.rows(
        'SELECT object, start, "end", valid_from, valid_to FROM extents WHERE object IN'
        f" (SELECT object FROM extents WHERE valid_to < {LIVING}) ORDER BY object"
    )
    for place, (number, rows) in enumerate(groupby(extents, key=lambda row: row[0])):
        if on_progress is not None and place % PROGRESS_OBJECTS == 0:
            on_progress(place, total)
        length, taken = allocated(number)
        ranges = [
            (start, min(end, length), viewers_of(epochs, valid_from, valid_to))
            for _, start, end, valid_from, valid_to in rows
        ]
        for viewers, size in bytes_by_viewers(ranges).items():
            sizes[viewers] += min(size, taken)
    sizes.pop(0, None)  # of snapshots that are being deleted: it is freed already
    return Sharing(epochs, dict(sizes))


def viewers_of(epochs: Sequence[int], valid_from: int, valid_to: int) -> Viewers:
    """Return who sees a row that is valid from one epoch until another."""
    first, end = bisect_left(epochs, valid_from), bisect_left(epochs, valid_to)
    seen = (1 << end) - (1 << first)
    return seen | 1 << len(epochs) if valid_to == LIVING else seen


def bytes_by_viewers(ranges: Iterable[tuple[int, int, Viewers]]) -> dict[Viewers, int]:
    """Return how many bytes each set of viewers sees, a byte counted once for all who see it.

    Args:
        ranges: [start, end) and who sees it by one row; they may overlap.
    """
    turns: defaultdict[int, list[tuple[Viewers, int]]] = defaultdict(list)
    for start, end, viewers in ranges:
        if start < end:
            turns[start].append((viewers, 1))
            turns[end].append((viewers, -1))
    sizes: defaultdict[Viewers, int] = defaultdict(int)
    open_rows: defaultdict[Viewers, int] = defaultdict(int)
    position, together = 0, 0
    for turn in sorted(turns):
        if together:
            sizes[together] += turn - position
        for viewers, step in turns[turn]:
            open_rows[viewers] += step
            if not open_rows[viewers]:
                del open_rows[viewers]
        together = 0
        for viewers in open_rows:
            together |= viewers
        position = turn
    return dict(sizes)
