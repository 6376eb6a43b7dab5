"""Which names lead where at which moments, and whether a root leads there."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Final, NamedTuple

import apsw

from statefs.ids import CLONES_ROOT, DELETED_CLONES, TREE_ROOT
from statefs.maintenance.repair.histories import Histories
from statefs.maintenance.repair.moments import Moments
from statefs.volume.names import NAME_MAX

ROOTS: Final[tuple[int, ...]] = (TREE_ROOT, CLONES_ROOT, DELETED_CLONES)
_ENTRIES: Final = (
    "SELECT DISTINCT parent, name, valid_from, valid_to, ino, cookie FROM entries"
    " ORDER BY parent, name, valid_from DESC, valid_to DESC"
)


class Name(NamedTuple):
    """An entry: its lifetime, the moments at which it can be, and those that its row says."""

    parent: int
    name: bytes
    since: int
    until: int
    mask: int
    said: int
    ino: int
    cookie: int


def is_name(name: bytes) -> bool:
    """Whether an entry can have a name."""
    is_dots = name in (b".", b"..")
    return 1 <= len(name) <= NAME_MAX and b"/" not in name and b"\0" not in name and not is_dots


class Trees:
    """The trees of all moments.

    `reached` has the moments at which a way from a root leads to a folder, `named` those at which
    an inode has a name, `parents` the folder that holds a folder.

    Args:
        plain: see salvage.py.
        histories: reads rows.
        valid: inode -> moments at which it is there.
        folders: the same of folders alone.
    """

    def __init__(
        self,
        plain: apsw.Connection,
        histories: Histories,
        moments: Moments,
        valid: dict[int, int],
        folders: dict[int, int],
    ) -> None:
        self._plain = plain
        self._histories = histories
        self._moments = moments
        self._valid = valid
        self._folders = folders
        self.reached: dict[int, int] = {}
        self._chosen: dict[Name, int] = {}
        self._below: dict[int, list[Name]] = defaultdict(list)
        self._placed: dict[int, int] = defaultdict(int)
        for each in self._possible():
            if self._folders.get(each.ino):
                self._below[each.parent].append(each)
        for root in ROOTS:
            self._reach(root, moments.all if root == TREE_ROOT else moments.current)

    def _possible(self) -> Iterator[Name]:
        """Yield entries whose folder and inode are there, at no moment two of one name."""
        last: tuple[int, bytes] | None = None
        taken = 0
        for parent, name, since, until, ino, cookie in self._plain.execute(_ENTRIES):
            if (parent, name) != last:
                last, taken = (parent, name), 0
            row = self._histories.row(parent, since, until, ())
            mask = row.mask & self._valid.get(ino, 0) & self._folders.get(parent, 0) & ~taken
            if ino in ROOTS or not is_name(name):
                mask = 0
            taken |= mask
            yield Name(parent, name, row.since, row.until, mask, row.mask, ino, cookie)

    def _reach(self, folder: int, mask: int) -> None:
        """Note that a way leads to a folder, and from there further."""
        queue = deque([(folder, mask)])
        while queue:
            folder, mask = queue.popleft()
            mask &= self._folders.get(folder, 0) & ~self.reached.get(folder, 0)
            if not mask:
                continue
            self.reached[folder] = self.reached.get(folder, 0) | mask
            for each in self._below[folder]:
                new = each.mask & mask & ~self._placed[each.ino]
                if new:
                    self._placed[each.ino] |= new
                    self._chosen[each] = self._chosen.get(each, 0) | new
                    queue.append((each.ino, new))

    def adopt(self, folder: int) -> None:
        """Note that a folder that none led to now has a name where one leads."""
        self._placed[folder] |= self._moments.current
        self._reach(folder, self._moments.current)

    def strays(self) -> Iterator[int]:
        """Yield living folders that no way leads to, those above others first; adopt each."""
        while True:
            now = self._moments.current
            lost = {
                folder
                for folder, mask in self._folders.items()
                if mask & now & ~self.reached.get(folder, 0)
            }
            if not lost:
                return
            held = {
                each.ino
                for folder in lost
                for each in self._below[folder]
                if each.mask & now and each.ino in lost
            }
            yield from sorted(lost - held) or [min(lost)]

    def names(self) -> Iterator[Name]:
        """Yield all entries, each with the moments at which it stays."""
        for each in self._possible():
            if self._folders.get(each.ino):
                is_folder = self._folders[each.ino]
                mask = self._chosen.get(each, 0)
                mask |= each.mask & ~is_folder & self.reached.get(each.parent, 0)
            else:
                mask = each.mask & self.reached.get(each.parent, 0)
            yield each._replace(mask=mask)
