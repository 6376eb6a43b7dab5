"""The versions of one file or folder, from the newest moment back to the first.

Going back, what stood at the path comes first, whatever its inode: programs that write a new file
and rename it over the old one make a new inode each time, and a snapshot may have caught that
under its temporary name. Where nothing stood there the inode is followed through its renames; so
is a folder always. Work goes with the number of versions: moments between two versions are passed
over, since a row says from when on it was true.
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
            # One more name of a file that had one before has no version under the other name.
            has_more = bool(self._side(max(first.index - 1, 0)).links(first.ino))
            seen = self._last_with(place.path, first.index - 2, 0 if has_more else first.ino)
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
        """Return it at the newest moment that has it, through renames to where nothing stood."""
        last = len(self._epochs) - 1
        for index in range(seen.index + 1, last + 1):
            path = self._place(seen).path
            found = self._named(index, seen.ino, path)
            if found is None:
                continue
            if found.link != seen.link and self._predecessor(found) not in (None, seen):
                return self._last_with(path, last) or seen  # it took the place of another file
            seen = found
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

    def _stood(self, index: int, link: Link, path: bytes) -> _Seen | None:
        """Return what stood at a name of a later moment: in the same folder, else at the path."""
        side = self._side(index)
        if side.folder_path(link[0]) is None:
            return self._at(index, path)
        return self._at(index, side.path(link)) or self._at(index, path)

    def _named(
        self, index: int, ino: int, path: bytes, links: frozenset[Link] | None = None
    ) -> _Seen | None:
        """Return an inode at a moment, by the name that is nearest to one it had later.

        Args:
            links: the names to choose from; by default all that it had.
        """
        side = self._side(index)
        if links is None:
            links = side.links(ino)
        if not links:
            return None
        return _Seen(index, ino, min(links, key=lambda each: _distance(side, each, path)))

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
        """Return what it was one moment earlier: what stood there, else what was renamed to it."""
        index = seen.index - 1
        if index < 0:
            return None
        if seen.link is None:
            return _Seen(index, seen.ino, None)
        path = self._place(seen).path
        stood = self._stood(index, seen.link, path)
        if stood is not None and (
            stood.ino == seen.ino or not (self._is_folder(stood) or self._is_folder(seen))
        ):
            return stood
        gone = self._side(index).links(seen.ino) - self._side(seen.index).links(seen.ino)
        return self._named(index, seen.ino, path, gone) or stood

    def _is_folder(self, seen: _Seen) -> bool:
        return self._side(seen.index).inode(seen.ino).is_dir

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
