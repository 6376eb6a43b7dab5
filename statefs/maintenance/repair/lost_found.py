"""`lost+found` in current/: where files get a name that have lost theirs, or a part of them."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import Final, NamedTuple

from statefs.content.objects import blocks_of
from statefs.ids import TREE_ROOT
from statefs.maintenance.repair.histories import Attributes, Lost
from statefs.metadata.inodes import InodeFlag
from statefs.snapshots.reports import path_text
from statefs.volume.names import NAME_MAX

LOST_FOUND: Final = b"lost+found"

Extents = list[tuple[int, int, int]]


class Entry(NamedTuple):
    """A name to be made."""

    parent: int
    name: bytes
    ino: int
    cookie: int
    is_folder: bool


class Attic:
    """What is to be made in lost+found, and what it is called there.

    `entries` are names, `inodes` (number, attributes, extents, small content) the files and
    folders to be made, `adopted` the numbers of those that are there already.

    Args:
        first: a number from which none has been handed out.
        owner: of what is made.
        now_ns: the time.
        taken: names in the root of current/.
    """

    def __init__(
        self, first: int, owner: tuple[int, int], now_ns: int, taken: Iterable[bytes]
    ) -> None:
        self.first = first
        self.next_number = first
        self._owner = owner
        self._now_ns = now_ns
        self._folders: dict[bytes, int] = {}
        self._taken = {(int(TREE_ROOT), name) for name in taken}
        self._root = self._free(TREE_ROOT, LOST_FOUND, first)
        self.entries: list[Entry] = []
        self.inodes: list[tuple[int, Attributes, Extents, bytes | None]] = []
        self.adopted: set[int] = set()

    def new_number(self) -> int:
        """Return a number for an inode or a cookie."""
        self.next_number += 1
        return self.next_number - 1

    def adopt(self, path: bytes, ino: int, *, is_folder: bool = False) -> str:
        """Give an inode that is there a name; return its path below current/."""
        self.adopted.add(ino)
        return self._place(path, ino, ino, is_folder)

    def rescue(self, path: bytes, ino: int, lost: Lost) -> str:
        """Make a file of what is left of a lost one; return its path below current/."""
        if lost.data is not None:
            return self._file(path, ino, lost.attributes, [], len(lost.data), lost.data)
        size = max((end for _, end, _ in lost.extents), default=0)
        if lost.attributes is not None:
            size = lost.attributes.size
        return self._file(path, ino, lost.attributes, lost.extents, size, None)

    def rescue_bytes(self, path: bytes, ino: int, extents: Extents, size: int) -> str:
        """Make a file of bytes in objects; return its path below current/."""
        return self._file(path, ino, None, extents, size, None)

    def _file(
        self,
        path: bytes,
        ino: int,
        known: Attributes | None,
        extents: Extents,
        size: int,
        data: bytes | None,
    ) -> str:
        attributes = known or self._attributes(stat.S_IFREG | 0o600)
        flags = InodeFlag.EXTENTS if extents else 0
        mode = stat.S_IFREG | stat.S_IMODE(attributes.mode) & 0o777
        attributes = attributes._replace(
            mode=mode, size=size, blocks=blocks_of(size), flags=int(flags), nlink=1, rdev=0
        )
        number = self.new_number()
        self.inodes.append((number, attributes, extents, data or None))
        return self._place(path, number, ino, is_folder=False)

    def _attributes(self, mode: int) -> Attributes:
        times = (self._now_ns,) * 4
        return Attributes(mode, 1, *self._owner, 0, 0, 0, *times, 0, 0)

    def _place(self, path: bytes, ino: int, known_as: int, is_folder: bool) -> str:
        above, _, name = path.rpartition(b"/")
        folder = self._folder(self._root + (b"/" + above if above else b""))
        name = self._free(folder, name or b"inode-%d" % known_as, known_as)
        self.entries.append(Entry(folder, name, ino, self.new_number(), is_folder))
        return path_text(b"/".join([self._root, *filter(None, [above]), name]))

    def _free(self, folder: int, name: bytes, ino: int) -> bytes:
        """Return a name that is free in a folder."""
        number, wanted = 0, name[:NAME_MAX]
        while (folder, wanted) in self._taken:
            end = b".%d" % ino if not number else b".%d.%d" % (ino, number)
            wanted = name[: NAME_MAX - len(end)] + end
            number += 1
        self._taken.add((folder, wanted))
        return wanted

    def _folder(self, path: bytes) -> int:
        """Return the folder of a path below current/, made where there is none."""
        if not path:
            return TREE_ROOT
        found = self._folders.get(path)
        if found is None:
            above, _, name = path.rpartition(b"/")
            parent = self._folder(above)
            found = self._folders[path] = self.new_number()
            name = self._free(parent, name, found) if above else name
            attributes = folder_attributes(self._owner, self._now_ns)
            self.inodes.append((found, attributes, [], None))
            self.entries.append(Entry(parent, name, found, self.new_number(), is_folder=True))
        return found


def folder_attributes(owner: tuple[int, int], now_ns: int) -> Attributes:
    """Return those of a folder that only its owner may look into."""
    return Attributes(stat.S_IFDIR | 0o700, 2, *owner, 0, 0, 0, *(now_ns,) * 4, 0, 0)
