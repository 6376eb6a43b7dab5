"""Copies of past trees, made of rows in steps of any size. Writes rows, no bytes.

What is to be copied is listed first, folders before what they hold, and in that order it is copied:
after each step every inode that is there has all its names, and every folder counts what it has.
"""

from __future__ import annotations

import json
import stat
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from statefs.ids import CLONE_BIT, LIVING, TREE_ROOT, Epoch
from statefs.layout import RUNTIME
from statefs.metadata.connection import Database, Queries
from statefs.metadata.inodes import InodeFlag
from statefs.metadata.temporal import ENTRIES, EXTENTS, INLINE, INODES, XATTRS
from statefs.volume.table import InodeTable

EVERYTHING: Final = 1 << 62
"""As a limit: in one step."""
_IS_FOLDER: Final = f"mode & 0xF000 = {stat.S_IFDIR}"
_CHILDREN: Final = (
    f"SELECT i.ino, i.{_IS_FOLDER}, i.nlink, i.flags & {InodeFlag.EXTENTS:d}"
    " FROM entries e CROSS JOIN inodes i"
    " ON i.ino = e.ino AND i.valid_to > ?2 AND i.valid_from <= ?2"
    " WHERE e.parent = ?1 AND e.valid_to > ?2 AND e.valid_from <= ?2"
    " AND NOT (e.parent = ?3 AND e.name = ?4)"
)
_EXTENTS: Final = (
    "SELECT count(*) FROM extents WHERE ino = ?1 AND valid_to > ?2 AND valid_from <= ?2"
)
_TEMPORARY: Final = {
    "copied": "new INTEGER PRIMARY KEY, old INTEGER",
    "copied_folders": "old INTEGER PRIMARY KEY, new INTEGER",
}
"""The numbers of what this step copies, and of the folders that were copied."""
_LINKS_OF_FILES: Final = (
    "UPDATE inodes SET nlink = (SELECT count(*) FROM entries e"
    f" WHERE e.ino = inodes.ino AND e.valid_to = {LIVING})"
    f" WHERE valid_to = {LIVING} AND ino IN (SELECT new FROM copied)"
)
_LINKS_OF_FOLDERS: Final = (
    f"UPDATE inodes SET nlink = 2 WHERE valid_to = {LIVING} AND ino IN (SELECT new FROM copied)"
)
_LINKS_OF_PARENTS: Final = (
    "UPDATE inodes SET nlink = nlink + more.folders FROM ("
    "SELECT i.parent AS ino, count(*) AS folders FROM copied c CROSS JOIN inodes i ON i.ino = c.new"
    f" AND i.valid_to = {LIVING} AND i.parent != i.ino GROUP BY 1) AS more"
    f" WHERE inodes.ino = more.ino AND inodes.valid_to = {LIVING}"
)
_TOTALS: Final = (
    "SELECT count(*), CAST(total(size) AS INTEGER) FROM copied c CROSS JOIN inodes i"
    f" ON i.ino = c.new AND i.valid_to = {LIVING} WHERE mode & 0xF000 = {stat.S_IFREG}"
)
_LOST: Final = (
    "SELECT c.new FROM copied c CROSS JOIN inodes i ON i.ino = c.new"
    f" AND i.valid_to = {LIVING} WHERE i.size > 0 AND NOT i.flags & {InodeFlag.EXTENTS:d}"
    " AND NOT EXISTS (SELECT 1 FROM inline d WHERE d.ino = i.ino)"
)


class Listed(NamedTuple):
    """What is to be copied, each inode once.

    Args:
        folders: the first is the top, and each comes before those in it.
        files: everything else, folder by folder.
        linked: those of `files` that have several names.
        extents: of large files, how many each has.
    """

    folders: array[int]
    files: array[int]
    linked: set[int]
    extents: dict[int, int]


def listed(queries: Queries, top: int, epoch: Epoch) -> Listed:
    """List what a past tree held at and below an inode, runtime/ left out.

    Args:
        queries: the store's database, or a `Reader` of it.
        top: a folder or a file of that tree.
        epoch: of a snapshot.
    """
    is_folder = queries.value(
        f"SELECT {_IS_FOLDER} FROM inodes WHERE ino = ?1 AND valid_to > ?2 AND valid_from <= ?2",
        (top, epoch),
    )
    found = Listed(
        array("q", [top] if is_folder else []), array("q", [] if is_folder else [top]), set(), {}
    )
    for folder in found.folders:  # grows meanwhile
        for ino, is_inner, nlink, is_large in queries.execute(
            _CHILDREN, (folder, epoch, TREE_ROOT, RUNTIME)
        ):
            if is_inner:
                found.folders.append(ino)
                continue
            if nlink > 1:
                if ino in found.linked:
                    continue
                found.linked.add(ino)
            found.files.append(ino)
            if is_large:
                found.extents[ino] = queries.value(_EXTENTS, (ino, epoch))
    return found


@contextmanager
def temporary_tables(database: Database) -> Iterator[None]:
    """Have the tables that `Temporal.copy` reads inside the `with` block."""
    try:
        for name, columns in _TEMPORARY.items():
            database.execute(f"CREATE TEMP TABLE {name} ({columns})")
        yield
    finally:
        for name in _TEMPORARY:
            database.execute(f"DROP TABLE IF EXISTS temp.{name}")


class TreeCopy:
    """A copy under way; inside `temporary_tables`.

    Bytes are shared: they lie in objects that are never written again. Small content, which lies in
    rows, is shared by clones; current/ gets rows of its own. The copy of the top has no name; `top`
    is its number once a step was done. `lost` has copies without their small content: it is
    damaged.

    Args:
        table: the living tree.
        what: to copy.
        epoch: of the snapshot that it was listed of.
        is_clone: the copy is to lie in clones/.
    """

    def __init__(
        self, table: InodeTable, what: Listed, epoch: Epoch, *, is_clone: bool = False
    ) -> None:
        self._table = table
        self._what = what
        self._epoch = epoch
        self._is_clone = is_clone
        self._folders = self._files = 0
        self.top = 0
        self.lost: list[int] = []

    @property
    def is_done(self) -> bool:
        """Whether everything was copied."""
        return self._folders + self._files == len(self._what.folders) + len(self._what.files)

    def step(self, limit: int) -> None:
        """Copy some folders, or when all are copied some files; inside a `Change`.

        Args:
            limit: how many inodes, and extents of them; more only if one file has more.
        """
        place, what = self._folders, self._what
        if place < len(what.folders):
            chosen = what.folders[place : place + limit]
            self._copy(chosen, are_folders=True)
            self._folders += len(chosen)
        else:
            chosen = self._next_files(limit)
            self._copy(chosen, are_folders=False)
            self._files += len(chosen)

    def _next_files(self, limit: int) -> array[int]:
        chosen = self._what.files[self._files : self._files + limit]
        rows = 0
        for place, ino in enumerate(chosen):
            rows += 1 + self._what.extents.get(ino, 0)
            if rows > limit and place:
                return chosen[:place]
        return chosen

    def _copy(self, chosen: array[int], *, are_folders: bool) -> None:
        table = self._table
        execute, temporal = table.database.execute, table.temporal
        first = table.next_id | (CLONE_BIT if self._is_clone else 0)
        table.reserve(len(chosen))
        execute("DELETE FROM copied")
        execute(
            "INSERT INTO copied (new, old) SELECT ?1 + key, value FROM json_each(?2)",
            (first, json.dumps(chosen.tolist())),
        )
        if are_folders:
            execute("INSERT INTO copied_folders (old, new) SELECT old, new FROM copied")
        for life in (INODES, ENTRIES, XATTRS):
            temporal.copy(life, self._epoch)
        if are_folders:
            execute(_LINKS_OF_FOLDERS)
            execute(_LINKS_OF_PARENTS)
        else:
            temporal.copy(EXTENTS, self._epoch)
            if self._is_clone:
                temporal.share(self._epoch)
            else:
                temporal.copy(INLINE, self._epoch)
                self.lost += [row[0] for row in execute(_LOST)]
            if self._what.linked or not self._what.folders:
                execute(_LINKS_OF_FILES)
        if not self._is_clone:
            table.count(first, *execute(_TOTALS).fetchone())
        self.top = self.top or first


def copy_tree(table: InodeTable, top: int, epoch: Epoch) -> TreeCopy:
    """Copy what a past tree held at and below an inode into current/, inside a `Change`.

    Returns:
        The copy, which is done.
    """
    with temporary_tables(table.database):
        copy = TreeCopy(table, listed(table.database, top, epoch), epoch)
        while not copy.is_done:
            copy.step(EVERYTHING)
        return copy


def copy_shell(table: InodeTable, ino: int, epoch: Epoch) -> int:
    """Copy a folder as a past tree had it, without what it held; return the copy's number."""
    with temporary_tables(table.database):
        copy = TreeCopy(table, Listed(array("q", [ino]), array("q"), set(), {}), epoch)
        copy.step(1)
        return copy.top
