"""The trees of the past: a snapshot's folders and files, read from rows of its epoch. Read-only."""

from __future__ import annotations

import errno
from typing import Any, Final

from statefs.content import checks, rows
from statefs.content.checks import DamagedBytes
from statefs.content.extents import Extent, pieces
from statefs.errors import PosixError
from statefs.ids import TREE_ROOT, Epoch
from statefs.layout import RUNTIME
from statefs.metadata import xattrs as xattr_rows
from statefs.metadata.connection import Queries
from statefs.metadata.entries import list_past, past_entry
from statefs.metadata.inodes import Inode, InodeFlag, past_row

INODES_CACHED: Final = 8192
"""Past inodes kept in memory; they never change."""


class PastInode(Inode):
    """An inode as a snapshot sees it; `reply` belongs to the layer above."""

    __slots__ = ("reply",)

    def __init__(self, row: tuple[Any, ...]) -> None:
        super().__init__(row)
        self.reply: Any = None


class PastTree:
    """What the tree was in one epoch, without runtime/.

    Args:
        database: the store's database, or a `Reader` of it.
        epoch: an epoch that a complete snapshot pins, or `NOW` for the living tree.
        finds_runtime: look runtime/ up all the same, as current/ has it.
    """

    def __init__(self, database: Queries, epoch: Epoch, finds_runtime: bool = False) -> None:
        self._database = database
        self.epoch = epoch
        self._finds_runtime = finds_runtime
        self._inodes: dict[int, PastInode] = {}
        self._last_read: tuple[int, list[Extent]] = (0, [])
        self._has_runtime_folder = self._is_folder(TREE_ROOT, RUNTIME)

    def _is_folder(self, parent: int, name: bytes) -> bool:
        entry = past_entry(self._database, parent, name, self.epoch)
        row = None if entry is None else past_row(self._database, entry.ino, self.epoch)
        return row is not None and Inode(row).is_dir

    def inode(self, ino: int) -> PastInode:
        """Return an inode as it was.

        Raises:
            PosixError: ESTALE when the epoch had none of that number.
        """
        inode = self._inodes.get(ino)
        if inode is not None:
            return inode
        row = past_row(self._database, ino, self.epoch)
        if row is None:
            raise PosixError(errno.ESTALE)
        inode = self._remember(PastInode(row))
        if ino == TREE_ROOT and self._has_runtime_folder:
            inode.nlink -= 1
        return inode

    def _remember(self, inode: PastInode) -> PastInode:
        if len(self._inodes) >= INODES_CACHED:
            self._inodes.clear()
        self._inodes[inode.ino] = inode
        return inode

    def lookup(self, parent: int, name: bytes) -> PastInode:
        """Return the inode that `name` led to. Raises PosixError ENOENT."""
        entry = past_entry(self._database, parent, name, self.epoch)
        is_runtime = parent == TREE_ROOT and name == RUNTIME
        if entry is None or (is_runtime and not self._finds_runtime):
            raise PosixError(errno.ENOENT)
        return self.inode(entry.ino)

    def find(self, path: bytes) -> PastInode:
        """Return the inode at a path relative to the root; links in it are not followed.

        Raises:
            PosixError: ENOENT, ENOTDIR.
        """
        inode = self.inode(TREE_ROOT)
        for name in path.split(b"/"):
            if name in (b"", b"."):
                continue
            if not inode.is_dir:
                raise PosixError(errno.ENOTDIR)
            inode = self.lookup(inode.ino, name)
        return inode

    def paths(self, ino: int) -> list[bytes]:
        """Return every path that led to an inode, sorted; none for one without a name here."""
        if ino == TREE_ROOT:
            return [b""]
        rows = self._database.rows(
            "SELECT parent, name FROM entries"
            " WHERE ino = ?1 AND valid_to > ?2 AND valid_from <= ?2",
            (ino, self.epoch),
        )
        found = []
        for parent, name in rows:
            if parent == TREE_ROOT and name == RUNTIME:
                continue
            above = self.paths(parent)
            found += [folder + b"/" + name if folder else name for folder in above]
        return sorted(found)

    def listing(self, parent: int, after: int, limit: int) -> list[tuple[int, bytes, PastInode]]:
        """Return up to `limit` entries (cookie, name, inode) with cookies beyond `after`."""
        rows = list_past(self._database, parent, after, self.epoch, limit + 1)
        if parent == TREE_ROOT:  # one more was read, so that fewer than `limit` still mean the end
            rows = [row for row in rows if row[1] != RUNTIME]
        return [
            (row[0], row[1], self._inodes.get(row[2]) or self._remember(PastInode(row[2:])))
            for row in rows[:limit]
        ]

    def plan_read(self, ino: int, offset: int, size: int) -> bytes | list[tuple[int, int, int]]:
        """Return the bytes when no object file is needed, else the pieces to read them from.

        Raises:
            DamagedBytes: they are not what was there.
        """
        inode = self.inode(ino)
        end = min(offset + size, inode.size)
        if end <= offset:
            return b""
        if inode.flags & InodeFlag.EXTENTS:
            return list(pieces(self._extents(ino), offset, end))
        found = checks.inline(self._database, ino, self.epoch)
        if found is None or len(found) != inode.size:
            raise DamagedBytes(ino, self.epoch, 0, inode.size)
        return found[offset:end]

    def _extents(self, ino: int) -> list[Extent]:
        """Return a file's extents, kept for the file that was read last."""
        if self._last_read[0] != ino:
            self._last_read = (ino, rows.extents(self._database, ino, self.epoch))
        return self._last_read[1]

    def target(self, ino: int) -> bytes:
        """Return where a symbolic link led."""
        found = rows.inline(self._database, ino, self.epoch)
        if found is None:
            raise PosixError(errno.EINVAL)
        return found[0]

    def xattr(self, ino: int, name: bytes) -> bytes:
        """Return the value of an extended attribute. Raises PosixError ENODATA."""
        if self.inode(ino).flags & InodeFlag.XATTRS:
            found = xattr_rows.xattr(self._database, ino, name, self.epoch)
            if found is not None:
                return found[0]
        raise PosixError(errno.ENODATA)

    def xattr_names(self, ino: int) -> list[bytes]:
        """Return the names of the extended attributes."""
        if not self.inode(ino).flags & InodeFlag.XATTRS:
            return []
        return sorted(xattr_rows.xattrs(self._database, ino, self.epoch))
