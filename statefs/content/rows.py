"""Rows of `inline`, `shared` and `extents`: where a file's content lies, now or at a past epoch.

Readers take `epoch`; `ids.NOW` reads the living rows.
"""

from __future__ import annotations

from typing import Final

from statefs.content.extents import Extent
from statefs.metadata.connection import Queries

_INLINE: Final = (
    "SELECT data, valid_from FROM inline WHERE ino = ? AND valid_to > ? ORDER BY valid_to LIMIT 1"
)
_SHARED: Final = "SELECT source, epoch FROM shared WHERE ino = ?"
_EXTENTS: Final = (
    'SELECT start, "end", object, valid_from FROM extents'
    " WHERE ino = ? AND valid_to > ? AND valid_from <= ? ORDER BY start"
)
_DIGEST: Final = (
    "SELECT sha256, blocks FROM digests WHERE ino = ?1 AND valid_to > ?2 AND valid_from <= ?2"
)


def inline(database: Queries, ino: int, epoch: int) -> tuple[bytes, int] | None:
    """Return the inline content and its valid_from, or None."""
    row = database.execute(_INLINE, (ino, epoch)).fetchone()
    return row if row is not None and row[1] <= epoch else None


def shared(database: Queries, ino: int) -> tuple[int, int] | None:
    """Return with which inode, at which epoch, a file of a clone shares its content; or None."""
    row: tuple[int, int] | None = database.execute(_SHARED, (ino,)).fetchone()
    return row


def extents(database: Queries, ino: int, epoch: int) -> list[Extent]:
    """Return the extents of a file in the order of their starts."""
    return [Extent(*row) for row in database.execute(_EXTENTS, (ino, epoch, epoch)).fetchall()]


def digest(database: Queries, ino: int, epoch: int) -> tuple[bytes, bytes | None] | None:
    """Return the `sha256` and `blocks` of an inode in a sealed snapshot; None without a row.

    Args:
        epoch: of the snapshot; of one that is not sealed the rows say nothing.
    """
    row: tuple[bytes, bytes | None] | None = database.execute(_DIGEST, (ino, epoch)).fetchone()
    return row
