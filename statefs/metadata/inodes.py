"""Rows of `inodes`: reading them at any epoch, and what their `flags` mean."""

from __future__ import annotations

import stat
from enum import IntEnum
from typing import Any, Final

from statefs.ids import CLONE_BIT, LIVING, Epoch
from statefs.metadata.connection import Queries


class InodeFlag(IntEnum):
    """Bits of `flags`: what an inode has besides its attributes, so nothing is sought in vain."""

    XATTRS = 1
    """It has rows in `xattrs`."""
    ACCESS_ACL = 2
    """One of them is system.posix_acl_access."""
    DEFAULT_ACL = 4
    """One of them is system.posix_acl_default."""
    CAPABILITY = 8
    """One of them is security.capability, which a write must drop."""
    DURABILITY = 16
    """One of them is user.statefs.durability."""
    EXTENTS = 32
    """The content lies in object files; without it, in `inline` (or there is none)."""


COLUMNS: Final = (
    "i.ino, i.valid_from, i.mode, i.nlink, i.uid, i.gid, i.rdev, i.size, i.blocks,"
    " i.atime_ns, i.mtime_ns, i.ctime_ns, i.btime_ns, i.parent, i.flags"
)
"""Of a row of `inodes i`, in the order that `Inode.load` takes them."""
_LIVING: Final = f"SELECT {COLUMNS} FROM inodes i WHERE ino = ? AND valid_to = {LIVING}"
_PAST: Final = (
    f"SELECT {COLUMNS} FROM inodes i WHERE ino = ? AND valid_to > ? ORDER BY valid_to LIMIT 1"
)


class Inode:
    """One version of an inode; attributes as in the table `inodes` (metadata/schema.py)."""

    __slots__ = (
        "atime_ns",
        "blocks",
        "btime_ns",
        "ctime_ns",
        "flags",
        "gid",
        "ino",
        "mode",
        "mtime_ns",
        "nlink",
        "parent",
        "rdev",
        "size",
        "uid",
        "valid_from",
    )

    def __init__(self, row: tuple[Any, ...]) -> None:
        self.load(row)

    def load(self, row: tuple[Any, ...]) -> None:
        """Take all attributes from a row in the order of `COLUMNS`."""
        (
            self.ino,
            self.valid_from,
            self.mode,
            self.nlink,
            self.uid,
            self.gid,
            self.rdev,
            self.size,
            self.blocks,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.btime_ns,
            self.parent,
            self.flags,
        ) = row

    def row(self) -> tuple[int, ...]:
        """Return all attributes in the order `load` takes them."""
        return (
            self.ino,
            self.valid_from,
            self.mode,
            self.nlink,
            self.uid,
            self.gid,
            self.rdev,
            self.size,
            self.blocks,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.btime_ns,
            self.parent,
            self.flags,
        )

    @property
    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)


def living_row(database: Queries, ino: int) -> tuple[Any, ...] | None:
    """Return the living row of an inode, or None."""
    row: tuple[Any, ...] | None = database.execute(_LIVING, (ino,)).fetchone()
    return row


def past_row(database: Queries, ino: int, epoch: Epoch) -> tuple[Any, ...] | None:
    """Return the row of an inode that a snapshot of `epoch` sees, or None."""
    row: tuple[Any, ...] | None = database.execute(_PAST, (ino, epoch)).fetchone()
    return row if row is not None and row[1] <= epoch else None


def living_totals(database: Queries) -> tuple[int, int]:
    """Count the regular files of current/ and the sum of their sizes in bytes, by a full scan."""
    row = database.execute(
        "SELECT count(*), CAST(total(size) AS INTEGER) FROM inodes"
        f" WHERE valid_to = {LIVING} AND mode & 0xF000 = {stat.S_IFREG} AND nlink > 0"
        f" AND ino < {CLONE_BIT}"
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])
