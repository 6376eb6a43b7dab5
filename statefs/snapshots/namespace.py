"""What of the mount is not living: its root, snapshots/, the documents, and every past tree.

All of it is read-only. Nodes are numbered as in `ids`: view 0 holds the fixed folders, views 2n and
2n + 1 show snapshot n under its name and under its label.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from typing import Final, NamedTuple

from statefs.content.objects import blocks_of
from statefs.errors import PosixError, StatefsError
from statefs.ids import (
    CLONES_ROOT,
    CURRENT,
    INDEX_JSON,
    METADATA_JSON,
    MOUNT_ROOT,
    SNAPSHOT_LINK,
    SNAPSHOTS_DIR,
    TREE_ROOT,
    VIEW_MAX,
    Epoch,
    Ino,
    View,
    ino_of,
    node_id,
    view_of,
)
from statefs.metadata.inodes import Inode
from statefs.snapshots.catalog import Catalog, Snapshot
from statefs.snapshots.documents import encode
from statefs.snapshots.naming import LATEST
from statefs.snapshots.views import PastTree
from statefs.volume.volume import Volume

FOREVER: Final = 3e8
"""Seconds (ten years) for which the kernel may trust what cannot change behind its back."""
CURRENT_NAME: Final = b"current"
SNAPSHOTS_NAME: Final = b"snapshots"
CLONES_NAME: Final = b"clones"
LIVING_ROOTS: Final = {CURRENT_NAME: TREE_ROOT, CLONES_NAME: CLONES_ROOT}
"""Folders in the mount's root whose nodes are living inodes."""
INDEX_NAME: Final = b"index.json"
METADATA_NAME: Final = b"metadata.json"
INDEXES_KEPT: Final = 16
"""Versions of index.json kept for programs that opened it and read it late."""
TREES_CACHED: Final = 8
"""Past trees that keep inodes in memory, each up to `views.INODES_CACHED` of about 500 bytes."""
_FIRST_COOKIE: Final = 16
"""Cookies below are for fixed entries and "." and ".."."""


class Found(NamedTuple):
    """A node as the mount shows it.

    `entry_seconds` and `attribute_seconds` are how long the kernel may keep name and attributes.
    """

    node: int
    inode: Inode
    entry_seconds: float
    attribute_seconds: float


class Namespace:
    """Answers for every node outside current/ and clones/.

    Args:
        volume: the living tree, for the epoch's times and the database.
        catalog: the snapshots.
        owner: user and group that own the mount's own folders.
    """

    def __init__(self, volume: Volume, catalog: Catalog, owner: tuple[int, int]) -> None:
        self._volume = volume
        self._database = volume.table.database
        self._catalog = catalog
        self._owner = owner
        self._trees: dict[int, PastTree] = {}
        self._indexes: dict[int, bytes] = {}

    def _tree(self, view: int) -> tuple[Snapshot, PastTree]:
        snapshot = self._catalog.by_view(view)
        if snapshot is None:
            self._trees = {e: t for e, t in self._trees.items() if e in self._epochs()}
            raise PosixError(errno.ESTALE)
        tree = self._trees.pop(snapshot.epoch, None)
        if tree is None:
            tree = PastTree(self._database, snapshot.epoch)
            if len(self._trees) >= TREES_CACHED:
                del self._trees[next(iter(self._trees))]
        self._trees[snapshot.epoch] = tree  # the last, so that the first is the longest unused
        return snapshot, tree

    def _epochs(self) -> set[int]:
        return {snapshot.epoch for snapshot in self._catalog.snapshots}

    def index_bytes(self) -> bytes:
        """Return index.json as it is now."""
        return self._indexes[self._index_version()]

    def _index_version(self) -> int:
        version = self._catalog.generation % VIEW_MAX + 1
        if version not in self._indexes:
            self._indexes[version] = encode(self._catalog.index())
            while len(self._indexes) > INDEXES_KEPT:
                del self._indexes[next(iter(self._indexes))]
        return version

    def index_node(self) -> int:
        """Return a node that stands for index.json as it is now, for a handle on it.

        A program that reads on over a save sees the document it opened, whole.
        """
        return node_id(View(self._index_version()), INDEX_JSON)

    def _fixed(self, ino: int, mode: int, size: int = 0, nlink: int = 1, time_ns: int = 0) -> Inode:
        uid, gid = self._owner
        time_ns = time_ns or self._catalog.last_modified_ns
        times = (time_ns, time_ns, time_ns, time_ns)
        return Inode((ino, 0, mode, nlink, uid, gid, 0, size, blocks_of(size), *times, 0, 0))

    def node(self, node: int) -> Found:
        """Return any node outside current/.

        Raises:
            PosixError: ESTALE when a snapshot is gone.
        """
        view, ino = view_of(node), ino_of(node)
        if view == CURRENT:
            return self._fixed_node(ino)
        snapshot, tree = self._tree(view)
        if ino == METADATA_JSON:
            size = len(encode(snapshot.document()))
            inode = self._fixed(ino, stat.S_IFREG | 0o444, size, time_ns=snapshot.created_ns)
            return Found(node, inode, FOREVER, 0.0)
        if ino == SNAPSHOT_LINK:
            mode = stat.S_IFLNK | 0o777
            return Found(node, self._fixed(ino, mode, len(snapshot.name)), 0.0, FOREVER)
        return Found(node, tree.inode(ino), FOREVER, FOREVER)

    def _fixed_node(self, ino: Ino) -> Found:
        node = node_id(CURRENT, ino)
        if ino == MOUNT_ROOT:  # never changes: every walk by path passes it
            root = self._volume.table.node(TREE_ROOT)
            inode = self._fixed(ino, stat.S_IFDIR | 0o755, nlink=5, time_ns=root.btime_ns)
            return Found(node, inode, FOREVER, FOREVER)
        if ino == SNAPSHOTS_DIR:
            links = 2 + sum(1 + (each.label is not None) for each in self._catalog.snapshots)
            inode = self._fixed(ino, stat.S_IFDIR | 0o755, nlink=links)
            return Found(node, inode, FOREVER, FOREVER)  # a save has the kernel forget them
        if ino == INDEX_JSON:
            inode = self._fixed(ino, stat.S_IFREG | 0o444, len(self.index_bytes()))
            return Found(node, inode, FOREVER, 0.0)
        raise PosixError(errno.ESTALE)

    def lookup(self, parent: int, name: bytes) -> Found:
        """Return what `name` leads to in a folder outside current/.

        Raises:
            PosixError: ENOENT.
        """
        view, ino = view_of(parent), ino_of(parent)
        if view != CURRENT:
            if ino == TREE_ROOT and name == METADATA_NAME:
                return self.node(node_id(view, METADATA_JSON))
            _, tree = self._tree(view)
            inode = tree.lookup(ino, name)
            return Found(node_id(view, Ino(inode.ino)), inode, FOREVER, FOREVER)
        if ino == MOUNT_ROOT:
            return self._lookup_in_root(name)
        if ino == SNAPSHOTS_DIR:
            return self._lookup_snapshot(name)
        raise PosixError(errno.ENOTDIR)

    def _lookup_in_root(self, name: bytes) -> Found:
        living = LIVING_ROOTS.get(name)
        if living is not None:
            root = self._volume.table.node(living)
            return Found(node_id(CURRENT, living), root, FOREVER, FOREVER)
        fixed = {SNAPSHOTS_NAME: SNAPSHOTS_DIR, INDEX_NAME: INDEX_JSON}.get(name)
        if fixed is None:
            raise PosixError(errno.ENOENT)
        return self._fixed_node(fixed)

    def _lookup_snapshot(self, name: bytes) -> Found:
        text = os.fsdecode(name)
        found = self._catalog.by_folder(text)
        if found is not None:
            # Asked for anew on each walk: to have the kernel forget a name would need the lock of
            # snapshots/, which a mkdir there holds while it waits for us.
            return self.node(node_id(found[1], TREE_ROOT))._replace(entry_seconds=0.0)
        if text == LATEST or text.startswith("@"):
            try:
                snapshot = self._catalog.choose(text)
            except StatefsError:
                raise PosixError(errno.ENOENT) from None
            return self.node(node_id(snapshot.view, SNAPSHOT_LINK))
        raise PosixError(errno.ENOENT)

    def listing(self, folder: int, after: int, limit: int) -> Iterable[tuple[int, bytes, Found]]:
        """Return entries (cookie, name, node) of a folder outside current/, without . and .. ."""
        view, ino = view_of(folder), ino_of(folder)
        if view != CURRENT:
            return self._past_listing(view, ino, after, limit)
        entries: list[tuple[int, bytes]]
        if ino == MOUNT_ROOT:
            names = (CURRENT_NAME, SNAPSHOTS_NAME, INDEX_NAME, CLONES_NAME)
            entries = [(3 + place, name) for place, name in enumerate(names)]
        elif ino == SNAPSHOTS_DIR:
            entries = [(3, LATEST.encode())] if self._catalog.snapshots else []
            for snapshot in self._catalog.snapshots:
                cookie = _FIRST_COOKIE + 2 * snapshot.epoch
                entries.append((cookie, snapshot.name.encode()))
                if snapshot.label is not None:
                    entries.append((cookie + 1, os.fsencode(snapshot.label)))
        else:
            raise PosixError(errno.ENOTDIR)
        wanted = [entry for entry in entries if entry[0] > after][:limit]
        return [(cookie, name, self.lookup(folder, name)) for cookie, name in wanted]

    def _past_listing(
        self, view: View, ino: Ino, after: int, limit: int
    ) -> list[tuple[int, bytes, Found]]:
        _, tree = self._tree(view)
        entries = [
            (cookie, name, Found(node_id(view, Ino(inode.ino)), inode, FOREVER, FOREVER))
            for cookie, name, inode in tree.listing(ino, after, limit)
        ]
        if ino == TREE_ROOT and after < _FIRST_COOKIE:
            document = self.node(node_id(view, METADATA_JSON))
            entries.insert(0, (_FIRST_COOKIE, METADATA_NAME, document))
        return entries

    def parent(self, folder: int) -> int:
        """Return the node that holds a folder, for its ".." entry."""
        view, ino = view_of(folder), ino_of(folder)
        if ino in (MOUNT_ROOT, SNAPSHOTS_DIR):
            return MOUNT_ROOT
        if ino == TREE_ROOT:
            return SNAPSHOTS_DIR
        return node_id(view, Ino(self._tree(view)[1].inode(ino).parent))

    def epoch_of(self, node: int) -> Epoch:
        """Return the epoch that a node of a snapshot shows. Raises PosixError ESTALE."""
        return self._tree(view_of(node))[1].epoch

    def plan_read(self, node: int, offset: int, size: int) -> bytes | list[tuple[int, int, int]]:
        """Return the bytes when no object file is needed, else the pieces to read them from."""
        view, ino = view_of(node), ino_of(node)
        if ino == INDEX_JSON:
            return self._indexes.get(view, self.index_bytes())[offset : offset + size]
        snapshot, tree = self._tree(view)
        if ino == METADATA_JSON:
            return encode(snapshot.document())[offset : offset + size]
        return tree.plan_read(ino, offset, size)

    def target(self, node: int) -> bytes:
        """Return where a symbolic link outside current/ leads."""
        snapshot, tree = self._tree(view_of(node))
        if ino_of(node) == SNAPSHOT_LINK:
            return snapshot.name.encode()
        return tree.target(ino_of(node))

    def xattr(self, node: int, name: bytes) -> bytes:
        """Return an extended attribute. Raises PosixError ENODATA."""
        if self._has_no_xattrs(node):
            raise PosixError(errno.ENODATA)
        return self._tree(view_of(node))[1].xattr(ino_of(node), name)

    def xattr_names(self, node: int) -> list[bytes]:
        """Return the names of the extended attributes."""
        if self._has_no_xattrs(node):
            return []
        return self._tree(view_of(node))[1].xattr_names(ino_of(node))

    @staticmethod
    def _has_no_xattrs(node: int) -> bool:
        return view_of(node) == CURRENT or ino_of(node) in (METADATA_JSON, SNAPSHOT_LINK)
