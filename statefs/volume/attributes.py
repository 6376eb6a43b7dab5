"""Attributes: modes, owners, times, xattrs and ACLs, and what each does to the others."""

from __future__ import annotations

import errno
import stat
from typing import Final, NamedTuple

from statefs.errors import PosixError
from statefs.ids import LIVING, NOW
from statefs.metadata import xattrs as xattr_rows
from statefs.metadata.inodes import InodeFlag
from statefs.metadata.temporal import XATTRS
from statefs.volume import acl
from statefs.volume.table import InodeTable, Node
from statefs.volume.underway import Kind

CAPABILITY: Final = b"security.capability"
DURABILITY: Final = b"user.statefs.durability"
DURABILITY_MODES: Final = (b"close", b"fsync", b"write")
_STRICTNESS: Final = ("fsync", "close", "write")
XATTR_NAME_MAX: Final = 255
XATTR_SIZE_MAX: Final = 65_536
"""The kernel's own limits (xattr(7))."""

TIME_MAX_NS: Final = (1 << 63) - 1
"""The latest time that can be stored, in the year 2262; as ext4, statefs takes the nearest."""

_FLAG_OF: Final = {
    acl.ACCESS: InodeFlag.ACCESS_ACL,
    acl.DEFAULT: InodeFlag.DEFAULT_ACL,
    CAPABILITY: InodeFlag.CAPABILITY,
    DURABILITY: InodeFlag.DURABILITY,
}


def storable_time(time_ns: int) -> int:
    """Return the time nearest to `time_ns` that 64 bits of nanoseconds hold (1677 to 2262)."""
    return max(-TIME_MAX_NS, min(time_ns, TIME_MAX_NS))


class AttributeChange(NamedTuple):
    """What a setattr asks for; None leaves an attribute as it is. Sizes are `FileData`'s."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


def without_privileges(mode: int) -> int:
    """Return the mode of anything but a folder as a write or chown by a stranger leaves it.

    Source: Linux `setattr_should_drop_suidgid`: setgid goes only where the group may execute.
    """
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode & ~stat.S_ISUID


class Attributes:
    """Attributes of living inodes. Permissions are the kernel's to check."""

    def __init__(self, table: InodeTable) -> None:
        self._table = table

    def set(self, ino: int, wanted: AttributeChange) -> Node:
        """Change attributes of an inode in one transaction; ctime becomes now."""
        table = self._table
        node = table.node(ino)
        with table.change(node):
            node.ctime_ns = table.clock.now_ns()
            if wanted.uid is not None or wanted.gid is not None:
                self._chown(node, wanted)
            if wanted.mode is not None:
                self._chmod(node, wanted.mode)
            if wanted.atime_ns is not None:
                node.atime_ns = wanted.atime_ns
            if wanted.mtime_ns is not None:
                node.mtime_ns = wanted.mtime_ns
            table.store(node)
        return node

    def _chown(self, node: Node, wanted: AttributeChange) -> None:
        if wanted.uid is not None:
            node.uid = wanted.uid
        if wanted.gid is not None:
            node.gid = wanted.gid
        if not node.is_dir:
            self.drop_privileges(node)

    def _chmod(self, node: Node, mode: int) -> None:
        node.mode = stat.S_IFMT(node.mode) | (mode & 0o7777)
        if node.flags & InodeFlag.ACCESS_ACL:
            found = xattr_rows.xattr(self._table.database, node.ino, acl.ACCESS, NOW)
            if found is not None:
                value = acl.encode(acl.with_mode(acl.parse(found[0]), node.mode))
                self._put(node, acl.ACCESS, value)

    def drop_privileges(self, node: Node) -> None:
        """Clear setuid, setgid and file capabilities; inside a `Change` that stores the node."""
        node.mode = without_privileges(node.mode)
        if node.flags & InodeFlag.CAPABILITY:
            self._take(node, CAPABILITY)

    @staticmethod
    def has_privileges(node: Node) -> bool:
        """Whether a write to the file must clear something."""
        return bool(node.flags & InodeFlag.CAPABILITY) or (
            node.mode & (stat.S_ISUID | stat.S_ISGID) != 0
            and without_privileges(node.mode) != node.mode
        )

    def xattr(self, ino: int, name: bytes) -> bytes:
        """Return the value of an extended attribute.

        Raises:
            PosixError: ENODATA when there is none.
        """
        node = self._table.node(ino)
        if node.flags & InodeFlag.XATTRS:
            flag = _FLAG_OF.get(name)
            if flag is None or node.flags & flag:
                found = xattr_rows.xattr(self._table.database, ino, name, NOW)
                if found is not None:
                    return found[0]
        raise PosixError(errno.ENODATA)

    def xattr_names(self, ino: int) -> list[bytes]:
        """Return the names of an inode's extended attributes."""
        node = self._table.node(ino)
        if not node.flags & InodeFlag.XATTRS:
            return []
        return sorted(xattr_rows.xattrs(self._table.database, ino, NOW))

    def set_xattr(self, ino: int, name: bytes, value: bytes, by_stranger: bool = False) -> Node:
        """Set an extended attribute; an access ACL also sets the mode it stands for.

        Args:
            by_stranger: the caller is not in the file's group: an access ACL clears setgid.

        Raises:
            PosixError: ERANGE, E2BIG for names or values beyond xattr(7)'s limits, EINVAL for a
                malformed ACL or durability, EOPNOTSUPP for ACLs of links, ENOENT for a removed
                folder that is somebody's working directory.
        """
        if len(name) > XATTR_NAME_MAX:
            raise PosixError(errno.ERANGE)
        if len(value) > XATTR_SIZE_MAX:
            raise PosixError(errno.E2BIG)
        if name == DURABILITY and value not in DURABILITY_MODES:
            raise PosixError(errno.EINVAL)
        table = self._table
        node = table.node(ino)
        if node.nlink == 0 and not table.is_open(node):
            raise PosixError(errno.ENOENT)  # its rows are gone: another one would never go
        with table.change(node):
            table.underway.note(Kind.SET, ino, name)
            node.ctime_ns = table.clock.now_ns()
            if name in (acl.ACCESS, acl.DEFAULT):
                self._set_acl(node, name, value)
                if by_stranger and name == acl.ACCESS:
                    node.mode &= ~stat.S_ISGID
            else:
                self._put(node, name, value)
            table.store(node)
        self._note_durability(name)
        return node

    def _set_acl(self, node: Node, name: bytes, value: bytes) -> None:
        if node.is_symlink:
            raise PosixError(errno.EOPNOTSUPP)
        entries = acl.parse(value)
        if name == acl.DEFAULT:
            if not node.is_dir:
                raise PosixError(errno.EACCES)
            if entries:
                self._put(node, name, value)
            else:
                self._take(node, name)
            return
        if entries:
            node.mode = acl.mode_of(entries, node.mode)
        if entries and not acl.is_minimal(entries):
            self._put(node, name, value)
        else:
            self._take(node, name)

    def remove_xattr(self, ino: int, name: bytes) -> Node:
        """Remove an extended attribute.

        Raises:
            PosixError: ENODATA when there is none; removing a missing ACL is fine.
        """
        table = self._table
        node = table.node(ino)
        with table.change(node):
            node.ctime_ns = table.clock.now_ns()
            if not self._take(node, name) and name not in (acl.ACCESS, acl.DEFAULT):
                raise PosixError(errno.ENODATA)
            table.underway.note(Kind.UNSET, ino, name)
            table.store(node)
        self._note_durability(name)
        return node

    def _put(self, node: Node, name: bytes, value: bytes) -> None:
        table = self._table
        found = None
        if node.flags & InodeFlag.XATTRS:
            found = xattr_rows.xattr(table.database, node.ino, name, NOW)
        if found is None:
            table.temporal.born(XATTRS, node.ino, name, value)
        else:
            table.temporal.change(XATTRS, found[1], (node.ino, name), (value,))
        node.flags |= InodeFlag.XATTRS | _FLAG_OF.get(name, 0)

    def _take(self, node: Node, name: bytes) -> bool:
        table = self._table
        rows = xattr_rows.xattrs(table.database, node.ino, NOW)
        if name not in rows:
            return False
        table.temporal.end(XATTRS, rows[name][1], node.ino, name)
        node.flags &= ~_FLAG_OF.get(name, 0)
        if len(rows) == 1:
            node.flags &= ~InodeFlag.XATTRS
        return True

    def _note_durability(self, name: bytes) -> None:
        if name == DURABILITY:
            self._table.durability_generation += 1

    def durability(self, node: Node, default: str) -> str:
        """Return the durability mode of an inode: its own, or that of the nearest folder above.

        Args:
            default: the mount's mode, for a tree without the extended attribute.
        """
        table = self._table
        generation = table.durability_generation
        path: list[Node] = []
        here = node
        while here.durability is None or here.durability[0] != generation:
            path.append(here)
            if here.flags & InodeFlag.DURABILITY:
                mode = self.xattr(here.ino, DURABILITY).decode("ascii")
                break
            if here.parent == here.ino:
                mode = default
                break
            try:
                here = table.node(here.parent)
            except PosixError:  # the folder is gone, or which one is left is not known
                mode = self._strictest(default)
                break
        else:
            mode = here.durability[1]
        for passed in path:
            passed.durability = (generation, mode)
        return mode

    def _strictest(self, default: str) -> str:
        """Return the strictest mode that any folder asks for: a file's folder is not known."""
        values = self._table.database.rows(
            f"SELECT DISTINCT value FROM xattrs WHERE name = ? AND valid_to = {LIVING}",
            (DURABILITY,),
        )
        modes: list[str] = [default, *(value.decode("ascii") for (value,) in values)]
        return max(modes, key=_STRICTNESS.index)
