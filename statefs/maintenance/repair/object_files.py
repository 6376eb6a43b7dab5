"""The object files of a store as a repair finds them: how long they are, and what they hold."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

from statefs.content.checks import is_damage
from statefs.content.extents import Extent, overlay
from statefs.content.objects import Origin, object_number, read_origin
from statefs.durable import open_plain
from statefs.ids import LIVING, ObjectId
from statefs.layout import StoreLayout


class Objects:
    """The object files of a store and how long they are.

    Args:
        layout: of the store.
    """

    def __init__(self, layout: StoreLayout) -> None:
        self._layout = layout
        self._lengths: dict[int, int] = {}
        self._present: set[int] | None = None

    def length(self, number: int) -> int:
        """Return how many bytes an object file has, -1 when it is missing.

        Raises:
            OSError: it cannot be told, for want of a right: nothing of it is lost.
        """
        found = self._lengths.get(number)
        if found is None:
            try:
                found = os.stat(self._layout.object_path(ObjectId(number))).st_size
            except OverflowError:
                found = -1
            except OSError as error:
                if not is_damage(error):
                    raise
                found = -1
            self._lengths[number] = found
        return found

    def whole(self, end: int, number: int, size: int) -> bool:
        """Whether an object file holds an extent of a file of `size` bytes."""
        return self.length(number) >= (size if end == LIVING else end)

    def left(self, start: int, end: int, number: int, size: int) -> tuple[int, int, int] | None:
        """Return the part of an extent that can be read."""
        end = min(end, size, self.length(number))
        return (start, end, number) if start >= 0 and start < end else None

    def present(self) -> set[int]:
        """Return the numbers of all object files."""
        if self._present is None:
            numbers = map(object_number, self._layout.objects.glob("*/*"))
            self._present = {number for number in numbers if number is not None}
        return self._present

    def origin(self, number: int) -> Origin | None:
        """Return what an object file says of itself."""
        return read_origin(self._layout.object_path(ObjectId(number)))

    def newest_epoch(self) -> int:
        """Return the newest epoch in which an object was made, as far as they say it."""
        origins = map(self.origin, self.present())
        return max((each.epoch for each in origins if each is not None), default=0)

    def overlaid(
        self, known: Sequence[tuple[int, int, int]], numbers: Sequence[int]
    ) -> tuple[list[tuple[int, int, int]], int]:
        """Return the extents of a file that objects make together, later ones over earlier.

        Args:
            known: what rows say of it, sorted, none overlapping.
            numbers: objects that were written later.

        Returns:
            (start, end, object) of what is no hole, and the length of the longest object.
        """
        extents = [Extent(*each, 0) for each in known]
        for number in numbers:
            for start, end in self._data(number):
                overlay(extents, Extent(start, end, number, 0))
        found = [extent[:3] for extent in extents]
        return found, max(map(self.length, numbers), default=0)

    def _data(self, number: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of an object file that are no holes. Source: lseek(2), SEEK_DATA."""
        length, position = self.length(number), 0
        fd = open_plain(self._layout.object_path(ObjectId(number)), os.O_RDONLY)
        try:
            while position < length:
                start = os.lseek(fd, position, os.SEEK_DATA)
                position = min(os.lseek(fd, start, os.SEEK_HOLE), length)
                yield start, position
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but a hole is left
                raise
        finally:
            os.close(fd)
