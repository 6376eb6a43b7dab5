"""Clones: writable copies of past trees in clones/, to be thrown away. Writes rows, no objects.

A clone is made of copied rows, in steps, in a folder that is not shown; when it is whole it moves
to clones/, in one transaction. Bytes are shared with the snapshot, and the first write to a file of
the clone makes an object file of its own. Deleting one moves its root back to that folder; what
lies there is taken apart in small steps, at the next start, too: so is a clone that was not
finished.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Final, NamedTuple

from statefs.content import displaced
from statefs.errors import CloneExists, NoSuchClone, NoSuchPath, PosixError, UsageError
from statefs.ids import CLONES_ROOT, DELETED_CLONES, LIVING, NOW, Epoch
from statefs.metadata.entries import living_entry
from statefs.metadata.inodes import InodeFlag, living_row
from statefs.metadata.temporal import ENTRIES, EXTENTS, INLINE, INODES, XATTRS
from statefs.metadata.xattrs import xattr
from statefs.snapshots.copies import Listed, TreeCopy, temporary_tables
from statefs.snapshots.reports import path_text
from statefs.snapshots.views import PastTree
from statefs.volume.names import NAME_MAX, RENAME_NOREPLACE
from statefs.volume.table import Node
from statefs.volume.volume import Volume

CLONE_OF: Final = b"user.statefs.clone-of"
"""On a clone's root folder: the name of the snapshot it was made of."""
CLONE_PATH: Final = b"user.statefs.clone-path"
"""Likewise: the folder of the snapshot, relative to it; empty for all of it."""
ENTRIES_PER_STEP: Final = 250
"""Entries of a clone deleted at a time: some milliseconds."""
ROOTS_PER_STEP: Final = 16
"""Clones that are taken apart side by side."""
_DELETED: Final = (
    f"SELECT ino FROM entries WHERE parent = {DELETED_CLONES} AND valid_to = {LIVING}"
    " AND ino != ? LIMIT ?"
)
THROW_AWAY: Final = b".statefs-check-"
"""How names of clones begin that are made for a check and deleted after it."""
_THROWN_AWAY: Final = (
    f"SELECT name FROM entries WHERE parent = {CLONES_ROOT} AND valid_to = {LIVING}"
    " AND name > ?1 AND name < ?2"
)
LISTED_MAX: Final = 100_000
"""Clones told of at once."""


class Clone(NamedTuple):
    """A clone in clones/: its name, the snapshot and the folder it was made of, and when.

    `snapshot` is None where somebody has taken the extended attribute away; `path` is empty then,
    and for all of the snapshot.
    """

    name: bytes
    snapshot: str | None
    path: bytes
    created_ns: int


class Origin(NamedTuple):
    """What a clone is made of: name and epoch of a snapshot, and the path of a folder in it."""

    snapshot: str
    epoch: Epoch
    path: bytes


def check_name(name: bytes) -> None:
    """Refuse what cannot be a folder's name.

    Raises:
        UsageError: it is empty, too long, has a slash or a NUL, or is a name of the folder itself.
    """
    if not name or len(name) > NAME_MAX or b"/" in name or b"\0" in name:
        raise UsageError("the name of a clone must have 1 to 255 bytes and no slash")
    if name in (b".", b".."):
        raise UsageError(f"a clone cannot be called '{name.decode()}': choose another name")


class Clones:
    """The clones of a store.

    `in_use` has the names of those that are thrown away when their work is done.

    Args:
        volume: the living tree, with what lies in clones/.
    """

    def __init__(self, volume: Volume) -> None:
        self._table = volume.table
        self._names = volume.names
        self._database = volume.table.database
        self.in_use: set[bytes] = set()
        self._waiting: list[int] = []
        self._unfinished = 0

    def top(self, name: bytes, tree: PastTree, path: bytes) -> int:
        """Return which inode of a snapshot is to become the clone `name`.

        Args:
            tree: of that snapshot.
            path: of the folder, relative to the tree.

        Raises:
            UsageError: the name, or the path is no folder. NoSuchPath. CloneExists.
        """
        check_name(name)
        if living_entry(self._database, CLONES_ROOT, name) is not None:
            raise CloneExists(f"a clone '{path_text(name)}' exists: delete it or take another name")
        return self._top(tree, path)

    def make(
        self, name: bytes, origin: Origin, what: Listed, limit: Callable[[], int]
    ) -> Generator[None, None, None]:
        """Copy what was listed of a snapshot to clones/`name`; after each step others may run.

        What stays when it is given up, `delete_some` takes apart.

        Args:
            origin: its snapshot is not deleted meanwhile.
            limit: says how many inodes the next step may copy.

        Raises:
            PosixError: the disk refused, or somebody has taken the name.
        """
        try:
            with temporary_tables(self._database):
                copy = TreeCopy(self._table, what, origin.epoch, is_clone=True)
                while not copy.is_done:
                    self._copy_some(copy, limit())
                    yield
            self._mark(copy.top, origin)
            hidden = b"%d" % copy.top
            self._names.rename(DELETED_CLONES, hidden, CLONES_ROOT, name, RENAME_NOREPLACE)
        finally:
            self._unfinished = 0

    def _copy_some(self, copy: TreeCopy, limit: int) -> None:
        """Copy some of a clone; with the first step its root gets a name in the hidden folder."""
        table = self._table
        folder = table.node(DELETED_CLONES)
        if copy.top:
            with table.change():
                copy.step(limit)
            return
        with table.change(folder):
            copy.step(limit)
            row = living_row(self._database, copy.top)
            assert row is not None
            root = Node(row)  # not kept: what is copied into it changes its row
            root.parent = DELETED_CLONES
            table.store(root)
            name = b"%d" % root.ino
            table.temporal.born(ENTRIES, DELETED_CLONES, name, root.ino, table.new_id())
            folder.nlink += 1
            table.store(folder)
        self._unfinished = copy.top

    def _mark(self, ino: int, origin: Origin) -> None:
        """Have a clone's root tell what it was made of, and when."""
        root = self._table.node(ino)
        with self._table.change(root):
            for key, value in ((CLONE_OF, origin.snapshot.encode()), (CLONE_PATH, origin.path)):
                if root.flags & InodeFlag.XATTRS and xattr(self._database, ino, key, NOW):
                    self._table.temporal.change(XATTRS, 0, (ino, key), (value,))
                else:
                    self._table.temporal.born(XATTRS, ino, key, value)
            root.flags |= InodeFlag.XATTRS
            root.btime_ns = root.ctime_ns = self._table.clock.now_ns()
            self._table.store(root)

    @staticmethod
    def _top(tree: PastTree, path: bytes) -> int:
        try:
            inode = tree.find(path)
        except PosixError:
            raise NoSuchPath(
                f"the snapshot has no '{path_text(path)}': name a folder, relative to current/"
            ) from None
        if not inode.is_dir:
            raise UsageError("only folders can be cloned: 'statefs cat' shows a file")
        return int(inode.ino)

    def listing(self) -> list[Clone]:
        """Return all clones, the oldest first."""
        found = []
        for _, name, node in self._names.listing(CLONES_ROOT, 0, LISTED_MAX):
            marks = [xattr(self._database, node.ino, key, NOW) for key in (CLONE_OF, CLONE_PATH)]
            snapshot, path = (None if mark is None else mark[0] for mark in marks)
            of = None if snapshot is None else snapshot.decode("utf-8", "replace")
            found.append(Clone(name, of, path or b"", node.btime_ns))
        return found

    def left_over(self) -> list[bytes]:
        """Return the names of clones that were to be thrown away and that nobody uses any more."""
        bounds = (THROW_AWAY, THROW_AWAY + b"\xff")
        names = [row[0] for row in self._database.rows(_THROWN_AWAY, bounds)]
        return [name for name in names if name not in self.in_use]

    def hide(self, name: bytes) -> None:
        """Take a clone out of clones/ for ever, in one transaction; its rows go by `delete_some`.

        Raises:
            NoSuchClone: none has that name. PosixError: the disk refused.
        """
        entry = living_entry(self._database, CLONES_ROOT, name)
        if entry is None:
            raise NoSuchClone(
                f"there is no clone '{path_text(name)}': 'statefs clone --list' shows them all"
            )
        self._names.rename(CLONES_ROOT, name, DELETED_CLONES, b"%d" % entry.ino)

    def copy_shared(self, epoch: Epoch, limit: int) -> bool:
        """Of a snapshot that is deleted: give clones some of the content that they share with it.

        Args:
            epoch: of the snapshot.
            limit: how many files.

        Returns:
            Whether there was any.

        Raises:
            PosixError: the disk refused; nothing has changed.
        """
        with self._table.change():
            return self._table.temporal.copy_shared(epoch, limit) > 0

    @property
    def is_deleting(self) -> bool:
        """Whether something is left of clones that were deleted, or not finished."""
        return bool(self._deleted())

    def _deleted(self) -> list[int]:
        """Return the roots of some clones to be taken apart: not of one that is being made."""
        return [row[0] for row in self._database.rows(_DELETED, (self._unfinished, ROOTS_PER_STEP))]

    def delete_some(self) -> bool:
        """Delete some of what is left of clones that were deleted; return whether there is more.

        Files that programs have open stay theirs until they are closed, as unlinked ones do.
        """
        for _ in range(ENTRIES_PER_STEP):
            if not self._waiting:
                self._waiting = self._deleted()
                if not self._waiting:
                    return False
            if self._empty_some(self._waiting[-1]):
                return True
        return True

    def _empty_some(self, folder: int) -> bool:
        """Delete files of a folder, or look into its folders first, or delete it when it is empty.

        Returns:
            Whether that was work enough for a step.
        """
        rows = self._names.listing(folder, 0, ENTRIES_PER_STEP)
        folders = [node.ino for _, _, node in rows if node.is_dir]
        files = [(name, node) for _, name, node in rows if not node.is_dir]
        if files:
            self._delete_files(folder, files)
            return True
        self._waiting += folders
        if not folders:
            self._waiting.pop()
            self._delete_folder(folder)
        return False

    def _delete_folder(self, folder: int) -> None:
        query = "SELECT parent, name FROM entries WHERE ino = ?"
        for parent, name in self._database.rows(query, (folder,)):
            self._names.rmdir(parent, name)

    def _delete_files(self, folder: int, files: list[tuple[bytes, Node]]) -> None:
        table = self._table
        plain = [node.ino for _, node in files if node.nlink == 1 and node.ino not in table.opens]
        gone = set(plain)
        with table.change():
            for life in (ENTRIES, INODES, XATTRS, INLINE):
                table.temporal.delete_cloned(life, plain)
            table.discard_objects(set(table.temporal.delete_cloned(EXTENTS, plain)))
            for ino in plain:
                self._database.execute("DELETE FROM dirty WHERE ino = ?", (ino,))
            displaced.forget(self._database, table.displaced.keys() & gone)
        for ino in plain:
            table.drop(ino)
            table.nodes.pop(ino, None)
        for name, node in files:
            if node.ino not in gone:
                self._names.unlink(folder, name)
