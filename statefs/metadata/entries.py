"""Rows of `entries`: looking names up and listing folders, now or at a past epoch."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from statefs.ids import LIVING, Epoch
from statefs.metadata.connection import Queries
from statefs.metadata.inodes import COLUMNS


class Entry(NamedTuple):
    """A name in a folder."""

    ino: int
    cookie: int
    valid_from: int


_LIVING: Final = (
    "SELECT ino, cookie, valid_from FROM entries"
    f" WHERE parent = ? AND name = ? AND valid_to = {LIVING}"
)
_PAST: Final = (
    "SELECT ino, cookie, valid_from FROM entries"
    " WHERE parent = ? AND name = ? AND valid_to > ? ORDER BY valid_to LIMIT 1"
)
_LIST_LIVING: Final = (
    f"SELECT e.cookie, e.name, {COLUMNS} FROM entries e INDEXED BY entries_living"
    f" JOIN inodes i ON i.ino = e.ino AND i.valid_to = {LIVING}"
    f" WHERE e.parent = ? AND e.valid_to = {LIVING} AND e.cookie > ? ORDER BY e.cookie LIMIT ?"
)
_LIST_PAST: Final = (
    f"SELECT e.cookie, e.name, {COLUMNS} FROM ("
    "  SELECT cookie, name, ino, valid_from FROM entries INDEXED BY entries_living"
    f"  WHERE parent = ?1 AND valid_to = {LIVING} AND cookie > ?2 AND valid_from <= ?3"
    "  UNION ALL SELECT cookie, name, ino, valid_from FROM entries INDEXED BY entries_past"
    f"  WHERE parent = ?1 AND valid_to < {LIVING} AND cookie > ?2"
    "  AND valid_to > ?3 AND valid_from <= ?3"
    "  ORDER BY cookie LIMIT ?4"
    ") e CROSS JOIN inodes i ON i.ino = e.ino AND i.valid_to ="
    "  (SELECT min(valid_to) FROM inodes WHERE ino = e.ino AND valid_to > ?3)"
    " ORDER BY e.cookie"
)


def living_entry(database: Queries, parent: int, name: bytes) -> Entry | None:
    """Return the entry `name` of the living folder `parent`, or None."""
    row = database.execute(_LIVING, (parent, name)).fetchone()
    return None if row is None else Entry(*row)


def past_entry(database: Queries, parent: int, name: bytes, epoch: Epoch) -> Entry | None:
    """Return the entry `name` that folder `parent` had in `epoch`, or None."""
    row = database.execute(_PAST, (parent, name, epoch)).fetchone()
    return Entry(*row) if row is not None and row[2] <= epoch else None


def list_living(database: Queries, parent: int, after: int, limit: int) -> list[tuple[Any, ...]]:
    """Return up to `limit` rows (cookie, name, *inode) of a living folder.

    Args:
        after: only entries with a greater cookie.

    Returns:
        In the order of their cookies; the inode's columns as `Inode.load` takes them.
    """
    return database.rows(_LIST_LIVING, (parent, after, limit))


def list_past(
    database: Queries, parent: int, after: int, epoch: Epoch, limit: int
) -> list[tuple[Any, ...]]:
    """Return up to `limit` rows (cookie, name, *inode) that folder `parent` had in `epoch`."""
    return database.rows(_LIST_PAST, (parent, after, epoch, limit))


def is_empty(database: Queries, parent: int) -> bool:
    """Whether the living folder has no entry."""
    return (
        database.execute(
            "SELECT 1 FROM entries INDEXED BY entries_living"
            f" WHERE parent = ? AND valid_to = {LIVING} LIMIT 1",
            (parent,),
        ).fetchone()
        is None
    )
