"""File handles without state: a number that means the same to the next daemon process.

Bits 0 to 61 are the node number (`ids`), bit 62 says that the file was opened for writing, bit 63
that every write must be durable when it returns (O_SYNC, O_DSYNC). The handle of a folder of
current/ has bit 62 set, and in the bits of the view a number that tells listings apart: each
process counts from a place of its own, as listings that an earlier one began go on.
"""

from __future__ import annotations

import os
from typing import Final

from statefs.ids import VIEW_BITS

WRITABLE: Final = 1 << 62
SYNCED: Final = 1 << 63
LISTING: Final = 1 << 62
LISTINGS_MAX: Final = 1 << VIEW_BITS
"""Listings of folders that can be told apart at a time."""
NODE_MASK: Final = WRITABLE - 1


def handle(node: int, flags: int) -> int:
    """Return the handle for a node opened with the open(2) flags `flags`."""
    number = node
    if flags & os.O_ACCMODE != os.O_RDONLY:
        number |= WRITABLE
        if flags & (os.O_SYNC | os.O_DSYNC):
            number |= SYNCED
    return number
