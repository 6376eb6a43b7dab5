"""The inodes in use, their rows, and the one way to change them.

A `Node` is a living inode in memory. Its attributes are those of its row, except that size and
times of a file being written may be newer than the row (`is_stale`); the table `dirty` says so to
a later process. A `Change` is a transaction: what its block does to nodes and rows happens
altogether or, when it raises, not at all.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final

from statefs.clock import Clock
from statefs.content import displaced
from statefs.content.checks import ContentChecks
from statefs.content.extents import Extent
from statefs.content.objects import ObjectFiles
from statefs.errors import PosixError
from statefs.ids import CLONE_BIT, Epoch, in_clones
from statefs.metadata.connection import REFUSALS, Database
from statefs.metadata.inodes import Inode, InodeFlag, living_row
from statefs.metadata.temporal import EXTENTS, INLINE, INODES, XATTRS, Temporal
from statefs.volume.underway import Underway

EXTENTS_KEPT: Final = 64
"""Extents that a file which nobody has open may keep in memory; more are read again."""
REAPED_PER_STEP: Final = 100
"""Orphans destroyed in one transaction: some milliseconds."""
NODES_CACHED: Final = 32_768
"""Living inodes kept in memory, about 1 KB each."""
TOUCHED_MAX: Final = 1024
"""Changed inodes that are noted in an epoch; when there are more, it is enough to know that."""
IDS_RESERVED: Final = 4096
"""Numbers set aside at a time: the most that a crash leaves unused."""


class Node(Inode):
    """A living inode in memory.

    Beyond the row: `extents` and `object` (the object file of this epoch, 0 for none) once they
    were needed, `data` the inline content likewise, `born` and `changed` the numbers of the commits
    that made it (0 for an earlier process) and last touched it, `is_marked` whether the table
    `dirty` has it, `reply` a place where the layer above keeps what it made of the attributes
    (cleared when they change).
    """

    __slots__ = (
        "born",
        "changed",
        "data",
        "durability",
        "extents",
        "is_marked",
        "is_stale",
        "object",
        "reply",
    )

    def __init__(self, row: tuple[Any, ...]) -> None:
        super().__init__(row)
        self.born = 0
        self.changed = 0
        self.data: bytes | None = None
        self.durability: tuple[int, str] | None = None
        self.extents: list[Extent] | None = None
        self.object = -1
        self.is_stale = False
        self.is_marked = False
        self.reply: Any = None

    def forget_content(self) -> None:
        """Drop what is remembered of the content, to be read again when it is needed."""
        self.extents = None
        self.data = None
        self.object = -1


class InodeTable:
    """All living inodes of a store: reading, caching, numbering and changing them.

    Args:
        database: the store's database.
        objects: the store's object files.
        clock: where times come from.
        follows_another: an earlier process served the mount, which goes on. Programs may have open
            whatever existed then: of such files it is known that they are closed only when the
            kernel drops them (`forget`).

    `replaced` has files whose name has just gone to another one: whoever looked the name up before
    that may be about to open them. `reap_closed` lets go of them.

    `checks` knows which content has been compared with its digests.

    `underway` is told of each change of a name before it is committed.

    `fragmented` has the files of many extents, with the epoch in which they were last merged and
    the number of extents from which that is worth it again.

    `unsynced` has the objects of files that bytes were written to and that may not be durable,
    `displaced` the ranges, (object, start), of files of which it is noted what such bytes took the
    place of, each with the value that `noted`, a count of them, had then.

    `touched` has inodes changed in this epoch, as far as this process knows, up to TOUCHED_MAX.
    `files` and `bytes` are those of current/: clones are left out of them and of `touched`.
    """

    def __init__(
        self, database: Database, objects: ObjectFiles, clock: Clock, follows_another: bool = False
    ) -> None:
        self.database = database
        self.objects = objects
        self.checks = ContentChecks(objects, database)
        self.clock = clock
        self.underway = Underway()
        self.temporal = Temporal.of(database)
        self.nodes: dict[int, Node] = {}
        self.stale: set[int] = set()
        self.unsynced: dict[int, set[int]] = {}
        self.displaced: dict[int, dict[tuple[int, int], int]] = {}
        self.noted = 0
        self.opens: dict[int, int] = {}
        self.replaced: set[int] = set()
        self._replaced_before: set[int] = set()
        self.fragmented: dict[int, tuple[int, int]] = {}
        self.files = int(database.store_value("files"))
        self.bytes = int(database.store_value("bytes"))
        self.touched: set[int] = set()
        self.durability_generation = 0
        self._next_id = int(database.store_value("next_id"))
        self._reserved_until = self._next_id
        self._known_from = self._next_id if follows_another else 0

    @property
    def epoch(self) -> Epoch:
        """The current epoch."""
        return self.temporal.epoch

    def enter_next_epoch(self) -> None:
        """After the commit that ended the epoch: no object file may be written in place."""
        self.temporal.enter_next_epoch()
        self.touched.clear()
        for node in self.nodes.values():
            node.object = 0

    def unpin(self, epoch: Epoch) -> None:
        """The newest snapshot is now that of `epoch`: what came later may change in place."""
        if epoch < self.temporal.pinned:
            self.temporal.pinned = epoch
            for node in self.nodes.values():
                node.object = -1

    @property
    def next_id(self) -> int:
        """The next number `new_id` returns: everything existing has a lower one."""
        return self._next_id

    def new_id(self) -> int:
        """Return a number never used before, for an inode, an entry or an object file.

        Must be called inside a `Change`, which makes a new reservation durable with it.
        """
        return self.reserve(1)

    def new_ino(self, folder: int) -> int:
        """Return a new number for an inode in a folder; as `new_id`."""
        return self.new_id() | folder & CLONE_BIT

    def count(self, ino: int, files: int, size: int) -> None:
        """Count what a regular file that has a name adds to current/; inside a `Change`."""
        if ino < CLONE_BIT:
            self.files += files
            self.bytes += size

    def reserve(self, count: int) -> int:
        """Hand out the next `count` numbers at once, and return the first; inside a `Change`."""
        first = self._next_id
        self._next_id += count
        if self._next_id > self._reserved_until:
            self._reserved_until = self._next_id + IDS_RESERVED
            self.database.set_store_value("next_id", self._reserved_until)
        return first

    def reserve_again(self) -> None:
        """After a rolled back transaction: its reservation of numbers does not hold."""
        self._reserved_until = self._next_id

    def node(self, ino: int) -> Node:
        """Return the living inode `ino`.

        Raises:
            PosixError: ESTALE when there is none.
        """
        node = self.nodes.get(ino)
        if node is None:
            row = living_row(self.database, ino)
            if row is None:
                raise PosixError(errno.ESTALE)
            node = self.remember(Node(row))
            node.changed = self.database.commits
        return node

    def remember(self, node: Node) -> Node:
        """Keep a node in memory, making room when there are too many."""
        if len(self.nodes) >= NODES_CACHED:
            self._make_room()
        self.nodes[node.ino] = node
        return node

    def _make_room(self) -> None:
        surplus = NODES_CACHED // 4
        idle = [
            ino
            for ino, node in self.nodes.items()
            if not (node.is_stale or node.is_marked or node.nlink == 0)
            and ino not in self.unsynced
            and ino not in self.displaced
        ][:surplus]
        for ino in idle:
            del self.nodes[ino]

    def forget(self, ino: int) -> None:
        """The kernel dropped an inode: nothing without a name needs to be kept for it."""
        if self._may_be_open_since_before(ino) and ino not in self.opens:
            self.reap(ino)
        node = self.nodes.get(ino)
        if node is not None and node.nlink == 0 and ino not in self.opens:
            del self.nodes[ino]

    def change(self, *nodes: Node) -> Change:
        """Return a transaction that may change `nodes`."""
        return Change(self, nodes)

    def rearrangement(self, *nodes: Node) -> Change:
        """Return a transaction that changes where the content of `nodes` lies, not what it is."""
        return Change(self, nodes, is_shown=False)

    def store(self, node: Node) -> None:
        """Write the attributes of a node into its row; inside a `Change`."""
        row = node.row()
        self.temporal.change(INODES, node.valid_from, (node.ino,), row[2:])
        node.valid_from = self.temporal.epoch

    def insert(self, node: Node) -> None:
        """Write a new node's row; inside a `Change`."""
        row = node.row()
        self.temporal.born(INODES, node.ino, *row[2:])

    def mark_stale(self, node: Node) -> None:
        """Note in memory that size or times are newer than the row."""
        if not node.is_stale:
            node.is_stale = True
            self.stale.add(node.ino)

    def mark_dirty(self, node: Node) -> None:
        """Tell a later process that size and times may be newer than the row; in a `Change`."""
        self.database.execute("INSERT OR IGNORE INTO dirty VALUES (?)", (node.ino,))

    def settle(self, nodes: Iterable[Node]) -> None:
        """Write size and times of stale nodes into their rows, in one transaction.

        A file whose bytes are not durable keeps its dirty mark, or after a loss of power nobody
        would know that its object may be short, or missing; it is settled once more then. Nor is it
        forgotten what those bytes took the place of.
        """
        nodes = list(nodes)
        owing = {node.ino for node in nodes if self._owes_bytes(node.ino)}
        stale = [node for node in nodes if node.is_stale or node.is_marked]
        paid = [node for node in stale if node.ino not in owing]
        durable = [each for each in nodes if each.ino in self.displaced and each.ino not in owing]
        if not (stale or durable):
            return
        with self.change(*stale):
            self.store_stale(paid)
            for node in stale:
                if node.ino in owing:
                    self.store(node)
            displaced.forget(self.database, [node.ino for node in durable])
        self.settled(paid)
        for node in durable:
            node.changed = self.database.commits  # fsync waits for the log to tell so, too
            del self.displaced[node.ino]

    def _owes_bytes(self, ino: int) -> bool:
        """Whether some bytes of a file are not durable."""
        return not all(map(self.objects.is_synced, self.unsynced.get(ino, ())))

    def note_displaced(self, ino: int, number: int, before: Sequence[tuple[int, int, int]]) -> None:
        """Note what ranges of a file were before bytes in an object; inside a `Change`.

        Args:
            number: of the object.
            before: (start, end, object); object 0 stands for zeros.
        """
        displaced.note(self.database, ino, number, before)
        self.noted += 1
        ranges = self.displaced.setdefault(ino, {})
        for start, _, _ in before:  # anew where it was noted for a write that was refused
            ranges[number, start] = self.noted

    def forget_displaced(self, ino: int, noted: int) -> None:
        """Forget what bytes of a file took the place of, now that they are durable.

        Args:
            noted: what `self.noted` was before the sync: what was written during it is owed still.
        """
        ranges = self.displaced.get(ino, {})
        durable = [each for each, number in ranges.items() if number <= noted]
        if not durable:
            return
        node = self.nodes.get(ino)
        with self.rearrangement(*([] if node is None else [node])):
            if len(durable) == len(ranges):
                displaced.forget(self.database, [ino])
            else:
                displaced.forget_ranges(self.database, ino, durable)
        for each in durable:
            del ranges[each]
        if not ranges:
            del self.displaced[ino]

    def forget_displaced_epoch(self, epoch: Epoch) -> None:
        """Forget what was displaced until the end of an epoch, as its bytes are durable.

        In the transaction that tells so; what is noted in memory beyond that is harmless.
        """
        if self.displaced:
            displaced.forget_epoch(self.database, epoch)

    def store_stale(self, nodes: Iterable[Node]) -> None:
        """Write stale nodes' rows and take their dirty marks away; inside a `Change`."""
        for node in nodes:
            self.store(node)
            self.database.execute("DELETE FROM dirty WHERE ino = ?", (node.ino,))

    def settled(self, nodes: Iterable[Node]) -> None:
        """After the commit of `store_stale`: note that rows and memory agree."""
        for node in nodes:
            node.is_stale = node.is_marked = False
            self.stale.discard(node.ino)

    def stale_nodes(self) -> list[Node]:
        """Return the nodes whose rows are behind."""
        return [self.nodes[ino] for ino in self.stale if ino in self.nodes]

    def unsettled_nodes(self) -> list[Node]:
        """Return those, and the nodes of which it is noted what bytes took the place of."""
        return [self.nodes[ino] for ino in self.stale | self.displaced.keys() if ino in self.nodes]

    def discard_objects(self, objects: Iterable[int]) -> None:
        """Have gc look at object files that lost a reference; inside a `Change`."""
        for number in objects:
            self.database.execute("INSERT OR IGNORE INTO garbage VALUES (?)", (number,))

    def destroy(self, node: Node) -> None:
        """End everything that belongs to an inode without a name; inside a `Change`."""
        ino = node.ino
        self.temporal.end(INODES, node.valid_from, ino)
        if node.flags & InodeFlag.XATTRS:
            self.temporal.end_all(XATTRS, ino)
        if node.flags & InodeFlag.EXTENTS:
            self.discard_objects(set(self.temporal.end_all(EXTENTS, ino)))
        elif node.size:
            self.temporal.end_all(INLINE, ino)
        if node.is_marked:
            self.database.execute("DELETE FROM dirty WHERE ino = ?", (ino,))
        displaced.forget(self.database, {ino} & self.displaced.keys())

    def resize(self, node: Node, size: int) -> None:
        """Give a node another size; inside a `Change` that stores it."""
        if node.nlink:
            self.count(node.ino, 0, size - node.size)
        node.size = size

    def abandon(self, node: Node) -> None:
        """Destroy a node that lost its last name, once nobody has it open; inside a `Change`."""
        if node.is_file:
            self.count(node.ino, -1, -node.size)
        if self.is_open(node):
            self.make_orphan(node)
        else:
            self.destroy(node)

    def make_orphan(self, node: Node) -> None:
        """Keep an inode that lost its last name while it is open; inside a `Change`."""
        self.store(node)
        self.database.execute(
            "INSERT OR REPLACE INTO orphans VALUES (?, ?)", (node.ino, self.temporal.epoch)
        )

    def is_open(self, node: Node) -> bool:
        """Whether a program may have the inode open, or be about to."""
        return not self._is_closed(node.ino)

    def _is_closed(self, ino: int) -> bool:
        return not (
            ino in self.opens
            or ino in self.replaced
            or ino in self._replaced_before
            or self._may_be_open_since_before(ino)
        )

    def _may_be_open_since_before(self, ino: int) -> bool:
        """Whether an earlier process may have opened an inode for a program that still has it."""
        return ino & ~CLONE_BIT < self._known_from

    def opened(self, ino: int) -> None:
        """Count one more open descriptor of an inode."""
        self.opens[ino] = self.opens.get(ino, 0) + 1

    def closed(self, ino: int) -> None:
        """Count one open descriptor less; an orphan that was the last one's goes."""
        left = self.opens.get(ino, 0) - 1
        if left > 0:
            self.opens[ino] = left
            return
        self.opens.pop(ino, None)
        node = self.nodes.get(ino)
        if node is None:
            return
        node.data = None  # the kernel's cache serves readers; all files' contents are too much
        if node.extents is not None and len(node.extents) > EXTENTS_KEPT:
            node.extents = None
        if node.nlink == 0 and not self.is_open(node):
            self.reap(ino)

    def forget_replaced(self) -> None:
        """Let go of what was replaced before the last time that this was called."""
        self._replaced_before, self.replaced = self.replaced, set()

    def reap_closed(self) -> bool:
        """Destroy some of the orphans that nobody has open: replaced files, or a full disk's.

        Returns:
            Whether there are more.
        """
        orphans = self.database.execute("SELECT ino FROM orphans")
        found = (ino for (ino,) in orphans if self._is_closed(ino))
        closed = list(islice(found, REAPED_PER_STEP))
        has_more = next(found, None) is not None
        orphans.close()
        if closed:
            self._reap(closed)
        return has_more

    def reap(self, ino: int) -> None:
        """Destroy an orphan that nobody has open any more."""
        if self.database.value("SELECT 1 FROM orphans WHERE ino = ?", (ino,)) is None:
            return
        self._reap([ino])

    def _reap(self, orphans: Sequence[int]) -> None:
        with self.change():
            for ino in orphans:
                self.erase_orphan(ino)
        for ino in orphans:
            self.nodes.pop(ino, None)
            self.drop(ino)

    def erase_orphan(self, ino: int) -> None:
        """End all that an orphan is and has as of when it lost its name; inside a `Change`."""
        self.discard_objects(self.temporal.erase_orphan(ino))

    def drop(self, ino: int) -> None:
        """Forget that an inode that is gone had anything to write or to sync."""
        node = self.nodes.get(ino)
        if node is not None:
            node.is_stale = node.is_marked = False
        self.stale.discard(ino)
        self.displaced.pop(ino, None)
        self.unsynced.pop(ino, None)


class Change:
    """One transaction over some nodes: all of its block happens, or none of it."""

    __slots__ = ("_is_shown", "_nodes", "_saved", "_table", "_totals")

    def __init__(self, table: InodeTable, nodes: tuple[Node, ...], is_shown: bool = True) -> None:
        self._table = table
        self._nodes = nodes
        self._is_shown = is_shown

    def __enter__(self) -> None:
        table = self._table
        table.database.begin()
        self._saved = [node.row() for node in self._nodes]
        self._totals = (table.files, table.bytes)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        table = self._table
        if error is None:
            try:
                table.database.commit()
            except BaseException:
                self._undo()
                raise
            number, touched = table.database.commits, table.touched
            for node in self._nodes:
                node.changed = number
                node.reply = None
                if self._is_shown and len(touched) < TOUCHED_MAX and not in_clones(node.ino):
                    touched.add(node.ino)
            return
        self._undo()
        if isinstance(error, REFUSALS):
            raise PosixError(table.database.errno_of(error)) from error

    def _undo(self) -> None:
        table = self._table
        table.database.roll_back()
        for node, row in zip(self._nodes, self._saved, strict=True):
            node.load(row)
            node.forget_content()
            node.reply = None
        table.files, table.bytes = self._totals
        table.reserve_again()
