"""Rows of `xattrs`: extended attributes, now or at a past epoch.

Every reader takes `epoch`: `ids.NOW` reads the living row, so one statement serves the present and
every past.
"""

from __future__ import annotations

from typing import Final

from statefs.metadata.connection import Queries

_XATTR: Final = (
    "SELECT value, valid_from FROM xattrs"
    " WHERE ino = ? AND name = ? AND valid_to > ? ORDER BY valid_to LIMIT 1"
)
_XATTRS: Final = (
    "SELECT name, value, valid_from FROM xattrs WHERE ino = ? AND valid_to > ? AND valid_from <= ?"
)


def xattr(database: Queries, ino: int, name: bytes, epoch: int) -> tuple[bytes, int] | None:
    """Return the value of an extended attribute and its valid_from, or None."""
    row = database.execute(_XATTR, (ino, name, epoch)).fetchone()
    return row if row is not None and row[1] <= epoch else None


def xattrs(database: Queries, ino: int, epoch: int) -> dict[bytes, tuple[bytes, int]]:
    """Return name -> (value, valid_from) of all extended attributes."""
    rows = database.execute(_XATTRS, (ino, epoch, epoch)).fetchall()
    return {name: (value, born) for name, value, born in rows}
