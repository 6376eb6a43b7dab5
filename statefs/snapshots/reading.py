"""Reads a file's bytes from outside the process that has the store open, in pieces.

That process is asked which object files hold them (maintenance/comparing.py, `locate`); whoever may
read the store's folder reads them there himself. A snapshot's bytes are never written again, but
with the snapshot they go, and those of current/ at any time: so after reading each part it is asked
once more whether the part still lies there.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from statefs.durable import open_plain
from statefs.errors import CorruptStore, StatefsError
from statefs.ids import ObjectId
from statefs.layout import StoreLayout
from statefs.snapshots.reports import Location

Part = bytes | int
"""Bytes, or how many zeros stand there: a hole."""
Locate = Callable[[int, int], Location]
"""Asks where the bytes from an offset to an end lie."""

PART_BYTES: Final = 4 << 20
"""Read at a time: asking about it costs a hundredth of that."""
FILE_END: Final = 1 << 62
"""Beyond the end of any file."""
ATTEMPTS: Final = 3
"""A part that was written each time it was read is given up."""


def read_parts(layout: StoreLayout, locate: Locate, first: Location) -> Iterator[Part]:
    """Yield the bytes of a file, and for each hole its length.

    Args:
        layout: of the store.
        locate: for the same file each time.
        first: what it has answered for the whole file. What grows beyond that size is left out.

    Raises:
        CorruptStore: an object file is missing, or shorter than what lies in it.
        StatefsError: it is written all the time. OSError: the disk refused.
    """
    place, plan = first, deque(first.pieces)
    offset, size, failures, lost = 0, first.size, 0, ""
    while offset < size:
        if place.content is not None:
            yield place.content[: size - offset]
            return
        if plan:
            _, end, number = plan[0]
            try:
                part, stop = _read_part(layout, offset, end, number)
            except _Lost as error:
                is_there = locate(offset, offset + 1).pieces == [(offset, offset + 1, number)]
                lost = str(error) if is_there else ""
            else:
                if locate(offset, stop).pieces == [(offset, stop, number)]:
                    yield part
                    offset, failures = stop, 0
                    if stop == end:
                        plan.popleft()
                    continue
                lost = ""
            failures += 1
            if failures == ATTEMPTS:
                if lost:
                    raise CorruptStore(
                        f"the file is damaged: {lost}; 'statefs verify --read-data' names all"
                        " damage"
                    )
                raise StatefsError("the file is being written: take a snapshot and read that")
        place = locate(offset, FILE_END)
        plan = deque(place.pieces)
        size = min(size, place.size)


class _Lost(Exception):
    """An object file that is not there, or too short: it is damaged, or was cut meanwhile."""


def _read_part(layout: StoreLayout, start: int, end: int, number: int) -> tuple[Part, int]:
    """Return the first bytes of a piece, or its first hole, and where that ends.

    Raises:
        _Lost: the object file does not have them. Source: lseek(2), SEEK_DATA.
    """
    if not number:
        return end - start, end
    try:
        file = open_plain(layout.object_path(ObjectId(number)), os.O_RDONLY)
    except FileNotFoundError:
        raise _Lost(f"the object file {number:x} is missing") from None
    try:
        _require_length(file, end, number)
        data = _seek(file, start, os.SEEK_DATA, end)
        if data > start:
            return data - start, data
        stop = _seek(file, start, os.SEEK_HOLE, min(end, start + PART_BYTES))
        found = bytearray()
        while len(found) < stop - start:
            more = os.pread(file, stop - start - len(found), start + len(found))
            if not more:
                _require_length(file, end, number)
            found += more
        return bytes(found), stop
    finally:
        os.close(file)


def _require_length(file: int, end: int, number: int) -> None:
    length = os.fstat(file).st_size
    if length < end:
        raise _Lost(f"the object file {number:x} ends at byte {length}, not at {end}")


def _seek(file: int, start: int, whence: int, end: int) -> int:
    """Return where data or a hole begins, `end` at most."""
    try:
        return min(end, os.lseek(file, start, whence))
    except OSError as error:
        if error.errno != errno.ENXIO:  # nothing but a hole is left, or not even that
            raise
        return end
