"""Names: looking up, listing, creating, linking, renaming and removing entries of folders.

Permissions are the kernel's to check (default_permissions). Every call is one transaction.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Collection
from typing import Any, Final, NamedTuple

from statefs.errors import PosixError
from statefs.ids import CLONE_BIT, LIVING, NOW, TREE_ROOT
from statefs.metadata.entries import Entry, is_empty, list_living, living_entry
from statefs.metadata.inodes import InodeFlag
from statefs.metadata.temporal import ENTRIES, INLINE, XATTRS
from statefs.metadata.xattrs import xattr
from statefs.volume import acl
from statefs.volume.table import InodeTable, Node
from statefs.volume.underway import Kind

NAME_MAX: Final = 255
"""The longest name in bytes, as on Linux's own filesystems."""
LINK_MAX: Final = 65_000
"""The most names of one file, as on ext4."""
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2


class Creator(NamedTuple):
    """Who creates a file: its owner, and the umask that limits its mode."""

    uid: int
    gid: int
    umask: int = 0


def _flags_for(xattrs: Collection[bytes]) -> int:
    """Return what the flags of an inode say of its extended attributes."""
    flags = InodeFlag.XATTRS if xattrs else 0
    flags |= InodeFlag.ACCESS_ACL if acl.ACCESS in xattrs else 0
    return flags | (InodeFlag.DEFAULT_ACL if acl.DEFAULT in xattrs else 0)


def check_name(name: bytes) -> None:
    """Refuse a name that no folder can have.

    Raises:
        PosixError: ENAMETOOLONG.
    """
    if len(name) > NAME_MAX:
        raise PosixError(errno.ENAMETOOLONG)


class Names:
    """The entries of the living tree."""

    def __init__(self, table: InodeTable) -> None:
        self._table = table
        self._database = table.database
        self._temporal = table.temporal

    def lookup(self, parent: int, name: bytes) -> Node:
        """Return the inode that `name` leads to.

        Raises:
            PosixError: ENOENT, ENAMETOOLONG.
        """
        check_name(name)
        return self._table.node(self._entry(parent, name).ino)

    def _entry(self, parent: int, name: bytes) -> Entry:
        entry = living_entry(self._database, parent, name)
        if entry is None:
            raise PosixError(errno.ENOENT)
        return entry

    def listing(self, parent: int, after: int, limit: int) -> list[tuple[int, bytes, Node]]:
        """Return up to `limit` entries (cookie, name, inode) with cookies beyond `after`."""
        nodes = self._table.nodes
        rows: list[tuple[Any, ...]] = list_living(self._database, parent, after, limit)
        return [(row[0], row[1], nodes.get(row[2]) or Node(row[2:])) for row in rows]

    def _folder(self, ino: int) -> Node:
        folder = self._table.node(ino)
        if not folder.is_dir:
            raise PosixError(errno.ENOTDIR)
        if folder.nlink == 0:
            raise PosixError(errno.ENOENT)
        return folder

    def create(
        self,
        parent: int,
        name: bytes,
        mode: int,
        creator: Creator,
        rdev: int = 0,
        target: bytes | None = None,
        is_absent: bool = False,
    ) -> Node:
        """Make a file, folder, link or device.

        Args:
            mode: type and permission bits; of a regular file, S_IFREG.
            target: where a symbolic link leads.
            is_absent: the caller has just looked and the folder has no such name.

        Raises:
            PosixError: EEXIST, ENAMETOOLONG, ENOENT when the folder is gone, ENOSPC.
        """
        check_name(name)
        folder = self._folder(parent)
        if not is_absent and living_entry(self._database, parent, name) is not None:
            raise PosixError(errno.EEXIST)
        table = self._table
        now = table.clock.now_ns()
        is_dir = stat.S_ISDIR(mode)
        mode, gid, xattrs = self._inherit(folder, mode, creator)
        with table.change(folder):
            table.underway.note(Kind.MAKE, parent, name, table.next_id)
            ino = table.new_ino(parent)
            size = len(target) if target is not None else 0
            links = 2 if is_dir else 1
            times = (now, now, now, now)
            owner = (creator.uid, gid)
            flags = _flags_for(xattrs)
            node = Node(
                (ino, table.epoch, mode, links, *owner, rdev, size, 0, *times, parent, flags)
            )
            table.insert(node)
            for key, value in xattrs.items():
                self._temporal.born(XATTRS, ino, key, value)
            if target is not None:
                self._temporal.born(INLINE, ino, target)
            self._temporal.born(ENTRIES, parent, name, ino, table.new_id())
            folder.nlink += is_dir
            self._touch(folder, now)
            table.count(ino, stat.S_ISREG(mode), 0)
        node.born = node.changed = folder.changed
        node.object = 0
        return table.remember(node)

    def _inherit(
        self, folder: Node, mode: int, creator: Creator
    ) -> tuple[int, int, dict[bytes, bytes]]:
        """Return mode, group and ACLs that a new file takes from its folder."""
        gid = creator.gid
        is_dir = stat.S_ISDIR(mode)
        if folder.mode & stat.S_ISGID:
            gid = folder.gid
            mode |= stat.S_ISGID if is_dir else 0
        if stat.S_ISLNK(mode):
            return mode, gid, {}
        found = None
        if folder.flags & InodeFlag.DEFAULT_ACL:
            found = xattr(self._database, folder.ino, acl.DEFAULT, NOW)
        if found is None:
            return mode & ~creator.umask, gid, {}
        mode, access = acl.inherited(acl.parse(found[0]), mode)
        xattrs = {} if access is None else {acl.ACCESS: acl.encode(access)}
        if is_dir:
            xattrs[acl.DEFAULT] = found[0]
        return mode, gid, xattrs

    def _touch(self, folder: Node, now: int) -> None:
        folder.mtime_ns = folder.ctime_ns = now
        self._table.store(folder)

    def link(self, ino: int, parent: int, name: bytes) -> Node:
        """Give a file another name.

        Raises:
            PosixError: EEXIST, EPERM for a folder, ENOENT when the file has no name left, EMLINK,
                EXDEV into another clone.
        """
        check_name(name)
        table = self._table
        folder = self._folder(parent)
        self._check_same_tree(self._folder_of(ino), parent)
        node = table.node(ino)
        if node.is_dir:
            raise PosixError(errno.EPERM)
        if node.nlink == 0:
            raise PosixError(errno.ENOENT)
        if node.nlink >= LINK_MAX:
            raise PosixError(errno.EMLINK)
        if living_entry(self._database, parent, name) is not None:
            raise PosixError(errno.EEXIST)
        now = table.clock.now_ns()
        with table.change(folder, node):
            table.underway.note(Kind.MAKE, parent, name, table.next_id)
            self._temporal.born(ENTRIES, parent, name, ino, table.new_id())
            node.nlink += 1
            node.ctime_ns = now
            node.parent = parent
            node.durability = None
            table.store(node)
            self._touch(folder, now)
        return node

    def unlink(self, parent: int, name: bytes) -> Node:
        """Remove a name that is not a folder's; return the inode it led to.

        Raises:
            PosixError: ENOENT, EISDIR.
        """
        table = self._table
        folder = self._folder(parent)
        entry = self._entry(parent, name)
        node = table.node(entry.ino)
        if node.is_dir:
            raise PosixError(errno.EISDIR)
        now = table.clock.now_ns()
        with table.change(folder, node):
            table.underway.note(Kind.REMOVE, parent, name)
            self._temporal.end(ENTRIES, entry.valid_from, parent, name)
            self._leave(node, parent)
            self._lose_name(node, now)
            self._touch(folder, now)
        self._after_loss(node)
        return node

    @staticmethod
    def _leave(node: Node, parent: int) -> None:
        """Note that a name in `parent` goes: in which folder another one lies is not known."""
        if node.parent == parent and not node.is_dir:
            node.parent = 0
            node.durability = None

    def rmdir(self, parent: int, name: bytes) -> Node:
        """Remove an empty folder; return its inode.

        Raises:
            PosixError: ENOENT, ENOTDIR, ENOTEMPTY.
        """
        table = self._table
        folder = self._folder(parent)
        entry = self._entry(parent, name)
        node = table.node(entry.ino)
        self._check_empty_folder(node)
        now = table.clock.now_ns()
        with table.change(folder, node):
            table.underway.note(Kind.REMOVE, parent, name)
            self._temporal.end(ENTRIES, entry.valid_from, parent, name)
            self._lose_name(node, now)
            folder.nlink -= 1
            self._touch(folder, now)
        self._after_loss(node)
        return node

    def _check_empty_folder(self, node: Node) -> None:
        if not node.is_dir:
            raise PosixError(errno.ENOTDIR)
        if not is_empty(self._database, node.ino):
            raise PosixError(errno.ENOTEMPTY)

    def _lose_name(self, node: Node, now: int) -> None:
        """Take one name from an inode; without any it is kept only as long as it is open."""
        node.nlink = 0 if node.is_dir else node.nlink - 1
        node.ctime_ns = now
        if node.nlink:
            self._table.store(node)
        else:
            self._table.abandon(node)

    def _after_loss(self, node: Node) -> None:
        if node.nlink == 0 and not self._table.is_open(node):
            self._table.drop(node.ino)

    def rename(
        self,
        old_parent: int,
        old_name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int = 0,
        *,
        is_served: bool = False,
    ) -> tuple[Node, Node | None]:
        """Move an entry, replacing what has the new name unless `flags` say otherwise.

        Args:
            is_served: programs look names up meanwhile: what is replaced can be opened for another
                moment, by whoever has just found it.

        Returns:
            The inode moved, and the one replaced or exchanged (None when the name was free).

        Raises:
            PosixError: ENOENT, EEXIST (NOREPLACE), ENOTEMPTY, EISDIR, ENOTDIR, EINVAL, EXDEV into
                another clone.
        """
        check_name(new_name)
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise PosixError(errno.EINVAL)
        self._check_same_tree(old_parent, new_parent)
        source = self._entry(old_parent, old_name)
        target = living_entry(self._database, new_parent, new_name)
        if target is not None and flags == RENAME_NOREPLACE:
            raise PosixError(errno.EEXIST)
        node = self._table.node(source.ino)
        folders = (self._folder(old_parent), self._folder(new_parent))
        if flags == RENAME_EXCHANGE:
            if target is None:
                raise PosixError(errno.ENOENT)
            other = self._table.node(target.ino)
            self._exchange(folders, (old_name, new_name), (source, target), (node, other))
            return node, other
        if target is not None and target.ino == source.ino:
            return node, None
        replaced = None if target is None else self._table.node(target.ino)
        if replaced is not None:
            self._check_replaceable(node, replaced)
            if is_served and replaced.is_file:
                self._table.replaced.add(replaced.ino)
        self._move(folders, (old_name, new_name), (source, target), (node, replaced))
        return node, replaced

    def _folder_of(self, ino: int) -> int:
        """Return a folder that a file has a name in; one of a clone has all its names there."""
        if ino < CLONE_BIT:
            return TREE_ROOT
        query = f"SELECT parent FROM entries WHERE ino = ? AND valid_to = {LIVING}"
        return int(self._database.value(query, (ino,)) or 0)

    def _check_same_tree(self, one: int, other: int) -> None:
        """Refuse to connect folders of two clones, or of a clone and current/, which share nothing.

        Raises:
            PosixError: EXDEV, as between two filesystems.
        """
        if one == other or not (one | other) & CLONE_BIT:
            return
        if not one & other & CLONE_BIT or self._clone_of(one) != self._clone_of(other):
            raise PosixError(errno.EXDEV)

    def _clone_of(self, folder: int) -> int:
        """Return the root folder of the clone that a folder lies in."""
        while (parent := self._table.node(folder).parent) & CLONE_BIT:
            folder = parent
        return folder

    def _check_replaceable(self, node: Node, replaced: Node) -> None:
        if node.is_dir:
            self._check_empty_folder(replaced)
        elif replaced.is_dir:
            raise PosixError(errno.EISDIR)

    def _move(
        self,
        folders: tuple[Node, Node],
        names: tuple[bytes, bytes],
        entries: tuple[Entry, Entry | None],
        nodes: tuple[Node, Node | None],
    ) -> None:
        (old, new), (old_name, new_name) = folders, names
        (source, target), (node, replaced) = entries, nodes
        table, temporal = self._table, self._temporal
        now = table.clock.now_ns()
        touched = {n.ino: n for n in (old, new, node, replaced) if n is not None}
        with table.change(*touched.values()):
            table.underway.note(Kind.MOVE, old.ino, old_name, node.ino, new.ino, new_name)
            temporal.end(ENTRIES, source.valid_from, old.ino, old_name)
            if target is None or replaced is None:
                cookie = source.cookie if old is new else table.new_id()
                temporal.born(ENTRIES, new.ino, new_name, node.ino, cookie)
            else:
                key = (new.ino, new_name)
                temporal.change(ENTRIES, target.valid_from, key, (node.ino, target.cookie))
                self._leave(replaced, new.ino)
                self._lose_name(replaced, now)
                new.nlink -= replaced.is_dir
            node.ctime_ns = now
            node.parent = new.ino
            old.nlink -= node.is_dir
            new.nlink += node.is_dir
            table.store(node)
            for folder in {old.ino: old, new.ino: new}.values():
                self._touch(folder, now)
        if replaced is not None:
            self._after_loss(replaced)
        self._moved(node)

    def _moved(self, *nodes: Node) -> None:
        """After a move: what a file takes from the folders above it may be another now."""
        for node in nodes:
            node.durability = None
            self._table.durability_generation += node.is_dir

    def _exchange(
        self,
        folders: tuple[Node, Node],
        names: tuple[bytes, bytes],
        entries: tuple[Entry, Entry],
        nodes: tuple[Node, Node],
    ) -> None:
        (old, new), (node, other) = folders, nodes
        table, temporal = self._table, self._temporal
        now = table.clock.now_ns()
        touched = {n.ino: n for n in (*folders, *nodes)}
        with table.change(*touched.values()):
            table.underway.note(Kind.MOVE, old.ino, names[0], node.ino, new.ino, names[1])
            for folder, name, entry, content in (
                (old, names[0], entries[0], other),
                (new, names[1], entries[1], node),
            ):
                temporal.change(
                    ENTRIES, entry.valid_from, (folder.ino, name), (content.ino, entry.cookie)
                )
                content.parent = folder.ino
                folder.nlink += content.is_dir
            old.nlink -= node.is_dir
            new.nlink -= other.is_dir
            for changed in touched.values():
                changed.ctime_ns = now
            old.mtime_ns = new.mtime_ns = now
            for changed in touched.values():
                table.store(changed)
        self._moved(node, other)
