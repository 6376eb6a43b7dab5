"""The versions of one file or folder, from the newest moment back to the first.

Going back, a version is followed by its inode while there is one, through renames; before that by
its path, because programs that write a new file and rename it over the old one make a new inode
each time. Work goes with the number of versions: moments between two versions are passed over,
since a row says from when on it was true.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from statefs.errors import PosixError
from statefs.ids import TREE_ROOT, Epoch
from statefs.metadata.connection import Queries
from statefs.snapshots.diff import Link, Pair, Place, Side, changed_aspects
from statefs.snapshots.views import PastTree

_BORN: Final = (
    "SELECT valid_from FROM entries"
    " WHERE parent = ?1 AND name = ?2 AND valid_to > ?3 AND valid_from <= ?3"
)
_ENTRIES_CHANGED: Final = (
    "SELECT 1 FROM entries WHERE parent = ?1 AND ((valid_from > ?2 AND valid_from <= ?3)"
    " OR (valid_to > ?2 AND valid_to <= ?3)) LIMIT 1"
)


@dataclass(frozen=True)
class Version:
    """What was first seen at one moment.

    Args:
        index: of the moment, in the list of all.
        pair: how it differs from the version before; no `after` where it was gone.
    """

    index: int
    pair: Pair


@dataclass(frozen=True)
class _Seen:
    """A file or folder at one moment; the root has no link."""

    index: int
    ino: int
    link: Link | None


class History:
    """The versions of what a path leads to.

    Args:
        database: settled, when the newest epoch is `NOW`.
        epochs: of all moments to look at, oldest first.
    """

    def __init__(self, database: Queries, epochs: Sequence[Epoch]) -> None:
        self._database = database
        self._epochs = epochs
        self._sides: dict[int, Side] = {}

    def versions(self, path: bytes) -> list[Version]:
        """Return all versions, oldest first; none where no moment knows the path.

        Args:
            path: relative to the root, at the newest moment that has it.
        """
        return list(self._newest_first(path))[::-1]

    def _newest_first(self, path: bytes) -> Iterator[Version]:
        seen = self._last_with(path, len(self._epochs) - 1)
        if seen is None:
            return
        seen = self._last_name_of(seen)
        if seen.index < len(self._epochs) - 1:
            yield Version(seen.index + 1, Pair(self._place(seen), None, False, ()))
        while seen is not None:
            first = self._first_alike(seen)
            earlier = self._predecessor(first)
            if earlier is not None:
                pair = self._difference(earlier, first)
                if pair is not None:
                    yield Version(first.index, pair)
                seen = earlier
                continue
            place = self._place(first)
            yield Version(first.index, Pair(None, place, False, ()))
            seen = self._last_with(place.path, first.index - 2, first.ino)
            if seen is not None:
                yield Version(seen.index + 1, Pair(self._place(seen), None, False, ()))

    def _side(self, index: int) -> Side:
        side = self._sides.get(index)
        if side is None:
            side = self._sides[index] = Side(self._database, self._epochs[index])
        return side

    def _place(self, seen: _Seen) -> Place:
        side = self._side(seen.index)
        if seen.link is None:
            return Place(b".", side.inode(seen.ino))
        return side.place(seen.link, seen.ino)

    def _last_with(self, path: bytes, index: int, ino: int = 0) -> _Seen | None:
        """Return what has the path, or the inode number, at the newest moment up to `index`."""
        for each in range(index, -1, -1):
            found = self._named(each, ino, path) if ino else None
            found = found or self._at(each, path)
            if found is not None:
                return found
        return None

    def _last_name_of(self, seen: _Seen) -> _Seen:
        """Return the same inode at the newest moment that has it, under whatever name."""
        path = self._place(seen).path
        for index in range(len(self._epochs) - 1, seen.index, -1):
            found = self._named(index, seen.ino, path)
            if found is not None:
                return found
        return seen

    def _at(self, index: int, path: bytes) -> _Seen | None:
        """Return what a path led to at a moment."""
        tree = PastTree(self._database, Epoch(self._epochs[index]))
        names = [name for name in path.split(b"/") if name not in (b"", b".")]
        if not names:
            return _Seen(index, TREE_ROOT, None)
        try:
            folder = tree.find(b"/".join(names[:-1])).ino
            return _Seen(index, tree.find(b"/".join(names)).ino, (folder, names[-1]))
        except PosixError:
            return None

    def _named(self, index: int, ino: int, path: bytes, link: Link | None = None) -> _Seen | None:
        """Return an inode at a moment, by the name that is nearest to one it had later."""
        side = self._side(index)
        links = side.links(ino)
        if not links:
            return None
        chosen = link if link in links else min(links, key=lambda each: _distance(side, each, path))
        return _Seen(index, ino, chosen)

    def _first_alike(self, seen: _Seen) -> _Seen:
        """Return the same version at the oldest moment that shows it."""
        side = self._side(seen.index)
        born = side.inode(seen.ino).valid_from
        if seen.link is not None:
            epoch = self._epochs[seen.index]
            born = max(born, self._database.value(_BORN, (*seen.link, epoch)))
        for index in range(bisect_left(self._epochs, born), seen.index):
            # A folder above it may have been in runtime/, which belongs to no snapshot.
            if seen.link is None or seen.link in self._side(index).links(seen.ino):
                return _Seen(index, seen.ino, seen.link)
        return seen

    def _predecessor(self, seen: _Seen) -> _Seen | None:
        """Return what it was one moment earlier: the same inode, else what had its path."""
        if seen.index == 0:
            return None
        if seen.link is None:
            return _Seen(seen.index - 1, seen.ino, None)
        path = self._place(seen).path
        found = self._named(seen.index - 1, seen.ino, path, seen.link)
        return found or self._at(seen.index - 1, path)

    def _difference(self, earlier: _Seen, later: _Seen) -> Pair | None:
        """Return how two versions differ, None where they do not."""
        before, after = self._place(earlier), self._place(later)
        older, newer = self._side(earlier.index), self._side(later.index)
        aspects = changed_aspects(older, newer, before.inode, after.inode)
        if before.inode.is_dir and after.inode.is_dir and self._entries_changed(earlier, later):
            aspects = ("entries", *aspects)
        is_renamed = (
            earlier.ino == later.ino and earlier.link != later.link and before.path != after.path
        )
        return Pair(before, after, is_renamed, aspects) if is_renamed or aspects else None

    def _entries_changed(self, earlier: _Seen, later: _Seen) -> bool:
        """Return whether names came into a folder or went."""
        if earlier.ino != later.ino:
            return False
        epochs = self._epochs[earlier.index], self._epochs[later.index]
        return self._database.value(_ENTRIES_CHANGED, (later.ino, *epochs)) is not None


def _distance(side: Side, link: Link, path: bytes) -> tuple[bool, bytes]:
    """Order names: the one at `path`, then by path."""
    here = side.path(link)
    return here != path, here
