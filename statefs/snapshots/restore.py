"""Making past rows current again: restores. Writes rows, no bytes.

What is to be done comes as a `Plan` (snapshots/restore_plan.py). The caller has just taken a
snapshot, so every living row is pinned: what is replaced stays as a row of the past.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from statefs.ids import LIVING
from statefs.metadata.entries import living_entry
from statefs.metadata.inodes import Inode, InodeFlag
from statefs.metadata.temporal import ENTRIES, EXTENTS, INLINE, XATTRS, RowLife
from statefs.snapshots.changes import InodeChange
from statefs.snapshots.copies import copy_shell, copy_tree
from statefs.snapshots.restore_plan import Key, Plan
from statefs.volume.table import InodeTable, Node


@dataclass
class Restored:
    """What the kernel may have cached and must ask for anew.

    Args:
        inodes: whose attributes, names or content changed.
        names: paths that lead to something else now, relative to current/, each with the inode of
            the folder that has the name.
        contents: files whose bytes may be others now, with a path of each.
        lost: files whose small content is damaged in the snapshot, and so is not there.
    """

    inodes: set[int] = field(default_factory=set)
    names: set[tuple[int, bytes]] = field(default_factory=set)
    contents: dict[int, bytes] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)


Refreshing = AbstractContextManager[Callable[[Restored], None]]
"""What has the kernel ask anew for what a restore changes: made before it, called after it."""


def refreshing_nothing() -> Refreshing:
    """Return what does nothing: no kernel has names or attributes of the store."""
    return nullcontext(lambda _restored: None)


def restore(table: InodeTable, plan: Plan) -> Restored:
    """Do what a plan says, in one transaction.

    Args:
        table: settled, and all its living rows pinned by a snapshot.
        plan: worked out in the same critical section.

    Raises:
        PosixError: the disk refused; nothing has changed.
    """
    return _Restore(table, plan).run()


class _Restore:
    """One restore under way.

    `nodes` are the inodes it touches, `links` how their nlink changes, `copies` the numbers that
    negative ones in the plan stand for.
    """

    def __init__(self, table: InodeTable, plan: Plan) -> None:
        self._table = table
        self._temporal = table.temporal
        self._database = table.database
        self._plan = plan
        self._now = table.clock.now_ns()
        self._copies: dict[int, int] = {}
        self._revived: dict[int, Node] = {}
        self._links: dict[int, int] = {}
        self._parents: dict[int, int] = {}
        self._touched: set[int] = set()
        self._ended: list[Node] = []
        self._lost: list[int] = []

    def run(self) -> Restored:
        plan, table = self._plan, self._table
        numbers = {*plan.gone.values(), *plan.restored, *(key[0] for key in plan.gone)}
        numbers.update(ino for ino, _ in plan.come.values() if ino > 0)
        numbers.update(key[0] for key in plan.come if key[0] > 0)
        orphans = {row[0] for row in self._database.rows("SELECT ino FROM orphans")}
        living = {
            ino: table.node(ino)
            for ino in sorted(numbers)
            if ino not in plan.restored or plan.restored[ino].after is not None
        }
        with table.change(*living.values()):
            self._revive_orphans(living, orphans)
            self._make_copies()
            self._restore_inodes(living)
            self._change_names()
            self._write_inodes(living)
        for node in living.values():
            node.reply = None
        for node in self._ended:
            table.drop(node.ino)
            if not table.is_open(node):
                table.nodes.pop(node.ino, None)
        for ino in self._revived:
            table.nodes.pop(ino, None)  # one without a name, that the kernel has not forgotten yet
        table.durability_generation += 1
        return Restored(numbers, plan.names, plan.rewritten, self._lost)

    def _revive_orphans(self, living: dict[int, Node], orphans: set[int]) -> None:
        """Let inodes that have no name now, and will have one, begin anew."""
        for ino in orphans & self._plan.restored.keys():
            self._table.erase_orphan(ino)
            self._table.drop(ino)
            self._table.nodes.pop(ino, None)
            living.pop(ino, None)

    def _make_copies(self) -> None:
        for ino in self._plan.trees:
            copy = copy_tree(self._table, ino, self._plan.epoch)
            self._copies[-ino] = copy.top
            self._lost += copy.lost
        for ino in self._plan.shells:
            self._copies[-ino] = copy_shell(self._table, ino, self._plan.epoch)

    def _restore_inodes(self, living: dict[int, Node]) -> None:
        """Give inodes the attributes and content they had; their rows are written at the end."""
        for ino, change in self._plan.restored.items():
            assert change.before is not None
            node = living.get(ino)
            if node is None:
                node = self._revived[ino] = Node(change.before.row())
                node.nlink = 2 if node.is_dir else 0
            else:
                self._table.resize(node, change.before.size)
                _take(node, change.before)
            for life in _lives(change):
                if not self._temporal.bring_back(life, ino, self._plan.epoch):
                    self._lost.append(ino)
            self._database.execute("DELETE FROM dirty WHERE ino = ?", (ino,))

    # Names.

    def _change_names(self) -> None:
        gone, come = self._plan.gone, self._resolved()
        self._touched = {parent for parent, _ in (*gone, *come)}
        for key, ino in gone.items():
            if key not in come:
                entry = living_entry(self._database, *key)
                assert entry is not None
                self._temporal.end(ENTRIES, entry.valid_from, *key)
            self._count_name(key, ino, -1)
        for key, (ino, cookie) in sorted(come.items()):
            entry = living_entry(self._database, *key)
            if entry is not None:
                self._temporal.change(ENTRIES, entry.valid_from, key, (ino, entry.cookie))
            else:
                self._temporal.born(ENTRIES, *key, ino, self._free_cookie(key[0], cookie))
            self._count_name(key, ino, 1)
            self._parents[ino] = key[0]

    def _resolved(self) -> dict[Key, tuple[int, int]]:
        """Return the names to come with the numbers that copies have got."""
        copies = self._copies
        return {
            (copies.get(parent, parent), name): (copies.get(ino, ino), cookie)
            for (parent, name), (ino, cookie) in self._plan.come.items()
        }

    def _free_cookie(self, parent: int, cookie: int) -> int:
        taken = self._database.value(
            f"SELECT 1 FROM entries WHERE parent = ? AND cookie = ? AND valid_to = {LIVING}",
            (parent, cookie),
        )
        return self._table.new_id() if taken else cookie

    def _count_name(self, key: Key, ino: int, sign: int) -> None:
        if self._is_folder(ino):
            self._links[key[0]] = self._links.get(key[0], 0) + sign
            self._links.setdefault(ino, 0)
        else:
            self._links[ino] = self._links.get(ino, 0) + sign
            self._links.setdefault(key[0], 0)
            if sign < 0 and self._table.node(ino).parent == key[0]:
                self._parents[ino] = 0  # which of its other names' folders it lies in is not known

    def _is_folder(self, ino: int) -> bool:
        node = self._revived.get(ino) or self._table.node(ino)
        return node.is_dir

    # Rows of inodes.

    def _write_inodes(self, living: dict[int, Node]) -> None:
        come = {ino for ino, _ in self._resolved().values()}
        gone = set(self._plan.gone.values())
        for ino, node in self._revived.items():
            self._settle(node, ino)
            self._table.insert(node)
            if node.is_file:
                self._table.count(ino, 1, node.size)
        for ino in sorted(self._links.keys() | self._plan.restored.keys()):
            if ino in self._revived:
                continue
            node = living.get(ino) or self._table.node(ino)
            self._settle(node, ino)
            has_lost_all = not node.nlink or (node.is_dir and ino in gone and ino not in come)
            if has_lost_all:
                node.nlink = 0
                self._table.abandon(node)
                self._ended.append(node)
            else:
                self._table.store(node)

    def _settle(self, node: Node, ino: int) -> None:
        """Bring links, parent and times of an inode up to date."""
        node.nlink += self._links.get(ino, 0)
        node.ctime_ns = self._now
        if ino in self._parents:
            node.parent = self._parents[ino]
        if ino in self._touched and not (ino in self._plan.restored or ino in self._plan.kept):
            node.mtime_ns = self._now


def _lives(change: InodeChange) -> Iterator[RowLife]:
    """Yield where there are rows of an inode, besides its own, at one of two moments."""
    flags = [each.flags for each in (change.before, change.after) if each is not None]
    if any(each & InodeFlag.XATTRS for each in flags):
        yield XATTRS
    if any(each & InodeFlag.EXTENTS for each in flags):
        yield EXTENTS
    if not all(each & InodeFlag.EXTENTS for each in flags):
        yield INLINE


def _take(node: Node, before: Inode) -> None:
    """Give a living node what an earlier version of it had, but for names and what follows them."""
    kept = node.valid_from, node.nlink, node.parent
    node.load(before.row())
    node.valid_from, node.nlink, node.parent = kept
    node.forget_content()
    node.durability = None
    node.is_stale = node.is_marked = False
