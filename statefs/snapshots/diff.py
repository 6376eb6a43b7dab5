"""The difference of two moments as a list: what was added, removed, modified, renamed.

Works from rows: O(changes), wherever in the tree they are (snapshots/changes.py). A name of the
older tree and one of the newer belong together

1. when both lead to the same inode: kept where they are the same name, else renamed;
2. else when they stand at the same place: something else was put there, as editors do that write
   a new file and rename it over the old one. That is a difference only if the two differ.

What is left was removed or added. A place is a name in a folder, and folders are put together by
the same rules: so one item tells of a renamed folder, and what lies in it, unchanged, is none.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from statefs.ids import TREE_ROOT, Epoch
from statefs.layout import RUNTIME
from statefs.metadata.connection import Queries
from statefs.metadata.inodes import Inode, past_row
from statefs.snapshots import reports
from statefs.snapshots.changes import (
    Content,
    changed_inodes,
    content_of,
    names_of,
    xattrs_of,
)
from statefs.snapshots.reports import SUBSTANCE, Aspect, Difference, FileType, Kind

Link = tuple[int, bytes]
"""A name in a folder: the folder's inode number, and the name."""
OnProgress = Callable[[int, int], None]
"""Told how many of how many inodes have been looked at."""

ROOT_PATH: Final = b"."
PROGRESS_INODES: Final = 500
"""Progress is told after so many inodes: some hundredths of a second."""
_INSIDE: Final = "SELECT ino FROM entries WHERE parent = ?1 AND valid_to > ?2 AND valid_from <= ?2"
_TYPES: Final[dict[int, FileType]] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "char",
}


@dataclass(frozen=True)
class Place:
    """A name in a tree: its path from the root, and the inode it leads to."""

    path: bytes
    inode: Inode


@dataclass(frozen=True)
class Pair:
    """What belongs together in two trees and differs; one side is None where nothing does."""

    before: Place | None
    after: Place | None
    is_renamed: bool
    changed: tuple[Aspect, ...]

    @property
    def kind(self) -> Kind:
        """The one word for the difference."""
        if self.before is None:
            return "added"
        if self.after is None:
            return "removed"
        if self.is_renamed:
            return "renamed"
        return "modified" if SUBSTANCE.intersection(self.changed) else "metadata"

    @property
    def path(self) -> bytes:
        """The path in the newer tree, or the older one when it is only there."""
        place = self.after or self.before
        assert place is not None
        return place.path

    def reversed(self) -> Pair:
        """Return the difference seen from the other side."""
        return Pair(self.after, self.before, self.is_renamed, self.changed)


class Side:
    """The tree at one moment, without runtime/: where its inodes are, read once and remembered."""

    def __init__(self, database: Queries, epoch: Epoch) -> None:
        self._database = database
        self.epoch = epoch
        self._inodes: dict[int, Inode] = {}
        self._links: dict[int, frozenset[Link]] = {}
        self._folders: dict[int, bytes | None] = {TREE_ROOT: b""}

    def inode(self, ino: int) -> Inode:
        """Return an inode that the tree has."""
        found = self._inodes.get(ino)
        if found is None:
            row = past_row(self._database, ino, self.epoch)
            assert row is not None, f"inode {ino} has a name and no row at {self.epoch}"
            found = self._inodes[ino] = Inode(row)
        return found

    def links(self, ino: int) -> frozenset[Link]:
        """Return the names of an inode that lie in the tree."""
        found = self._links.get(ino)
        if found is None:
            found = self._links[ino] = frozenset(
                link
                for link in self.all_links(ino)
                if link != (TREE_ROOT, RUNTIME) and self.folder_path(link[0]) is not None
            )
        return found

    def all_links(self, ino: int) -> Iterable[Link]:
        """Return the names of an inode, those in runtime/ included."""
        return names_of(self._database, ino, self.epoch)

    def folder_path(self, ino: int) -> bytes | None:
        """Return a folder's path, "" for the root; None when it is not in the tree."""
        below: list[Link] = []
        while ino not in self._folders:
            link = next(iter(self.all_links(ino)), None)
            if link is None or link == (TREE_ROOT, RUNTIME):
                self._folders[ino] = None
                break
            below.append((ino, link[1]))
            ino = link[0]
        path = self._folders[ino]
        for number, name in reversed(below):
            path = None if path is None else _joined(path, name)
            self._folders[number] = path
        return path

    def path(self, link: Link) -> bytes:
        """Return the path of a name that lies in the tree."""
        folder = self.folder_path(link[0])
        assert folder is not None, f"{link} is not in the tree of {self.epoch}"
        return _joined(folder, link[1])

    def place(self, link: Link, ino: int) -> Place:
        """Return a name that lies in the tree, with what it leads to."""
        return Place(self.path(link), self.inode(ino))

    def below(self, folder: int) -> Iterator[int]:
        """Yield every inode that lies in a folder, at any depth."""
        waiting = [folder]
        while waiting:
            for (ino,) in self._database.rows(_INSIDE, (waiting.pop(), self.epoch)):
                yield ino
                if self.inode(ino).is_dir:
                    waiting.append(ino)

    def content(self, inode: Inode) -> Content:
        """Return what names the content of a file or link, the same for the same ranges."""
        found = content_of(self._database, inode, self.epoch)
        return found if isinstance(found, bytes) else _merged(found)

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Return the extended attributes of an inode."""
        return xattrs_of(self._database, inode, self.epoch)


def _joined(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def _merged(extents: tuple[tuple[int, int, int], ...]) -> tuple[tuple[int, int, int], ...]:
    """Return extents with neighbours of the same object joined."""
    joined: list[tuple[int, int, int]] = []
    for start, end, number in extents:
        if joined and joined[-1][1:] == (start, number):
            joined[-1] = (joined[-1][0], end, number)
        else:
            joined.append((start, end, number))
    return tuple(joined)


def changed_aspects(older: Side, newer: Side, before: Inode, after: Inode) -> tuple[Aspect, ...]:
    """Return in what two inodes differ, in the order of `reports.Aspect`.

    Not in their times of access and of change, the number of their names, or, of a folder, the
    time of its last entry: those follow from what is a difference itself.
    """
    found: list[Aspect] = []
    if stat.S_IFMT(before.mode) != stat.S_IFMT(after.mode):
        found.append("type")
    elif _content_differs(older, newer, before, after):
        found.append("content")
    elif before.rdev != after.rdev:
        found.append("device")
    if stat.S_IMODE(before.mode) != stat.S_IMODE(after.mode):
        found.append("mode")
    if (before.uid, before.gid) != (after.uid, after.gid):
        found.append("owner")
    if older.xattrs(before) != newer.xattrs(after):
        found.append("xattrs")
    if before.mtime_ns != after.mtime_ns and not (before.is_dir or after.is_dir):
        found.append("mtime")
    return tuple(found)


def _content_differs(older: Side, newer: Side, before: Inode, after: Inode) -> bool:
    """Return whether two inodes of one type hold different bytes, or may: written twice counts."""
    if not (before.is_file or before.is_symlink):
        return False
    return before.size != after.size or older.content(before) != newer.content(after)


class _Matching:
    """Which names of two trees belong together, of all whose inodes may differ.

    Args:
        older: the tree to start from.
        newer: the tree it became.
        numbers: of the inodes.
    """

    def __init__(self, older: Side, newer: Side, numbers: Iterable[int]) -> None:
        self._older = older
        self._newer = newer
        self.kept: list[tuple[int, Link, Link]] = []
        self.renamed: list[tuple[int, Link, Link]] = []
        self.gone: dict[Link, int] = {}
        self.come: dict[Link, int] = {}
        self._successors: dict[int, int | None] = {}
        both: list[tuple[int, set[Link], set[Link]]] = []
        self._new_folders: dict[Link, int] = {}
        for ino in numbers:
            had, has = older.links(ino), newer.links(ino)
            self.kept += [(ino, link, link) for link in had & has]
            lost, won = set(had - has), set(has - had)
            if lost and won:
                both.append((ino, lost, won))
            self.gone.update((link, ino) for link in lost)
            self.come.update((link, ino) for link in won)
            if won and not had and newer.inode(ino).is_dir:
                self._new_folders.update((link, ino) for link in won)
        for ino, lost, won in both:
            self._match_names(ino, lost, won)
        self.replaced = list(self._match_places())

    def _match_names(self, ino: int, lost: set[Link], won: set[Link]) -> None:
        """Put the names of one inode together: at the same place first, then in their order."""
        for link in list(lost):
            now = self._place_now(link)
            if now in won:
                lost.remove(link)
                won.remove(now)
                self.kept.append((ino, link, now))
                del self.gone[link], self.come[now]
        pairs = zip(sorted(lost, key=self._older.path), sorted(won, key=self._newer.path))  # noqa: B905 - the longer one's rest was added or removed
        for link, now in pairs:
            self.renamed.append((ino, link, now))
            del self.gone[link], self.come[now]

    def _match_places(self) -> Iterator[tuple[Link, int, Link, int]]:
        """Take out of `gone` and `come` what stands at the same place, and yield it."""
        for link, ino in list(self.gone.items()):
            now = self._place_now(link)
            if now in self.come:
                del self.gone[link]
                yield link, ino, now, self.come.pop(now)

    def _place_now(self, link: Link) -> Link:
        """Return where a name of the older tree stands in the newer one if it stands there."""
        folder = self._successor(link[0])
        return (-1 if folder is None else folder), link[1]

    def _successor(self, folder: int) -> int | None:
        """Return which folder of the newer tree is `folder` of the older: itself, or a new one."""
        below: list[Link] = []
        while folder not in self._successors:
            if self._newer.folder_path(folder) is not None:
                self._successors[folder] = folder
                break
            [(parent, name)] = self._older.links(folder)
            below.append((folder, name))
            folder = parent
        found = self._successors[folder]
        for number, name in reversed(below):
            found = None if found is None else self._new_folders.get((found, name))
            self._successors[number] = found
        return found


def compare(
    database: Queries, older: Epoch, newer: Epoch, on_progress: OnProgress | None = None
) -> list[Pair]:
    """Return everything that differs between two moments, sorted by path.

    Args:
        database: settled: its rows say what the living tree is.
        older: the moment to start from; may be the later one, then the answer is turned round.
        newer: the moment it became.
        on_progress: called now and then; may raise to give up.
    """
    if older == newer:
        return []
    if older > newer:
        turned = [pair.reversed() for pair in compare(database, newer, older, on_progress)]
        return sorted(turned, key=_order)
    before, after = Side(database, older), Side(database, newer)
    numbers = changed_inodes(database, older, newer)
    numbers += _crossed(before, after, numbers)
    matching = _Matching(before, after, _reporting(numbers, on_progress))
    return sorted(_pairs(before, after, matching), key=_order)


def _order(pair: Pair) -> tuple[bytes, bool]:
    """What went stands before what came to the same path."""
    return pair.path, pair.after is not None


def _reporting(numbers: list[int], on_progress: OnProgress | None) -> Iterator[int]:
    for done, ino in enumerate(numbers):
        if on_progress is not None and done % PROGRESS_INODES == 0:
            on_progress(done, len(numbers))
        if ino != TREE_ROOT:
            yield ino


def _crossed(older: Side, newer: Side, numbers: list[int]) -> list[int]:
    """Return what lies in folders that were moved into runtime/ or out of it, unchanged itself."""
    found: set[int] = set()
    for ino in numbers:
        had, has = bool(older.links(ino)), bool(newer.links(ino))
        if had == has:
            continue
        inside, outside = (older, newer) if had else (newer, older)
        if inside.inode(ino).is_dir and any(outside.all_links(ino)):
            found.update(inside.below(ino))
    return sorted(found.difference(numbers))


def _pairs(older: Side, newer: Side, matching: _Matching) -> Iterator[Pair]:
    root, changed_root = older.inode(TREE_ROOT), newer.inode(TREE_ROOT)
    aspects = changed_aspects(older, newer, root, changed_root)
    if aspects:
        yield Pair(Place(ROOT_PATH, root), Place(ROOT_PATH, changed_root), False, aspects)
    for link, ino in matching.gone.items():
        yield Pair(older.place(link, ino), None, False, ())
    for link, ino in matching.come.items():
        yield Pair(None, newer.place(link, ino), False, ())
    known: dict[int, tuple[Aspect, ...]] = {}
    for is_renamed, links in ((False, matching.kept), (True, matching.renamed)):
        for ino, link, now in links:
            if ino not in known:
                known[ino] = changed_aspects(older, newer, older.inode(ino), newer.inode(ino))
            if is_renamed or known[ino]:
                yield Pair(older.place(link, ino), newer.place(now, ino), is_renamed, known[ino])
    for link, ino, now, other in matching.replaced:
        aspects = changed_aspects(older, newer, older.inode(ino), newer.inode(other))
        if aspects:
            yield Pair(older.place(link, ino), newer.place(now, other), False, aspects)


def type_of(inode: Inode) -> FileType:
    """Return the word for what an inode is."""
    return _TYPES[stat.S_IFMT(inode.mode)]


def size_of(inode: Inode) -> int | None:
    """Return the size of a file or link in bytes; nothing else has one."""
    return inode.size if inode.is_file or inode.is_symlink else None


def document_of(pair: Pair) -> Difference:
    """Return what is told of one difference."""
    shown = pair.after or pair.before
    assert shown is not None
    before = pair.before
    moved = before.path if before is not None and before.path != shown.path else None
    kind = type_of(shown.inode)
    kind_before = kind if before is None else type_of(before.inode)
    return Difference(
        kind=pair.kind,
        path=reports.path_text(shown.path),
        raw_path=reports.raw_text(shown.path),
        path_before=None if moved is None else reports.path_text(moved),
        raw_path_before=None if moved is None else reports.raw_text(moved),
        type=kind,
        type_before=None if kind_before == kind else kind_before,
        size=None if pair.after is None else size_of(pair.after.inode),
        size_before=None if before is None else size_of(before.inode),
        changed=list(pair.changed),
    )
