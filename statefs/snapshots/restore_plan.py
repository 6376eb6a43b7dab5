"""Making a snapshot's tree, or some paths of it, current again: what is to be done, from rows.

Nothing is copied and nothing is walked that did not change: the work is O(what differs) between the
snapshot and now (snapshots/changes.py). A `Scope` says which paths are to be as they were; what
lies outside it, runtime/ always, is never touched. For each inode that differs:

* Its names in the scope become those it had.
* If it had any there, it becomes what it was: attributes, extended attributes, content.
* If it lives on outside the scope and is another now than it was, a copy of what it was comes into
  the scope, with a number of its own, and the one outside stays as it is. So does what has moved
  out of the scope, a folder with everything that it held.
* A hard link between the scope and the rest, to a file that is what it was, is one again.

This module reads; snapshots/restore.py writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from statefs.errors import NoSuchPath, PosixError, UsageError
from statefs.ids import INO_MASK, TREE_ROOT, Epoch
from statefs.layout import RUNTIME
from statefs.metadata.connection import Queries
from statefs.metadata.inodes import Inode
from statefs.snapshots.changes import (
    InodeChange,
    changes,
    content_of,
    names_of,
    xattrs_of,
)
from statefs.snapshots.reports import path_text
from statefs.snapshots.views import PastTree

Key = tuple[int, bytes]
"""A name in a folder: the folder's inode number, and the name."""
PROGRESS_INODES: Final = 500
"""Progress is told after so many inodes: some hundredths of a second."""
_COMPARED: Final = ("mode", "uid", "gid", "rdev", "size", "mtime_ns", "btime_ns")
"""Attributes in which a file must not differ to be the same file as it was."""


@dataclass(frozen=True)
class Scope:
    """The paths that are to be as they were; runtime/ is never among them.

    Args:
        paths: relative to current/, without slashes at their ends; None for everything.
        alone: folders that are in it without what they hold, where they still are what they were.
        may_be_missing: whether a path that the snapshot does not have is to be removed, instead of
            being refused.
    """

    paths: frozenset[bytes] | None = None
    alone: frozenset[bytes] = frozenset()
    may_be_missing: bool = False

    def holds(self, path: bytes) -> bool:
        """Return whether a path lies in the scope; the root's is b""."""
        if path == RUNTIME or path.startswith(RUNTIME + b"/"):
            return False
        if self.paths is None or path in self.alone:
            return True
        return _is_at_or_below(path, self.paths)


def _is_at_or_below(path: bytes, tops: Collection[bytes]) -> bool:
    while path not in tops:
        path, slash, _ = path.rpartition(b"/")
        if not slash:
            return False
    return True


def _moved_along(found: list[InodeChange], tops: dict[bytes, Inode]) -> list[InodeChange]:
    """Return files a scope names that did not change themselves; a folder above may have moved."""
    known = {change.ino for change in found}
    files = {
        inode.ino: inode for inode in tops.values() if not inode.is_dir and inode.ino not in known
    }
    return [InodeChange(ino, inode, inode) for ino, inode in files.items()]


def parsed_paths(words: Iterable[str]) -> frozenset[bytes] | None:
    """Return paths as a `Scope` has them; `current/` in front is understood.

    Raises:
        UsageError: one is empty, leads out of current/, or into runtime/.
    """
    found = []
    for word in words:
        if not word:
            raise UsageError("a path is empty: name it relative to current/, '.' for all of it")
        parts = word.encode("utf-8", "surrogateescape").split(b"/")
        parts = [part for part in parts if part not in (b"", b".")]
        if b".." in parts:
            raise UsageError(f"'{word}' must not hold '..': name it relative to current/")
        if parts[:1] == [b"current"]:
            del parts[0]
        if parts[:1] == [RUNTIME]:
            raise UsageError("runtime/ is in no snapshot: it cannot be restored")
        if not parts:
            return None
        found.append(b"/".join(parts))
    return frozenset(found) or None


def quoted(path: bytes) -> str:
    """Return a path as text that any document can hold, and that `unquoted` understands."""
    text = path.decode("utf-8", "surrogateescape").replace("\\", "\\\\")
    return _NOT_UTF8.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", text)


def unquoted(text: str) -> str:
    """Return what `quoted` was given, as a word of a command line."""
    return _QUOTED.sub(lambda found: _meant(found[1]), text)


_NOT_UTF8: Final = re.compile("[\udc80-\udcff]")
_QUOTED: Final = re.compile(r"\\(\\|x[89a-f][0-9a-f])")


def _meant(escape: str) -> str:
    return escape if escape == "\\" else chr(0xDC00 + int(escape[1:], 16))


REMOVED: Final = "removed"
RETURNED: Final = "returned"
CHANGED: Final = "changed"


@dataclass
class Plan:
    """What a restore does, in numbers of the store.

    A negative number stands for the copy of the inode with that number, which is still to be made.

    Args:
        epoch: the snapshot's.
        gone: names to be removed, with the inode each leads to now.
        come: names to be made, with inode and cookie.
        restored: inodes that become what they were.
        trees: folders and files to be copied as they were, folders with all they held.
        shells: folders to be copied without what they held.
        kept: folders in which names change, and which are what they were all the same.
        paths: every path that leads to something else, or to something changed, afterwards, and
            what becomes of it: REMOVED, RETURNED or CHANGED.
        names: the folder and the path of each name that leads to something else, but for those
            below a folder that goes.
        rewritten: files of `restored` whose bytes may be others, with a path of each.
    """

    epoch: Epoch
    gone: dict[Key, int] = field(default_factory=dict)
    come: dict[Key, tuple[int, int]] = field(default_factory=dict)
    restored: dict[int, InodeChange] = field(default_factory=dict)
    trees: list[int] = field(default_factory=list)
    shells: list[int] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    paths: dict[bytes, str] = field(default_factory=dict)
    names: set[tuple[int, bytes]] = field(default_factory=set)
    rewritten: dict[int, bytes] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether the tree is as it is to be."""
        return not (self.gone or self.come or self.restored)

    def note(self, path: bytes, what: str, folder: int | None = None) -> None:
        """Note what becomes of a path; one that goes and comes is changed.

        Args:
            folder: where the name leads to something else: the folder that has it.
        """
        before = self.paths.setdefault(path, what)
        if before != what:
            self.paths[path] = CHANGED
        if folder is not None:
            self.names.add((folder, path))


class Planner:
    """Works out a plan.

    Args:
        database: settled.
        snapshot: the moment to go back to.
        now: the present.
        scope: what is to be as it was.
    """

    def __init__(self, database: Queries, snapshot: Epoch, now: Epoch, scope: Scope) -> None:
        self._database = database
        self._snapshot = snapshot
        self._now = now
        self._scope = scope
        self._then_tree = PastTree(database, snapshot)
        self._now_tree = PastTree(database, now)
        self._folder_paths: dict[tuple[int, int], bytes | None] = {}
        self._copied_paths: set[bytes] = set()

    def plan(self, on_progress: Callable[[int, int], None] | None = None) -> Plan:
        """Return what is to be done.

        Args:
            on_progress: told now and then of how many inodes it knows what becomes of them, and of
                how many there are; may raise to give up.

        Raises:
            NoSuchPath: a path of the scope is not in the snapshot.
            UsageError: a file is in the way of it.
        """
        plan = Plan(self._snapshot)
        alone = {path for path in self._scope.alone if self.is_same_folder(path)}
        self._scope = replace(self._scope, alone=frozenset(alone))
        paths = self._scope.paths or frozenset()
        had = {path: self._inode_then(path) for path in sorted(paths)}
        tops = {path: inode for path, inode in had.items() if inode is not None}
        found = list(changes(self._database, self._snapshot, self._now))
        self._plan_copies(plan, found, tops)
        found += _moved_along(found, tops)
        for number, change in enumerate(found):
            if on_progress is not None and number % PROGRESS_INODES == 0:
                on_progress(number, len(found))
            self._plan_inode(plan, change)
        for path in tops:
            if not _is_at_or_below(path.rpartition(b"/")[0], paths):
                self._make_way(plan, path)
        for folder, _ in (*plan.gone, *plan.come):
            path_then = self._folder_path(self._then_tree, folder)
            if path_then is not None and self._scope.holds(path_then):
                plan.kept.add(folder)
        return plan

    def is_same_folder(self, path: bytes) -> bool:
        """Return whether a path leads to one and the same folder then and now."""
        try:
            then, now = (tree.find(path) for tree in (self._then_tree, self._now_tree))
        except PosixError:
            return False
        return then.is_dir and then.ino == now.ino

    # What has left the scope.

    def _plan_copies(self, plan: Plan, found: list[InodeChange], tops: dict[bytes, Inode]) -> None:
        """Find folders that live on outside the scope: they come back as copies."""
        left = {path: inode.ino for path, inode in tops.items() if inode.is_dir}
        for change in found:
            if change.before is not None and change.before.is_dir and change.ino != TREE_ROOT:
                where = self._folder_path(self._then_tree, change.ino)
                if where is not None and self._scope.holds(where):
                    left[where] = change.ino
        for path, ino in sorted(left.items()):
            now = self._names(self._now_tree, ino).values()
            if self._is_copied(path) or not now or any(self._scope.holds(p) for _, p in now):
                continue
            self._copied_paths.add(path)
            folder, _, name = path.rpartition(b"/")
            key = (self._folder_then(folder), name)
            plan.come[key] = (-ino, names_of(self._database, ino, self._snapshot)[key])
            plan.trees.append(ino)
            plan.note(path, RETURNED, key[0])

    def _has_left(self, ino: int, now: dict[Key, tuple[int, bytes]]) -> bool:
        """Whether an inode has only names that have come to lie outside the scope since."""
        had, holds = self._names(self._then_tree, ino), self._scope.holds
        stayed = {key for key, (_, path) in had.items() if not holds(path)}
        return not any(key in stayed or holds(path) for key, (_, path) in now.items())

    def _inode_then(self, path: bytes) -> Inode | None:
        """Return what a path of the scope led to; None where it may be missing, and is."""
        try:
            return self._then_tree.find(path)
        except PosixError:
            if self._scope.may_be_missing:
                return None
            raise NoSuchPath(
                f"'{path_text(path)}' is not in the snapshot: name what is, relative to current/,"
                " for example files/a.json"
            ) from None

    def _folder_then(self, path: bytes) -> int:
        return int(self._then_tree.find(path).ino)

    def _is_copied(self, path: bytes) -> bool:
        return _is_at_or_below(path, self._copied_paths)

    # Names and their paths.

    def _folder_path(self, tree: PastTree, folder: int) -> bytes | None:
        """Return the path of a folder in a tree, None when it has none there."""
        key = (tree.epoch, folder)
        if key not in self._folder_paths:
            paths = tree.paths(folder)
            self._folder_paths[key] = paths[0] if paths else None
        return self._folder_paths[key]

    def _names(self, tree: PastTree, ino: int) -> dict[Key, tuple[int, bytes]]:
        """Return (folder, name) -> (cookie, path) of an inode; names in runtime/ have it, too."""
        found = {}
        for (parent, name), cookie in names_of(self._database, ino, tree.epoch).items():
            folder = self._folder_path(tree, parent)
            # A folder below runtime/ has no path in these trees.
            path = RUNTIME + b"/" if folder is None else folder + b"/" + name if folder else name
            found[parent, name] = (cookie, path)
        return found

    # What becomes of each inode.

    def _plan_inode(self, plan: Plan, change: InodeChange) -> None:
        if change.ino == TREE_ROOT:
            if self._scope.holds(b"") and self._differs(change):
                plan.restored[TREE_ROOT] = change
                plan.note(b"", CHANGED)
            return
        holds = self._scope.holds
        then = self._names_to_have(change.ino)
        now = self._names(self._now_tree, change.ino)
        inside = {key: path for key, (_, path) in now.items() if holds(path)}
        if not then and not inside:
            return
        is_outside = len(inside) < len(now)
        differs = not now or self._differs(change)
        copies = bool(then) and is_outside and (differs or self._has_left(change.ino, now))
        self._plan_names(plan, change.ino, then, inside, copies)
        if copies:
            plan.trees.append(change.ino)
        elif then and differs:
            plan.restored[change.ino] = change
            for key in then.keys() & inside.keys():
                plan.note(inside[key], CHANGED)
            if self._is_rewritten(change):
                plan.rewritten[change.ino] = min(path for _, path in then.values())
        elif change.before is not None and change.before.is_dir and not then:
            self._plan_removal(plan, change.ino)

    def _names_to_have(self, ino: int) -> dict[Key, tuple[int, bytes]]:
        """Return (folder, name) -> (cookie, path) of the names an inode is to have in the scope."""
        return {
            key: (cookie, path)
            for key, (cookie, path) in self._names(self._then_tree, ino).items()
            if self._scope.holds(path) and not self._is_copied(path)
        }

    def _plan_removal(self, plan: Plan, folder: int) -> None:
        """Remove what a folder holds that came into the scope from outside, all the way down."""
        for _, name, inode in self._now_tree.listing(folder, 0, INO_MASK):
            plan.gone[folder, name] = inode.ino
            if inode.is_dir and not self._names_to_have(inode.ino):
                self._plan_removal(plan, inode.ino)

    def _plan_names(
        self,
        plan: Plan,
        ino: int,
        then: dict[Key, tuple[int, bytes]],
        inside: dict[Key, bytes],
        copies: bool,
    ) -> None:
        for key, path in inside.items():
            if copies or key not in then:
                plan.gone[key] = ino
                plan.note(path, REMOVED, key[0])
        for key, (cookie, path) in then.items():
            if copies or key not in inside:
                plan.come[key] = (-ino if copies else ino, cookie)
                plan.note(path, RETURNED, key[0])

    def _differs(self, change: InodeChange) -> bool:
        """Whether an inode is to be changed; its names and the time of the change apart."""
        before, after = change.before, change.after
        if before is None or after is None or after.nlink == 0:
            return True
        if any(getattr(before, name) != getattr(after, name) for name in _COMPARED):
            return True
        if self._xattrs(before, self._snapshot) != self._xattrs(after, self._now):
            return True
        return not before.is_dir and self._has_other_content(before, after)

    def _has_other_content(self, before: Inode, after: Inode) -> bool:
        database = self._database
        return content_of(database, before, self._snapshot) != content_of(
            database, after, self._now
        )

    def _is_rewritten(self, change: InodeChange) -> bool:
        """Whether an inode that differs is a file of which a program may have read other bytes."""
        before, after = change.before, change.after
        if before is None or not before.is_file:
            return False
        return (
            after is None
            or (before.size, before.mtime_ns) != (after.size, after.mtime_ns)
            or self._has_other_content(before, after)
        )

    def _xattrs(self, inode: Inode, epoch: int) -> dict[bytes, bytes]:
        return xattrs_of(self._database, inode, epoch)

    # The folders above what a scope is limited to.

    def _make_way(self, plan: Plan, path: bytes) -> None:
        """Have a path's own name come into the folder that is there now, or one made for it."""
        folder, _, name = path.rpartition(b"/")
        key = (self._folder_then(folder), name)
        coming = plan.come.pop(key, None)
        if coming is None and key in plan.gone:  # its folder lies in the scope now, and goes
            ino = plan.gone[key]
            coming = (ino, names_of(self._database, ino, self._snapshot)[key])
        if coming is not None:
            key = (self._folder_now(plan, folder), name)
            plan.come[key] = coming
            plan.note(path, RETURNED, key[0])

    def _folder_now(self, plan: Plan, path: bytes) -> int:
        """Return the folder that has a path, negative when it is to be copied for that."""
        try:
            inode = self._now_tree.find(path)
        except PosixError:
            return self._remade_folder(plan, path)
        if not inode.is_dir:
            raise UsageError(
                f"'{path_text(path)}' is no folder now: move it away, or restore it as a whole"
            )
        return int(inode.ino)

    def _remade_folder(self, plan: Plan, path: bytes) -> int:
        folder, _, name = path.rpartition(b"/")
        key = (self._folder_now(plan, folder), name)
        if key in plan.come:
            return plan.come[key][0]
        was = self._then_tree.find(path)
        names = names_of(self._database, was.ino, self._snapshot)
        is_free = not names_of(self._database, was.ino, self._now)
        number = was.ino if is_free else -was.ino
        plan.come[key] = (number, names[self._folder_then(folder), name])
        if is_free:
            plan.restored[was.ino] = InodeChange(was.ino, was, None)
        else:
            plan.shells.append(was.ino)
        plan.note(path, RETURNED, key[0])
        return int(number)
