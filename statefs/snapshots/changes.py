"""What differs between two moments of a store, from rows alone: O(changes), never a tree walk.

A moment is the epoch of a snapshot, or `ids.NOW`. Every change of a file or folder, of its names,
its attributes or its content, also changes its row in `inodes` (a name that comes or goes changes
the folder's). So what differs between two moments belongs to the inodes whose row ended between
them, and to those whose row was born between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from statefs.content import rows
from statefs.ids import CLONE_BIT, LIVING, TREE_ROOT, Epoch, in_clones
from statefs.metadata import xattrs as xattr_rows
from statefs.metadata.connection import Queries
from statefs.metadata.inodes import Inode, InodeFlag, past_row

_ENDED: Final = (
    "SELECT DISTINCT ino FROM inodes WHERE valid_to > ?1 AND valid_to <= ?2"
    f" AND valid_to < {LIVING} AND valid_from <= ?1"
)
_BORN: Final = (
    "SELECT DISTINCT ino FROM inodes WHERE valid_from > ?1 AND valid_from <= ?2"
    f" AND valid_to = {LIVING} AND ino < {CLONE_BIT} UNION SELECT ino FROM inodes"
    f" WHERE valid_to > ?2 AND valid_to < {LIVING} AND valid_from > ?1 AND valid_from <= ?2"
)
_NAMES: Final = (
    "SELECT parent, name, cookie FROM entries WHERE ino = ?1 AND valid_to > ?2 AND valid_from <= ?2"
)


@dataclass
class InodeChange:
    """An inode that differs, or may differ, between two moments.

    Args:
        ino: its number.
        before: its row at the older moment, None when it did not exist.
        after: its row at the newer moment, None when it does not exist any more.
    """

    ino: int
    before: Inode | None
    after: Inode | None


def changed_inodes(database: Queries, older: Epoch, newer: Epoch) -> list[int]:
    """Return the numbers of all inodes that may differ, ascending; the root may be among them.

    Args:
        database: settled: its rows say what the living tree is.
        older: the moment to start from.
        newer: not before it.
    """
    found = {row[0] for row in database.rows(_ENDED, (older, newer))}
    found.update(row[0] for row in database.rows(_BORN, (older, newer)))
    return sorted(ino for ino in found if not in_clones(ino))


def changes(database: Queries, older: Epoch, newer: Epoch) -> Iterator[InodeChange]:
    """Yield every inode that may differ between two moments, by ascending number."""
    for ino in changed_inodes(database, older, newer):
        before = past_row(database, ino, older)
        after = past_row(database, ino, newer)
        if before is not None or after is not None:
            yield InodeChange(
                ino,
                None if before is None else Inode(before),
                None if after is None else Inode(after),
            )


def names_of(database: Queries, ino: int, epoch: int) -> dict[tuple[int, bytes], int]:
    """Return (folder, name) -> cookie of every name that an inode had at a moment."""
    if ino == TREE_ROOT:
        return {}
    return {(parent, name): cookie for parent, name, cookie in database.rows(_NAMES, (ino, epoch))}


def xattrs_of(database: Queries, inode: Inode, epoch: int) -> dict[bytes, bytes]:
    """Return the extended attributes that an inode had at a moment."""
    if not inode.flags & InodeFlag.XATTRS:
        return {}
    found = xattr_rows.xattrs(database, inode.ino, epoch)
    return {name: value for name, (value, _) in found.items()}


Content = bytes | tuple[tuple[int, int, int], ...]
"""What says which bytes a file has: inline content, or (start, end, object) of its extents."""


def content_of(database: Queries, inode: Inode, epoch: int) -> Content:
    """Return what names the content of a file or link at a moment: equal only for equal bytes.

    An extent that a snapshot sees leads to bytes that are never written again. Two that differ may
    still lead to the same bytes, written twice.
    """
    if not inode.flags & InodeFlag.EXTENTS:
        found = rows.inline(database, inode.ino, epoch) if inode.size else None
        return b"" if found is None else found[0]
    return tuple(
        (extent.start, min(extent.end, inode.size), extent.object)
        for extent in rows.extents(database, inode.ino, epoch)
        if extent.start < inode.size
    )
