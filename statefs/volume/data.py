"""Content: reading, writing and truncating regular files.

Small content lies inline in the database, larger content in object files, copy-on-write: an
object is written only until a snapshot pins it. Bytes reach the object before the extent that
exposes them is committed. Size and times of a write that needs no new extent stay in memory
(`InodeTable.mark_stale`) behind a committed dirty mark, until `InodeTable.settle`.
"""

from __future__ import annotations

import errno
from typing import Final

from statefs.content import checks, displaced, rows
from statefs.content.checks import DamagedBytes
from statefs.content.extents import Extent, cut, is_covered, overlay, pieces
from statefs.content.objects import ORIGIN_PATH_MAX, Origin, blocks_of
from statefs.errors import PosixError
from statefs.ids import LIVING, NOW, ObjectId
from statefs.metadata.inodes import InodeFlag
from statefs.metadata.temporal import EXTENTS, INLINE
from statefs.volume.attributes import Attributes
from statefs.volume.table import InodeTable, Node

INLINE_MAX_BYTES: Final = 8192
"""The largest content kept in the database; to be measured (docs/on-disk-format.md)."""
NEVER_WRITTEN: Final = 0
"""The epoch of an object that is complete when it is made: it may be written in none."""
FILE_MAX_BYTES: Final = 1 << 44
"""The largest file, 16 TiB as on ext4; the sum of half a million such still fits 64 bits."""
EXTENTS_MANY: Final = 4096
"""A file of more extents than this is worth merging (maintenance/merging.py); reading the list of
so many takes some milliseconds."""
EXTENTS_COUNTED: Final = 64
"""Files of up to so many extents report the space their objects really take, others their size."""


_NAME: Final = (
    f"SELECT name FROM entries WHERE ino = ? AND valid_to = {LIVING} AND parent = ? LIMIT 1"
)


class FileData:
    """The content of living regular files."""

    def __init__(self, table: InodeTable, attributes: Attributes) -> None:
        self._table = table
        self._attributes = attributes
        self._database = table.database
        self._objects = table.objects

    def _content(self, node: Node) -> bytes:
        if node.data is None:
            found = checks.living_inline(self._database, node.ino) if node.size else b""
            if found is None or len(found) != node.size:
                raise DamagedBytes(node.ino, NOW, 0, node.size)
            node.data = found
        return node.data

    def extents(self, node: Node) -> list[Extent]:
        """Return where the content of a file in object files lies; not to be changed."""
        if node.extents is None:
            node.extents = rows.extents(self._database, node.ino, NOW)
        return node.extents

    def target(self, ino: int) -> bytes:
        """Return where a symbolic link leads. Raises PosixError EINVAL for anything else."""
        node = self._table.node(ino)
        if not node.is_symlink:
            raise PosixError(errno.EINVAL)
        return self._content(node)

    def plan_read(self, ino: int, offset: int, size: int) -> bytes | list[tuple[int, int, int]]:
        """Return the bytes when no object file is needed, else the pieces to read them from.

        Returns:
            Content bytes, or (start, end, object) ranges in order; object 0 stands for zeros.
        """
        node = self._table.node(ino)
        end = min(offset + size, node.size)
        if end <= offset:
            return b""
        if not node.flags & InodeFlag.EXTENTS:
            return self._content(node)[offset:end]
        return list(pieces(self.extents(node), offset, end))

    def write(self, ino: int, offset: int, data: bytes) -> Node:
        """Write all of `data` at `offset`.

        Raises:
            PosixError: EFBIG, ENOSPC, EDQUOT, EIO; what was acknowledged before stays.
        """
        node = self._table.node(ino)
        end = offset + len(data)
        if end > FILE_MAX_BYTES:
            raise PosixError(errno.EFBIG)
        if not data:
            return node
        if not node.flags & InodeFlag.EXTENTS:
            if end <= INLINE_MAX_BYTES and node.size <= INLINE_MAX_BYTES:
                self._write_inline(node, offset, data)
                return node
            self._promote(node)
        self._write_object(node, offset, data)
        return node

    def _write_inline(self, node: Node, offset: int, data: bytes) -> None:
        old = self._content(node) if offset or len(data) < node.size else b""
        if offset == len(old):
            new = old + data
        else:
            new = old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]
        table = self._table
        with table.change(node):
            self._put_inline(node, new)
            node.mtime_ns = node.ctime_ns = table.clock.now_ns()
            if Attributes.has_privileges(node):
                self._attributes.drop_privileges(node)
            table.store(node)
        node.data = new

    def _put_inline(self, node: Node, data: bytes) -> None:
        """Replace the inline content and size; inside a `Change` that stores the node."""
        table = self._table
        found = None
        if node.size:
            found = self._database.execute(
                f"SELECT valid_from FROM inline WHERE ino = ? AND valid_to = {LIVING}", (node.ino,)
            ).fetchone()
        if found is None:
            table.temporal.unshare([node.ino])
            if data:
                table.temporal.born(INLINE, node.ino, data)
        elif data:
            table.temporal.change(INLINE, found[0], (node.ino,), (data,))
        else:
            table.temporal.end(INLINE, found[0], node.ino)
        self._table.resize(node, len(data))
        node.blocks = blocks_of(len(data))

    def _promote(self, node: Node) -> None:
        """Move inline content to an object file.

        Content that is durable stays so: the object is synced before the commit that ends the
        inline row, as the log may reach the disk before the object's bytes. Once in a file's life.
        """
        data = self._content(node)
        table = self._table
        is_durable = self._database.is_commit_synced(node.born)
        made = 0
        try:
            with table.change(node):
                node.flags |= InodeFlag.EXTENTS
                node.extents = []
                if data:
                    made = self._new_object(node)
                    self._objects.write(made, data, 0)
                    if is_durable:
                        self._objects.sync(made)
                    whole = Extent(0, LIVING, made, table.epoch)
                    self._apply(node, *overlay(node.extents, whole))
                    table.temporal.end_all(INLINE, node.ino)
                table.store(node)
                table.mark_dirty(node)
        except BaseException:
            if made:
                self._objects.remove(made)
            raise
        node.data = None
        node.object = made
        node.is_marked = True
        table.mark_stale(node)
        self._note_unsynced(node, made)

    def _new_object(self, node: Node) -> int:
        """Make an object file for the current epoch; inside a `Change`."""
        number = ObjectId(self._table.new_id())
        self._database.execute(
            "INSERT INTO objects VALUES (?, ?, ?)", (number, node.ino, self._table.epoch)
        )
        self._objects.create(number, Origin(node.ino, self._table.epoch, self._path(node)))
        return number

    def _path(self, node: Node) -> bytes:
        """Return a path of a file below current/, or the end of it."""
        parts, length, ino, parent = [], 0, node.ino, node.parent
        while parent and length < ORIGIN_PATH_MAX:
            name = self._database.value(_NAME, (ino, parent))
            if name is None:
                break
            parts.append(name)
            length += len(name) + 1
            ino, parent = parent, self._table.node(parent).parent
        return b"/".join(reversed(parts))

    def current_object(self, node: Node) -> int:
        """Return the object file that may be written, or 0 when there is none yet.

        It is the one of this epoch. One that was frozen by a snapshot stays so after the
        snapshot's deletion: it may be longer than the file that refers to it.
        """
        if node.object < 0:
            found = self._database.value(
                "SELECT id FROM objects WHERE ino = ? AND epoch = ? ORDER BY id DESC",
                (node.ino, self._table.epoch),
            )
            node.object = found or 0
            if found:
                self._cut_leftover(node, found)
        return node.object

    def _cut_leftover(self, node: Node, number: int) -> None:
        """Cut what a write that failed or was never acknowledged left behind the file's end."""
        if self._objects.stat(number).st_size > node.size:
            self._objects.truncate(number, node.size)
            self._note_unsynced(node, number)

    def _apply(self, node: Node, removed: list[Extent], added: list[Extent]) -> None:
        """Write a change of extents into the rows; inside a `Change`."""
        temporal = self._table.temporal
        for old in removed:
            temporal.end(EXTENTS, old.valid_from, node.ino, old.start)
        for new in added:
            temporal.born(EXTENTS, node.ino, new.start, new.end, new.object)
        kept = {extent.object for extent in added}
        self._table.discard_objects(
            old.object
            for old in removed
            if old.object not in kept
            or (old.object != node.object and not temporal.pins(node.ino, old.valid_from))
        )

    def _note_unsynced(self, node: Node, number: int) -> None:
        if number:
            self._table.unsynced.setdefault(node.ino, set()).add(number)

    def _write_object(self, node: Node, offset: int, data: bytes) -> None:
        table = self._table
        number = self.current_object(node)
        end = offset + len(data)
        extents = self.extents(node)
        now = table.clock.now_ns()
        privileged = Attributes.has_privileges(node)
        if number and is_covered(extents, offset, LIVING if end > node.size else end, number):
            if not node.is_marked or privileged:
                with table.change(node):
                    if privileged:
                        self._attributes.drop_privileges(node)
                        table.store(node)
                    table.mark_dirty(node)
                node.is_marked = True
            self._pwrite(node, number, offset, data)
            self._grow(node, end, now)
            return
        self._write_new_range(node, number, offset, data)
        self._grow(node, end, now)

    def _pwrite(self, node: Node, number: int, offset: int, data: bytes) -> None:
        """Write into the current object; after a failure it is no longer than the file."""
        self._note_unsynced(node, number)
        try:
            self._objects.write(number, data, offset)
        except OSError:
            if offset + len(data) > node.size:
                self._objects.truncate(number, node.size)
            raise

    def _grow(self, node: Node, end: int, now: int) -> None:
        node.mtime_ns = node.ctime_ns = now
        if end > node.size:
            self._table.resize(node, end)
        node.reply = None
        self._table.mark_stale(node)

    def _write_new_range(self, node: Node, number: int, offset: int, data: bytes) -> None:
        """Write bytes that the current object does not hold yet, then the extent for them."""
        table = self._table
        end = offset + len(data)
        made = 0
        try:
            with table.change(node):
                if not number:
                    number = made = self._new_object(node)
                self._pwrite(node, number, offset, data)
                extents = self.extents(node)
                if offset > node.size:
                    self._close_tail(node, number)
                self._note_displaced(node, number, offset, end)
                until = LIVING if end >= node.size else end
                written = Extent(offset, until, number, table.epoch)
                self._apply(node, *overlay(extents, written))
                if Attributes.has_privileges(node):
                    self._attributes.drop_privileges(node)
                if end > node.size:
                    self._table.resize(node, end)
                node.mtime_ns = node.ctime_ns = table.clock.now_ns()
                table.store(node)
                if not node.is_marked:
                    table.mark_dirty(node)
        except BaseException:
            if made:
                self._objects.remove(made)
                self._table.unsynced.get(node.ino, set()).discard(made)
            raise
        node.object = number
        node.is_marked = True
        if len(extents) > EXTENTS_MANY:
            table.fragmented.setdefault(node.ino, (0, EXTENTS_MANY))

    def _note_displaced(self, node: Node, number: int, start: int, end: int) -> None:
        """Note what a range was that an object gets, whose bytes will not be durable for a while.

        Before the extents change, and inside a `Change`. What never was durable is not missed, and
        zeros only where the file ends: what was not written elsewhere reads as zeros, too.
        """
        if start >= node.size or not self._database.is_commit_synced(node.born):
            return
        end = min(end, node.size)
        before = [
            piece
            for piece in pieces(self.extents(node), start, end)
            if piece[2] != number and (piece[2] or end == node.size)
        ]
        if before:
            self._table.note_displaced(node.ino, number, before)

    def replace_extents(self, node: Node, start: int, end: int, number: ObjectId) -> None:
        """Have an object that nobody may write stand for a range, with the same bytes.

        Args:
            number: of an object that holds the range, durably; in `garbage` until now.
        """
        table = self._table
        with table.rearrangement(node):
            self._database.execute(
                "INSERT INTO objects VALUES (?, ?, ?)", (number, node.ino, NEVER_WRITTEN)
            )
            self._database.execute("DELETE FROM garbage WHERE object = ?", (number,))
            extents = self.extents(node)
            self._apply(node, *overlay(extents, Extent(start, end, number, table.epoch)))

    def _close_tail(self, node: Node, number: int) -> None:
        """Before a file grows: a frozen object holds no more of it than it did; in a `Change`.

        Args:
            number: the object of this epoch, which grows with the file.
        """
        extents = self.extents(node)
        if extents and extents[-1].end == LIVING and extents[-1].object != number:
            self._apply(node, *cut(extents, node.size, self._table.epoch))

    def truncate(self, ino: int, size: int) -> Node:
        """Make a file `size` bytes long; what is added reads as zeros.

        Raises:
            PosixError: EFBIG, EINVAL for a negative size, ENOSPC, EIO.
        """
        node = self._table.node(ino)
        if size < 0:
            raise PosixError(errno.EINVAL)
        if size > FILE_MAX_BYTES:
            raise PosixError(errno.EFBIG)
        if not node.flags & InodeFlag.EXTENTS:
            if size <= INLINE_MAX_BYTES:
                self._truncate_inline(node, size)
                return node
            self._promote(node)
        self._truncate_object(node, size)
        return node

    def _truncate_inline(self, node: Node, size: int) -> None:
        table = self._table
        new = (self._content(node)[:size] if size else b"").ljust(size, b"\0")
        with table.change(node):
            self._put_inline(node, new)
            self._changed_by_truncate(node)
        node.data = new

    def _changed_by_truncate(self, node: Node) -> None:
        node.mtime_ns = node.ctime_ns = self._table.clock.now_ns()
        if Attributes.has_privileges(node):
            self._attributes.drop_privileges(node)
        self._table.store(node)

    def _truncate_object(self, node: Node, size: int) -> None:
        """Cut or lengthen a file in object files.

        To cut, the rows come first and then the object: a crash between the two leaves a dirty
        mark, and recovery cuts the object. The rows of a file that may be durable are synced
        between the two, or a loss of power could leave the old size without the old bytes. To
        lengthen, the object comes first, as the host may refuse the size.
        """
        number = self.current_object(node)
        old_size = node.size
        if number and size >= old_size:
            self._objects.truncate(number, size)
            self._note_unsynced(node, number)
        try:
            number = self._truncate_rows(node, size, number)
        except BaseException:
            if number and size >= old_size:
                self._objects.truncate(number, old_size)
            raise
        node.object = number
        if size == 0:
            node.data, node.extents = b"", None
            return
        node.is_marked = True
        self._table.mark_stale(node)
        if number and size < old_size:
            node.object = -1  # what the disk refuses to cut now is cut before the next change
            if self._database.is_commit_synced(node.born):
                self._database.sync()
            self._objects.truncate(number, size)
            self._note_unsynced(node, number)
            node.object = number

    def _truncate_rows(self, node: Node, size: int, number: int) -> int:
        """Write what a truncation changes, and return this epoch's object if it is still used."""
        table = self._table
        with table.change(node):
            extents = self.extents(node)
            if size < node.size:
                self._apply(node, *cut(extents, size, table.epoch))
                if node.ino in table.displaced:
                    displaced.cut(self._database, node.ino, size)
            else:
                self._close_tail(node, number)
            if number and all(extent.object != number for extent in extents):
                self._database.execute("DELETE FROM objects WHERE id = ?", (number,))
                table.discard_objects([number])
                number = 0
            self._table.resize(node, size)
            if size == 0:
                node.flags &= ~InodeFlag.EXTENTS
                node.blocks = 0
            else:
                table.mark_dirty(node)
            self._changed_by_truncate(node)
        return number

    def blocks(self, node: Node) -> int:
        """Return the space a file takes, in blocks (content/objects.py)."""
        if not node.flags & InodeFlag.EXTENTS:
            return blocks_of(node.size)
        extents = self.extents(node)
        if len(extents) > EXTENTS_COUNTED:
            return blocks_of(node.size)
        mapped: dict[int, int] = {}
        for start, end, number in pieces(extents, 0, node.size):
            if number:
                mapped[number] = mapped.get(number, 0) + end - start
        return sum(
            min(blocks_of(size), self._objects.blocks(number)) for number, size in mapped.items()
        )

    def settle(self, nodes: list[Node]) -> None:
        """Write what is newer in memory than in the rows, with the space taken, in one commit."""
        for node in nodes:
            if node.is_stale:
                node.blocks = self.blocks(node)
        self._table.settle(nodes)
