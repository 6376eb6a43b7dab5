"""Content that is not as it was hashed."""

from __future__ import annotations

from typing import NamedTuple


class Damaged(NamedTuple):
    """What reading everything has found.

    Args:
        ranges: object -> [start, end) that are not as they were hashed.
        inline: inodes and small content that is not.
        epochs: of snapshots in which names or attributes are not.
    """

    ranges: dict[int, list[tuple[int, int]]]
    inline: set[tuple[int, bytes]]
    epochs: set[int]

    def add(self, other: Damaged) -> bool:
        """Take in what another look has found; return whether there was anything."""
        for number, ranges in other.ranges.items():
            self.ranges.setdefault(number, []).extend(ranges)
        self.inline.update(other.inline)
        self.epochs.update(other.epochs)
        return bool(other.ranges or other.inline or other.epochs)

    def holds(self, start: int, end: int, number: int) -> bool:
        """Whether damage lies in a range of an object."""
        return any(first < end and last > start for first, last in self.ranges.get(number, ()))


def nothing() -> Damaged:
    """Return that nothing is damaged."""
    return Damaged({}, set(), set())
