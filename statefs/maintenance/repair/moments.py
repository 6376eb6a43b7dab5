"""Sets of moments as bits of a number: when a row is true, cut and put together. Pure.

A moment is an epoch whose tree must be whole: that of each snapshot, and the current one, which is
the last. Bit n of a mask is the n-th moment.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from statefs.ids import LIVING


class Moments:
    """The moments of a store.

    `current` is the mask of the current one, `all` that of every one.

    Args:
        epochs: ascending; the last is the current one.
    """

    def __init__(self, epochs: Sequence[int]) -> None:
        self.epochs = list(epochs)
        self.all = (1 << len(self.epochs)) - 1
        self.current = 1 << (len(self.epochs) - 1)

    def seen(self, since: int, until: int) -> int:
        """Return the moments at which a row is true, from one epoch until another."""
        first, end = bisect_left(self.epochs, since), bisect_left(self.epochs, until)
        return (1 << end) - (1 << first) if end > first else 0

    def of(self, epochs: Iterable[int]) -> int:
        """Return the mask of some epochs; those that are no moments are left out."""
        mask = 0
        for epoch in epochs:
            mask |= self.seen(epoch, epoch + 1)
        return mask

    def places(self, mask: int) -> list[int]:
        """Return the numbers of the moments in a mask, ascending."""
        found = []
        while mask:
            low = mask & -mask
            found.append(low.bit_length() - 1)
            mask ^= low
        return found

    def names(self, mask: int) -> list[int]:
        """Return the epochs in a mask, ascending."""
        return [self.epochs[place] for place in self.places(mask)]

    def lifetimes(self, mask: int, since: int, until: int) -> Iterator[tuple[int, int]]:
        """Yield the lifetimes [valid_from, valid_to) that make a row true at just these moments.

        Args:
            mask: a part of `seen(since, until)`.
            since, until: the lifetime that the row has had, kept where nothing cuts it.
        """
        whole = self.seen(since, until)
        places = self.places(mask)
        while places:
            first = last = places.pop(0)
            while places and places[0] == last + 1:
                last = places.pop(0)
            born, ended = since, until
            if whole & ((1 << first) - 1):
                born = self.epochs[first - 1] + 1
            if last + 1 == len(self.epochs):
                ended = LIVING
            elif whole >> (last + 1) or until == LIVING:
                ended = self.epochs[last] + 1
            yield born, ended
