"""One read transaction over a store's database, and the moments whose trees must be whole."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Final

from statefs.errors import NoSuchStore
from statefs.ids import (
    CLONE_BIT,
    CLONES_ROOT,
    DELETED_CLONES,
    LIVING,
    TREE_ROOT,
    Epoch,
)
from statefs.layout import StoreLayout
from statefs.metadata.connection import Queries, connect
from statefs.metadata.schema import COMPLETE, DELETING
from statefs.snapshots.catalog import Snapshot, snapshot_of
from statefs.snapshots.reports import path_text
from statefs.snapshots.views import PastTree

FOLDERS_UP_MAX: Final = 100
"""How far a path in a message is followed upwards: a damaged tree may have a loop."""
ROOTS: Final[dict[int, str]] = {
    TREE_ROOT: "current",
    CLONES_ROOT: "clones",
    DELETED_CLONES: "deleted clones",
}
"""Inodes that hold themselves, and what the folder is called in messages."""
ENTRY: Final = "e"
"""The alias of the table entries in every query of a rule."""
CACHE_KIB: Final = 16 * 1024
"""SQLite's page cache of this connection; sorting beyond it goes to temporary files."""


def shown(value: Any) -> str:
    """Return a name, or whatever a damaged database has in its place, as messages show it."""
    return f"'{path_text(value)}'" if isinstance(value, bytes) else repr(value)


class Reading:
    """A store as it was when the reading began.

    A *moment* is an epoch whose tree must be whole: the current one, and that of each snapshot that
    is complete or pending. In SQL, `moments(a, b)` counts those in [a, b), `sealed(a, b)` those of
    sealed snapshots.

    Args:
        layout: the store.
        totals: files and bytes of the living tree as the store's process counts them, if known.

    Raises:
        NoSuchStore: it has no database. apsw.Error: it cannot be read.
    """

    def __init__(self, layout: StoreLayout, totals: tuple[int, int] | None = None) -> None:
        if not layout.meta_db.exists():
            raise NoSuchStore(f"{layout.meta_db} is missing")
        self.layout = layout
        self.totals = totals
        self.connection = connect(layout.meta_db)
        try:
            self.connection.pragma("cache_size", -CACHE_KIB)
            self.connection.execute("BEGIN")
            self.store = dict(self.rows("SELECT key, value FROM store"))
            self.epoch = int(self.store.get("epoch", 0))
            kept = self._epochs(f"WHERE state != {DELETING}")
            self.moments = sorted({*kept, self.epoch})
            self.pinned = kept[-1] if kept else 0
            if self.store.get("clean") and totals is None:
                self.totals = (self.store.get("files", 0), self.store.get("bytes", 0))
            self._define("moments", self.moments)
            self._define("sealed", self._epochs(f"WHERE state = {COMPLETE} AND state_digest != ''"))
            self._define("seen", sorted({*self._epochs(""), self.epoch}))
        except BaseException:
            self.connection.close()
            raise

    def _epochs(self, condition: str) -> list[int]:
        return [row[0] for row in self.rows(f"SELECT epoch FROM snapshots {condition} ORDER BY 1")]

    def _define(self, name: str, epochs: list[int]) -> None:
        """Give SQL a function that counts the epochs in [a, b)."""
        known: dict[tuple[Any, ...], int] = {}

        def count(*key: Any) -> int:
            found = known.get(key)
            if found is None:
                found = max(0, bisect_left(epochs, key[1]) - bisect_left(epochs, key[0]))
                known[key] = found
            return found

        self.connection.create_scalar_function(name, count, 2, deterministic=True)

    def past(self, epoch: int) -> PastTree:
        """Return the tree of an epoch."""
        queries = Queries()
        queries.execute = self.connection.execute
        return PastTree(queries, Epoch(epoch))

    def rows(self, statement: str, parameters: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """Return the rows of a query, one by one."""
        return self.connection.execute(statement, parameters)

    def value(self, statement: str, parameters: tuple[Any, ...] = ()) -> Any:
        """Return the first column of the first row of a query, or None."""
        return next(self.rows(statement, parameters), (None,))[0]

    def count(self, one: str, other: str | None = None) -> str:
        """Return SQL for the number of moments that see a row, or two rows together.

        Args:
            one: the alias of a versioned table, `ENTRY` if it is that of entries. A row of a clone
                is seen by the living tree alone.
            other: of another; the caller's join makes sure that their lifetimes meet.
        """
        since, until = f"{one}.valid_from", f"{one}.valid_to"
        cloned = in_clones(f"{one}.{'parent' if one == ENTRY else 'ino'}")
        if other is not None:
            since = f"max({since}, {other}.valid_from)"
            until = f"min({until}, {other}.valid_to)"
        # Most rows are young and living; a call of Python for each would double the time.
        return (
            f"CASE WHEN {until} = {LIVING} AND ({since} > {self.pinned} OR {cloned}) THEN 1"
            f" ELSE moments({since}, {until}) END"
        )

    @cached_property
    def snapshots(self) -> list[Snapshot]:
        """All rows of `snapshots`, oldest first."""
        columns = ", ".join(Snapshot._fields)
        rows = self.rows(f"SELECT {columns} FROM snapshots ORDER BY epoch")
        return [snapshot_of(row) for row in rows]

    def seen_by(self, number: int, length: int) -> list[str]:
        """Return the snapshots, and `current`, that see more than `length` bytes of an object.

        What only a clone sees is called `clones`.
        """
        query = (
            "SELECT x.ino, max(x.valid_from, i.valid_from), min(x.valid_to, i.valid_to)"
            " FROM extents x CROSS JOIN inodes i"
            f" ON i.ino = x.ino AND {meet('x', 'i')} WHERE x.object = ?"
            f' AND CASE x."end" WHEN {LIVING} THEN i.size ELSE x."end" END > ?'
        )
        names: dict[int, str] = {each.epoch: each.name for each in self.snapshots}
        found: set[int] = set()
        has_clone = False
        for ino, since, until in self.rows(query, (number, length)):
            if ino & CLONE_BIT:
                has_clone = True
            else:
                found.update(each for each in self.moments if since <= each < until)
        seen = [names.get(each, "current") for each in sorted(found)]
        return [*seen, "clones"] if has_clone else seen

    def named(self, ino: int) -> str:
        """Return an inode's number, with its path where the living tree tells it."""
        path = self._path(ino)
        return f"inode {ino} ({path})" if path else f"inode {ino}"

    def _path(self, ino: int) -> str:
        parts: list[str] = []
        while ino not in ROOTS and len(parts) < FOLDERS_UP_MAX:
            parent = self.value(
                "SELECT parent FROM inodes WHERE ino = ? ORDER BY valid_to DESC", (ino,)
            )
            name = self.value(
                "SELECT name FROM entries WHERE parent = ? AND ino = ? ORDER BY valid_to DESC",
                (parent, ino),
            )
            if name is None:
                return ""
            parts.append(os.fsdecode(name))
            ino = parent
        return "/".join([ROOTS.get(ino, "..."), *reversed(parts)])

    def close(self) -> None:
        """End the transaction."""
        self.connection.close()


def in_clones(column: str) -> str:
    """Return SQL that is true for the number of what lies in clones/ (`ids.in_clones`)."""
    return f"({column} >= {CLONE_BIT} OR {column} BETWEEN {CLONES_ROOT} AND {DELETED_CLONES})"


def meet(one: str, other: str) -> str:
    """Return SQL that is true when the lifetimes of two rows have an epoch in common."""
    return f"{other}.valid_to > {one}.valid_from AND {other}.valid_from < {one}.valid_to"
