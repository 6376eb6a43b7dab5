"""Rows of `displaced`: what held a range of a file before bytes that are not durable yet.

A write to a range that the object of this epoch does not hold commits an extent when its bytes are
written; after a loss of power the extent may be there and the bytes not. A row of this table comes
with such an extent and goes when the bytes are durable, so that recovery can put back what was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from statefs.content.extents import Extent, overlay, pieces
from statefs.metadata.connection import Queries

_NOTE: Final = (
    'INSERT OR IGNORE INTO displaced (ino, object, start, "end", old) VALUES (?, ?, ?, ?, ?)'
)
_FORGET: Final = "DELETE FROM displaced WHERE ino = ?"
_FORGET_RANGE: Final = "DELETE FROM displaced WHERE ino = ? AND object = ? AND start = ?"
_CUT: Final = (
    "DELETE FROM displaced WHERE ino = ?1 AND start >= ?2",
    'UPDATE displaced SET "end" = ?2 WHERE ino = ?1 AND "end" > ?2',
)
_DURABLE: Final = (
    "DELETE FROM displaced WHERE EXISTS"
    " (SELECT 1 FROM objects o WHERE o.id = displaced.object AND o.epoch <= ?)"
)
_NEWEST_FIRST: Final = (
    'SELECT start, "end", object, old FROM displaced WHERE ino = ? ORDER BY object DESC, start'
)


def note(database: Queries, ino: int, number: int, before: Iterable[tuple[int, int, int]]) -> None:
    """Note what some ranges were before bytes in an object took their place; in a transaction.

    Args:
        number: of the object.
        before: (start, end, object); object 0 stands for zeros.
    """
    for start, end, old in before:
        database.execute(_NOTE, (ino, number, start, end, old))


def forget(database: Queries, inos: Iterable[int]) -> None:
    """Forget it: the bytes of these files are durable, or the files are gone; in a transaction."""
    for ino in inos:
        database.execute(_FORGET, (ino,))


def forget_ranges(database: Queries, ino: int, ranges: Iterable[tuple[int, int]]) -> None:
    """Forget it of some ranges of a file, each (object, start); in a transaction."""
    for number, start in ranges:
        database.execute(_FORGET_RANGE, (ino, number, start))


def forget_epoch(database: Queries, epoch: int) -> None:
    """Forget it of all objects of an epoch that has ended, and of older ones; in a transaction."""
    database.execute(_DURABLE, (epoch,))


def cut(database: Queries, ino: int, size: int) -> None:
    """Forget what lay beyond the new end of a file; in a transaction."""
    for statement in _CUT:
        database.execute(statement, (ino, size))


def put_back(database: Queries, ino: int, extents: list[Extent], epoch: int) -> None:
    """Let extents be what they were before, where they still lead to bytes that may be lost.

    Args:
        extents: of the file, sorted; changed in place. Object 0 stands for zeros there.
        epoch: valid_from of what is put back.
    """
    for start, end, number, old in database.execute(_NEWEST_FIRST, (ino,)).fetchall():
        for first, last, now in list(pieces(extents, start, end)):
            if now == number:
                overlay(extents, Extent(first, last, old, epoch))
