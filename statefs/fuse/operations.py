"""The FUSE handlers: each turns one request into one call of the tree and one reply.

Nothing is decided here but where a node lies (current/ or elsewhere) and when a reply may be sent
(`Durability`). There is no `await` between two calls of the tree, so a handler is a critical
section (docs/concurrency.md).
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import apsw
import pyfuse3
import trio

from statefs.content.checks import Block, DamagedBytes, is_damage, pieces_of
from statefs.content.objects import ObjectFiles, Piece
from statefs.errors import PosixError
from statefs.fuse import session_loop
from statefs.fuse.attributes import absent, entry_attributes
from statefs.fuse.durability import FSYNC, WRITE, Durability
from statefs.fuse.errno_map import answers
from statefs.fuse.handles import LISTING, LISTINGS_MAX, NODE_MASK, SYNCED, WRITABLE, handle
from statefs.fuse.visitor import OPEN_FLAGS
from statefs.ids import (
    CLONES_ROOT,
    INDEX_JSON,
    INO_BITS,
    INO_MASK,
    LIVING,
    METADATA_JSON,
    MOUNT_ROOT,
    NOW,
    SNAPSHOTS_DIR,
    TREE_ROOT,
    ino_of,
)
from statefs.metadata.entries import living_entry
from statefs.snapshots.namespace import FOREVER, LIVING_ROOTS, METADATA_NAME, Found, Namespace
from statefs.snapshots.views import PastInode
from statefs.volume import acl
from statefs.volume.attributes import AttributeChange, storable_time
from statefs.volume.names import NAME_MAX, Creator, check_name
from statefs.volume.table import Node
from statefs.volume.volume import Volume

log = logging.getLogger(__name__)

LISTING_BATCH: Final = 64
"""Entries read from the database at a time; a reply of one page holds about 25."""
SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_CURRENT_LIMIT: Final = 1 << INO_BITS
_XATTR_SPACES: Final = (b"user.", b"trusted.", b"security.", acl.ACCESS, acl.DEFAULT)


class Service(Protocol):
    """What handlers need of the service behind the mount: snapshots, clones, and space."""

    async def save_labelled(self, label: str) -> None:
        """Take a snapshot with a label."""

    async def delete_folder(self, name: str) -> None:
        """Delete the snapshot whose folder has this name."""

    async def clone(self, name: bytes) -> None:
        """Make the clone that a name in clones/ asks for."""

    async def delete_clone(self, name: bytes) -> None:
        """Delete a clone with all that is in it."""

    def require_space(self) -> None:
        """Raise PosixError ENOSPC while nothing that takes space can be accepted."""

    def damaged(self, damage: DamagedBytes) -> None:
        """Have it known that damaged bytes were asked for."""

    def freeing(self, deletion: Callable[[], Any]) -> Any:
        """Run a deletion so that it works on a full disk."""


def _is_current(node: int) -> bool:
    """Whether a node lies in current/, or in a clone, where the same handlers work."""
    return TREE_ROOT <= node < _CURRENT_LIMIT


def _current(node: int) -> int:
    """Return the inode number of a node in current/ or a clone: nothing else may be changed."""
    if not TREE_ROOT <= node < _CURRENT_LIMIT:
        raise PosixError(errno.EROFS)
    return node


class Operations(pyfuse3.Operations):
    """Answers requests of the kernel.

    Args:
        volume: the living tree.
        namespace: everything else in the mount.
        durability: when replies may be sent.
        service: takes and deletes snapshots for mkdir and rmdir, and watches the space.
        store_root: a path on the filesystem whose free space statfs tells.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = True

    def __init__(
        self,
        volume: Volume,
        namespace: Namespace,
        durability: Durability,
        service: Service,
        store_root: Path,
    ) -> None:
        super().__init__()
        self._table = volume.table
        self._names = volume.names
        self._data = volume.data
        self._attributes = volume.attributes
        self._namespace = namespace
        self._durability = durability
        self._service = service
        self._store_root = store_root
        self._listings = secrets.randbelow(LISTINGS_MAX)
        self._bounds: dict[int, int] = {}

    @property
    def _objects(self) -> ObjectFiles:
        return self._table.objects

    def _reply(self, node: Node) -> pyfuse3.EntryAttributes:
        reply: pyfuse3.EntryAttributes | None = node.reply
        if reply is None:
            if node.is_stale:
                node.blocks = self._data.blocks(node)
            # A write clears setuid and setgid without the kernel's noticing: it asks each time.
            seconds = 0.0 if node.mode & SET_ID and node.is_file else FOREVER
            # A clone comes and goes behind the kernel's back, too: see `Namespace` on snapshots.
            kept = 0.0 if node.parent == CLONES_ROOT != node.ino else FOREVER
            reply = node.reply = entry_attributes(node.ino, node, kept, seconds)
        return reply

    @staticmethod
    def _found_reply(found: Found) -> pyfuse3.EntryAttributes:
        inode = found.inode
        if not isinstance(inode, PastInode) or found.entry_seconds != FOREVER:
            return entry_attributes(*found)
        reply: pyfuse3.EntryAttributes | None = inode.reply
        if reply is None or reply.st_ino != found.node:  # the snapshot's other name asked last
            reply = inode.reply = entry_attributes(*found)
        return reply

    @answers
    async def lookup(self, parent: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        """Answer LOOKUP; "there is no such name" is an answer that the kernel may keep."""
        return self._found(parent, name)

    def _found(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        check_name(name)
        if _is_current(parent):
            entry = living_entry(self._table.database, parent, name)
            if entry is not None:
                return self._reply(self._table.node(entry.ino))
            return absent(0.0 if parent == CLONES_ROOT else FOREVER)
        if parent == MOUNT_ROOT and name in LIVING_ROOTS:
            return self._reply(self._table.node(LIVING_ROOTS[name]))
        return self._found_reply(self._namespace.lookup(parent, name))

    @answers
    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        """Answer GETATTR."""
        if _is_current(inode):
            return self._reply(self._table.node(inode))
        return self._found_reply(self._namespace.node(inode))

    @answers
    async def setattr(
        self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        """Answer SETATTR: truncate, chmod, chown, utimens."""
        ino = _current(inode)
        if fields.update_size:
            node = self._truncate(ino, attr.st_size)
        wanted = AttributeChange(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=storable_time(attr.st_atime_ns) if fields.update_atime else None,
            mtime_ns=storable_time(attr.st_mtime_ns) if fields.update_mtime else None,
        )
        if wanted != AttributeChange() or not fields.update_size:
            node = self._attributes.set(ino, wanted)
        return self._reply(node)

    def _truncate(self, ino: int, size: int) -> Node:
        node: Node = self._service.freeing(lambda: self._data.truncate(ino, size))
        return node

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Note which inodes the kernel dropped. Never fails: nobody would hear of it."""
        for inode, _ in inode_list:
            self.dropped(inode)

    def dropped(self, node: int) -> None:
        """Note that the kernel dropped an inode. Never fails."""
        if not _is_current(node):
            return
        try:
            self._service.freeing(lambda: self._table.forget(node))
        except (OSError, PosixError, apsw.Error) as error:
            log.warning("inode %d cannot be freed before the end of the mount: %s", node, error)

    # What answers requests that an earlier process has applied (fuse/resent.py).

    def found(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        """Return what the kernel is told of a name; `st_ino` is 0 where there is none."""
        try:
            return self._found(parent, name)
        except PosixError as error:
            if error.errno != errno.ENOENT:
                raise
            return absent(0.0)

    def opened(self, parent: int, name: bytes, flags: int) -> int:
        """Count an open descriptor of a file that CREATE has made, and return its handle."""
        node = self._names.lookup(parent, name)
        self._table.opened(node.ino)
        return handle(node.ino, flags) | WRITABLE

    def set_attribute(self, node: int, name: bytes, value: bytes, uid: int, gid: int) -> None:
        """Set an extended attribute for a caller that was allowed to."""
        self._service.require_space()
        # A stranger is neither root nor, as far as is known, in the file's group.
        by_stranger = uid != 0 and gid != self._table.node(node).gid
        self._attributes.set_xattr(node, name, value, by_stranger)

    @answers
    async def readlink(self, inode: int, ctx: Any) -> bytes:
        """Answer READLINK."""
        if _is_current(inode):
            return self._data.target(inode)
        return self._namespace.target(inode)

    @staticmethod
    def _check_free(parent: int, name: bytes) -> None:
        """Refuse what cannot be: but clones in clones/, a snapshot's own document in current/."""
        if parent == CLONES_ROOT or (parent == TREE_ROOT and name == METADATA_NAME):
            raise PosixError(errno.EPERM)

    def _create(
        self,
        parent: int,
        name: bytes,
        mode: int,
        ctx: Any,
        rdev: int = 0,
        target: bytes | None = None,
        is_absent: bool = False,
    ) -> Node:
        ino = _current(parent)
        self._check_free(ino, name)
        self._service.require_space()
        return self._names.create(
            ino, name, mode, Creator(ctx.uid, ctx.gid, ctx.umask), rdev, target, is_absent
        )

    @answers
    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        """Answer MKNOD: files, fifos, sockets and devices."""
        return self._reply(self._create(parent, name, mode, ctx, rdev))

    @answers
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        """Answer MKDIR; in snapshots/ it takes a snapshot with that label, in clones/ it clones."""
        check_name(name)
        if parent == SNAPSHOTS_DIR:
            await self._service.save_labelled(os.fsdecode(name))
            return self._found_reply(self._namespace.lookup(parent, name))
        if parent == CLONES_ROOT:
            await self._service.clone(name)
            return self._reply(self._names.lookup(parent, name))
        return self._reply(self._create(parent, name, mode, ctx))

    @answers
    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        """Answer SYMLINK."""
        mode = stat.S_IFLNK | 0o777
        return self._reply(self._create(parent, name, mode, ctx, target=target))

    @answers
    async def link(
        self, inode: int, new_parent: int, new_name: bytes, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        """Answer LINK; between current/ and a snapshot it fails as between two filesystems."""
        if not _is_current(inode):
            raise PosixError(errno.EXDEV if _is_current(new_parent) else errno.EROFS)
        parent = _current(new_parent)
        self._check_free(parent, new_name)
        return self._reply(self._names.link(inode, parent, new_name))

    @answers
    async def unlink(self, parent: int, name: bytes, ctx: Any) -> None:
        """Answer UNLINK."""
        ino = _current(parent)
        self._service.freeing(lambda: self._names.unlink(ino, name))

    @answers
    async def rmdir(self, parent: int, name: bytes, ctx: Any) -> None:
        """Answer RMDIR; in snapshots/ and clones/ it deletes a snapshot or a clone, full or not."""
        if parent == SNAPSHOTS_DIR:
            await self._service.delete_folder(os.fsdecode(name))
            return
        if parent == CLONES_ROOT:
            await self._service.delete_clone(name)
            return
        ino = _current(parent)
        self._service.freeing(lambda: self._names.rmdir(ino, name))

    @answers
    async def rename(
        self,
        parent_old: int,
        name_old: bytes,
        parent_new: int,
        name_new: bytes,
        flags: int,
        ctx: Any,
    ) -> None:
        """Answer RENAME. Bytes before names: a file's bytes are durable before it replaces one."""
        if _is_current(parent_old) != _is_current(parent_new):
            raise PosixError(errno.EROFS)
        old, new = _current(parent_old), _current(parent_new)
        self._check_free(new, name_new)
        if old == CLONES_ROOT:
            raise PosixError(errno.EPERM)
        table = self._table
        is_owing = table.unsynced or table.displaced
        if is_owing and living_entry(table.database, new, name_new) is not None:
            source = living_entry(table.database, old, name_old)
            if source is not None and (
                source.ino in table.unsynced or source.ino in table.displaced
            ):
                await self._durability.sync_bytes(table.node(source.ino))
                await session_loop.admitted()  # a restore may have begun meanwhile
        self._names.rename(old, name_old, new, name_new, flags, is_served=True)

    @answers
    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        """Answer OPEN; with O_TRUNC it cuts the file."""
        if not _is_current(inode):
            if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
                raise PosixError(errno.EROFS)
            if inode == INDEX_JSON:  # past the cache, which knows one version at a time
                return pyfuse3.FileInfo(fh=self._namespace.index_node(), direct_io=True)
            # Pins and digests come into a metadata.json later: past the cache, too.
            return pyfuse3.FileInfo(fh=inode, direct_io=ino_of(inode) == METADATA_JSON)
        node = self._table.node(inode)
        if node.nlink == 0 and not self._table.is_open(node):
            raise PosixError(errno.ESTALE)  # removed, and held by a path alone (O_PATH)
        if flags & os.O_TRUNC and node.is_file:
            self._truncate(inode, 0)
        self._table.opened(inode)
        # Without keep_cache the kernel drops every page it has of the file.
        is_visit = flags & (os.O_ACCMODE | os.O_APPEND) == OPEN_FLAGS
        return pyfuse3.FileInfo(fh=handle(inode, flags), keep_cache=not is_visit)

    @answers
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Answer CREATE; a file that exists after all is opened unless O_EXCL forbids it."""
        entry = living_entry(self._table.database, _current(parent), name)
        if entry is not None and not flags & os.O_EXCL:
            node = self._table.node(entry.ino)
            if flags & os.O_TRUNC and node.is_file:
                self._truncate(node.ino, 0)
        else:
            node = self._create(parent, name, mode | stat.S_IFREG, ctx, is_absent=entry is None)
        self._table.opened(node.ino)
        return pyfuse3.FileInfo(fh=handle(node.ino, flags) | WRITABLE), self._reply(node)

    @answers
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Answer READ: all bytes up to the end of the file, for fewer would mean its end."""
        node = fh & NODE_MASK
        source = self._data if _is_current(node) else self._namespace
        plan = source.plan_read(node, off, size)
        if isinstance(plan, bytes):
            return plan
        ino = ino_of(node)
        epoch = NOW if _is_current(node) else self._namespace.epoch_of(node)
        blocks = self._table.checks.unchecked(self._table.database, ino, epoch, plan)
        data = None if blocks else self._objects.read_cached(plan)
        if data is not None:
            return data
        try:
            with self._objects.being_read([*plan, *pieces_of(blocks)]):
                return await trio.to_thread.run_sync(self._read_checked, plan, blocks)
        except OSError as error:
            again = source.plan_read(node, off, size)
            if again == plan:
                if is_damage(error):
                    raise DamagedBytes(ino, epoch, off, plan[-1][1]) from error
                raise
        # The file was cut or replaced while the thread read it.
        if isinstance(again, bytes):
            return again
        blocks = self._table.checks.unchecked(self._table.database, ino, epoch, again)
        return self._read_checked(again, blocks)

    def _read_checked(self, plan: list[Piece], blocks: list[Block]) -> bytes:
        self._table.checks.check(blocks)
        return self._objects.read(plan)

    def damaged(self, damage: DamagedBytes) -> None:
        """Have it known that damaged bytes were asked for."""
        self._service.damaged(damage)

    @answers
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Answer WRITE."""
        self._service.require_space()
        node = self._data.write(_current(fh & NODE_MASK), off, buf)
        if fh & SYNCED or self._durability.of(node) == WRITE:
            await self._durability.sync_file(node)
        return len(buf)

    @answers
    async def flush(self, fh: int) -> None:
        """Answer FLUSH, sent by each close(2): where the mode says so, wait for the disk."""
        if not fh & WRITABLE:
            return
        node = self._table.node(fh & NODE_MASK)
        if node.nlink and self._durability.of(node) != FSYNC:
            await self._durability.sync_file(node)

    @answers
    async def release(self, fh: int) -> None:
        """Answer RELEASE, sent when the last descriptor of an open file is gone."""
        ino = fh & NODE_MASK
        if not _is_current(ino):
            return
        node = self._table.nodes.get(ino)
        try:
            is_owed = ino in self._table.unsynced  # its bytes come first, at the next tick
            if node is not None and node.is_stale and node.nlink and not is_owed:
                self._durability.settle([node])
        finally:
            self._service.freeing(lambda: self._table.closed(ino))

    @answers
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Answer FSYNC; a snapshot's files are durable already."""
        node = fh & NODE_MASK
        if _is_current(node):
            await self._durability.sync_file(self._table.node(node))

    @answers
    async def opendir(self, inode: int, ctx: Any) -> int:
        """Answer OPENDIR; each listing of current/ has a handle, and so a bound, of its own."""
        if not _is_current(inode):
            return inode
        self._listings = (self._listings + 1) % LISTINGS_MAX
        return LISTING | self._listings << INO_BITS | inode

    @answers
    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        """Answer READDIRPLUS: entries after the cookie `start_id`, as many as the reply holds.

        Entries made after the listing began are left out, or a folder that grows as fast as it
        is read would have no end. When an earlier process began it, those are left out that were
        made after this process was first asked.
        """
        after = start_id
        folder, bound = fh, LIVING
        if fh & LISTING:
            if after == 0 or fh not in self._bounds:
                self._bounds[fh] = self._table.next_id
            folder, bound = fh & INO_MASK, self._bounds[fh]
        if after < 2 and not self._reply_dots(folder, after, token):
            return
        after = max(after, 2)
        while True:
            batch = self._listing(folder, after)
            for cookie, name, reply in batch:
                if cookie >= bound or not pyfuse3.readdir_reply(token, name, reply, cookie):
                    return
                after = cookie
            if len(batch) < LISTING_BATCH:
                return

    def _reply_dots(self, folder: int, after: int, token: Any) -> bool:
        """Reply "." and ".."; the kernel takes only their numbers and types."""
        parent = self._parent(folder)
        for cookie, name, node in ((1, b".", folder), (2, b"..", parent)):
            if cookie <= after:
                continue
            dot = pyfuse3.EntryAttributes()
            dot.st_ino = node
            dot.st_mode = stat.S_IFDIR
            if not pyfuse3.readdir_reply(token, name, dot, cookie):
                return False
        return True

    def _parent(self, folder: int) -> int:
        if not _is_current(folder):
            return self._namespace.parent(folder)
        return MOUNT_ROOT if folder in (TREE_ROOT, CLONES_ROOT) else self._table.node(folder).parent

    def _listing(self, folder: int, after: int) -> list[tuple[int, bytes, pyfuse3.EntryAttributes]]:
        if _is_current(folder):
            rows = self._names.listing(folder, after, LISTING_BATCH)
            return [(cookie, name, self._reply(node)) for cookie, name, node in rows]
        listing = self._namespace.listing(folder, after, LISTING_BATCH)
        return [(cookie, name, self._listed(found)) for cookie, name, found in listing]

    def _listed(self, found: Found) -> pyfuse3.EntryAttributes:
        if isinstance(found.inode, Node):
            return self._reply(found.inode)
        return self._found_reply(found)

    @answers
    async def releasedir(self, fh: int) -> None:
        """Answer RELEASEDIR."""
        self._bounds.pop(fh, None)

    @answers
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Answer FSYNCDIR: the names in the folder are durable, and with them all others."""
        await self._durability.sync_names()

    @answers
    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        """Answer STATFS with what is free where the store lies."""
        host = os.statvfs(self._store_root)
        data = pyfuse3.StatvfsData()
        data.f_bsize = host.f_bsize
        data.f_frsize = host.f_frsize
        data.f_blocks = host.f_blocks
        data.f_bfree = host.f_bfree
        data.f_bavail = host.f_bavail
        data.f_files = host.f_files
        data.f_ffree = host.f_ffree
        data.f_favail = host.f_favail
        data.f_namemax = NAME_MAX
        return data

    @answers
    async def access(self, inode: int, mode: int, ctx: Any) -> bool:
        """Answer ACCESS; the kernel does not ask, as it checks permissions itself."""
        return True

    @answers
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
        """Answer SETXATTR."""
        if not name.startswith(_XATTR_SPACES):
            raise PosixError(errno.EOPNOTSUPP)
        if name in _XATTR_SPACES and name.endswith(b"."):
            raise PosixError(errno.EINVAL)
        self.set_attribute(_current(inode), name, value, ctx.uid, ctx.gid)

    @answers
    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        """Answer GETXATTR."""
        if _is_current(inode):
            return self._attributes.xattr(inode, name)
        return self._namespace.xattr(inode, name)

    @answers
    async def listxattr(self, inode: int, ctx: Any) -> list[bytes]:
        """Answer LISTXATTR; trusted ones are root's to see."""
        source = self._attributes if _is_current(inode) else self._namespace
        names: list[bytes] = source.xattr_names(inode)
        if ctx.uid != 0:
            names = [name for name in names if not name.startswith(b"trusted.")]
        return names

    @answers
    async def removexattr(self, inode: int, name: bytes, ctx: Any) -> None:
        """Answer REMOVEXATTR."""
        self._attributes.remove_xattr(_current(inode), name)
